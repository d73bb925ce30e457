//! The sources of `RUN --mount`, as detached mounts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mount::{self, BENEATH, DATA_ONLY, NO_DEV, NO_SUID, READ_ONLY};
use super::mount_point::Shape;
use super::overlay::{self, Span, Upper};
use super::template::{Template, write_all};
use super::userns::Mapping;
use super::{Mount, MountKind, host_node};
use crate::diag::{Context, Diagnostic, Result};

/// What is to be attached.
pub struct Source {
    pub mount: OwnedFd,
    pub shape: Shape,
}

/// Opens the sources of all mounts, in order. The caller's file system ids are root's inside.
pub fn open_all(mounts: &[Mount], template: &Template) -> Result<Vec<Source>> {
    let mut files = None;
    mounts
        .iter()
        .map(|mount| {
            let mount = open(&mount.kind, template, &mut files)?;
            let shape = Shape::of(mount.as_fd()).context(|| "cannot look at the source of a mount")?;
            Ok(Source { mount, shape })
        })
        .collect()
}

fn open(kind: &MountKind, template: &Template, files: &mut Option<Files>) -> Result<OwnedFd> {
    match kind {
        MountKind::Bind { root, path, is_readonly } => {
            let mount = bind(root, path)?;
            map(mount.as_fd(), root, template)?;
            let attributes = NO_DEV | if *is_readonly { READ_ONLY } else { 0 };
            mount::set(mount.as_fd(), attributes).context(|| format!("cannot mount `{}`", root.display()))?;
            Ok(mount)
        }
        MountKind::Context { root, path, is_readonly: true } => {
            let mount = bind(root, path)?;
            map_context(mount.as_fd(), root, template)?;
            mount::set(mount.as_fd(), NO_DEV | NO_SUID | READ_ONLY)
                .context(|| format!("cannot mount `{}`", root.display()))?;
            Ok(mount)
        }
        MountKind::Context { root, path, is_readonly: false } => {
            let lower = mount::copy_of_path(root).context(|| format!("cannot open `{}`", root.display()))?;
            map_context(lower.as_fd(), root, template)?;
            within(&discarding(vec![lower], template)?, path, template)
        }
        MountKind::Layers { lowers, path, is_readonly } => {
            let lowers = mapped_layers(lowers, template)?;
            let tree = match (<[OwnedFd; 1]>::try_from(lowers), is_readonly) {
                (Ok(layer), false) => discarding(layer.into(), template)?,
                (Err(layers), false) => discarding(layers, template)?,
                (Ok([layer]), true) => layer,
                (Err(layers), true) if layers.is_empty() => {
                    mount::filesystem("tmpfs", &[("size", "4096"), ("mode", "755")], NO_DEV)?
                }
                (Err(layers), true) => {
                    anchor_all(&layers, template)?;
                    let layers: Vec<_> = layers.iter().map(AsFd::as_fd).collect();
                    overlay::mount(&layers, None, Span::OneFileSystem, template.attributes())?
                }
            };
            let mount = within(&tree, path, template)?;
            let attributes = NO_DEV | if *is_readonly { READ_ONLY } else { 0 };
            mount::set(mount.as_fd(), attributes).context(|| "cannot mount layers")?;
            Ok(mount)
        }
        MountKind::Tmpfs { size_bytes } => {
            let size = size_bytes.unwrap_or(0).to_string();
            let options = [("mode", "1777"), ("size", size.as_str())];
            mount::filesystem("tmpfs", if size_bytes.is_some() { &options } else { &options[..1] }, NO_SUID | NO_DEV)
        }
        MountKind::File { content, mode, uid, gid } => {
            let files = match files {
                Some(files) => files,
                None => files.insert(Files::new(template)?),
            };
            files.add(content, *mode, (*uid, *gid), &template.realm.mapping)
        }
        MountKind::Device { path, mode, uid, gid } => host_node::device(path, *mode, (*uid, *gid), template),
        MountKind::Host { path, is_readonly } => host_node::files(path, *is_readonly),
        MountKind::Socket { path, mode, uid, gid } => socket(path, *mode, (*uid, *gid), &template.realm.mapping),
    }
}

/// Its owner and mode decide who may connect: changed where it is, as it is this step's alone.
fn socket(path: &Path, mode: u32, (uid, gid): (u32, u32), mapping: &Mapping) -> Result<OwnedFd> {
    let doing = || "cannot mount a socket";
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).context(doing)?;
    let stat = rustix::fs::fstat(&place).context(doing)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(Diagnostic::error(doing()).caused_by("it is no socket"));
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o777)).context(doing)?;
    mapping.give(&place, uid, gid).context(doing)?;
    let mount = mount::copy_of(place.as_fd()).context(doing)?;
    mount::set(mount.as_fd(), DATA_ONLY).context(doing)?;
    Ok(mount)
}

/// A copy of the mount at `path` beneath the host directory `root`.
fn bind(root: &Path, path: &str) -> Result<OwnedFd> {
    let shown = root.display();
    let dir = mount::host_directory(root).context(|| format!("cannot open `{shown}`"))?;
    let place = mount::place(dir.as_fd(), path, OFlags::empty(), BENEATH).map_err(|errno| missing(path, errno))?;
    mount::copy_of(place.as_fd()).context(|| format!("cannot mount `{path}` of `{shown}`"))
}

fn missing(path: &str, errno: Errno) -> Diagnostic {
    Diagnostic::error(format!("cannot mount `{path}`: {}", std::io::Error::from(errno)))
}

/// The part of a tree below `path`.
fn within(tree: &OwnedFd, path: &str, template: &Template) -> Result<OwnedFd> {
    anchor_all(std::slice::from_ref(tree), template)?;
    let place = mount::place(tree.as_fd(), path, OFlags::empty(), BENEATH).map_err(|errno| missing(path, errno))?;
    mount::copy_of(place.as_fd()).map_err(|errno| missing(path, errno))
}

/// Contexts lie on any file system; one that cannot map ids is shown as it is, where root inside
/// reads what everybody may. In a user namespace that is all there is to do: the user is root there.
fn map_context(mount: BorrowedFd<'_>, root: &Path, template: &Template) -> Result<()> {
    if !template.realm.mapping.is_shifted() {
        return Ok(());
    }
    match mount::map_ids(mount, template.map_of_context(root)?) {
        Err(Errno::INVAL) => Ok(()),
        mapped => mapped.map_err(|errno| unmappable(root, errno)),
    }
}

/// Layer dirs as they look inside.
pub fn mapped_layers(lowers: &[PathBuf], template: &Template) -> Result<Vec<OwnedFd>> {
    lowers.iter().map(|path| mapped(path, template)).collect()
}

/// A directory of the store as it looks inside.
pub fn mapped(path: &Path, template: &Template) -> Result<OwnedFd> {
    let copy = mount::copy_of_path(path).context(|| format!("cannot open `{}`", path.display()))?;
    map(copy.as_fd(), path, template)?;
    Ok(copy)
}

/// A mount that the builder made, as it looks inside; it is left as it was.
pub fn mapped_copy(given: BorrowedFd<'_>, template: &Template) -> Result<OwnedFd> {
    let doing = || "cannot take over a mount";
    if !template.realm.mapping.is_shifted() {
        return given.try_clone_to_owned().context(doing);
    }
    if !template.copies_detached {
        mount::anchor(given).context(doing)?;
    }
    let copy = mount::copy_of(given).context(doing)?;
    map(copy.as_fd(), Path::new("tmpfs"), template)?;
    Ok(copy)
}

/// Shows what the store has at `path` as steps see it.
fn map(mount: BorrowedFd<'_>, path: &Path, template: &Template) -> Result<()> {
    if !template.realm.mapping.is_shifted() {
        return Ok(());
    }
    // Made for steps alone, where ids cannot be mapped.
    let stat = rustix::fs::fstat(mount).context(|| format!("cannot look at `{}`", path.display()))?;
    if template.realm.mapping.is_inside(stat.st_uid, stat.st_gid) {
        return Ok(());
    }
    mount::map_ids(mount, template.realm.user_namespace.as_fd()).map_err(|errno| unmappable(path, errno))
}

/// What to say when the ids of a mount cannot be mapped.
pub fn unmappable(path: &Path, errno: Errno) -> Diagnostic {
    let error = Diagnostic::error(format!("cannot map the ids of `{}`", path.display()));
    match errno {
        Errno::INVAL => error.caused_by("its file system does not support id-mapped mounts"),
        _ => error.caused_by(std::io::Error::from(errno)),
    }
}

/// Attaches mounts out of sight, where an older kernel does nothing with them else.
fn anchor_all(mounts: &[OwnedFd], template: &Template) -> Result<()> {
    let mut mounts = mounts.iter().filter(|_| !template.copies_detached);
    mounts.try_for_each(|mount| mount::anchor(mount.as_fd())).context(|| "cannot attach the source of a mount")
}

/// A writable view of `lowers` whose changes end with it.
fn discarding(mut lowers: Vec<OwnedFd>, template: &Template) -> Result<OwnedFd> {
    let doing = || "cannot make room for changes that are discarded";
    let room = mount::filesystem("tmpfs", &[("mode", "755")], NO_DEV)?;
    for name in ["u", "w"] {
        rustix::fs::mkdirat(&room, name, Mode::from_raw_mode(0o755)).context(doing)?;
    }
    if lowers.is_empty() {
        lowers.push(mount::filesystem("tmpfs", &[("size", "4096"), ("mode", "755")], NO_DEV)?);
    }
    anchor_all(&lowers, template)?;
    anchor_all(std::slice::from_ref(&room), template)?;
    let (upper, work) = overlay::upper_of(room.as_fd())?;
    let layers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    // The root of the view is the upper's: it must look as the topmost layer's does.
    let root = rustix::fs::fstat(layers[0]).context(doing)?;
    rustix::fs::chownat(
        &upper,
        "",
        Some(rustix::fs::Uid::from_raw(root.st_uid)),
        Some(rustix::fs::Gid::from_raw(root.st_gid)),
        rustix::fs::AtFlags::EMPTY_PATH,
    )
    .context(doing)?;
    rustix::fs::chmodat(&room, "u", Mode::from_raw_mode(root.st_mode & 0o7777), rustix::fs::AtFlags::empty())
        .context(doing)?;
    let upper = Upper { upper: upper.as_fd(), work: work.as_fd() };
    overlay::mount(&layers, Some(&upper), Span::SeveralFileSystems, template.attributes())
}

/// A step's tmpfs for secrets and scripts, which reaches neither disk nor, where the kernel can
/// help it (6.4), swap.
struct Files {
    tmpfs: OwnedFd,
    count: usize,
}

impl Files {
    fn new(template: &Template) -> Result<Self> {
        let attributes = NO_SUID | NO_DEV;
        let tmpfs = mount::filesystem("tmpfs", &[("mode", "700"), ("noswap", "")], attributes)
            .or_else(|_| mount::filesystem("tmpfs", &[("mode", "700")], attributes))?;
        anchor_all(std::slice::from_ref(&tmpfs), template)?;
        Ok(Self { tmpfs, count: 0 })
    }

    fn add(&mut self, content: &[u8], mode: u32, (uid, gid): (u32, u32), mapping: &Mapping) -> Result<OwnedFd> {
        let doing = || "cannot make a file for a container";
        let name = self.count.to_string();
        self.count += 1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.tmpfs, &name, flags, Mode::from_raw_mode(0o600)).context(doing)?;
        write_all(file.as_fd(), content).context(doing)?;
        mapping.give(&file, uid, gid).context(doing)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).context(doing)?;
        let place =
            rustix::fs::openat(&self.tmpfs, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
        let mount = mount::copy_of(place.as_fd()).context(doing)?;
        let attributes = if mode & 0o111 == 0 { DATA_ONLY } else { NO_SUID | NO_DEV };
        mount::set(mount.as_fd(), attributes | READ_ONLY).context(doing)?;
        Ok(mount)
    }
}
