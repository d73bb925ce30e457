//! A host and a world of a test's own: the thread of the test moves into network and mount namespaces
//! where it is the only one, and a thread in another network namespace plays everybody else.
//!
//! ```text
//! steps ── host: eth0 192.0.2.2, 2001:db8::2 ── world: 192.0.2.1, 2001:db8::1
//!                                                      203.0.113.80:80   says who asks
//!                                                      203.0.113.53:53   knows every name
//! ```
//!
//! Needs `ip` (iproute2).

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use wythe::sys;

/// Ends with the test's thread.
pub struct World {
    /// Files that stand in for the host's.
    dir: tempfile::TempDir,
}

impl World {
    /// Moves this thread there. `forwards`: whether the host lets others' packets through.
    pub fn enter(forwards: bool) -> Self {
        sys::enter_new_network_namespace().unwrap();
        sys::enter_new_mount_namespace().unwrap();
        run("mount --make-rprivate /");
        let (ready, begun) = mpsc::channel();
        let (connected, go_on) = mpsc::channel::<()>();
        let (serving, served) = mpsc::channel();
        std::thread::spawn(move || {
            sys::enter_new_network_namespace().unwrap();
            ready.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            go_on.recv().unwrap();
            for line in [
                "ip link set lo up",
                "ip address add 203.0.113.80/32 dev lo",
                "ip address add 203.0.113.53/32 dev lo",
                "ip -6 address add 2001:db8:1::80/128 dev lo nodad",
                "ip address add 192.0.2.1/24 dev world",
                "ip -6 address add 2001:db8::1/64 dev world nodad",
                "ip link set world up",
            ] {
                run(line);
            }
            for address in ["203.0.113.80:80", "[2001:db8:1::80]:80"] {
                say_who_asks(address);
            }
            answer_names("203.0.113.53:53");
            serving.send(()).unwrap();
        });
        let world = begun.recv().unwrap();
        // Not `/proc/self`, which would be the command's.
        let world = format!("/proc/{}/task/{world}/ns/net", std::process::id());
        run(&format!("ip link add eth0 type veth peer name world netns {world}"));
        connected.send(()).unwrap();
        for line in [
            "ip link set lo up",
            "ip link set eth0 up",
            "ip address add 192.0.2.2/24 dev eth0",
            "ip -6 address add 2001:db8::2/64 dev eth0 nodad",
            "ip route add default via 192.0.2.1",
        ] {
            run(line);
        }
        served.recv().unwrap();
        let world = Self { dir: tempfile::tempdir().unwrap() };
        set("net/ipv4/ip_forward", if forwards { "1" } else { "0" });
        world.replace("/etc/resolv.conf", "nameserver 203.0.113.53\n");
        world
    }

    /// Puts a file over one of the host's.
    pub fn replace(&self, path: &str, content: &str) {
        let file = self.dir.path().join(path.trim_start_matches('/').replace('/', "-"));
        fs::write(&file, content).unwrap();
        // The file itself may be a link to where nothing is.
        let target = fs::canonicalize(path).unwrap_or_else(|_| panic!("the test needs a file `{path}`"));
        run(&format!("mount --bind {} {}", file.display(), target.display()));
    }

    /// Takes programs out of sight.
    pub fn hide(&self, programs: &[&str]) {
        for directory in ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"] {
            for program in programs {
                let path = Path::new(directory).join(program);
                if path.is_file() {
                    run(&format!("mount --bind /dev/null {}", path.display()));
                }
            }
        }
    }
}

/// Sets what `/proc/sys` has, of this thread's network.
pub fn set(name: &str, value: &str) {
    fs::write(Path::new("/proc/sys").join(name), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// What a command prints on this thread's network; it must succeed.
pub fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a program is installed; says so if not.
#[allow(clippy::print_stderr)] // A test says what it leaves out.
pub fn has(program: &str) -> bool {
    let is_there = Command::new("which").arg(program).output().is_ok_and(|output| output.status.success());
    if !is_there {
        eprintln!("left out: `{program}` is not installed");
    }
    is_there
}

/// Serves on this thread's network, over HTTP: a line with the address of who asks.
pub fn say_who_asks(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asker = stream.peer_addr().unwrap().ip();
            let head = BufReader::new(&stream).lines().take_while(|line| line.as_ref().is_ok_and(|it| !it.is_empty()));
            let _ = head.count();
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\nyou are {asker}\n");
        }
    });
    address
}

/// A name server on this thread's network for which every name is 203.0.113.80, and no name has an IPv6
/// address.
pub fn answer_names(address: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, asker) = socket.recv_from(&mut query).unwrap();
            let _ = socket.send_to(&answer(&query[..length]), asker);
        }
    });
}

fn answer(query: &[u8]) -> Vec<u8> {
    // The header of 12 bytes, then one question: labels, type, class.
    let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let is_ipv4 = query[end - 4..end - 2] == [0, 1];
    let mut answer = query[..end].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, u8::from(is_ipv4), 0, 0, 0, 0]);
    if is_ipv4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 80]);
    }
    answer
}

/// The interfaces of this thread's network that are not there anyway.
pub fn interfaces() -> Vec<String> {
    let names = run("ip -o link").lines().map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    // Some kernels put tunnels into every network.
    let is_ours = |name: &String| name.starts_with("wythe");
    names.iter().map(|name| name.split('@').next().unwrap().to_owned()).filter(is_ours).collect()
}

/// An address as it is written.
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}
