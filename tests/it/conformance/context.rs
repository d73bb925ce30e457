//! The files of a case on disk: owners, modes, times and all.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev};

use super::case::{File, Kind};

/// When everything was last modified that says nothing of it: a day in January 2020.
pub const TIME: i64 = 1_577_934_245;

/// Makes `files` below `root`. Text holds `substitutes`.
pub fn lay(files: &[File], root: &Path, substitute: &dyn Fn(&str) -> String) {
    let (links, others): (Vec<_>, Vec<_>) = files.iter().partition(|file| matches!(file.kind, Kind::HardLink(_)));
    for file in others.iter().chain(&links) {
        put(file, root, substitute);
    }
    // Those of directories last, since making a file in one changes its time and takes its mode.
    for file in others {
        if !matches!(file.kind, Kind::Link(_)) {
            chmod(&root.join(&file.path), file);
        }
    }
    settle(root, root, files);
}

fn put(file: &File, root: &Path, substitute: &dyn Fn(&str) -> String) {
    let path = root.join(&file.path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let node = |kind, major, minor| {
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o644), makedev(major, minor)).unwrap();
    };
    match &file.kind {
        Kind::Regular(content) => {
            let content = match str::from_utf8(content) {
                Ok(text) => substitute(text).into_bytes(),
                Err(_) => content.clone(),
            };
            fs::write(&path, content).unwrap();
        }
        Kind::Directory => fs::create_dir_all(&path).unwrap(),
        Kind::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
        Kind::HardLink(first) => fs::hard_link(root.join(first), &path).unwrap(),
        Kind::Fifo => node(FileType::Fifo, 0, 0),
        Kind::Socket => node(FileType::Socket, 0, 0),
        Kind::Character(major, minor) => node(FileType::CharacterDevice, *major, *minor),
        Kind::Block(major, minor) => node(FileType::BlockDevice, *major, *minor),
        Kind::Tar(members, compression) => fs::write(&path, compressed(&tar(members), compression)).unwrap(),
    }
    let (uid, gid) = (Uid::from_raw(file.owner.0), Gid::from_raw(file.owner.1));
    rustix::fs::chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    for (name, value) in &file.xattrs {
        rustix::fs::lsetxattr(&path, name.as_str(), value.as_bytes(), XattrFlags::empty()).unwrap();
    }
}

fn chmod(path: &Path, file: &File) {
    let default = if matches!(file.kind, Kind::Directory) { 0o755 } else { 0o644 };
    rustix::fs::chmod(path, Mode::from_raw_mode(file.mode.unwrap_or(default))).unwrap();
}

/// Sets the times of everything at and below `path`.
fn settle(root: &Path, path: &Path, files: &[File]) {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            settle(root, &entry.unwrap().path(), files);
        }
    }
    let name = path.strip_prefix(root).unwrap();
    let said = files.iter().find(|file| Path::new(&file.path) == name).and_then(|file| file.mtime);
    let time = Timespec { tv_sec: said.unwrap_or(TIME), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn tar(members: &[File]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = tar::Header::new_ustar();
        let (kind, default) = match member.kind {
            Kind::Regular(_) => (tar::EntryType::Regular, 0o644),
            Kind::Directory => (tar::EntryType::Directory, 0o755),
            Kind::Link(_) => (tar::EntryType::Symlink, 0o644),
            Kind::HardLink(_) => (tar::EntryType::Link, 0o644),
            Kind::Fifo => (tar::EntryType::Fifo, 0o644),
            Kind::Character(..) => (tar::EntryType::Char, 0o644),
            Kind::Block(..) => (tar::EntryType::Block, 0o644),
            Kind::Socket | Kind::Tar(..) => panic!("{} cannot be a member", member.path),
        };
        header.set_entry_type(kind);
        header.set_mode(member.mode.unwrap_or(default));
        header.set_uid(member.owner.0.into());
        header.set_gid(member.owner.1.into());
        header.set_mtime(member.mtime.unwrap_or(TIME).try_into().unwrap());
        // As it is written, which the methods of the header refuse: `..` and a leading slash.
        let slash = if matches!(member.kind, Kind::Directory) { "/" } else { "" };
        let name = format!("{}{slash}", member.path);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        let mut content = &[][..];
        match &member.kind {
            Kind::Regular(bytes) => content = bytes,
            Kind::Link(target) | Kind::HardLink(target) => {
                header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            }
            Kind::Character(major, minor) | Kind::Block(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
            }
            _ => {}
        }
        let xattrs = member.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value));
        let xattrs: Vec<_> = xattrs.collect();
        if !xattrs.is_empty() {
            let records = xattrs.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            builder.append_pax_extensions(records).unwrap();
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn compressed(tar: &[u8], by: &str) -> Vec<u8> {
    match by {
        "" => tar.to_vec(),
        "gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        "bz2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        "xz" => {
            let mut bytes = Vec::new();
            lzma_rs::xz_compress(&mut &tar[..], &mut bytes).unwrap();
            bytes
        }
        "zst" => {
            let mut bytes = vec![0; zstd_safe::compress_bound(tar.len())];
            let size = zstd_safe::compress(&mut bytes[..], tar, 1).unwrap();
            bytes.truncate(size);
            bytes
        }
        other => panic!("what is `{other}`?"),
    }
}
