//! A network namespace for one step at a time, with a loopback interface and nothing else yet.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::holder;
use super::super::protocol::{self, Failure};
use super::netlink::Socket;
use crate::diag::{Context, Diagnostic, Result};
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

/// Opens sockets in a network namespace, those that `open` returns. Takes a process of its own, as only the
/// host's root finds the way back; what `open` does to the namespace is done there, too.
pub fn sockets(namespace: BorrowedFd<'_>, open: impl FnOnce() -> Result<[Socket; 2]>) -> Result<[Socket; 2]> {
    let doing = || "cannot open sockets in a network namespace";
    let (socket, sending) = protocol::pair()?;
    let Some(child) = sys::clone(0).context(doing)? else {
        let opened = move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).context(doing);
        // Who receives nothing knows that it went wrong.
        let _ = match opened.and_then(|()| open()) {
            Ok(sockets) => protocol::send(sending.as_fd(), &[0], &sockets.each_ref().map(Socket::as_fd)),
            Err(error) => protocol::send(sending.as_fd(), &protocol::encode(&Failure::from(error)), &[]),
        };
        sys::exit(0)
    };
    drop(sending);
    let received = protocol::receive(socket.as_fd()).context(doing);
    sys::wait(child.pid).context(doing)?;
    let (packet, fds) = received?.ok_or_else(|| Diagnostic::error(doing()))?;
    match <[OwnedFd; 2]>::try_from(fds) {
        Ok(fds) => Ok(fds.map(Socket::from)),
        Err(_) => Err(protocol::decode::<Failure>(&packet)?.into()),
    }
}

/// Does something in a network namespace and comes back: for the host's root.
pub fn within<T>(namespace: BorrowedFd<'_>, own: BorrowedFd<'_>, act: impl FnOnce() -> T) -> io::Result<T> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let result = act();
    move_into_link_name_space(own, Some(LinkNameSpaceType::Network))?;
    Ok(result)
}
