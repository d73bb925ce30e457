//! The root of a container: an overlay, the fixed mounts, those of the Dockerfile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::device::{Devices, HostDevice};
use super::mount::{self, BENEATH, DATA_ONLY, READ_ONLY};
use super::mount_point::{Shape, Stub, find_or_make};
use super::overlay::{self, Span, Upper};
use super::template::{Prepared, Template};
use super::{Container, Given, device, mask, skeleton, source};
use crate::diag::{Context, Diagnostic, Result};
use crate::plan::Security;
use crate::sys;

/// A root with all that stands in it.
pub struct Root {
    pub overlay: OwnedFd,
    pub skeleton: OwnedFd,
    /// The mount namespace.
    pub namespace: OwnedFd,
    /// Made in the upper dir or in a mount, because the image hides the skeleton there.
    pub stubs: Vec<Stub>,
}

/// Mounts everything, and makes it this process's root: it leaves the spawner's mount namespace for
/// one of its own. The caller's file system ids are root's inside, its umask is 0, and it has its
/// pid, ipc and network namespaces already, which decide what /proc, /dev/mqueue and /sys show.
pub fn assemble(container: &Container, template: &Template, prepared: &Prepared) -> Result<Root> {
    if !template.copies_detached {
        // The steps' own, where what is to be copied can be attached.
        sys::enter_new_mount_namespace().context(|| "cannot make a mount namespace")?;
    }
    let sources = source::open_all(&container.mounts, template)?;
    // An older kernel attaches it to this step's namespace, and then it is no other's.
    let skeleton = if sources.is_empty() && template.copies_detached {
        template.skeleton.try_clone().context(|| "cannot take another descriptor")?
    } else {
        let targets = container.mounts.iter().map(|mount| mount.target.as_str());
        skeleton::make(targets.zip(sources.iter().map(|source| source.shape)), &template.realm.mapping)?
    };
    let overlay = overlay(container, prepared, skeleton.as_fd(), template)?;
    let is_sandboxed = container.security == Security::Sandbox;
    // In a user namespace the kernel makes these only for who sees the host's own.
    let proc = mount::filesystem("proc", &[], DATA_ONLY)?;
    let sys = sysfs(is_sandboxed)?;
    // Programs look for their limits there. Not every host lets one have it.
    let groups = match template.has_cgroup2 {
        true => mount::filesystem("cgroup2", &[], DATA_ONLY | READ_ONLY).ok(),
        false => None,
    };
    let queues = device::message_queues(&template.realm.mapping)?;
    let devices = device::of_host(&template.realm.mapping)?;
    // All that is the host's has been opened.
    move_in(&overlay, template.mount_namespace.as_fd()).context(|| "cannot enter the container's root")?;
    let mut stubs = Vec::new();
    let root = overlay.as_fd();

    put_fixed(root, "proc", &proc, &mut stubs)?;
    put_fixed(root, "sys", &sys, &mut stubs)?;
    if let Some(groups) = groups {
        put_fixed(root, "sys/fs/cgroup", &groups, &mut stubs)?;
    }
    let Devices { dev, pts, shm, empty, .. } = &prepared.devices;
    for (place, mount) in [("dev", dev), ("dev/pts", pts), ("dev/shm", shm), ("dev/mqueue", &queues)] {
        put_fixed(root, place, mount, &mut stubs)?;
    }
    for HostDevice { name, mount, .. } in &devices {
        put(root, &format!("dev/{name}"), mount.as_fd(), Shape::File, &mut stubs)?;
    }
    if is_sandboxed {
        // Not the image's, which could be something else: this /dev is ours.
        let doing = || "cannot open the container's `/dev/null`";
        let null = mount::place(root, "dev/null", OFlags::NOFOLLOW, BENEATH).context(doing)?;
        mask::apply(&template.masks, root, &null, empty)?;
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
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::openat(&proc, "self/ns/mnt", flags, Mode::empty())
        .context(|| "cannot open the mount namespace of a container")?;
    Ok(Root { overlay, skeleton, namespace, stubs })
}

/// What /sys is to be: one of this process's network namespace, or, where that belongs to another user
/// namespace, the host's with all that is mounted in it.
fn sysfs(is_readonly: bool) -> Result<OwnedFd> {
    let attributes = DATA_ONLY | if is_readonly { READ_ONLY } else { 0 };
    mount::filesystem("sysfs", &[], attributes).or_else(|refused| {
        let host = mount::host_directory(Path::new("/sys")).map_err(|_| refused)?;
        mount::copy_of_all(host.as_fd())
            .and_then(|copy| mount::set_all(copy.as_fd(), attributes).map(|()| copy))
            .context(|| "cannot mount the host's `/sys`")
    })
}

/// Leaves the host's mounts for a namespace that has only `root`.
fn move_in(root: &OwnedFd, namespace: BorrowedFd<'_>) -> std::io::Result<()> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?;
    sys::enter_new_mount_namespace()?;
    Ok(mount::make_root(root.as_fd())?)
}

/// The layers and the draft stay open in the spawner beyond the step.
fn overlay(
    container: &Container,
    prepared: &Prepared,
    skeleton: BorrowedFd<'_>,
    template: &Template,
) -> Result<OwnedFd> {
    if let Given::Root(_) | Given::Tree = &container.ground {
        return prepared.draft.try_clone().context(|| "cannot take another descriptor");
    }
    if !template.copies_detached {
        // What has to be found by name has to be attached, here.
        let anchor = |mount: BorrowedFd<'_>| mount::anchor(mount).context(|| "cannot attach a layer");
        let layers = source::mapped_layers(&container.lowers, template)?;
        layers.iter().map(AsFd::as_fd).chain([skeleton]).try_for_each(anchor)?;
        let draft = match &container.ground {
            Given::Room(room) => source::mapped_copy(room.as_fd(), template)?,
            _ => source::mapped(&container.draft, template)?,
        };
        anchor(draft.as_fd())?;
        let lowers: Vec<_> = layers.iter().map(AsFd::as_fd).chain([skeleton]).collect();
        return overlay_on(&lowers, draft.as_fd(), template);
    }
    let lowers: Vec<_> = prepared.layers.iter().map(|layer| layer.as_fd()).chain([skeleton]).collect();
    overlay_on(&lowers, prepared.draft.as_fd(), template)
}

fn overlay_on(lowers: &[BorrowedFd<'_>], draft: BorrowedFd<'_>, template: &Template) -> Result<OwnedFd> {
    let (upper, work) = overlay::upper_of(draft)?;
    let upper = Upper { upper: upper.as_fd(), work: work.as_fd() };
    overlay::mount(lowers, Some(&upper), Span::SeveralFileSystems, template.attributes())
}

fn put(root: BorrowedFd<'_>, path: &str, mount: BorrowedFd<'_>, shape: Shape, stubs: &mut Vec<Stub>) -> Result<()> {
    let place = find_or_make(root, path, shape, stubs)?;
    mount::attach(mount, place.as_fd()).context(|| format!("cannot mount on `{path}`"))
}

/// For the directories that masks rely on: an image that has a link there is refused, lest it
/// lead the masks elsewhere.
fn put_fixed(root: BorrowedFd<'_>, path: &str, mount: &OwnedFd, stubs: &mut Vec<Stub>) -> Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let place = match mount::place(root, path, flags, BENEATH | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT) => find_or_make(root, path, Shape::Directory, stubs)?,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(Diagnostic::error(format!("cannot mount on `/{path}`: in the image it is not a directory")));
        }
        opened => opened.context(|| format!("cannot open `/{path}` of the image"))?,
    };
    mount::attach(mount.as_fd(), place.as_fd()).context(|| format!("cannot mount on `/{path}`"))
}
