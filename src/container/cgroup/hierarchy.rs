//! Where this host has its control groups, and which of them this process is in.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::limits::Controller;
use crate::diag::{Context, Result};

/// One hierarchy as it is mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its topmost group that can be seen.
    pub mount: PathBuf,
    /// The group of this process, below `mount`; empty for the topmost.
    pub own: PathBuf,
    /// Names of version 1's controllers; none for version 2.
    pub controllers: Vec<String>,
}

/// All that are mounted. A host may have some of version 1 and, for other controllers, version 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    pub v1: Vec<Hierarchy>,
    pub v2: Option<Hierarchy>,
}

impl Hierarchies {
    pub fn find() -> Result<Self> {
        let read = |path: &str| std::fs::read(path).context(|| format!("cannot read `{path}`"));
        // A kernel without control groups has no such file, and nothing is mounted.
        let own = std::fs::read("/proc/self/cgroup").unwrap_or_default();
        Ok(Self::parse(&read("/proc/self/mountinfo")?, &own))
    }

    fn parse(mountinfo: &[u8], own: &[u8]) -> Self {
        let groups: Vec<_> = own.split(|byte| *byte == b'\n').filter_map(membership).collect();
        let mut found = Self::default();
        for mount in mountinfo.split(|byte| *byte == b'\n').filter_map(cgroup_mount) {
            let is_v2 = mount.kind == "cgroup2";
            let of_this = |(controllers, _): &&(Vec<String>, PathBuf)| match is_v2 {
                true => controllers.is_empty(),
                false => controllers.iter().any(|name| mount.options.contains(name)),
            };
            let Some((controllers, group)) = groups.iter().find(of_this) else { continue };
            // Where a part of the hierarchy is mounted that this process is not in, there is no better
            // place than its top.
            let own = below(group, &mount.root).unwrap_or_default();
            let hierarchy = Hierarchy { mount: mount.point, own, controllers: controllers.clone() };
            if !is_v2 {
                if !found.v1.iter().any(|known| known.controllers == hierarchy.controllers) {
                    found.v1.push(hierarchy);
                }
            } else if found.v2.is_none() {
                found.v2 = Some(hierarchy);
            }
        }
        found
    }

    /// The controllers that version 2 has here.
    pub fn controllers_of_v2(&self) -> Vec<String> {
        let Some(v2) = &self.v2 else { return Vec::new() };
        let text = std::fs::read_to_string(v2.mount.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    pub fn v1_of(&self, controller: Controller) -> Option<&Hierarchy> {
        let name = controller.name_in_v1();
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|known| known == name))
    }
}

impl Hierarchy {
    /// The group of this process and all above it, nearest first; below the mount.
    pub fn ancestors(&self) -> Vec<PathBuf> {
        self.own.ancestors().map(Path::to_owned).collect()
    }
}

/// `path` below `root`, if it is; without `..`, which leads out of what can be seen.
fn below(path: &Path, root: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(root).ok()?;
    rest.components().all(|part| matches!(part, Component::Normal(_))).then(|| rest.to_owned())
}

/// A line of `/proc/self/cgroup`: `4:memory:/a/b`, `0::/a/b`. Hierarchies without controllers, like
/// `1:name=systemd:/`, have no place here.
fn membership(line: &[u8]) -> Option<(Vec<String>, PathBuf)> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
    let names = String::from_utf8_lossy(names);
    let controllers: Vec<String> = match id {
        b"0" => Vec::new(),
        _ => names.split(',').filter(|name| !name.contains('=') && !name.is_empty()).map(str::to_owned).collect(),
    };
    (id == b"0" || !controllers.is_empty()).then(|| (controllers, PathBuf::from(OsString::from_vec(path.to_vec()))))
}

struct CgroupMount {
    root: PathBuf,
    point: PathBuf,
    kind: String,
    options: Vec<String>,
}

/// `33 31 0:30 /root /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct`.
fn cgroup_mount(line: &[u8]) -> Option<CgroupMount> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(words.get(dash + 1)?).into_owned();
    let options = String::from_utf8_lossy(words.get(dash + 3)?).split(',').map(str::to_owned).collect();
    let is_ours = kind == "cgroup" || kind == "cgroup2";
    is_ours.then_some(CgroupMount { root: unescaped(words.get(3)?), point: unescaped(words.get(4)?), kind, options })
}

/// Blanks and backslashes stand as `\040`.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[3..]).0,
            None => (bytes.push(*first), rest = tail).0,
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The path of a `--cgroup-parent` below the mount. A bare name that ends in `.slice` is systemd's:
/// `a-b.slice` stands at `a.slice/a-b.slice`.
pub fn parent_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text.trim_start_matches('/'));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || path.as_os_str().is_empty() || path.as_os_str().as_bytes().contains(&0) {
        return None;
    }
    let Some(name) = text.strip_suffix(".slice").filter(|_| !text.contains('/')) else { return Some(path.to_owned()) };
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount: &str, own: &str, controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Hierarchy { mount: mount.into(), own: own.into(), controllers }
    }

    #[test]
    fn a_hybrid_host() {
        let mounts = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpuacct,cpu\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:4 - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        let own = b"9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n";
        let found = Hierarchies::parse(mounts, own);
        assert_eq!(
            found.v1,
            [
                hierarchy("/sys/fs/cgroup/cpu", "", &["cpu", "cpuacct"]),
                hierarchy("/sys/fs/cgroup/memory", "a/b", &["memory"])
            ]
        );
        assert_eq!(found.v2, Some(hierarchy("/sys/fs/cgroup/uni fied", "c", &[])));
        assert_eq!(found.v1_of(Controller::CpuAccounting), found.v1.first());
        assert_eq!(found.v1_of(Controller::Pids), None);
        let ancestors: Vec<_> = found.v1[1].ancestors();
        assert_eq!(ancestors, ["a/b", "a", ""].map(PathBuf::from));
    }

    #[test]
    fn a_container_sees_a_part() {
        // Without a cgroup namespace the group is named from the host's root.
        let mounts = b"1 2 0:3 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = Hierarchies::parse(mounts, b"4:memory:/docker/abc/x\n");
        assert_eq!(found.v1, [hierarchy("/sys/fs/cgroup/memory", "x", &["memory"])]);
        // With one, what lies outside is named with dots.
        let mounts = b"1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let found = Hierarchies::parse(mounts, b"0::/../other\n");
        assert_eq!(found.v2, Some(hierarchy("/sys/fs/cgroup", "", &[])));
    }

    #[test]
    fn parents() {
        let parsed = |text: &str| parent_path(text).map(|path| path.display().to_string());
        assert_eq!(parsed("/a/b"), Some("a/b".into()));
        assert_eq!(parsed("a"), Some("a".into()));
        assert_eq!(parsed("a-b-c.slice"), Some("a.slice/a-b.slice/a-b-c.slice".into()));
        assert_eq!(parsed("/a-b.slice"), Some("a-b.slice".into()));
        for wrong in ["", "/", "../a", "a/../b", "a/./../b"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
