//! What all steps of a build have in common, made by the spawner before the first.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};

use super::binfmt::Handlers;
use super::call::Watch;
use super::cgroup::{Group, Groups};
use super::device::{Devices, Namespaces};
use super::mask::{self, Masks};
use super::network::Lane;
use super::overlay::{self, Attributes};
use super::passwd::User;
use super::realm::Realm;
use super::seccomp::Base;
use super::{Container, Given, MountKind, hosts, mount, seccomp, skeleton, source, userns};
use crate::diag::{Context, Result};
use crate::layer::Records;
use crate::plan::Security;
use crate::sys::{self, Stack};

pub struct Template {
    pub realm: Arc<Realm>,
    /// Copied for each step; has nothing of the host's.
    pub mount_namespace: OwnedFd,
    /// For steps without mounts of their own.
    pub skeleton: OwnedFd,
    /// Whether mounts that are attached nowhere can be copied, and found by name.
    pub copies_detached: bool,
    /// A tmpfs for texts.
    files: OwnedFd,
    /// Mounts that nobody uses any more, until nobody waits.
    done_with: Vec<OwnedFd>,
    pub masks: Masks,
    /// Whether the host has cgroup v2 where everybody looks for it.
    pub has_cgroup2: bool,
    filters: BTreeMap<(Base, Watch), Arc<Vec<sys::Instruction>>>,
    /// The next step's, made while an earlier one runs.
    spare: Option<Devices>,
    /// Nobody's at the moment.
    stack: Option<Stack>,
    /// Places in it.
    texts: BTreeMap<String, OwnedFd>,
    mapped: BTreeMap<PathBuf, Arc<OwnedFd>>,
    /// User namespaces that only lend their maps to mounts, by the owner shown as root.
    swapped: BTreeMap<(u32, u32), OwnedFd>,
    groups: Groups,
    handlers: Handlers,
}

/// From `linux/magic.h`.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// What one step needs besides, made by the spawner because it takes processes or is kept for
/// later steps.
pub struct Prepared {
    /// Layer dirs as they look inside, topmost first.
    pub layers: Vec<Arc<OwnedFd>>,
    /// Holds the upper and the work dir, as they look inside; or the root itself, which the builder made.
    pub draft: OwnedFd,
    pub hosts: OwnedFd,
    pub resolv_conf: OwnedFd,
    pub devices: Devices,
    /// Who the payload is, or is meant to be.
    pub user: User,
    /// What the layer that comes of the step records.
    pub records: Records,
    pub filter: Arc<Vec<sys::Instruction>>,
    /// To be joined.
    pub group: Option<Group>,
}

/// As many layers are kept mapped; each is an open descriptor.
const MAPPED_KEPT: usize = 256;

impl Template {
    pub fn new(realm: Arc<Realm>) -> Result<Self> {
        let doing = || "cannot prepare for containers";
        // Furnished meanwhile: to take leave of the host's mounts is a wait for all processors.
        let bare = mount::bare_namespace()?;
        let files = mount::filesystem("tmpfs", &[("mode", "755"), ("size", "16m")], mount::NO_SUID | mount::NO_EXEC)?;
        let trial = mount::copy_of_detached(files.as_fd())?;
        if trial.is_none() {
            mount::anchor(files.as_fd()).context(doing)?;
        }
        let sys = mount::host_directory(Path::new("/sys")).context(|| "cannot open `/sys`")?;
        let skeleton = skeleton::make([], &realm.mapping)?;
        // A kernel without overlays has steps that need none.
        let _ = overlay::learn(skeleton.as_fd());
        let masks = mask::find(realm.proc.as_fd(), sys.as_fd());
        let mount_namespace = bare.finish(realm.proc.as_fd(), |_| Ok(()))?;
        Ok(Self {
            masks,
            skeleton,
            has_cgroup2: rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC),
            filters: BTreeMap::new(),
            texts: BTreeMap::new(),
            mapped: BTreeMap::new(),
            swapped: BTreeMap::new(),
            groups: Groups::default(),
            handlers: Handlers::default(),
            realm,
            mount_namespace,
            spare: None,
            stack: None,
            copies_detached: trial.is_some(),
            done_with: trial.into_iter().collect(),
            files,
        })
    }

    /// What overlays of this process use.
    pub fn attributes(&self) -> Attributes {
        if self.realm.mapping.is_shifted() { Attributes::Trusted } else { Attributes::User }
    }

    /// `lane` is the network that the step will be in; the host's if `None`.
    pub fn prepare(&mut self, container: &Container, lane: Option<&Lane>) -> Result<Prepared> {
        self.handlers.provide(
            &container.platform.architecture,
            self.realm.proc.as_fd(),
            self.realm.user_namespace.as_fd(),
        );
        let is_shifted = self.realm.mapping.is_shifted();
        for mount in container.mounts.iter().filter(|_| is_shifted) {
            if let MountKind::Context { root, .. } = &mount.kind {
                self.swap(owner(root)?)?;
            }
        }
        let devices = match self.spare.take().filter(|spare| spare.shm_size_bytes == container.shm_size_bytes) {
            Some(spare) => spare,
            None => self.devices(container.shm_size_bytes)?,
        };
        let reach = match lane {
            None => hosts::Reach::Everything,
            Some(lane) => hosts::Reach::Lane { name_server: lane.traits.name_server, host: lane.traits.host },
        };
        let resolv_conf = hosts::resolv_conf(&host_resolv_conf()?, &reach, &container.dns);
        let (layers, draft) = match &container.ground {
            Given::Nothing => (self.layers(&container.lowers)?, source::mapped(&container.draft, self)?),
            Given::Room(room) => (self.layers(&container.lowers)?, self.room(room.as_fd())?),
            Given::Root(root) => (Vec::new(), self.root(root.as_fd())?),
            Given::Tree => (Vec::new(), tree(&container.draft)?),
        };
        let records = match &container.ground {
            Given::Root(_) | Given::Tree => Records::of(draft.as_fd()),
            _ => Records::of(overlay::upper_of(draft.as_fd())?.0.as_fd()),
        };
        let records = records.context(|| "cannot read a draft")?;
        Ok(Prepared {
            layers,
            draft,
            devices,
            hosts: self.text(hosts::hosts(&container.hostname, &container.extra_hosts, &reach))?,
            resolv_conf: self.text(resolv_conf)?,
            user: container.user.clone(),
            records,
            filter: self.filter(container.security, records),
            group: self.groups.make(&container.limits)?,
        })
    }

    fn filter(&mut self, security: Security, records: Records) -> Arc<Vec<sys::Instruction>> {
        let base = match security {
            Security::Sandbox => Base::Sandbox,
            Security::Insecure => Base::Everything,
        };
        let watch = Watch::of(records);
        let filter = self.filters.entry((base, watch)).or_insert_with(|| Arc::new(seccomp::filter(base, watch)));
        Arc::clone(filter)
    }

    /// The stack for a step's beginning.
    pub fn take_stack(&mut self) -> Result<Stack> {
        match self.stack.take() {
            Some(stack) => Ok(stack),
            None => Stack::new().context(|| "cannot prepare for containers"),
        }
    }

    pub fn give_back(&mut self, stack: Stack) {
        self.stack = Some(stack);
    }

    /// What the builder gave in the place of a draft, as it looks inside. An older kernel maps it where it can be
    /// attached: in the step's own mount namespace.
    fn room(&self, room: BorrowedFd<'_>) -> Result<OwnedFd> {
        match self.copies_detached {
            true => source::mapped_copy(room, self),
            false => room.try_clone_to_owned().context(|| "cannot take another descriptor"),
        }
    }

    /// A root that the builder made. It is attached in one place only; an older kernel copies no such mount, and
    /// then no second container has it.
    fn root(&self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        let doing = || "cannot take over a root";
        match self.copies_detached {
            true => mount::copy_of(root).context(doing),
            false => root.try_clone_to_owned().context(doing),
        }
    }

    /// Makes ahead what the next step is likely to need, and clears away what is in nobody's way. To be
    /// called when a step has been started and nobody waits.
    pub fn stock(&mut self, shm_size_bytes: u64) {
        self.expect(shm_size_bytes);
        self.groups.sweep();
        self.done_with.clear();
    }

    /// Makes ahead what the next step is likely to need.
    pub fn expect(&mut self, shm_size_bytes: u64) {
        if self.spare.is_none() {
            // If this fails the next step will say why.
            self.spare = self.devices(shm_size_bytes).ok();
        }
    }

    fn devices(&self, shm_size_bytes: u64) -> Result<Devices> {
        let namespaces = Namespaces { user: self.realm.user_namespace.as_fd(), mount: self.mount_namespace.as_fd() };
        Devices::new(shm_size_bytes, &self.realm.mapping, namespaces)
    }

    /// Layer dirs as they look inside. They are kept for later steps: a detached mount dissolves with
    /// its last descriptor, and the kernel then waits for all processors, for longer than a step takes.
    fn layers(&mut self, paths: &[PathBuf]) -> Result<Vec<Arc<OwnedFd>>> {
        if self.mapped.len() + paths.len() > MAPPED_KEPT {
            self.mapped.retain(|path, _| paths.contains(path));
        }
        let mut layers = Vec::with_capacity(paths.len());
        for path in paths {
            if !self.mapped.contains_key(path) {
                let layer = Arc::new(source::mapped(path, self)?);
                self.mapped.insert(path.clone(), layer);
            }
            layers.push(Arc::clone(&self.mapped[path]));
        }
        Ok(layers)
    }

    /// A read-only file with this content.
    fn text(&mut self, text: String) -> Result<OwnedFd> {
        let doing = || "cannot make a file for a container";
        let copy = |place: &OwnedFd| {
            let mount = mount::copy_of(place.as_fd())?;
            mount::set(mount.as_fd(), mount::READ_ONLY | mount::DATA_ONLY)?;
            Ok::<_, rustix::io::Errno>(mount)
        };
        if let Some(known) = self.texts.get(&text) {
            return copy(known).context(doing);
        }
        let name = format!("text.{}", self.texts.len());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.files, &name, flags, Mode::from_raw_mode(0o644)).context(doing)?;
        write_all(file.as_fd(), text.as_bytes()).context(doing)?;
        self.realm.mapping.give(&file, 0, 0).context(doing)?;
        let place =
            rustix::fs::openat(&self.files, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
        copy(self.texts.entry(text).or_insert(place)).context(doing)
    }

    fn swap(&mut self, owner: (u32, u32)) -> Result<()> {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.swapped.entry(owner) {
            let (uid_map, gid_map) = (userns::map_swapping(owner.0), userns::map_swapping(owner.1));
            // Where mounts are anchored this process may make no other.
            let mounts = Some(self.mount_namespace.as_fd()).filter(|_| !self.copies_detached);
            entry.insert(userns::create(self.realm.proc.as_fd(), mounts, &uid_map, &gid_map)?);
        }
        Ok(())
    }

    /// The map under which what belongs to the owner of the host directory `root` is root's inside.
    /// Only for roots that [`Template::prepare`] has seen.
    pub fn map_of_context(&self, root: &Path) -> Result<BorrowedFd<'_>> {
        // Another owner since then shows as it is on disk.
        Ok(self.swapped.get(&owner(root)?).unwrap_or(&self.realm.user_namespace).as_fd())
    }
}

/// A root that is a directory of the store, with owners as inside.
fn tree(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("cannot open `{}`", path.display());
    let mount = mount::copy_of_path(path).context(doing)?;
    mount::set(mount.as_fd(), mount::NO_DEV).context(doing)?;
    Ok(mount)
}

fn owner(root: &Path) -> Result<(u32, u32)> {
    let stat = rustix::fs::stat(root).context(|| format!("cannot look at `{}`", root.display()))?;
    Ok((stat.st_uid, stat.st_gid))
}

pub fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// The host's, with nothing in it where there is none.
pub fn host_resolv_conf() -> Result<hosts::HostFiles> {
    Ok(hosts::HostFiles {
        resolv_conf: read_host_file("/etc/resolv.conf")?.unwrap_or_default(),
        upstream: read_host_file("/run/systemd/resolve/resolv.conf")?,
    })
}

/// At most this much of a host's file is taken over.
const MAX_FILE_BYTES: usize = 1 << 20;

fn read_host_file(path: &str) -> Result<Option<String>> {
    let doing = || format!("cannot read `{path}`");
    let file = match rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened.context(doing)?,
    };
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < MAX_FILE_BYTES {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut piece)).context(doing)? {
            0 => break,
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
