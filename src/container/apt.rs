//! apt where there is nobody but root: it fetches as a user of its own and, before it goes on, makes sure
//! that it has become that one, which nobody can. It is told to stay root, by a file on the container's
//! /dev and the variable that names it: neither is in any layer, and both give way to the image's own.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::template::write_all;
use crate::diag::{Context, Result};

const NAME: &str = ".apt.conf";
const CONTENT: &[u8] = b"APT::Sandbox::User \"root\";\n";

/// Puts the file on a /dev.
pub fn add_to(dev: &OwnedFd) -> Result<()> {
    let doing = || "cannot make a file for apt";
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dev, NAME, flags, Mode::from_raw_mode(0o644)).context(doing)?;
    write_all(file.as_fd(), CONTENT).context(doing)
}

/// Names it, unless the step has another one.
pub fn add_to_environment(environment: &mut Vec<(String, String)>) {
    const VARIABLE: &str = "APT_CONFIG";
    if !environment.iter().any(|(name, _)| name == VARIABLE) {
        environment.push((VARIABLE.to_owned(), format!("/dev/{NAME}")));
    }
}
