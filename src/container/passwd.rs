//! `/etc/passwd` and `/etc/group` of an image: read from its layers, size-capped, links never
//! followed out.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Result, nearest};
use crate::layer;

/// What USER means in one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups. The primary one is among them: without it a process that changes its group would
    /// shed what files deny to the first one (CVE-2023-25173).
    pub groups: Vec<u32>,
    /// From passwd; `/` where the user has no entry.
    pub home: String,
}

/// As large as such a file may be.
const MAX_BYTES: u64 = 10 << 20;

/// Resolves USER (`name|uid[:group|gid]`; empty for `0`) in the rootfs that `layers` (topmost first) make.
///
/// A name or a number alone has the primary group of its entry and every group that lists its
/// name; a number without an entry has group 0. With a group there are no others. Two
/// numbers are taken as they are.
pub fn user(layers: &[BorrowedFd<'_>], spec: &str) -> Result<User> {
    let users = users(&read(layers, "passwd")?);
    let (name, group) = split(if spec.is_empty() { "0" } else { spec });
    let home = |uid: u32| {
        let entry = users.iter().find(|entry| entry.uid == uid);
        entry.map(|entry| entry.home.as_str()).filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
    };
    if let (Some(uid), Some(gid)) = (number(name), group.and_then(number)) {
        return Ok(User { uid, gid, groups: vec![gid], home: home(uid) });
    }
    let (uid, entry) = match number(name) {
        // A name may look like a number; then it is the name that is meant.
        Some(uid) => (uid, users.iter().find(|entry| entry.name == name || entry.uid == uid)),
        None if name.is_empty() => (0, users.iter().find(|entry| entry.uid == 0)),
        None => (0, Some(find_user(&users, name)?)),
    };
    let uid = entry.map_or(uid, |entry| entry.uid);
    let home = entry.map(|entry| entry.home.clone()).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned());
    let groups = groups(&read(layers, "group")?);
    if let Some(group) = group {
        let gid = match number(group) {
            Some(gid) => groups.iter().find(|entry| entry.name == group).map_or(gid, |entry| entry.gid),
            None => find_group(&groups, group)?.gid,
        };
        return Ok(User { uid, gid, groups: vec![gid], home });
    }
    let gid = entry.map_or(0, |entry| entry.gid);
    let listing = |group: &&GroupEntry| entry.is_some_and(|user| group.members.contains(&user.name));
    let mut supplementary: Vec<u32> = groups.iter().filter(listing).map(|group| group.gid).collect();
    if !supplementary.contains(&gid) {
        supplementary.insert(0, gid);
    }
    Ok(User { uid, gid, groups: supplementary, home })
}

/// The files of a rootfs that [`owner`] reads for this.
pub fn files_of_owner(spec: &str) -> impl Iterator<Item = &'static str> {
    let (name, group) = split(spec);
    let is_name = |text: &str| !text.is_empty() && number(text).is_none();
    [("etc/passwd", is_name(name)), ("etc/group", group.is_some_and(is_name))]
        .into_iter()
        .filter_map(|(file, is_read)| is_read.then_some(file))
}

/// Resolves `--chown` (`user[:group]`) in the rootfs that `layers` (topmost first) make: a name alone has its primary group, a
/// number alone is also the gid. An unknown name is an error.
pub fn owner(layers: &[BorrowedFd<'_>], spec: &str) -> Result<(u32, u32)> {
    let (name, group) = split(spec);
    let (uid, primary) = match number(name) {
        Some(uid) => (uid, uid),
        None if name.is_empty() => (0, 0),
        None => {
            let users = users(&read(layers, "passwd")?);
            let entry = find_user(&users, name)?;
            (entry.uid, entry.gid)
        }
    };
    let gid = match group {
        None => primary,
        Some(group) => match number(group) {
            Some(gid) => gid,
            None => find_group(&groups(&read(layers, "group")?), group)?.gid,
        },
    };
    Ok((uid, gid))
}

/// `user` and `group` of `user:group`; an empty group is none.
fn split(spec: &str) -> (&str, Option<&str>) {
    match spec.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    }
}

/// Digits only: no sign, no space.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

struct UserEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct GroupEntry {
    name: String,
    gid: u32,
    members: Vec<String>,
}

fn users(text: &str) -> Vec<UserEntry> {
    let entry = |line: &str| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        let home = fields.get(5).copied().unwrap_or_default().to_owned();
        Some(UserEntry { name: name.to_owned(), uid: number(uid)?, gid: number(gid)?, home })
    };
    text.lines().filter_map(entry).collect()
}

fn groups(text: &str) -> Vec<GroupEntry> {
    let entry = |line: &str| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, ..] = fields[..] else { return None };
        let members = fields.get(3).copied().unwrap_or_default();
        let members =
            members.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect();
        Some(GroupEntry { name: name.to_owned(), gid: number(gid)?, members })
    };
    text.lines().filter_map(entry).collect()
}

fn find_user<'a>(users: &'a [UserEntry], name: &str) -> Result<&'a UserEntry> {
    users
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| unknown("user", name, "/etc/passwd", users.iter().map(|entry| entry.name.as_str())))
}

fn find_group<'a>(groups: &'a [GroupEntry], name: &str) -> Result<&'a GroupEntry> {
    groups
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| unknown("group", name, "/etc/group", groups.iter().map(|entry| entry.name.as_str())))
}

fn unknown<'a>(kind: &str, name: &str, file: &str, known: impl Iterator<Item = &'a str>) -> Diagnostic {
    let error = Diagnostic::error(format!("unknown {kind} `{name}`: not in {file} of the image"));
    nearest(name, known).into_iter().fold(error, |error, known| error.hint(format!("did you mean `{known}`?")))
}

/// The content of a file in `/etc`; nothing if the image has none. Read from the layers, so that no
/// mount is needed to know a user.
fn read(layers: &[BorrowedFd<'_>], name: &str) -> Result<String> {
    let path = format!("etc/{name}");
    let read = || match layer::lookup(layers, path.as_bytes())? {
        None => Ok(None),
        Some(found) if found.node.is_file() => layer::read_file(layers, path.as_bytes(), MAX_BYTES),
        Some(_) => Err(Diagnostic::error(String::new()).caused_by("not a regular file")),
    };
    let cannot = |error| Diagnostic { message: format!("cannot read `/{path}` of the image"), ..error };
    Ok(String::from_utf8_lossy(&read().map_err(cannot)?.unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{FileType, Mode};

    use super::super::mount;
    use super::*;

    fn open(path: &Path) -> OwnedFd {
        mount::host_directory(path).unwrap()
    }

    fn said(diagnostic: Diagnostic) -> String {
        let hints = diagnostic.hints.iter().map(|hint| format!(" ({hint})"));
        hints.fold(diagnostic.message, |text, hint| text + &hint)
    }

    fn check(table: &str, resolve: impl Fn(&[BorrowedFd<'_>], &str) -> Result<String>) {
        let root = open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/container/users")));
        let cases = table.lines().filter(|line| !line.starts_with('#'));
        let mut count = 0;
        for case in cases {
            let (spec, expected) = case.split_once(" => ").unwrap();
            assert_eq!(resolve(&[root.as_fd()], spec).unwrap_or_else(said), expected, "{spec}");
            count += 1;
        }
        assert!(count > 10);
    }

    #[test]
    fn users_are_resolved_as_the_table_says() {
        check(include_str!("../../testdata/container/users/user.txt"), |root, spec| {
            let User { uid, gid, groups, home } = user(root, spec)?;
            let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
            Ok(format!("{uid} {gid} {} {home}", groups.join(",")))
        });
    }

    #[test]
    fn owners_are_resolved_as_the_table_says() {
        check(include_str!("../../testdata/container/users/chown.txt"), |root, spec| {
            let (uid, gid) = owner(root, spec)?;
            Ok(format!("{uid} {gid}"))
        });
    }

    #[test]
    fn without_files_there_are_numbers_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let home = "/".to_owned();
        let groups = vec![0];
        let root_user = User { groups: groups.clone(), home: home.clone(), ..User::default() };
        assert_eq!(user(&[root.as_fd()], "").unwrap(), root_user);
        assert_eq!(user(&[root.as_fd()], "5").unwrap(), User { uid: 5, groups, home, ..User::default() });
        assert_eq!(owner(&[root.as_fd()], "5:6").unwrap(), (5, 6));
        assert_eq!(
            user(&[root.as_fd()], "root").unwrap_err().message,
            "unknown user `root`: not in /etc/passwd of the image"
        );
    }

    /// Files that are to be read into memory, to be waited for, or to lead to the host.
    #[test]
    fn hostile_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let passwd = etc.join("passwd");
        let root = open(dir.path());
        let cause = || user(&[root.as_fd()], "x").unwrap_err().cause;

        rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        assert_eq!(cause().as_deref(), Some("not a regular file"));
        std::fs::remove_file(&passwd).unwrap();

        std::fs::create_dir(&passwd).unwrap();
        assert_eq!(cause().as_deref(), Some("not a regular file"));
        std::fs::remove_dir(&passwd).unwrap();

        let file = std::fs::File::create(&passwd).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(cause().as_deref(), Some("it is larger than 10485760 bytes"));
        std::fs::remove_file(&passwd).unwrap();

        // Links are followed inside: there is no such file there.
        for target in ["/etc/passwd", "../../../../../../etc/passwd", "/dev/zero"] {
            symlink(target, &passwd).unwrap();
            let error = user(&[root.as_fd()], "root").unwrap_err();
            let is_inside = error.cause.as_deref() == Some("Too many levels of symbolic links (os error 40)")
                || error.message == "unknown user `root`: not in /etc/passwd of the image";
            assert!(is_inside, "{target}: {error:?}");
            std::fs::remove_file(&passwd).unwrap();
        }
        std::fs::write(etc.join("real"), "x:x:5:6::/h:\n").unwrap();
        symlink("/etc/real", &passwd).unwrap();
        assert_eq!(user(&[root.as_fd()], "x").unwrap().uid, 5);
    }
}
