//! The way of an ordinary user into a user namespace of its own: there the program is root over the
//! user's files and over those of subordinate ids, and may mount. What needs that is the same code from
//! then on as the host root's.
//!
//! ```text
//! inside   0          1 … 65536
//!          │          │
//! outside  the user   the ranges of /etc/subuid, /etc/subgid     set by newuidmap, newgidmap
//!
//! inside   0          where there are no ranges: everything belongs to root
//!          │
//! outside  the user   set by this process itself
//! ```

use std::ffi::{CString, OsStr};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, StatVfsMountFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use rustix::thread::CapabilitySet;

use crate::diag::{Context, Diagnostic, Result, Severity};
use crate::ids::{self, IdMap, Ids};
use crate::sys::{self, Child};

/// Whether this process may mount, make namespaces and give files to anybody it knows: as the host's
/// root, or as root in a user namespace.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root() && has(CapabilitySet::SYS_ADMIN)
}

/// Makes sure that this process may mount what it is privileged for: the mounts of who entered a user
/// namespace with `unshare -r` are still the host's. For a process that has but one thread.
pub fn own_mounts() -> Result<()> {
    if ids::are_the_hosts() {
        return Ok(());
    }
    sys::enter_new_mount_namespace().context(|| "cannot have mounts of its own")
}

fn has(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Who wants to enter.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// As the user's session knows it: not every user is in `/etc/passwd`.
    pub name: Option<&'a str>,
    /// PATH, where newuidmap is looked for.
    pub search: &'a OsStr,
}

/// What a user is to enter with.
#[derive(Clone, Debug)]
pub struct Entry {
    pub ids: Ids,
    mapper: Mapper,
    /// Why there is only one id, and what to do about it.
    pub poverty: Option<Diagnostic>,
}

/// Who writes the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mapper {
    /// newuidmap and newgidmap, which may do it for everybody who has ranges.
    Programs([PathBuf; 2]),
    /// A process that stays outside, where it may.
    Outsider,
    /// This process, which may map itself.
    Oneself,
}

impl Entry {
    /// What this process can have, as far as can be seen without trying.
    pub fn find(who: Who<'_>) -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let found = match uid {
            0 => of_root(),
            _ => of_user(who, uid, gid),
        };
        let single = |poverty| {
            let ids = Ids { users: IdMap::one(uid), groups: IdMap::one(gid) };
            Self { ids, mapper: Mapper::Oneself, poverty: Some(poverty) }
        };
        found.unwrap_or_else(single)
    }

    /// Enters new user and mount namespaces. For a process that has but one thread. What it has open
    /// stays open; its supplementary groups stay, and with them what they may read.
    pub fn enter(&self) -> Result<()> {
        let own = rustix::process::getpid();
        // Made before, so that they stay outside; they begin when the namespace is there.
        let outsiders = match &self.mapper {
            Mapper::Programs([users, groups]) => {
                vec![Outsider::program(users, own, &self.ids.users)?, Outsider::program(groups, own, &self.ids.groups)?]
            }
            Mapper::Outsider => vec![Outsider::writer(own, &self.ids)?],
            Mapper::Oneself => Vec::new(),
        };
        sys::enter_new_user_namespace().map_err(|error| forbidden(&error))?;
        for outsider in &outsiders {
            outsider.begin();
        }
        outsiders.into_iter().try_for_each(Outsider::finish)?;
        if self.mapper == Mapper::Oneself {
            // Who has one group only must not give others up: they may be what keeps him from a file.
            let write = |file: &str, text: &str| {
                std::fs::write(file, text).map_err(|error| forbidden(&error).caused_by(format!("`{file}`: {error}")))
            };
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", &self.ids.users.to_string())?;
            write("/proc/self/gid_map", &self.ids.groups.to_string())?;
        }
        Ok(())
    }
}

/// Root without the right to mount, as in a container: all of its ids, if it may map them.
fn of_root() -> Result<Entry, Diagnostic> {
    let poor = || poverty("this root may not map other ids");
    if !has(CapabilitySet::SETUID) || !has(CapabilitySet::SETGID) {
        return Err(poor().hint("start the container with the capabilities SETUID and SETGID"));
    }
    let own = Ids::of_this_process().map_err(|error| poor().caused_by(error))?;
    let ids = Ids { users: own.users.unchanged(), groups: own.groups.unchanged() };
    Ok(Entry { ids, mapper: Mapper::Outsider, poverty: None })
}

fn of_user(who: Who<'_>, uid: u32, gid: u32) -> Result<Entry, Diagnostic> {
    let poor = |why: String| poverty(&why);
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let passwd = read("/etc/passwd");
    let name = name_of(&passwd, uid).or(who.name);
    let [users, groups] = ["/etc/subuid", "/etc/subgid"].map(read);
    let ranges = |text: &str| ids::subordinate(text, name, uid);
    let (Some(user_map), Some(group_map)) = (ids::map_of(uid, &ranges(&users)), ids::map_of(gid, &ranges(&groups)))
    else {
        let file = if ranges(&users).is_empty() { "/etc/subuid" } else { "/etc/subgid" };
        let whom = name.map_or_else(|| uid.to_string(), str::to_owned);
        let first = free_range(&[&users, &groups]);
        let last = first + (RANGE - 1);
        return Err(poor(format!("`{file}` gives no ids to `{whom}`"))
            .hint(format!("`sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {whom}`")));
    };
    let mut programs = Vec::new();
    for program in ["newuidmap", "newgidmap"] {
        let path = std::env::split_paths(who.search).chain(PLACES.map(PathBuf::from));
        let Some(path) = path.map(|dir| dir.join(program)).find(|path| path.is_file()) else {
            return Err(poor(format!("`{program}` is not installed"))
                .hint("`sudo apt-get install uidmap`, or `sudo dnf install shadow-utils`"));
        };
        check_program(&path, program).map_err(|(why, cure)| {
            let error = poor(why);
            match cure {
                Some(cure) => error.hint(cure),
                None => error,
            }
        })?;
        programs.push(path);
    }
    let programs = programs.try_into().map_err(|_| poor("newuidmap is not installed".into()))?;
    let ids = Ids { users: user_map, groups: group_map };
    Ok(Entry { ids, mapper: Mapper::Programs(programs), poverty: None })
}

fn poverty(why: &str) -> Diagnostic {
    let message = format!("nothing keeps the users in steps apart, as there is but one id to build with: {why}");
    Diagnostic { severity: Severity::Warning, ..Diagnostic::error(message) }
}

/// Looked at when PATH has nothing.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/run/wrappers/bin"];
/// How many ids a user is usually given.
const RANGE: u32 = 65536;

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The first of ids that no line of these files has given away.
fn free_range(texts: &[&str]) -> u32 {
    let end = |line: &str| {
        let mut fields = line.split(':').skip(1).map(|field| field.trim().parse::<u32>());
        let (first, count) = (fields.next()?.ok()?, fields.next()?.ok()?);
        first.checked_add(count)
    };
    let ends = texts.iter().flat_map(|text| text.lines()).filter_map(end);
    ends.chain([100_000]).max().filter(|first| first.checked_add(RANGE).is_some()).unwrap_or(100_000)
}

/// Whether the program can do more than its caller.
fn check_program(path: &Path, program: &str) -> Result<(), (String, Option<String>)> {
    let cannot = |why: &str| format!("`{program}` cannot map ids: {why}");
    if rustix::thread::no_new_privs().unwrap_or(false) {
        return Err((cannot("this process was started with `no_new_privs`"), None));
    }
    let is_setuid = rustix::fs::stat(path).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode).contains(Mode::SUID));
    let has_capability = rustix::fs::getxattr(path, "security.capability", &mut [0_u8; 64][..]).is_ok();
    if !is_setuid && !has_capability {
        let cure = format!("`sudo chmod u+s {}`", path.display());
        return Err((cannot("it is neither setuid root nor has it capabilities"), Some(cure)));
    }
    if rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return Err((cannot("its file system is mounted `nosuid`"), None));
    }
    Ok(())
}

/// A process that stays outside and maps ids from there.
struct Outsider {
    child: Child,
    /// A byte makes it begin; its end makes it give up.
    go: OwnedFd,
    /// What it says when it fails.
    complaint: OwnedFd,
    name: String,
}

impl Outsider {
    fn program(path: &Path, of: Pid, map: &IdMap) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let words = [name.clone(), of.as_raw_nonzero().to_string()].into_iter();
        let extents = map.extents().iter().flat_map(|extent| [extent.inside, extent.outside, extent.count]);
        let arguments = words.chain(extents.map(|number| number.to_string())).map(CString::new);
        // Numbers and a file name: there is no NUL in them.
        let strings = arguments
            .collect::<Result<Vec<_>, _>>()
            .and_then(|arguments| CString::new(path.as_os_str().as_bytes()).map(|program| (program, arguments)));
        let (program, arguments) = strings.map_err(io::Error::from).context(|| "cannot map ids")?;
        Self::fork(name, || sys::exec(&program, &arguments, &[]))
    }

    fn writer(of: Pid, ids: &Ids) -> Result<Self> {
        Self::fork("a process outside".to_owned(), || {
            let write = |file: &str, map: &IdMap| std::fs::write(format!("/proc/{of}/{file}"), map.to_string());
            match write("uid_map", &ids.users).and_then(|()| write("gid_map", &ids.groups)) {
                Ok(()) => sys::exit(0),
                Err(error) => error,
            }
        })
    }

    /// Makes a process that does `work` when it is told to; it returns only to say why it failed.
    fn fork(name: String, work: impl FnOnce() -> io::Error) -> Result<Self> {
        let doing = || "cannot make a process that maps ids";
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing);
        let (told, go) = pipe()?;
        let (complaint, complaining) = pipe()?;
        let Some(child) = sys::clone(0).context(doing)? else {
            drop(go);
            let mut byte = [0];
            if rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut byte)) == Ok(1)
                && rustix::stdio::dup2_stderr(&complaining).is_ok()
            {
                let error = work();
                let _ = rustix::io::write(&complaining, error.to_string().as_bytes());
            }
            sys::exit(1)
        };
        Ok(Self { child, go, complaint, name })
    }

    fn begin(&self) {
        // One that is gone is found out when it is waited for.
        let _ = rustix::io::write(&self.go, b"g");
    }

    fn finish(self) -> Result<()> {
        let Self { child, go, complaint, name } = self;
        drop(go);
        const MAX_BYTES: u64 = 4096;
        let mut said = Vec::new();
        let _ = std::fs::File::from(complaint).take(MAX_BYTES).read_to_end(&mut said);
        let waited = sys::wait(child.pid).context(|| format!("cannot wait for `{name}`"))?;
        if libc::WIFEXITED(waited.status) && libc::WEXITSTATUS(waited.status) == 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let cause = if said.is_empty() { format!("`{name}` failed") } else { format!("`{name}`: {said}") };
        let hints = match obstacle(&mut sysctl) {
            Some(obstacle) => obstacle.cures,
            None => vec!["`wythe doctor` says what is wrong".to_owned()],
        };
        Err(hints.into_iter().fold(
            Diagnostic::error("cannot have the ids of `/etc/subuid` and `/etc/subgid`").caused_by(cause),
            Diagnostic::hint,
        ))
    }
}

/// What of the system's settings keeps users from making user namespaces.
#[derive(Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub what: String,
    /// Each alone helps.
    pub cures: Vec<String>,
}

/// Looks through the settings; `sysctl` reads one by its name, `None` if there is none.
pub fn obstacle(sysctl: &mut dyn FnMut(&str) -> Option<String>) -> Option<Obstacle> {
    let mut is = |name: &str, value: &str| sysctl(name).is_some_and(|text| text.trim() == value);
    let set = |name: &str, value: &str| format!("`sudo sysctl -w {name}={value}`");
    if is("kernel.unprivileged_userns_clone", "0") {
        let name = "kernel.unprivileged_userns_clone";
        return Some(Obstacle { what: format!("`{name}` is 0"), cures: vec![set(name, "1")] });
    }
    if is("user.max_user_namespaces", "0") {
        let name = "user.max_user_namespaces";
        return Some(Obstacle { what: format!("`{name}` is 0"), cures: vec![set(name, "15000")] });
    }
    if is("kernel.apparmor_restrict_unprivileged_userns", "1") {
        let name = "kernel.apparmor_restrict_unprivileged_userns";
        let program = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "wythe".into());
        let profile = format!(
            "`printf 'abi <abi/4.0>,\\nprofile wythe {} flags=(unconfined) {{ userns, }}\\n' | sudo tee \
             /etc/apparmor.d/wythe && sudo apparmor_parser -r /etc/apparmor.d/wythe`",
            program.display()
        );
        return Some(Obstacle {
            what: format!("`{name}` is 1, and AppArmor has no profile for this program"),
            cures: vec![profile, format!("{}, for all programs", set(name, "0"))],
        });
    }
    None
}

/// A setting of the running kernel.
pub fn sysctl(name: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()
}

fn forbidden(error: &io::Error) -> Diagnostic {
    let fault = Diagnostic::error("cannot make a user namespace, which builds by an ordinary user take");
    match obstacle(&mut sysctl) {
        Some(obstacle) => obstacle.cures.into_iter().fold(fault.caused_by(obstacle.what), Diagnostic::hint),
        None if error.kind() == io::ErrorKind::PermissionDenied => {
            fault.caused_by(format!("{error}: a container or a security module forbids it"))
        }
        None if error.raw_os_error() == Some(libc::EINVAL) => {
            fault.caused_by(format!("{error}: the kernel is built without user namespaces"))
        }
        None => fault.caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_user_namespaces_is_named_with_its_cure() {
        let check = |set: &str, value: &str, expected: Option<(&str, &str)>| {
            let found = obstacle(&mut |name| (name == set).then(|| format!("{value}\n")));
            let shown = found.as_ref().map(|found| (found.what.as_str(), found.cures[0].as_str()));
            assert_eq!(shown.map(|(what, _)| what), expected.map(|(what, _)| what), "{set}={value}");
            let (Some((_, cure)), Some((_, expected))) = (shown, expected) else { return };
            assert!(cure.starts_with(expected), "{set}={value}: {cure}");
        };
        check("kernel.unprivileged_userns_clone", "1", None);
        check(
            "kernel.unprivileged_userns_clone",
            "0",
            Some(("`kernel.unprivileged_userns_clone` is 0", "`sudo sysctl -w kernel.unprivileged_userns_clone=1`")),
        );
        check(
            "user.max_user_namespaces",
            "0",
            Some(("`user.max_user_namespaces` is 0", "`sudo sysctl -w user.max_user_namespaces=15000`")),
        );
        check("user.max_user_namespaces", "63000", None);
        check(
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            Some((
                "`kernel.apparmor_restrict_unprivileged_userns` is 1, and AppArmor has no profile for this program",
                "`printf 'abi <abi/4.0>,\\nprofile wythe /",
            )),
        );
        check("kernel.apparmor_restrict_unprivileged_userns", "0", None);
    }

    #[test]
    fn a_free_range_lies_behind_all_others() {
        assert_eq!(free_range(&["", ""]), 100_000);
        assert_eq!(free_range(&["a:100000:65536\n", "b:200000:5\nbad\n"]), 200_005);
        assert_eq!(free_range(&["a:1:5", ""]), 100_000);
        assert_eq!(free_range(&["a:4294900000:67295", ""]), 100_000);
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = "root:x:0:0::/:\nann:x:1000:7::/:\n";
        assert_eq!(name_of(passwd, 1000), Some("ann"));
        assert_eq!(name_of(passwd, 7), None);
    }
}
