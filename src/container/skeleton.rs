//! The skeleton: a small tree that stands below all layers and offers mount points, so that making
//! them leaves nothing in the upper dir.
//!
//! ```text
//! /            every step             a step with mounts adds
//! ├── dev                             ├── run/secrets/token
//! ├── etc/{hosts,resolv.conf}         └── src
//! ├── proc
//! └── sys
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mount;
use super::mount_point::Shape;
use super::userns::Mapping;
use crate::diag::{Context, Result};

pub const HOSTS: &str = "etc/hosts";
pub const RESOLV_CONF: &str = "etc/resolv.conf";

/// Makes a skeleton with what every step needs and these places besides. A place that cannot be
/// made (below a file, say) is left out; it will be looked for in the image.
pub fn make<'a>(places: impl IntoIterator<Item = (&'a str, Shape)>, mapping: &Mapping) -> Result<OwnedFd> {
    let root = mapping.root().to_string();
    let options = [("mode", "755"), ("size", "16m"), ("uid", root.as_str()), ("gid", root.as_str())];
    let skeleton = mount::filesystem("tmpfs", &options, mount::DATA_ONLY)?;
    let fixed = ["dev", "proc", "sys"].map(|name| (name, Shape::Directory)).into_iter();
    for (path, shape) in fixed.chain([(HOSTS, Shape::File), (RESOLV_CONF, Shape::File)]) {
        add(skeleton.as_fd(), path, shape, mapping).context(|| "cannot make the mount points of a container")?;
    }
    for (path, shape) in places {
        let _ = add(skeleton.as_fd(), path, shape, mapping);
    }
    Ok(skeleton)
}

fn add(skeleton: BorrowedFd<'_>, path: &str, shape: Shape, mapping: &Mapping) -> Result<(), Errno> {
    let mut dir = skeleton.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut names = path.split('/').filter(|name| !name.is_empty() && *name != ".").peekable();
    while let Some(name) = names.next() {
        if name == ".." {
            return Err(Errno::INVAL);
        }
        let made = if names.peek().is_none() && shape == Shape::File {
            rustix::fs::mknodat(&dir, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
        } else {
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
        };
        let entry = match made {
            Ok(()) => {
                let entry = open(&dir, name)?;
                mapping.give(&entry, 0, 0)?;
                entry
            }
            Err(Errno::EXIST) => open(&dir, name)?,
            Err(errno) => return Err(errno),
        };
        dir = entry;
    }
    Ok(())
}

fn open(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
