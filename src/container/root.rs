//! The root of a container: an overlay, the fixed mounts, those of the Dockerfile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::device::Devices;
use super::mount::{self, BENEATH, DATA_ONLY, READ_ONLY};
use super::mount_point::{Shape, Stub, find_or_make};
use super::overlay::{self, Span, Upper};
use super::template::{Prepared, Template};
use super::{Container, device, mask, skeleton, source};
use crate::diag::{Context, Diagnostic, Result};
use crate::plan::Security;
use crate::sys;

/// A root with all that stands in it.
pub struct Root {
    pub overlay: OwnedFd,
    pub skeleton: OwnedFd,
    /// Made in the upper dir or in a mount, because the image hides the skeleton there.
    pub stubs: Vec<Stub>,
}

/// Mounts everything, and makes it this process's root: it leaves the spawner's mount namespace for
/// one of its own. The caller's file system ids are root's inside, its umask is 0, and it has its
/// pid, ipc and network namespaces already, which decide what /proc, /dev/mqueue and /sys show.
pub fn assemble(container: &Container, template: &Template, prepared: &Prepared) -> Result<Root> {
    let sources = source::open_all(&container.mounts, template)?;
    let skeleton = if sources.is_empty() {
        template.skeleton.try_clone().context(|| "cannot take another descriptor")?
    } else {
        let targets = container.mounts.iter().map(|mount| mount.target.as_str());
        skeleton::make(targets.zip(sources.iter().map(|source| source.shape)))?
    };
    let overlay = overlay(prepared, skeleton.as_fd())?;
    // All that is the host's has been opened.
    move_in(&overlay, template.mount_namespace.as_fd()).context(|| "cannot enter the container's root")?;
    let mut stubs = Vec::new();
    let root = overlay.as_fd();
    let is_sandboxed = container.security == Security::Sandbox;

    let proc = mount::filesystem("proc", &[], DATA_ONLY)?;
    put_fixed(root, "proc", &proc, &mut stubs)?;
    let sys = mount::filesystem("sysfs", &[], DATA_ONLY | if is_sandboxed { READ_ONLY } else { 0 })?;
    put_fixed(root, "sys", &sys, &mut stubs)?;
    if template.has_cgroup2 {
        // Programs look for their limits there. Not every host lets one have it.
        if let Ok(groups) = mount::filesystem("cgroup2", &[], DATA_ONLY | READ_ONLY) {
            put_fixed(root, "sys/fs/cgroup", &groups, &mut stubs)?;
        }
    }
    let Devices { dev, pts, shm, .. } = &prepared.devices;
    for (place, mount) in [("dev", dev), ("dev/pts", pts), ("dev/shm", shm), ("dev/mqueue", &device::message_queues()?)]
    {
        put_fixed(root, place, mount, &mut stubs)?;
    }
    if is_sandboxed {
        mask::apply(&template.masks, root, &template.null, &template.empty)?;
    }
    for (file, place) in [(&prepared.hosts, skeleton::HOSTS), (&prepared.resolv_conf, skeleton::RESOLV_CONF)] {
        put(root, place, file.as_fd(), Shape::File, &mut stubs)?;
    }
    for (mount, source) in container.mounts.iter().zip(sources) {
        if mount.target.split('/').all(|name| matches!(name, "" | ".")) {
            return Err(Diagnostic::error("cannot mount on `/`"));
        }
        put(root, &mount.target, source.mount.as_fd(), source.shape, &mut stubs)?;
    }
    Ok(Root { overlay, skeleton, stubs })
}

/// Leaves the host's mounts for a namespace that has only `root`.
fn move_in(root: &OwnedFd, namespace: BorrowedFd<'_>) -> std::io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
    sys::enter_new_mount_namespace()?;
    Ok(mount::make_root(root.as_fd())?)
}

/// The layers and the draft stay open in the spawner beyond the step.
fn overlay(prepared: &Prepared, skeleton: BorrowedFd<'_>) -> Result<OwnedFd> {
    let lowers: Vec<_> = prepared.layers.iter().map(|layer| layer.as_fd()).chain([skeleton]).collect();
    let (upper, work) = overlay::upper_of(prepared.draft.as_fd())?;
    overlay::mount(&lowers, Some(&Upper { upper: upper.as_fd(), work: work.as_fd() }), Span::SeveralFileSystems)
}

fn put(root: BorrowedFd<'_>, path: &str, mount: BorrowedFd<'_>, shape: Shape, stubs: &mut Vec<Stub>) -> Result<()> {
    let place = find_or_make(root, path, shape, stubs)?;
    mount::attach(mount, place.as_fd()).context(|| format!("cannot mount on `{path}`"))
}

/// For the directories that masks rely on: an image that has a link there is refused, lest it
/// lead the masks elsewhere.
fn put_fixed(root: BorrowedFd<'_>, path: &str, mount: &OwnedFd, stubs: &mut Vec<Stub>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = match rustix::fs::openat2(root, path, flags, Mode::empty(), BENEATH | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT) => find_or_make(root, path, Shape::Directory, stubs)?,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(Diagnostic::error(format!("cannot mount on `/{path}`: in the image it is not a directory")));
        }
        opened => opened.context(|| format!("cannot open `/{path}` of the image"))?,
    };
    mount::attach(mount.as_fd(), place.as_fd()).context(|| format!("cannot mount on `/{path}`"))
}
