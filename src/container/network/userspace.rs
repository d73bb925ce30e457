//! The way out through a program: `pasta` or `slirp4netns` reads what a lane sends from a tap interface
//! and speaks to the world with sockets of its own. For hosts that do not forward, and for users.
//!
//! Such a program becomes root of the build's user namespace before it starts: started as the host's
//! root it would turn into nobody and could not open the lane. It sees a /dev of ours with a `tun` it may
//! open, whatever the host's is like, and finds the lane there as a file.

use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags, makedev};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::{Gid, LinkNameSpaceType, Uid, move_into_link_name_space};

use super::super::mount;
use super::super::userns::Mapping;
use super::lane;
use super::link;
use super::netlink::Socket;
use super::range::{PREFIX, Range};
use super::veth::INSIDE;
use crate::diag::{Context, Diagnostic, Result};
use crate::sys::{self, Child};

/// A program that does not get ready within this time is given up: it takes a tenth of a second.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Where programs are looked for.
const DIRECTORIES: [&str; 7] =
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/run/current-system/sw/bin"];

/// What all of them need.
pub const TUN: &str = "/dev/net/tun";
/// Where such a program finds the lane.
const LANE: &str = "/dev/lane";
/// What is kept of a program's output.
const OUTPUT_BYTES: u64 = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Pasta,
    Slirp,
}

/// One that was started and may not be ready yet.
pub struct Started {
    pub program: Program,
    pub path: PathBuf,
    pub child: Child,
    /// Told of the lane's routes.
    pub events: Socket,
    pub deadline: Instant,
    /// Where it answers for the host's name servers.
    pub name_server: Option<IpAddr>,
    route: Socket,
    output: OwnedFd,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp => "slirp4netns",
        }
    }

    /// Where it is installed.
    pub fn find(self) -> Option<PathBuf> {
        let candidates = DIRECTORIES.iter().map(|directory| Path::new(directory).join(self.name()));
        candidates.into_iter().find(|path| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
    }

    /// The name server that it makes out of the host's.
    fn name_server(self, range: Range) -> Ipv4Addr {
        let [a, b, c, _] = range.network().octets();
        match self {
            Self::Pasta => Ipv4Addr::new(a, b, c, 53),
            Self::Slirp => Ipv4Addr::new(a, b, c, 3),
        }
    }

    fn arguments(self, place: &Place<'_>) -> Vec<String> {
        let range = place.range;
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match self {
            Self::Pasta => {
                // In the foreground, so that it is our child. No port of the host is opened for what a step
                // listens on, and the host's own loopback stays out of reach.
                let mut arguments = words("--foreground --quiet --config-net --runas 0 --no-map-gw");
                arguments.extend(words("-t none -u none -T none -U none"));
                arguments.extend(words(&format!("--ns-ifname {INSIDE}")));
                if place.forwards_names {
                    // From then on the host's name server can be asked in this way only: answers come from
                    // this address, whoever was asked.
                    arguments.extend(words(&format!("--dns-forward {}", self.name_server(range))));
                }
                if place.has_v4 {
                    let ends = range.ends(0);
                    arguments.extend(words(&format!("-a {} -n {PREFIX} -g {}", ends.inside, ends.host)));
                }
                arguments.extend(words(&format!("--netns-only --netns {LANE}")));
                arguments
            }
            Self::Slirp => {
                let network = range.network();
                let mut arguments = words("--configure --mtu=65520 --disable-host-loopback --netns-type=path");
                arguments.extend(words(&format!("--cidr={network}/24 {LANE} {INSIDE}")));
                arguments
            }
        }
    }
}

/// What a program is started over.
pub struct Place<'a> {
    pub lane: BorrowedFd<'a>,
    pub user_namespace: BorrowedFd<'a>,
    pub mapping: &'a Mapping,
    /// Addresses for inside.
    pub range: Range,
    /// Whether the host has a way out for IPv4.
    pub has_v4: bool,
    /// Whether the program is to answer for the host's name servers.
    pub forwards_names: bool,
}

/// Starts `program`, found at `path`. The caller has one thread.
pub fn start(program: Program, path: &Path, place: &Place<'_>) -> Result<Started> {
    let doing = || format!("cannot start `{}`", program.name());
    // An interface that goes with its program takes that some 20 ms, for which the end of the build would wait;
    // one that stays goes with the lane, when nobody looks. Without it the program makes its own.
    let furnish = || drop(open_tun().map(|tun| sys::make_tap(tun.as_fd(), INSIDE)));
    let (events, route) = lane::sockets(place.lane, libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE, furnish)?;
    // Not a pipe, which somebody would have to empty.
    let output = rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(doing)?;
    rustix::fs::ftruncate(&output, OUTPUT_BYTES).context(doing)?;
    rustix::fs::fcntl_add_seals(&output, SealFlags::GROW | SealFlags::SHRINK).context(doing)?;
    let arguments = program.arguments(place);
    let Some(child) = sys::clone(0).context(doing)? else {
        let Err(error) = become_program(path, &arguments, place, &output);
        let said = format!(
            "{}\n",
            error.cause.as_ref().map_or_else(|| error.message.clone(), |why| format!("{}: {why}", error.message))
        );
        let _ = rustix::io::write(&output, said.as_bytes());
        sys::exit(1)
    };
    Ok(Started {
        program,
        path: path.to_owned(),
        child,
        events,
        deadline: Instant::now() + LIMIT,
        name_server: place.forwards_names.then(|| program.name_server(place.range).into()),
        route,
        output,
    })
}

impl Started {
    /// Whether the lane has its way out.
    pub fn is_ready(&self) -> bool {
        self.events.events();
        link::routes(&self.route).is_ok_and(|routes| routes.has_default || routes.has_default_v6)
    }

    /// The last thing it said.
    pub fn last_words(&self) -> Option<String> {
        let mut bytes = vec![0; OUTPUT_BYTES as usize];
        let length = rustix::io::pread(&self.output, &mut *bytes, 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let mut lines = text.trim_end_matches('\0').lines().map(str::trim).filter(|line| !line.is_empty());
        lines.next_back().map(str::to_owned)
    }

    /// Ends it.
    pub fn stop(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = sys::wait(self.child.pid);
    }
}

/// In the process that is to become the program.
fn become_program(
    path: &Path,
    arguments: &[String],
    place: &Place<'_>,
    output: &OwnedFd,
) -> Result<std::convert::Infallible> {
    let doing = || "cannot make a place for it";
    sys::enter_new_mount_namespace().context(doing)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context(doing)?;
    mount::lift_anchors().context(doing)?;
    furnish_dev(place)?;
    move_into_link_name_space(place.user_namespace, Some(LinkNameSpaceType::User))
        .context(|| "cannot enter the build's user namespace")?;
    let doing = || "cannot become root of the build's user namespace";
    if !place.mapping.is_single() {
        rustix::thread::set_thread_groups(&[]).context(doing)?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context(doing)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context(doing)?;
    }
    // After the change of ids, which forgets it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(doing)?;
    // Some versions wait for ever when they cannot open it.
    open_tun()?;
    rustix::stdio::dup2_stdout(output).context(doing)?;
    rustix::stdio::dup2_stderr(output).context(doing)?;
    let words = std::iter::once(path.display().to_string()).chain(arguments.iter().cloned());
    // Neither has a zero byte: the path was found, the arguments are ours.
    let words: Vec<CString> = words.filter_map(|word| CString::new(word).ok()).collect();
    let environment = [c"PATH=/usr/bin:/bin".to_owned()];
    sys::close_on_exec_from(3).context(doing)?;
    Err(Diagnostic::error("cannot execute it").caused_by(sys::exec(&words[0], &words, &environment)))
}

/// Opens what all of them need, which changes nothing.
pub fn open_tun() -> Result<OwnedFd> {
    rustix::fs::open(TUN, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| format!("cannot open `{TUN}`"))
}

/// The devices that programs use.
const DEVICES: [(&str, u32, u32); 3] = [("null", 1, 3), ("urandom", 1, 9), ("net/tun", 10, 200)];

/// Puts a /dev of this process's own over the host's: a few devices, and the lane.
fn furnish_dev(place: &Place<'_>) -> Result<()> {
    let doing = || "cannot make a /dev for it";
    let dev = mount::filesystem("tmpfs", &[("mode", "755"), ("size", "64k")], mount::NO_SUID | mount::NO_EXEC)?;
    rustix::fs::mkdirat(&dev, "net", Mode::from_raw_mode(0o755)).context(doing)?;
    let mut mounts = Vec::new();
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        let (kind, device) = match place.mapping.is_shifted() {
            true => (FileType::CharacterDevice, makedev(major, minor)),
            // In a user namespace nobody makes devices: they are the host's.
            false => {
                let found = mount::copy_of_path(Path::new(&path)).context(|| format!("the host has no `{path}`"))?;
                mounts.push((path, found));
                (FileType::RegularFile, 0)
            }
        };
        rustix::fs::mknodat(&dev, name, kind, Mode::from_raw_mode(0o666), device).context(doing)?;
    }
    rustix::fs::mknodat(&dev, "lane", FileType::RegularFile, Mode::from_raw_mode(0o444), 0).context(doing)?;
    mounts.push((LANE.to_owned(), mount::copy_of(place.lane).context(|| "cannot mount a network namespace")?));
    let over = mount::host_directory(Path::new("/dev")).context(doing)?;
    mount::attach(dev.as_fd(), over.as_fd()).context(doing)?;
    for (path, found) in mounts {
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
        mount::attach(found.as_fd(), file.as_fd()).context(|| format!("cannot mount `{path}`"))?;
    }
    Ok(())
}
