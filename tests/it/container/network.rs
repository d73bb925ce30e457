//! Networks of steps, on hosts that forward packets and on hosts that do not.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use wythe::container::{Container, Dns, Expectation, HostAddress, Status};
use wythe::plan::{Network, Security};

use super::bench::{Bench, processes_with};
use super::world::{World, address, answer_names, has, interfaces, run, say_who_asks, set};

/// The ways out that there are here, each with a host where it is the one to take.
const WAYS: [(&str, &[&str]); 3] = [("the host", &[]), ("pasta", &["slirp4netns"]), ("slirp4netns", &["pasta"])];

/// Does something on a host for each way out; `way` is what is taken there.
fn on_each_way(check: impl Fn(&str, &World, &Bench) + Sync) {
    for (way, hidden) in WAYS {
        if way != "the host" && !has(way) {
            continue;
        }
        let check = &check;
        // A thread of its own: there is no way back from a namespace.
        std::thread::scope(|scope| {
            let ended = scope.spawn(move || {
                let world = World::enter(way == "the host");
                world.hide(hidden);
                check(way, &world, &Bench::new());
            });
            ended.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }
}

#[test]
fn steps_reach_the_world_as_their_host() {
    on_each_way(|way, _, bench| {
        let ran = bench.succeed(&bench.script("wget -qO- http://203.0.113.80; nslookup any.example"));
        assert_eq!(ran.output.lines().next(), Some("you are 192.0.2.2"), "{way}");
        assert!(ran.output.contains("Address: 203.0.113.80"), "{way}: {}", ran.output);
        assert!(ran.exit.unwrap().warning.is_none(), "{way}");
        // The second finds the way open, or opens it as its own lane's.
        assert_eq!(bench.output("wget -qO- http://203.0.113.80"), "you are 192.0.2.2\n", "{way}");
    });
}

/// What a first build finds out makes the next one open the way only when it is used.
#[test]
fn an_unused_network_leaves_the_packet_filter_alone() {
    let _world = World::enter(true);
    let bench = Bench::new();
    let learned = bench.succeed(&bench.script(":")).exit.unwrap().learned;
    assert!(learned.is_some());
    drop(bench);
    let bench = knowing(learned);
    let state = "cat /sys/class/net/eth0/operstate";
    let ran = bench.succeed(&bench.script(state));
    // Which of them is the kernel's business, and a moment's.
    assert!(["down\n", "lowerlayerdown\n", "unknown\n"].contains(&ran.output.as_str()), "{}", ran.output);
    assert_eq!(ran.exit.unwrap().learned, None);
    if has("nft") {
        assert_eq!(run("nft list tables"), "");
    }
    let script = format!("wget -qO- http://203.0.113.80; {state}; ping -c 1 -W 5 203.0.113.80 | grep -c 'bytes from'");
    assert_eq!(bench.output(&script), "you are 192.0.2.2\nup\n1\n");
    if has("nft") {
        assert!(run("nft list tables").starts_with("table inet wythe"));
    }
}

/// A bench that knows what an earlier one has learned.
fn knowing(memory: Option<Vec<u8>>) -> Bench {
    let bench = Bench::new();
    bench.spawner.expect(&Expectation { lanes: 1, memory, ..Expectation::default() }).unwrap();
    bench
}

/// Runs `check` on hosts that do not forward, once for each program that is a way out of there.
fn with_each_program(check: impl Fn(&str, &World, &Bench) + Sync) {
    on_each_way(|way, world, bench| {
        if way != "the host" {
            check(way, world, bench);
        }
    });
}

#[test]
fn a_program_that_works_is_started_when_it_is_used() {
    with_each_program(|way, _, bench| {
        let program = run(&format!("which {way}")).trim().to_owned();
        let learned = bench.succeed(&bench.script(":")).exit.unwrap().learned;
        assert!(learned.is_some(), "{way}");
        let bench = knowing(learned);
        let state = "cat /sys/class/net/eth0/carrier";
        let spawner = spawner_of(&bench);
        // The spawner's keeper starts it.
        let mine = || processes_with(&program).into_iter().filter(|pid| parent(parent(*pid)) == spawner).count();
        assert_eq!(mine(), 0, "{way}");
        let ran = bench.succeed(&bench.script(&format!("{state}; wget -qO- http://203.0.113.80; {state}")));
        assert_eq!(ran.output, "0\nyou are 192.0.2.2\n1\n", "{way}");
        let exit = ran.exit.unwrap();
        assert_eq!((exit.warning, exit.learned), (None, None), "{way}");
        assert_eq!(mine(), 1, "{way}");
        // The next step finds the way open.
        assert_eq!(bench.output(&format!("{state}; wget -qO- http://203.0.113.80")), "1\nyou are 192.0.2.2\n", "{way}");
    });
}

#[test]
fn names_can_be_asked_for_before_a_program_is_started() {
    with_each_program(|way, world, bench| {
        let learned = bench.succeed(&bench.script(":")).exit.unwrap().learned;
        let output = knowing(learned.clone()).output("nslookup any.example");
        assert!(output.contains("Address: 203.0.113.80"), "{way}: {output}");
        // By the program itself.
        world.replace("/etc/resolv.conf", "nameserver 127.0.0.1\n");
        answer_names("127.0.0.1:53");
        let output = knowing(learned).output("nslookup any.example");
        assert!(output.contains("Address: 203.0.113.80"), "{way}: {output}");
    });
}

/// What was true of a host need not be any more.
#[test]
fn a_program_that_works_no_more_is_told_of() {
    if !has("pasta") {
        return;
    }
    let world = World::enter(false);
    world.hide(&["slirp4netns"]);
    let learned = {
        let bench = Bench::new();
        bench.succeed(&bench.script(":")).exit.unwrap().learned
    };
    let bench = knowing(learned);
    // It wants to know on which of the host's interfaces the world is.
    run("ip route delete default");
    let exit = bench.succeed(&bench.script("timeout 5 wget -qO- http://203.0.113.80 || :")).exit.unwrap();
    let warning = exit.warning.unwrap();
    assert_eq!(warning.message, "what a step sent did not get out of its network");
    // The next build tries before it says that there is a way.
    let learned = exit.learned;
    assert!(learned.is_some());
    run("ip route add default via 192.0.2.1");
    assert_eq!(knowing(learned).output("wget -qO- http://203.0.113.80"), "you are 192.0.2.2\n");
}

#[test]
fn ipv6_goes_through_pasta_where_the_host_has_it() {
    if !has("pasta") {
        return;
    }
    let _world = World::enter(false);
    run("ip -6 route add default via 2001:db8::1");
    let learned = {
        let bench = Bench::new();
        let script = "wget -qO- http://[2001:db8:1::80]; wget -qO- http://203.0.113.80";
        let ran = bench.succeed(&bench.script(script));
        assert_eq!(ran.output, "you are 2001:db8::2\nyou are 192.0.2.2\n");
        ran.exit.unwrap().learned
    };
    assert_eq!(knowing(learned).output("wget -qO- http://[2001:db8:1::80]"), "you are 2001:db8::2\n");
}

#[test]
fn a_name_server_on_the_hosts_loopback_can_be_asked() {
    on_each_way(|way, world, bench| {
        world.replace("/etc/resolv.conf", "nameserver 127.0.0.1\nsearch example\n");
        answer_names("127.0.0.1:53");
        let ran = bench.succeed(&bench.script("cat /etc/resolv.conf; nslookup any.example"));
        assert!(ran.output.starts_with("search example\nnameserver "), "{way}: {}", ran.output);
        assert!(ran.output.contains("Address: 203.0.113.80"), "{way}: {}", ran.output);
    });
}

#[test]
fn dns_options_take_the_place_of_the_hosts() {
    on_each_way(|way, world, bench| {
        world.replace("/etc/resolv.conf", "nameserver 127.0.0.1\nsearch example\noptions ndots:2\n");
        let mut container = bench.script("cat /etc/resolv.conf; nslookup any.example");
        container.dns = Dns {
            servers: vec![address("203.0.113.53")],
            search: vec!["a.example".into(), "b.example".into()],
            options: vec!["timeout:9".into()],
        };
        let output = bench.succeed(&container).output;
        let expected = "nameserver 203.0.113.53\nsearch a.example b.example\noptions timeout:9\n";
        assert!(output.starts_with(expected), "{way}: {output}");
        assert!(output.contains("Address: 203.0.113.80"), "{way}: {output}");
    });
}

#[test]
fn the_host_can_be_reached_but_not_its_loopback() {
    on_each_way(|way, _, bench| {
        let open = say_who_asks("0.0.0.0:0").port();
        let closed = say_who_asks("127.0.0.1:0").port();
        let reach = |port| {
            let mut container = bench.script(&format!(
                "host=$(sed -n 's/\\tme$//p' /etc/hosts); for at in $host 127.0.0.1 192.0.2.2; do \
                 timeout 5 wget -qO- http://$at:{port} 2>/dev/null | cut -c -7 || :; done"
            ));
            container.extra_hosts = vec![("me".into(), HostAddress::Gateway)];
            bench.succeed(&container).output
        };
        assert_eq!(reach(open).matches("you are").count(), 2, "{way}");
        assert_eq!(reach(closed).matches("you are").count(), 0, "{way}");
    });
}

#[test]
fn two_steps_at_once_have_a_network_each() {
    on_each_way(|way, _, bench| {
        let meeting = bench.path("meeting");
        fs::create_dir(&meeting).unwrap();
        // Each listens on port 80 until the other does too, and then finds itself there.
        let step = |own: &str, other: &str| {
            let script = format!(
                "while :; do echo {own} | nc -l -p 80 >/dev/null; done & until netstat -ltn | grep -q :80; do :; done; \
                 touch /m/{own}; until [ -e /m/{other} ]; do :; done; nc 127.0.0.1 80 </dev/null; \
                 readlink /proc/self/ns/net"
            );
            let kind =
                wythe::container::MountKind::Bind { root: meeting.clone(), path: "/".to_owned(), is_readonly: false };
            let mounts = vec![wythe::container::Mount { target: "/m".to_owned(), kind }];
            Container { mounts, ..bench.script(&script) }
        };
        let (one, two) = (step("one", "two"), step("two", "one"));
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(|| bench.succeed(&two).output);
            (bench.succeed(&one).output, other.join().unwrap())
        });
        let (one, two): (Vec<_>, Vec<_>) = (one.lines().collect(), two.lines().collect());
        assert_eq!((one[0], two[0]), ("one", "two"), "{way}");
        assert_ne!(one[1], two[1], "{way}");
    });
}

#[test]
fn a_lane_is_used_again_unless_its_step_could_change_it() {
    let _world = World::enter(true);
    let bench = Bench::new();
    let mut container = bench.script("readlink /proc/self/ns/net");
    let name = |container: &Container| bench.succeed(container).output;
    let first = name(&container);
    container = bench.renewed(container);
    assert_eq!(name(&container), first);
    container = bench.renewed(container);
    container.security = Security::Insecure;
    assert_eq!(name(&container), first);
    container = bench.renewed(container);
    container.security = Security::Sandbox;
    let second = name(&container);
    // Those without a way out are others.
    container = bench.renewed(container);
    container.network = Network::None;
    let alone = name(&container);
    // The first is gone, and its number may be given again.
    assert_ne!(alone, second);
    container = bench.renewed(container);
    assert_eq!(name(&container), alone);
}

#[test]
fn everybody_may_ping_and_listen_on_any_port() {
    let _world = World::enter(true);
    let bench = Bench::new();
    // The ping of a busybox takes a raw socket, which only root has; others' take one of the groups' that may.
    let ping = "ping -c 1 -W 5 127.0.0.1 | grep -c 'bytes from'; \
                ping -c 1 -W 5 203.0.113.80 2>/dev/null | grep -c 'bytes from'";
    let groups = "cat /proc/sys/net/ipv4/ping_group_range";
    // Not `echo hello | nc -l`: that ends with what it hears, which may be before it says anything.
    let listen = "nc -l -p 80 -e echo hello & while ! nc 127.0.0.1 80 2>/dev/null; do :; done";
    for network in [Network::Default, Network::None] {
        let container = Container { network, ..bench.script(&format!("{ping}; {listen}")) };
        let expected = if network == Network::Default { "1\n1\nhello\n" } else { "1\n0\nhello\n" };
        assert_eq!(bench.succeed(&container).output, expected, "{network:?}");
        let container = Container { user: bench.alice(), network, ..bench.script(&format!("{groups}; {listen}")) };
        assert_eq!(bench.succeed(&container).output, "0\t2147483645\nhello\n", "{network:?}");
    }
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    let _world = World::enter(true);
    let bench = Bench::new();
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name("wythe-test").unwrap()).unwrap();
    let script = "grep -c @wythe-test /proc/net/unix || :";
    for (network, expected) in [(Network::Default, "0\n"), (Network::None, "0\n"), (Network::Host, "1\n")] {
        let container = Container { network, ..bench.script(script) };
        assert_eq!(bench.succeed(&container).output, expected, "{network:?}");
    }
}

#[test]
fn what_is_asked_for_is_what_a_step_sees() {
    let _world = World::enter(true);
    let bench = Bench::new();
    let script = "ls /sys/class/net | grep -v -E '^(tunl|gre|gretap|erspan|sit|ip6|ip_vti)'; touch /sys/x || :";
    let see = |network| bench.succeed(&Container { network, ..bench.script(script) }).output;
    let refused = "touch: /sys/x: Read-only file system\n";
    assert_eq!(see(Network::None), format!("lo\n{refused}"));
    assert_eq!(see(Network::Default), format!("eth0\nlo\n{refused}"));
    let host = see(Network::Host);
    assert!(host.starts_with("eth0\nlo\nwythe") && host.ends_with(refused), "{host}");
}

#[test]
fn lanes_are_kept_apart() {
    let _world = World::enter(true);
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let listening =
        bench.script("ip -4 -o address show eth0 | tr -s ' ' | cut -d ' ' -f 4 | cut -d / -f 1; nc -l -p 80 -e true");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.spawner.run(&listening, writer.into()));
        let mut own = String::new();
        BufReader::new(reader).read_line(&mut own).unwrap();
        let script = format!(
            "timeout 1 wget -qO- http://{} 2>/dev/null || echo nobody; wget -qO- http://203.0.113.80",
            own.trim()
        );
        let output = bench.output(&script);
        bench.spawner.kill_all(Signal::KILL).unwrap();
        running.join().unwrap().unwrap();
        assert_eq!(output, "nobody\nyou are 192.0.2.2\n");
    });
}

/// What routers say is believed by default; a step has all it takes to say it.
#[test]
fn the_host_does_not_listen_to_a_step_that_plays_a_router() {
    let _world = World::enter(true);
    let bench = Bench::new();
    bench.while_running("echo ready; sleep 1000; true", |_| {
        let [interface] = interfaces().try_into().unwrap();
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/{name}")).unwrap();
        assert_eq!(read("accept_ra"), "0\n");
        assert_eq!(run(&format!("ip -6 -o address show dev {interface}")), "");
    });
}

#[test]
fn ipv6_is_forwarded_where_the_host_does() {
    let _world = World::enter(true);
    set("net/ipv6/conf/all/forwarding", "1");
    run("ip -6 route add default via 2001:db8::1");
    let bench = Bench::new();
    let script = "wget -qO- http://[2001:db8:1::80]; wget -qO- http://203.0.113.80";
    assert_eq!(bench.output(script), "you are 2001:db8::2\nyou are 192.0.2.2\n");
    let learned = bench.succeed(&bench.script(":")).exit.unwrap().learned;
    assert_eq!(learned, None, "it was told already");
}

#[test]
fn addresses_of_the_hosts_routes_are_left_to_them() {
    let _world = World::enter(true);
    run("ip route add 10.119.0.0/23 via 192.0.2.1");
    let (one, two) = (Bench::new(), Bench::new());
    let own = "ip -4 -o address show eth0 | tr -s ' ' | cut -d ' ' -f 4";
    one.while_running(&format!("{own} > /own; echo ready; sleep 1000; true"), |_| {
        assert_eq!(interfaces(), ["wythe2-0"]);
        // Another build on the same host.
        assert_eq!(two.output(own), "10.119.3.2/30\n");
    });
    run("ip route add 10.0.0.0/8 via 192.0.2.1");
    assert_eq!(Bench::new().output(own), "172.29.0.2/30\n");
}

#[test]
fn a_host_that_forbids_what_it_forwards_takes_another_way() {
    if !has("pasta") {
        return;
    }
    let world = World::enter(true);
    run("ip rule add from 10.119.0.0/16 prohibit");
    let bench = Bench::new();
    let ran = bench.succeed(&bench.script("wget -qO- http://203.0.113.80"));
    let exit = ran.exit.unwrap();
    assert_eq!((ran.output.as_str(), exit.warning), ("you are 192.0.2.2\n", None));
    // The kernel clears a network away when it finds the time.
    let is_clear = || {
        interfaces().is_empty() || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            false
        }
    };
    assert!((0..2000).any(|_| is_clear()), "{:?}", interfaces());
    // The next build knows.
    let memory = exit.learned;
    let bench = knowing(memory.clone());
    assert_eq!(bench.output("wget -qO- http://203.0.113.80"), "you are 192.0.2.2\n");
    // With no program left, it is worth another try.
    run("ip rule delete from 10.119.0.0/16 prohibit");
    world.hide(&["pasta", "slirp4netns"]);
    let bench = knowing(memory);
    assert_eq!(bench.output("wget -qO- http://203.0.113.80"), "you are 192.0.2.2\n");
}

/// What was true of a host need not be any more.
#[test]
fn a_host_that_stops_forwarding_is_told_of() {
    let world = World::enter(true);
    let bench = Bench::new();
    let memory = bench.succeed(&bench.script(":")).exit.unwrap().learned;
    run("ip rule add from 10.119.0.0/16 prohibit");
    world.hide(&["pasta", "slirp4netns"]);
    let bench = knowing(memory);
    let exit = bench.succeed(&bench.script("timeout 1 wget -qO- http://203.0.113.80 || :")).exit.unwrap();
    let warning = exit.warning.unwrap();
    assert_eq!(warning.message, "what a step sent did not get out of its network");
    assert!(exit.learned.is_some_and(|memory| String::from_utf8(memory).unwrap().contains("Forbidden")));
}

#[test]
fn without_any_way_out_a_step_is_on_the_hosts_network() {
    let world = World::enter(false);
    world.hide(&["pasta", "slirp4netns"]);
    let bench = Bench::new();
    let outside = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let ran = bench.succeed(&bench.script("readlink /proc/self/ns/net; wget -qO- http://203.0.113.80"));
    assert_eq!(ran.output, format!("{}\nyou are 192.0.2.2\n", outside.display()));
    let warning = ran.exit.unwrap().warning.unwrap();
    assert_eq!(warning.message, "steps are on the network of the host: a private one has no way out");
    let cause = "through the host: the host does not forward packets (`net.ipv4.ip_forward` is 0); \
                 through `pasta`: it is not installed; through `slirp4netns`: it is not installed";
    assert_eq!(warning.cause.as_deref(), Some(cause));
    // A step without a network has none all the same.
    let mut container = bench.script("ip -o address | grep -v -c ' lo ' || :");
    container.network = Network::None;
    let ran = bench.succeed(&container);
    assert!(ran.output == "0\n" && ran.exit.unwrap().warning.is_none(), "{}", ran.output);
}

#[test]
fn a_program_that_does_not_work_makes_place_for_the_next() {
    let world = World::enter(false);
    if !has("pasta") || !has("slirp4netns") {
        return;
    }
    let pasta = run("which pasta").trim().to_owned();
    world.replace(&pasta, "#!/bin/sh\necho starting\necho it is broken >&2\nexit 1\n");
    run(&format!("chmod 755 {pasta}"));
    let bench = Bench::new();
    let ran = bench.succeed(&bench.script("wget -qO- http://203.0.113.80"));
    assert_eq!((ran.output.as_str(), ran.exit.unwrap().warning), ("you are 192.0.2.2\n", None));
    world.hide(&["slirp4netns"]);
    let warning = Bench::new().succeed(&bench.script(":")).exit.unwrap().warning.unwrap();
    assert!(warning.cause.is_some_and(|cause| cause.contains("through `pasta`: it is broken")));
}

#[test]
fn a_program_that_dies_takes_its_lane_with_it() {
    let world = World::enter(false);
    if !has("pasta") {
        return;
    }
    world.hide(&["slirp4netns"]);
    let bench = Bench::new();
    bench.output("true");
    let pids = children_of(spawner_of(&bench)).into_iter().filter_map(|pid| Pid::from_raw(pid as i32));
    let killed: Vec<OwnedFd> = pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect();
    killed.iter().for_each(|process| pidfd_send_signal(process, Signal::KILL).unwrap());
    for process in &killed {
        // Readable at its end.
        poll(&mut [PollFd::new(process, PollFlags::IN)], None).unwrap();
    }
    // With the keeper goes its program: the next step has others.
    assert!(!killed.is_empty());
    bench.output("true");
    assert_eq!(bench.output("wget -qO- http://203.0.113.80"), "you are 192.0.2.2\n");
}

/// In a user namespace only a program is a way out, and nobody comes back from a lane.
#[test]
fn a_users_steps_reach_the_world() {
    on_each_way(|way, _, _| {
        if way == "the host" {
            return;
        }
        let test = ["--ignored", "--exact", "container::network::step_of_a_user", "--nocapture"];
        let user = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .args(test)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&user.stdout).into_owned();
        assert!(output.contains("you are 192.0.2.2\n"), "{way}: {output}{}", String::from_utf8_lossy(&user.stderr));
    });
}

#[test]
#[ignore = "runs as another test's child"]
#[allow(clippy::print_stdout)] // Its parent reads it.
fn step_of_a_user() {
    let bench = Bench::new();
    let ran = bench.succeed(&bench.script("wget -qO- http://203.0.113.80; ping -c 1 127.0.0.1 >/dev/null"));
    let exit = ran.exit.unwrap();
    assert_eq!(exit.warning, None);
    println!("{}", ran.output);
    let listen = "nc -l -p 80 -e echo hello & while ! nc 127.0.0.1 80 2>/dev/null; do kill -0 $! || exit; done";
    assert_eq!(bench.output(listen), "hello\n");
    let container = Container { network: Network::None, ..bench.script("ip -o address | grep -v -c ' lo ' || :") };
    assert_eq!(bench.succeed(&container).output, "0\n");
    // The program is started when it is asked for.
    let bench = knowing(exit.learned);
    let script = "cat /sys/class/net/eth0/carrier; wget -qO- http://203.0.113.80";
    assert_eq!(bench.output(script), "0\nyou are 192.0.2.2\n");
}

/// The spawner of a bench, by a step of it.
fn spawner_of(bench: &Bench) -> u32 {
    let mut spawner = 0;
    bench.while_running("echo ready; sleep 1000; true", |payload| spawner = parent(payload));
    spawner
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn children_of(pid: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let is_child = |child: &u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == pid.to_string()))
    };
    all.filter_map(number).filter(is_child).collect()
}

#[test]
fn a_killed_builder_leaves_nothing_on_its_network() {
    on_each_way(|way, _, bench| {
        let marker = format!("marker={}", bench.path("").display());
        let mut builder = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "container::lifetime::builder_to_be_killed", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let script = "wget -qO- http://203.0.113.80; echo ready; sleep 1000; true";
        let container =
            Container { argv: ["/bin/sh", "-c", script, &marker].map(str::to_owned).to_vec(), ..bench.script("") };
        let request = serde_json::to_string(&container).unwrap();
        builder.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
        let mut lines = BufReader::new(builder.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap() == "ready"), "{way}: {:?}", builder.wait());
        let spawner = parent(processes_with(&marker)[0]);
        assert_eq!(interfaces().is_empty(), way != "the host", "{way}");
        let processes: Vec<u32> =
            children_of(spawner).iter().flat_map(|child| [vec![*child], children_of(*child)].concat()).collect();
        assert!(processes.len() >= 2, "{way}: {processes:?}");
        kill_process(Pid::from_raw(builder.id() as i32).unwrap(), Signal::KILL).unwrap();
        builder.wait().unwrap();
        // The kernel clears away on its own time.
        let is_clear = || {
            let has_process = processes.iter().any(|pid| parent_or_none(*pid) == Some(spawner));
            let has_table = has("nft") && run("nft list tables").contains("wythe");
            !has_process && !has_table && interfaces().is_empty()
        };
        assert!((0..2000).any(|_| is_clear()), "{way}: {:?}", interfaces());
        assert_eq!(processes_with(&marker), Vec::<u32>::new());
    });
}

fn parent_or_none(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[test]
fn statuses_pass_whatever_the_network() {
    on_each_way(|way, _, bench| {
        assert_eq!(bench.run(&bench.script("exit 7")).exit.unwrap().status, Status::Exited(7), "{way}");
        let mut output = String::new();
        let (mut reader, writer) = std::io::pipe().unwrap();
        bench.spawner.run(&bench.script("echo said"), writer.into()).unwrap();
        reader.read_to_string(&mut output).unwrap();
        assert_eq!(output, "said\n", "{way}");
    });
}
