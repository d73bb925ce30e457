//! The way out through a program: `pasta` or `slirp4netns` reads what a lane sends from a tap interface
//! and speaks to the world with sockets of its own. For hosts that do not forward, and for users.
//!
//! The interface and its addresses are ours ([`Line`]): a program that is known to work is started when a step
//! sends something, and takes the other end of the interface. One that is not known is started at once.
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

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags, makedev};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::{Gid, LinkNameSpaceType, Uid, move_into_link_name_space};

use super::super::mount;
use super::super::userns::Mapping;
use super::inside::{self, Address, Inside};
use super::lane;
use super::netlink::Socket;
use super::range::{PREFIX, PREFIX_V6, Range};
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
/// Bytes. Nothing between the lane and the program is smaller: what goes to the world is sent anew.
const MTU: u32 = 65520;
/// The programs take whatever is sent on the interface.
const GATEWAY: [u8; 6] = [0x02, 0x77, 0, 0, 0, 0];
/// What is kept of a program's output.
const OUTPUT_BYTES: u64 = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Pasta,
    Slirp,
}

/// A lane's interface, and the program at its other end, if it was started.
pub struct Line {
    pub program: Program,
    pub path: PathBuf,
    pub lane: OwnedFd,
    /// Where it answers for the host's name servers.
    pub name_server: Option<IpAddr>,
    arguments: Vec<String>,
    inside: Inside,
    /// Neighbours that are looked for.
    asked: Vec<IpAddr>,
    end: End,
}

/// The other end of a line.
enum End {
    Nobody,
    Starting { process: Process, deadline: Instant },
    Running(Process),
    Gone,
}

struct Process {
    child: Child,
    output: OwnedFd,
}

/// What has happened to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step sends something, and there is no program yet.
    Asked,
    /// The program is at work.
    Ready,
    /// It did not get that far: why, and whether it has ended.
    Failed { why: String, has_ended: bool },
    /// It has ended since.
    Lost,
}

/// The user namespace that programs are started in.
#[derive(Clone, Copy)]
pub struct Realm<'a> {
    pub user_namespace: BorrowedFd<'a>,
    pub mapping: &'a Mapping,
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

    /// What the lane's end is to have.
    fn addresses(self, place: Place) -> Vec<Address> {
        match self {
            Self::Pasta => {
                let (four, six) = (place.range.ends(0), place.range.ends_v6(0));
                let v4 = Address { address: four.inside.into(), prefix: PREFIX, gateway: four.host.into() };
                let v6 = Address { address: six.inside.into(), prefix: PREFIX_V6, gateway: six.host.into() };
                let v6 = place.has_v6.then_some(v6);
                // Where the host has no way out at all, the program is to say so.
                [(place.has_v4 || v6.is_none()).then_some(v4), v6].into_iter().flatten().collect()
            }
            Self::Slirp => {
                let [a, b, c, _] = place.range.network().octets();
                let at = |last| Ipv4Addr::new(a, b, c, last).into();
                vec![Address { address: at(100), prefix: 24, gateway: at(2) }]
            }
        }
    }

    fn arguments(self, place: Place, addresses: &[Address]) -> Vec<String> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match self {
            Self::Pasta => {
                // In the foreground, so that it is our child. No port of the host is opened for what a step
                // listens on, and the host's own loopback stays out of reach.
                let mut arguments = words("--foreground --quiet --runas 0 --no-map-gw");
                arguments.extend(words("-t none -u none -T none -U none"));
                arguments.extend(words(&format!("--ns-ifname {}", inside::NAME)));
                if place.forwards_names {
                    // From then on the host's name server can be asked in this way only: answers come from
                    // this address, whoever was asked.
                    arguments.extend(words(&format!("--dns-forward {}", self.name_server(place.range))));
                }
                for Address { address, prefix, gateway } in addresses {
                    arguments.extend(words(&format!("-a {address} -g {gateway}")));
                    if address.is_ipv4() {
                        arguments.extend(words(&format!("-n {prefix}")));
                    }
                }
                arguments.extend(words(&format!("--netns-only --netns {LANE}")));
                arguments
            }
            Self::Slirp => {
                let network = place.range.network();
                let mut arguments = words(&format!("--mtu={MTU} --disable-host-loopback --netns-type=path"));
                arguments.extend(words(&format!("--cidr={network}/24 {LANE} {}", inside::NAME)));
                arguments
            }
        }
    }
}

/// What a lane is to be on this host.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Addresses for inside.
    pub range: Range,
    /// Whether the host has a way out for IPv4, and for IPv6.
    pub has_v4: bool,
    pub has_v6: bool,
    /// Whether the program is to answer for the host's name servers.
    pub forwards_names: bool,
}

impl Line {
    /// Makes the interface of `lane`, for `program`, found at `path`. The caller has one thread.
    pub fn lay(program: Program, path: &Path, lane: OwnedFd, place: Place, mapping: &Mapping) -> Result<Self> {
        let addresses = program.addresses(place);
        let [events, route] = lane::sockets(lane.as_fd(), || {
            let doing = || format!("cannot set up a network for `{}`", program.name());
            // An interface that goes with its program takes that some 20 ms, for which the end of the build
            // would wait; one that stays goes with the lane, when nobody looks.
            sys::make_tap(open_tun(mapping)?.as_fd(), inside::NAME).context(doing)?;
            let (events, route) = (inside::listen().context(doing)?, Socket::open().context(doing)?);
            inside::raise(&route, Some(MTU), &addresses).context(doing)?;
            Ok([events, route])
        })?;
        let inside = Inside::new(route, events).context(|| "cannot find the interface of a private network")?;
        Ok(Self {
            program,
            path: path.to_owned(),
            lane,
            name_server: place.forwards_names.then(|| program.name_server(place.range).into()),
            arguments: program.arguments(place, &addresses),
            inside,
            asked: Vec::new(),
            end: End::Nobody,
        })
    }

    /// Starts the program. The caller has one thread.
    pub fn start(&mut self, realm: Realm<'_>) -> Result<()> {
        // What goes wrong once is not tried again for each packet.
        self.end = End::Gone;
        let doing = || format!("cannot start `{}`", self.program.name());
        // Not a pipe, which somebody would have to empty.
        let output =
            rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(doing)?;
        rustix::fs::ftruncate(&output, OUTPUT_BYTES).context(doing)?;
        rustix::fs::fcntl_add_seals(&output, SealFlags::GROW | SealFlags::SHRINK).context(doing)?;
        let Some(child) = sys::clone(0).context(doing)? else {
            let Err(error) = self.become_program(realm, &output);
            let _ = rustix::io::write(&output, format!("{}\n", in_one_line(&error)).as_bytes());
            sys::exit(1)
        };
        self.end = End::Starting { process: Process { child, output }, deadline: Instant::now() + LIMIT };
        Ok(())
    }

    /// Readable when [`Line::look`] finds something.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let process = match &self.end {
            End::Starting { process, .. } | End::Running(process) => Some(process.child.pidfd.as_fd()),
            End::Nobody | End::Gone => None,
        };
        process.into_iter().chain([self.inside.events()])
    }

    /// When to look again in any case.
    pub fn deadline(&self) -> Option<Instant> {
        match self.end {
            End::Starting { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// What has happened since the last call. What is sent waits until the program is there.
    pub fn look(&mut self) -> Option<Event> {
        let asked = self.inside.asked();
        match std::mem::replace(&mut self.end, End::Gone) {
            End::Nobody => {
                self.end = End::Nobody;
                self.asked.extend(asked);
                (!self.asked.is_empty()).then_some(Event::Asked)
            }
            End::Starting { process, deadline } => {
                self.asked.extend(asked);
                let has_ended = process.has_ended();
                if !has_ended && self.inside.is_running().unwrap_or(false) {
                    self.end = End::Running(process);
                    self.answer();
                    return Some(Event::Ready);
                }
                if !has_ended && Instant::now() < deadline {
                    self.end = End::Starting { process, deadline };
                    return None;
                }
                let why = process.last_words().unwrap_or_else(|| match has_ended {
                    true => "it ended at once".into(),
                    false => format!("it was not ready within {} seconds", LIMIT.as_secs()),
                });
                process.stop();
                Some(Event::Failed { why, has_ended })
            }
            End::Running(process) if process.has_ended() => {
                process.stop();
                Some(Event::Lost)
            }
            End::Running(process) => {
                self.end = End::Running(process);
                self.asked.extend(asked);
                self.answer();
                None
            }
            End::Gone => None,
        }
    }

    /// Ends the program, if there is one.
    pub fn stop(self) {
        if let End::Starting { process, .. } | End::Running(process) = self.end {
            process.stop();
        }
    }

    fn answer(&mut self) {
        // What is not answered is looked for on the interface, a second later.
        let _ = self.inside.answer(self.asked.drain(..), GATEWAY);
    }

    /// In the process that is to become the program.
    fn become_program(&self, realm: Realm<'_>, output: &OwnedFd) -> Result<std::convert::Infallible> {
        let doing = || "cannot make a place for it";
        sys::enter_new_mount_namespace().context(doing)?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context(doing)?;
        mount::lift_anchors().context(doing)?;
        furnish_dev(self.lane.as_fd(), realm.mapping)?;
        move_into_link_name_space(realm.user_namespace, Some(LinkNameSpaceType::User))
            .context(|| "cannot enter the build's user namespace")?;
        let doing = || "cannot become root of the build's user namespace";
        if !realm.mapping.is_single() {
            rustix::thread::set_thread_groups(&[]).context(doing)?;
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context(doing)?;
            rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context(doing)?;
        }
        // After the change of ids, which forgets it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(doing)?;
        // Some versions wait for ever when they cannot open it.
        open_host_tun()?;
        rustix::stdio::dup2_stdout(output).context(doing)?;
        rustix::stdio::dup2_stderr(output).context(doing)?;
        let words = std::iter::once(self.path.display().to_string()).chain(self.arguments.iter().cloned());
        // Neither has a zero byte: the path was found, the arguments are ours.
        let words: Vec<CString> = words.filter_map(|word| CString::new(word).ok()).collect();
        let environment = [c"PATH=/usr/bin:/bin".to_owned()];
        sys::close_on_exec_from(3).context(doing)?;
        Err(Diagnostic::error("cannot execute it").caused_by(sys::exec(&words[0], &words, &environment)))
    }
}

impl Process {
    fn has_ended(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(self.child.pidfd.as_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// The last thing it said.
    fn last_words(&self) -> Option<String> {
        let mut bytes = vec![0; OUTPUT_BYTES as usize];
        let length = rustix::io::pread(&self.output, &mut *bytes, 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let mut lines = text.trim_end_matches('\0').lines().map(str::trim).filter(|line| !line.is_empty());
        lines.next_back().map(str::to_owned)
    }

    /// Ends it.
    fn stop(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = sys::wait(self.child.pid);
    }
}

/// Opens what all of them need, which changes nothing.
pub fn open_tun(mapping: &Mapping) -> Result<OwnedFd> {
    match open_host_tun() {
        // Who may make devices needs none of the host's.
        Err(_) if mapping.is_shifted() => {
            let doing = || format!("cannot make `{TUN}`");
            let dir = mount::filesystem("tmpfs", &[("size", "4k")], mount::NO_SUID | mount::NO_EXEC)?;
            let (name, major, minor) = TUN_DEVICE;
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(&dir, "tun", FileType::CharacterDevice, mode, makedev(major, minor)).context(doing)?;
            rustix::fs::openat(&dir, "tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("cannot open a `{name}`"))
        }
        opened => opened,
    }
}

fn open_host_tun() -> Result<OwnedFd> {
    rustix::fs::open(TUN, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| format!("cannot open `{TUN}`"))
}

const TUN_DEVICE: (&str, u32, u32) = ("net/tun", 10, 200);
/// The devices that programs use.
const DEVICES: [(&str, u32, u32); 3] = [("null", 1, 3), ("urandom", 1, 9), TUN_DEVICE];

/// Puts a /dev of this process's own over the host's: a few devices, and the lane.
fn furnish_dev(lane: BorrowedFd<'_>, mapping: &Mapping) -> Result<()> {
    let doing = || "cannot make a /dev for it";
    let dev = mount::filesystem("tmpfs", &[("mode", "755"), ("size", "64k")], mount::NO_SUID | mount::NO_EXEC)?;
    rustix::fs::mkdirat(&dev, "net", Mode::from_raw_mode(0o755)).context(doing)?;
    let mut mounts = Vec::new();
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        let (kind, device) = match mapping.is_shifted() {
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
    mounts.push((LANE.to_owned(), mount::copy_of(lane).context(|| "cannot mount a network namespace")?));
    let over = mount::host_directory(Path::new("/dev")).context(doing)?;
    mount::attach(dev.as_fd(), over.as_fd()).context(doing)?;
    for (path, found) in mounts {
        let file = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
        mount::attach(found.as_fd(), file.as_fd()).context(|| format!("cannot mount `{path}`"))?;
    }
    Ok(())
}

/// A diagnostic for where there is one line.
pub fn in_one_line(error: &Diagnostic) -> String {
    match &error.cause {
        Some(cause) => format!("{}: {cause}", error.message),
        None => error.message.clone(),
    }
}
