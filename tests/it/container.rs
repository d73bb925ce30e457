//! The container of a RUN, seen from inside and from the host. Needs root, and Debian's
//! `busybox-static` for a root file system and `libcap2-bin` for file capabilities.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod bench;
mod inside;
mod lifetime;
mod limits;
mod mounts;
mod network;
mod nodes;
mod overlay;
mod security;
mod world;
