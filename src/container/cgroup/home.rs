//! The directory of a build in one hierarchy: where it may stand, making it, and removing those of
//! builds that were killed.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Version;
use super::assignment::Assignment;
use super::directory::Directory;
use super::hierarchy::{self, Hierarchies, Hierarchy};
use super::limits::Controller;
use crate::diag::{Context, Diagnostic, Result};

/// What the directories of builds are called: `wythe.0`, `wythe.1`, ….
const PREFIX: &str = "wythe.";
/// No host has as many builds at once.
const MAX_BUILDS: u32 = 10_000;

/// A build's directory, removed with this.
#[derive(Debug)]
pub struct Home {
    /// Locked.
    pub directory: Directory,
    name: String,
    parent: Directory,
    /// What was made above it: the directory and a name in it, outermost first.
    made: Vec<(Directory, String)>,
}

impl Home {
    /// Makes one for what is assigned; below `parent`, or else as near to this process's own group
    /// as can be.
    pub fn make(assignment: &Assignment<'_>, parent: Option<&str>) -> Result<Self> {
        let mut made = Vec::new();
        let above = match (parent, assignment.version) {
            (Some(parent), version) => make_parent(assignment, version, parent, &mut made)?,
            (None, Version::One) => {
                let path = assignment.hierarchy.mount.join(&assignment.hierarchy.own);
                Directory::open(&path).context(|| format!("cannot open the cgroup `{}`", path.display()))?
            }
            (None, Version::Two) => nearest(assignment)?,
        };
        let (directory, name) =
            make_locked(&above, assignment.version).map_err(|errno| refused(&above, errno, assignment.hierarchy))?;
        let home = Self { directory, name, parent: above, made };
        if assignment.version == Version::Two {
            enable(&home.directory, &names(&assignment.needed))
                .context(|| format!("cannot pass cgroup controllers on to `{}`", home.directory.path.display()))?;
            // What only counts may be missing.
            for name in names(&assignment.wished) {
                let _ = enable(&home.directory, &[name]);
            }
        }
        Ok(home)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What is not empty belongs to somebody else, or will be found by the next build.
        let _ = self.parent.remove(&self.name);
        for (above, name) in self.made.iter().rev() {
            let _ = above.remove(name);
        }
    }
}

/// Makes a group; with version 1 it may run where the one above may.
pub fn make_group(above: &Directory, name: &str, version: Version) -> Result<Directory, Errno> {
    let group = above.make(name)?;
    if version == Version::One {
        // Nothing may join a new group of the cpuset controller before it has these.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if group.read(file).is_some_and(|text| text.trim().is_empty())
                && let Some(text) = above.read(file)
            {
                group.write(file, text.trim())?;
            }
        }
    }
    Ok(group)
}

/// Makes a directory that nobody else has and locks it.
fn make_locked(above: &Directory, version: Version) -> Result<(Directory, String), Errno> {
    for number in 0..MAX_BUILDS {
        let name = format!("{PREFIX}{number}");
        match make_group(above, &name, version) {
            // Taken for a dead build's, and removed, by somebody who came between making and locking.
            Err(Errno::EXIST | Errno::NOENT | Errno::NODEV) => {}
            made => {
                let made = made?;
                if made.lock()? {
                    return Ok((made, name));
                }
            }
        }
    }
    Err(Errno::EXIST)
}

/// The group of `--cgroup-parent`, made where it is missing.
fn make_parent(
    assignment: &Assignment<'_>,
    version: Version,
    text: &str,
    made: &mut Vec<(Directory, String)>,
) -> Result<Directory> {
    let path = hierarchy::parent_path(text).ok_or_else(|| {
        Diagnostic::error(format!("`{text}` names no cgroup"))
            .hint("write it as a path, like `--cgroup-parent /builds`")
    })?;
    let mount = &assignment.hierarchy.mount;
    let open =
        |path: &PathBuf| Directory::open(path).context(|| format!("cannot open the cgroup `{}`", path.display()));
    let needed = names(&assignment.needed);
    let mut directory = open(mount)?;
    for name in &path {
        // The path has passed through a string.
        let name = name.to_string_lossy();
        if version == Version::Two {
            enable(&directory, &needed).map_err(|errno| refused(&directory, errno, assignment.hierarchy))?;
        }
        let next = match make_group(&directory, &name, version) {
            Err(Errno::EXIST) => directory.child(&name),
            Ok(next) => {
                made.push((open(&directory.path)?, name.clone().into_owned()));
                Ok(next)
            }
            Err(errno) => Err(errno),
        };
        directory = next.map_err(|errno| refused(&directory, errno, assignment.hierarchy))?;
    }
    if version == Version::Two {
        enable(&directory, &needed).map_err(|errno| refused(&directory, errno, assignment.hierarchy))?;
    }
    Ok(directory)
}

/// The group of version 2 that the build's is to stand in: the nearest one above this process that
/// gives its children the controllers already, else the topmost one that can be made to.
///
/// The process's own group is out of the question unless it is the root of all: version 2 has
/// processes only in groups without such children.
fn nearest(assignment: &Assignment<'_>) -> Result<Directory> {
    let needed = names(&assignment.needed);
    let hierarchy = assignment.hierarchy;
    let candidates: Vec<Directory> =
        hierarchy.ancestors().iter().filter_map(|path| Directory::open(&hierarchy.mount.join(path)).ok()).collect();
    let fits = |directory: &&Directory| {
        let enabled = directory.read("cgroup.subtree_control").unwrap_or_default();
        let may_make = rustix::fs::accessat(
            *directory,
            "cgroup.procs",
            rustix::fs::Access::WRITE_OK,
            rustix::fs::AtFlags::EACCESS,
        );
        // Also from a group that has none to give, if none is needed.
        let is_own = directory.path == hierarchy.mount.join(&hierarchy.own) && !hierarchy.own.as_os_str().is_empty();
        may_make.is_ok() && !is_own && needed.iter().all(|name| enabled.split_whitespace().any(|known| known == *name))
    };
    if let Some(at) = candidates.iter().position(|candidate| fits(&candidate)) {
        return Ok(candidates.into_iter().nth(at).unwrap_or_else(|| unreachable!("it was found there")));
    }
    let mut refusal = None;
    for candidate in candidates.into_iter().rev() {
        match enable(&candidate, &needed) {
            Ok(()) => return Ok(candidate),
            Err(errno) => refusal = refusal.or(Some(refused(&candidate, errno, hierarchy))),
        }
    }
    Err(refusal.unwrap_or_else(|| Diagnostic::error("cannot open any cgroup")))
}

/// Lets the groups below `directory` have these controllers.
fn enable(directory: &Directory, needed: &[&str]) -> Result<(), Errno> {
    let enabled = directory.read("cgroup.subtree_control").unwrap_or_default();
    for name in needed {
        if !enabled.split_whitespace().any(|known| known == *name) {
            directory.write("cgroup.subtree_control", &format!("+{name}"))?;
        }
    }
    Ok(())
}

fn names(controllers: &[Controller]) -> Vec<&'static str> {
    controllers.iter().filter_map(|controller| controller.name_in_v2()).collect()
}

/// Why a group cannot have children of ours.
fn refused(above: &Directory, errno: Errno, hierarchy: &Hierarchy) -> Diagnostic {
    let error = Diagnostic::error(format!("cannot make a cgroup below `{}`", above.path.display()));
    let error = match errno {
        Errno::BUSY => error.caused_by("there are processes in it, so that it can have no limited groups"),
        Errno::NOENT => error.caused_by("it does not have the controllers that the limits need"),
        Errno::ROFS => error.caused_by("it is mounted read-only"),
        _ => error.caused_by(std::io::Error::from(errno)),
    };
    let is_session = hierarchy.own.iter().any(|name| name.to_string_lossy().starts_with("session-"));
    match errno {
        Errno::ACCESS | Errno::PERM if is_session => error.hint(
            "a login session's processes cannot be limited by their user; begin with `systemd-run --user --scope`",
        ),
        _ => error,
    }
}

/// Removes what killed builds left below `parent` and where builds stand when nothing else is said.
/// What cannot be removed stays for the next.
pub fn sweep(hierarchies: &Hierarchies, parent: Option<&str>) {
    let parent = parent.and_then(hierarchy::parent_path);
    for v1 in &hierarchies.v1 {
        for path in parent.iter().chain([&v1.own]) {
            sweep_below(&v1.mount.join(path));
        }
    }
    if let Some(v2) = &hierarchies.v2 {
        for path in parent.iter().chain(&v2.ancestors()) {
            sweep_below(&v2.mount.join(path));
        }
    }
}

fn sweep_below(path: &Path) {
    let Ok(above) = Directory::open(path) else { return };
    for name in above.children().iter().filter(|name| name.starts_with(PREFIX)) {
        let Ok(home) = above.child(name) else { continue };
        if home.lock() == Ok(true) {
            for step in home.children() {
                if let Ok(step) = home.child(&step) {
                    // Whoever is still in there belongs to nobody.
                    let _ = step.write("cgroup.kill", "1");
                }
                let _ = home.remove(&step);
            }
            let _ = above.remove(name);
        }
    }
}
