//! Images as their readers see them: an OCI layout or tar, checked, and its files as lines of text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::sync::OnceLock;

use serde_json::Value;
use wythe::digest::Digest;

use super::sandbox::busybox_layout;

/// What a path in an image is, as a line of `expected` without the path.
pub type Files = BTreeMap<String, String>;

/// An image as its readers see it; every digest and size was checked.
pub struct Image {
    /// The digest of the config.
    pub id: String,
    pub config: Value,
    pub diff_ids: Vec<String>,
    /// All layers, one over the other.
    pub files: Files,
    /// When each path was last modified, of the layer that has it last.
    pub times: BTreeMap<String, u64>,
}

impl Image {
    /// Reads an OCI tar.
    pub fn read(bytes: &[u8]) -> Self {
        let members = members(bytes);
        Self::load(&|name| members.get(name).unwrap_or_else(|| panic!("the tar has no {name}")).clone())
    }

    /// Reads an OCI layout whose files `member` gives.
    pub fn load(member: &dyn Fn(&str) -> Vec<u8>) -> Self {
        let layout: Value = serde_json::from_slice(&member("oci-layout")).unwrap();
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = member(&format!("blobs/{}", digest.replace(':', "/")));
            assert_eq!(Digest::of(&bytes).to_string(), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&member("index.json")).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1, "{index}");
        let manifest: Value = serde_json::from_slice(&blob(&manifests[0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let diff_ids: Vec<_> =
            config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), diff_ids.len());
        let is_layer = |entry: &&Value| entry["empty_layer"] != true;
        assert_eq!(config["history"].as_array().unwrap().iter().filter(is_layer).count(), layers.len());

        let (mut files, mut times) = (Files::new(), BTreeMap::new());
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            let bytes = blob(layer);
            let kind = layer["mediaType"].as_str().unwrap();
            let mut tar = Vec::new();
            match kind.strip_prefix("application/vnd.oci.image.layer.v1.tar") {
                Some("") => tar = bytes,
                Some("+gzip") => {
                    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).unwrap();
                }
                _ => panic!("layer of type {kind}"),
            }
            assert_eq!(&Digest::of(&tar).to_string(), diff_id);
            apply(&mut files, &tar);
            for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
                let entry = entry.unwrap();
                times.insert(name_of(&entry), entry.header().mtime().unwrap());
            }
        }
        let id = manifest["config"]["digest"].as_str().unwrap().to_owned();
        Self { id, config, diff_ids, files, times }
    }
}

/// The files of a tar, by name.
pub fn members(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut members = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.insert(name, content);
    }
    members
}

/// Lays a layer over `files`.
pub fn apply(files: &mut Files, tar: &[u8]) {
    // A whiteout hides what is below, not what its own layer brings, wherever it stands in the tar.
    let below = std::mem::take(files);
    let (mut own, mut hidden, mut opaque) = (Files::new(), Vec::new(), Vec::new());
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = name_of(&entry);
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let join = |name: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        if name == ".wh..wh..opq" {
            opaque.push(format!("{parent}/"));
        } else if let Some(name) = name.strip_prefix(".wh.") {
            hidden.push(join(name));
        } else {
            let description = describe(&mut entry);
            assert!(own.insert(path.clone(), description).is_none(), "{path} is twice in a layer");
        }
    }
    let is_below = |path: &str, top: &str| path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'));
    *files = below
        .into_iter()
        .filter(|(path, _)| !hidden.iter().any(|hidden| path == hidden || is_below(path, hidden)))
        .filter(|(path, _)| !opaque.iter().any(|opaque| path.starts_with(opaque)))
        .filter(|(path, _)| {
            !own.iter().any(|(top, description)| !description.starts_with("dir ") && is_below(path, top))
        })
        .collect();
    files.extend(own);
}

fn name_of(entry: &tar::Entry<'_, &[u8]>) -> String {
    entry.path().unwrap().to_string_lossy().trim_matches('/').trim_start_matches("./").to_owned()
}

fn describe(entry: &mut tar::Entry<'_, &[u8]>) -> String {
    let mut xattrs = String::new();
    if let Ok(Some(extensions)) = entry.pax_extensions() {
        for extension in extensions {
            if let Some(name) = extension.unwrap().key().unwrap().strip_prefix("SCHILY.xattr.") {
                let _ = write!(xattrs, " +{name}");
            }
        }
    }
    let header = entry.header();
    let (kind, mode) = (header.entry_type(), header.mode().unwrap());
    assert_eq!(mode & !0o7777, 0, "the mode has bits of the kind of file");
    let (uid, gid) = (header.uid().unwrap(), header.gid().unwrap());
    let target = |entry: &tar::Entry<'_, &[u8]>| entry.link_name().unwrap().unwrap().to_string_lossy().into_owned();
    let body = match kind {
        tar::EntryType::Directory => format!("dir {mode:04o} {uid}:{gid}"),
        tar::EntryType::Symlink => format!("link {uid}:{gid} {}", target(entry)),
        tar::EntryType::Link => format!("hardlink {}", target(entry)),
        tar::EntryType::Fifo => format!("fifo {mode:04o} {uid}:{gid}"),
        tar::EntryType::Regular => {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let digest = Digest::of(&content).hex();
            format!("file {mode:04o} {uid}:{gid} {} {}", content.len(), &digest[..12])
        }
        tar::EntryType::Char | tar::EntryType::Block => {
            let (major, minor) = (header.device_major().unwrap(), header.device_minor().unwrap());
            format!("device {mode:04o} {uid}:{gid} {} {}", major.unwrap_or(0), minor.unwrap_or(0))
        }
        other => panic!("an entry of type {other:?}"),
    };
    body + &xattrs
}

/// The lines of `expected`.
pub fn difference(base: &Files, image: &Files) -> String {
    let mut lines = BTreeMap::new();
    for (path, description) in image {
        if base.get(path) != Some(description) {
            lines.insert(path, format!("{path} {description}\n"));
        }
    }
    for path in base.keys().filter(|path| !image.contains_key(*path)) {
        lines.insert(path, format!("- {path}\n"));
    }
    lines.into_values().collect()
}

/// The base image.
pub fn busybox() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::load(&|name| fs::read(busybox_layout().join(name)).unwrap()))
}

/// The reader of images and its listing, on images made here.
mod reading {
    use super::*;

    fn layer(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(1);
            header.set_gid(2);
            let is_link = kind.is_symlink() || kind.is_hard_link();
            header.set_size(if is_link { 0 } else { content.len() as u64 });
            if is_link {
                builder.append_link(&mut header, path, content).unwrap();
            } else {
                builder.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn layers_lie_over_one_another() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let mut base = Files::new();
        let below = [
            ("a/", Directory, ""),
            ("a/gone", Regular, "1"),
            ("a/kept", Regular, "2"),
            ("o/", Directory, ""),
            ("o/old", Regular, "3"),
            ("becomes-file/", Directory, ""),
            ("becomes-file/x", Regular, "4"),
            ("same", Regular, "5"),
        ];
        apply(&mut base, &layer(&below));
        let mut image = base.clone();
        let above = [
            ("a/.wh.gone", Regular, ""),
            ("o/new", Regular, "6"),
            ("o/.wh..wh..opq", Regular, ""),
            ("becomes-file", Regular, ""),
            ("link", Symlink, "a/kept"),
            ("hard", Link, "same"),
        ];
        apply(&mut image, &layer(&above));
        let expected = "\
- a/gone
becomes-file file 0644 1:2 0 e3b0c44298fc
- becomes-file/x
hard hardlink same
link link 1:2 a/kept
o/new file 0644 1:2 1 e7f6c011776e
- o/old
";
        assert_eq!(difference(&base, &image), expected);
    }

    #[test]
    fn the_base_is_what_it_should_be() {
        let base = busybox();
        assert_eq!(base.diff_ids.len(), 1);
        assert_eq!(base.files["bin/sh"], "link 0:0 /bin/busybox");
        assert_eq!(base.files["tmp"], "dir 1777 0:0");
    }
}
