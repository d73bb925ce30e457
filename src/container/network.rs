//! Network namespaces.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::holder;
use crate::diag::Result;
use crate::sys;

/// Makes a network namespace that has nothing but a loopback interface and belongs to
/// `user_namespace`; see [`holder::namespace`].
///
/// A namespace belongs to the user namespace that its maker is in, and the way into that one is of
/// no return: hence a process of its own.
pub fn loopback_only(proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let furnish = || {
        move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
        sys::enter_new_network_namespace()?;
        sys::bring_loopback_up()
    };
    holder::namespace(proc, "net", 0, furnish, |_| Ok(()))
}
