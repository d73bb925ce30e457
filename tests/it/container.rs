//! The container of a RUN, seen from inside and from the host. Needs root, and Debian's
//! `busybox-static` for a root file system and `libcap2-bin` for file capabilities.

mod bench;
mod inside;
mod lifetime;
mod mounts;
mod overlay;
