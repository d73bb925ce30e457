//! Who a process is meant to be where there is nobody but root.
//!
//! The kernel knows root only, and lets it do everything. What programs make of their ids is kept here: a
//! table of all that were ever taken on in a step. Which of them are a process's goes with the process: its
//! soft limit on real-time work, which nothing in a container does, is the number of a row. So a fork has those
//! of its parent, and a program those of whoever executed it, without anybody having to ask.

use std::cell::RefCell;

use rustix::io::Errno;

use crate::container::passwd::User;
use crate::sys;

/// The four ids of a kind, as in `credentials(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub filesystem: u32,
}

impl Ids {
    fn all(id: u32) -> Self {
        Self { real: id, effective: id, saved: id, filesystem: id }
    }

    fn has(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    /// `setuid`
    fn set(self, is_privileged: bool, id: u32) -> Result<Self, Errno> {
        match () {
            () if is_privileged => Ok(Self::all(id)),
            () if id == self.real || id == self.saved => Ok(Self { effective: id, filesystem: id, ..self }),
            () => Err(Errno::PERM),
        }
    }

    /// `setreuid`
    fn set_two(self, is_privileged: bool, real: Option<u32>, effective: Option<u32>) -> Result<Self, Errno> {
        let may_be_real = real.is_none_or(|id| id == self.real || id == self.effective);
        let may_be_effective = effective.is_none_or(|id| self.has(id));
        if !(is_privileged || may_be_real && may_be_effective) {
            return Err(Errno::PERM);
        }
        let now = Self { real: real.unwrap_or(self.real), effective: effective.unwrap_or(self.effective), ..self };
        let is_saved = real.is_some() || effective.is_some_and(|id| id != self.real);
        let saved = if is_saved { now.effective } else { self.saved };
        Ok(Self { saved, filesystem: now.effective, ..now })
    }

    /// `setresuid`
    fn set_three(self, is_privileged: bool, wanted: [Option<u32>; 3]) -> Result<Self, Errno> {
        if !is_privileged && !wanted.into_iter().flatten().all(|id| self.has(id)) {
            return Err(Errno::PERM);
        }
        let [real, effective, saved] = wanted;
        let effective = effective.unwrap_or(self.effective);
        Ok(Self {
            real: real.unwrap_or(self.real),
            effective,
            saved: saved.unwrap_or(self.saved),
            filesystem: effective,
        })
    }

    /// What a new program starts with.
    fn of_program(self, owner: Option<u32>) -> Self {
        let effective = owner.unwrap_or(self.effective);
        Self { real: self.real, effective, saved: effective, filesystem: effective }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub user: Ids,
    pub group: Ids,
    pub groups: Vec<u32>,
    /// What root may do outlives being root.
    keeps_capabilities: bool,
    /// It did.
    is_capable: bool,
}

/// What a program does to its ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    User(u32),
    Group(u32),
    TwoUsers(Option<u32>, Option<u32>),
    TwoGroups(Option<u32>, Option<u32>),
    ThreeUsers([Option<u32>; 3]),
    ThreeGroups([Option<u32>; 3]),
    FileUser(u32),
    FileGroup(u32),
    Groups(Vec<u32>),
    /// `PR_SET_KEEPCAPS`
    KeepCapabilities(bool),
    /// It executes another one, which may be setuid or setgid.
    Program(Option<u32>, Option<u32>),
}

impl Credentials {
    pub fn of(user: &User) -> Self {
        Self {
            user: Ids::all(user.uid),
            group: Ids::all(user.gid),
            groups: user.groups.clone(),
            keeps_capabilities: false,
            is_capable: false,
        }
    }

    /// Whether the holder may become anybody.
    pub fn is_privileged(&self) -> bool {
        self.user.effective == 0 || self.is_capable
    }

    pub fn is_in(&self, group: u32) -> bool {
        self.group.filesystem == group || self.groups.contains(&group)
    }

    pub fn change(&self, change: Change) -> Result<Self, Errno> {
        let is_privileged = self.is_privileged();
        let user = |user: Result<Ids, Errno>| {
            user.map(|user| {
                let is_left = self.user.has(0) && !user.has(0);
                let is_capable = if is_left { is_privileged && self.keeps_capabilities } else { self.is_capable };
                Self { user, is_capable, ..self.clone() }
            })
        };
        let group = |group: Result<Ids, Errno>| group.map(|group| Self { group, ..self.clone() });
        match change {
            Change::User(id) => user(self.user.set(is_privileged, id)),
            Change::Group(id) => group(self.group.set(is_privileged, id)),
            Change::TwoUsers(real, effective) => user(self.user.set_two(is_privileged, real, effective)),
            Change::TwoGroups(real, effective) => group(self.group.set_two(is_privileged, real, effective)),
            Change::ThreeUsers(wanted) => user(self.user.set_three(is_privileged, wanted)),
            Change::ThreeGroups(wanted) => group(self.group.set_three(is_privileged, wanted)),
            // These two never fail; what is not allowed is not done.
            Change::FileUser(id) if is_privileged || self.user.has(id) => user(Ok(Ids { filesystem: id, ..self.user })),
            Change::FileGroup(id) if is_privileged || self.group.has(id) => {
                group(Ok(Ids { filesystem: id, ..self.group }))
            }
            Change::FileUser(_) | Change::FileGroup(_) => Ok(self.clone()),
            Change::Groups(groups) if is_privileged => Ok(Self { groups, ..self.clone() }),
            Change::Groups(_) => Err(Errno::PERM),
            Change::Program(owner, owning_group) => Ok(Self {
                user: self.user.of_program(owner),
                group: self.group.of_program(owning_group),
                groups: self.groups.clone(),
                keeps_capabilities: false,
                is_capable: false,
            }),
            Change::KeepCapabilities(keeps_capabilities) => Ok(Self { keeps_capabilities, ..self.clone() }),
        }
    }
}

/// All credentials of a step.
pub struct Table(RefCell<Vec<Credentials>>);

/// What is added to a row's number to make a limit: nobody sets such a one, and nobody reaches it.
const MARK: u64 = 1 << 62;

impl Table {
    /// With those that the step begins with.
    pub fn new(first: Credentials) -> Self {
        Self(RefCell::new(vec![first]))
    }

    /// The credentials of the process of a thread.
    pub fn of(&self, thread: u32) -> Result<Credentials, Errno> {
        let table = self.0.borrow();
        let row = row(sys::real_time_limit(thread).map_err(errno)?.soft);
        row.and_then(|row| table.get(row)).or(table.first()).cloned().ok_or(Errno::SRCH)
    }

    /// Gives a process others.
    pub fn put(&self, thread: u32, credentials: Credentials) -> Result<(), Errno> {
        let mut table = self.0.borrow_mut();
        let row = table.iter().position(|known| *known == credentials).unwrap_or_else(|| {
            table.push(credentials);
            table.len() - 1
        });
        let limit = sys::real_time_limit(thread).map_err(errno)?;
        sys::set_real_time_limit(thread, sys::Limit { soft: MARK + row as u64, ..limit }).map_err(errno)
    }
}

fn row(limit: u64) -> Option<usize> {
    // What is unlimited is far beyond every row.
    limit.checked_sub(MARK).and_then(|row| usize::try_from(row).ok())
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(real: u32, effective: u32, saved: u32, filesystem: u32) -> Ids {
        Ids { real, effective, saved, filesystem }
    }

    fn user(user: Ids) -> Credentials {
        Credentials { user, group: Ids::all(7), groups: vec![1], keeps_capabilities: false, is_capable: false }
    }

    #[test]
    fn capabilities_are_kept_until_the_next_program() {
        let root = user(Ids::all(0));
        let left = root.change(Change::User(5)).unwrap();
        assert_eq!(left.change(Change::Group(9)), Err(Errno::PERM));
        let kept = root.change(Change::KeepCapabilities(true)).unwrap().change(Change::User(5)).unwrap();
        let kept = kept.change(Change::Group(9)).unwrap().change(Change::Groups(vec![9])).unwrap();
        assert_eq!((kept.user, kept.group), (Ids::all(5), Ids::all(9)));
        let program = kept.change(Change::Program(None, None)).unwrap();
        assert_eq!(program.change(Change::Group(7)), Err(Errno::PERM));
    }

    #[test]
    fn users_change_as_the_kernel_changes_them() {
        let check = |before: Ids, change: Change, expected: Result<Ids, Errno>| {
            let changed = user(before).change(change.clone());
            assert_eq!(changed, expected.map(user), "{before:?} {change:?}");
        };
        let (root, ann, denied) = (Ids::all(0), Ids::all(5), Err(Errno::PERM));
        check(root, Change::User(5), Ok(ann));
        check(ann, Change::User(0), denied);
        check(ann, Change::User(5), Ok(ann));
        // What a setuid program of root's begins with, and how it goes back and forth.
        let setuid = ids(5, 0, 0, 0);
        check(ann, Change::Program(Some(0), None), Ok(setuid));
        check(setuid, Change::ThreeUsers([None, Some(5), None]), Ok(ids(5, 5, 0, 5)));
        check(ids(5, 5, 0, 5), Change::User(0), Ok(ids(5, 0, 0, 0)));
        check(ids(5, 5, 0, 5), Change::TwoUsers(None, Some(0)), Ok(ids(5, 0, 0, 0)));
        check(ids(5, 5, 0, 5), Change::Program(None, None), Ok(ann));
        check(setuid, Change::User(5), Ok(ann));
        check(root, Change::TwoUsers(None, Some(5)), Ok(ids(0, 5, 5, 5)));
        check(ids(0, 5, 5, 5), Change::TwoUsers(None, Some(0)), Ok(ids(0, 0, 5, 0)));
        check(root, Change::TwoUsers(Some(5), None), Ok(ids(5, 0, 0, 0)));
        check(ann, Change::TwoUsers(Some(0), None), denied);
        check(ids(5, 6, 7, 6), Change::TwoUsers(Some(7), None), denied);
        check(root, Change::ThreeUsers([Some(1), Some(2), Some(3)]), Ok(ids(1, 2, 3, 2)));
        check(ids(1, 2, 3, 2), Change::ThreeUsers([Some(3), Some(1), Some(1)]), Ok(ids(3, 1, 1, 1)));
        check(ids(1, 2, 3, 2), Change::ThreeUsers([Some(4), None, None]), denied);
        check(root, Change::FileUser(5), Ok(ids(0, 0, 0, 5)));
        check(ann, Change::FileUser(0), Ok(ann));
    }

    #[test]
    fn only_root_changes_groups() {
        let root = user(Ids::all(0));
        assert_eq!(root.change(Change::Groups(vec![3, 4])).unwrap().groups, [3, 4]);
        assert_eq!(root.change(Change::Group(9)).unwrap().group, Ids::all(9));
        let ann = user(Ids::all(5));
        assert_eq!(ann.change(Change::Groups(vec![])), Err(Errno::PERM));
        assert_eq!(ann.change(Change::Group(9)), Err(Errno::PERM));
        assert_eq!(ann.change(Change::Group(7)), Ok(ann.clone()));
        assert_eq!(ann.change(Change::ThreeGroups([Some(0), None, None])), Err(Errno::PERM));
        let program = ann.change(Change::Program(None, Some(8))).unwrap();
        assert_eq!((program.user, program.group), (Ids::all(5), ids(7, 8, 8, 8)));
        assert!(program.is_in(8) && program.is_in(1) && !program.is_in(7));
    }

    #[test]
    fn a_limit_that_somebody_set_is_no_row() {
        assert_eq!((row(MARK), row(MARK + 3)), (Some(0), Some(3)));
        assert_eq!((row(0), row(1_000_000)), (None, None));
        assert!(row(u64::MAX).is_some_and(|row| row > 1 << 40));
    }
}
