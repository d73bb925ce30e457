//! A network namespace for one step at a time, with a loopback interface and nothing else yet.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::holder;
use crate::diag::Result;
use crate::sys;

/// Makes one that belongs to `user_namespace`; see [`holder::namespace`].
///
/// A namespace belongs to the user namespace that its maker is in, and the way into that one is of
/// no return: hence a process of its own.
pub fn create(proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let furnish = || {
        move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
        sys::enter_new_network_namespace()?;
        sys::bring_loopback_up()?;
        settle(proc);
        Ok(())
    };
    holder::namespace(proc, "net", 0, furnish, |_| Ok(()))
}

/// What Docker sets for its containers: every group may `ping`, and every user may listen on any port.
fn settle(proc: BorrowedFd<'_>) {
    let write = |name: &str, value: &str| {
        let file =
            rustix::fs::openat(proc, format!("sys/net/ipv4/{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, value.as_bytes())
    };
    // Only ids that the user namespace has are taken. Who may not set these has what the kernel
    // gives, which is enough for root.
    let _ = ["0 2147483645", "0 65535", "0 0"].iter().find(|groups| write("ping_group_range", groups).is_ok());
    let _ = write("ip_unprivileged_port_start", "0");
}

/// Does something in a network namespace and comes back.
pub fn within<T>(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>, act: impl FnOnce() -> T) -> io::Result<T> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let result = act();
    move_into_link_name_space(own, Some(LinkNameSpaceType::Network))?;
    Ok(result)
}
