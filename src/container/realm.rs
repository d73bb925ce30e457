//! What all that runs in a build has in common: steps, and the process that makes their networks.

use std::os::fd::{AsFd, OwnedFd};

use super::mount;
use super::userns::{self, Mapping};
use crate::diag::Result;
use crate::sys;

pub struct Realm {
    /// A procfs of the spawner's pid namespace; the host's knows its children by other numbers.
    pub proc: OwnedFd,
    pub mapping: Mapping,
    pub user_namespace: OwnedFd,
}

impl Realm {
    pub fn new() -> Result<Self> {
        // Nothing that an earlier session left in a keyring is a step's to find. Inside a container
        // the call may be denied; a step's filter denies it too.
        let _ = sys::join_new_session_keyring();
        let proc = mount::filesystem("proc", &[], mount::DATA_ONLY)?;
        let mapping = Mapping::of_this_process()?;
        let (uid_map, gid_map) = mapping.maps();
        let user_namespace = userns::create(proc.as_fd(), None, &uid_map, &gid_map)?;
        Ok(Self { proc, mapping, user_namespace })
    }
}
