//! `/etc/hosts` and `/etc/resolv.conf` of a container, as texts.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// What a name of `--add-host` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAddress {
    Ip(IpAddr),
    /// The host, wherever the step finds it.
    Gateway,
}

/// `--dns`, `--dns-search` and `--dns-option`: what is given takes the place of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<IpAddr>,
    /// `.` alone is for none.
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// What the host says of name servers.
#[derive(Clone, Debug, Default)]
pub struct HostFiles {
    /// `/etc/resolv.conf`
    pub resolv_conf: String,
    /// Where systemd lists the servers that its own, on the loopback, asks.
    pub upstream: Option<String>,
}

/// What a step reaches of its host.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// It is on the host's network.
    Everything,
    /// It has a network of its own, from which the host's loopback cannot be reached.
    Lane {
        /// Answers for all name servers of the host.
        name_server: Option<IpAddr>,
        /// The host's address, if there is a way to it.
        host: Option<IpAddr>,
    },
}

/// `/etc/hosts` for this host name and the names of `--add-host`.
pub fn hosts(hostname: &str, extra: &[(String, HostAddress)], reach: &Reach) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let gateway = match reach {
        Reach::Everything => Some(Ipv4Addr::LOCALHOST.into()),
        Reach::Lane { host, .. } => *host,
    };
    for (name, address) in extra {
        let address = match address {
            HostAddress::Ip(address) => Some(*address),
            HostAddress::Gateway => gateway,
        };
        if let Some(address) = address {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    text
}

/// `/etc/resolv.conf`: the host's as far as its servers can be reached, with what the user said of DNS in
/// place of what it says.
pub fn resolv_conf(host: &HostFiles, reach: &Reach, dns: &Dns) -> String {
    let forwarder = match reach {
        Reach::Lane { name_server, .. } if dns.servers.is_empty() => *name_server,
        _ => None,
    };
    let kept = match (reach, forwarder) {
        (Reach::Everything, _) | (_, Some(_)) => &host.resolv_conf,
        (Reach::Lane { .. }, None) => from_outside(host),
    };
    let is_kept = |line: &&str| match line.split_whitespace().next() {
        Some("nameserver") if !dns.servers.is_empty() || forwarder.is_some() => false,
        Some("nameserver") => matches!(reach, Reach::Everything) || is_reachable(line),
        Some("search" | "domain") => dns.search.is_empty(),
        Some("options") => dns.options.is_empty(),
        _ => true,
    };
    let mut text: String = kept.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
    match (dns.servers.as_slice(), forwarder) {
        ([], Some(forwarder)) => text.push_str(&format!("nameserver {forwarder}\n")),
        (servers, _) => servers.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n"))),
    }
    match dns.search.as_slice() {
        [] => {}
        [only] if only == "." => {}
        search => text.push_str(&format!("search {}\n", search.join(" "))),
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Where the name servers are that steps are to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameServers {
    Reachable,
    /// The host asks one on its loopback, which knows best; there are others.
    Mixed,
    /// On the host's loopback, and nowhere else.
    OnLoopback,
}

impl NameServers {
    pub fn find(host: &HostFiles, dns: &Dns) -> Self {
        let is_usable = |line| nameserver(line).is_some() && is_reachable(line);
        if !dns.servers.is_empty() || !has_loopback_server(&host.resolv_conf) {
            Self::Reachable
        } else if from_outside(host).lines().any(is_usable) {
            Self::Mixed
        } else {
            Self::OnLoopback
        }
    }
}

/// The file that is of more use to who cannot reach the host's loopback.
fn from_outside(host: &HostFiles) -> &String {
    let mut servers = host.resolv_conf.lines().filter_map(nameserver);
    let is_stub = servers.next() == Some("127.0.0.53") && servers.next().is_none();
    host.upstream.as_ref().filter(|_| is_stub).unwrap_or(&host.resolv_conf)
}

fn has_loopback_server(text: &str) -> bool {
    let is_loopback = |server: &str| server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    text.lines().filter_map(nameserver).any(is_loopback)
}

/// Whether the server of this line can be asked from another network: an address with a zone
/// (`fe80::1%eth0`) cannot, nor can a loopback.
fn is_reachable(line: &str) -> bool {
    let server = nameserver(line).unwrap_or_default();
    !server.contains('%') && !server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Reach = Reach::Lane { name_server: None, host: None };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_are_as_buildkit_writes_them() {
        let extra = [
            ("db".to_owned(), HostAddress::Ip(address("10.1.2.3"))),
            ("six".to_owned(), HostAddress::Ip(address("fd00::1"))),
            ("host".to_owned(), HostAddress::Gateway),
        ];
        let head = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\nfd00::1\tsix\n";
        let check = |reach: Reach, rest: &str| {
            assert_eq!(hosts("buildkitsandbox", &extra, &reach), format!("{head}{rest}"));
        };
        check(Reach::Everything, "127.0.0.1\thost\n");
        check(Reach::Lane { name_server: None, host: Some(address("10.119.0.1")) }, "10.119.0.1\thost\n");
        check(ALONE, "");
    }

    #[test]
    fn only_reachable_name_servers_are_kept() {
        let check = |host: &str, upstream: Option<&str>, expected: &str| {
            let host = HostFiles { resolv_conf: host.to_owned(), upstream: upstream.map(str::to_owned) };
            assert_eq!(resolv_conf(&host, &ALONE, &Dns::default()), expected);
            assert_eq!(resolv_conf(&host, &Reach::Everything, &Dns::default()).trim_end(), host.resolv_conf.trim_end());
        };
        check("search a\nnameserver 10.0.0.1\n", None, "search a\nnameserver 10.0.0.1\n");
        check("nameserver 127.0.0.1\nnameserver ::1\nnameserver 10.0.0.1", None, "nameserver 10.0.0.1\n");
        check("nameserver 127.0.0.53\noptions edns0\n", Some("nameserver 9.9.9.9\n"), "nameserver 9.9.9.9\n");
        check("nameserver 127.0.0.53\nnameserver 10.0.0.1\n", Some("nameserver 9.9.9.9\n"), "nameserver 10.0.0.1\n");
        check("nameserver fe80::1%eth0\n# nameserver 127.0.0.1\n", None, "# nameserver 127.0.0.1\n");
    }

    #[test]
    fn a_forwarder_stands_for_servers_on_the_loopback() {
        let reach = Reach::Lane { name_server: Some(address("10.119.0.53")), host: None };
        let check = |host: &str, expected: &str| {
            let host = HostFiles { resolv_conf: host.to_owned(), upstream: Some("nameserver 9.9.9.9\n".to_owned()) };
            assert_eq!(resolv_conf(&host, &reach, &Dns::default()), expected);
        };
        check("nameserver 127.0.0.53\nsearch a\n", "search a\nnameserver 10.119.0.53\n");
        check("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", "nameserver 10.119.0.53\n");
    }

    #[test]
    fn what_the_user_says_takes_the_place_of_the_hosts() {
        let host =
            HostFiles { resolv_conf: "nameserver 127.0.0.1\nsearch a b\noptions ndots:2\n".to_owned(), upstream: None };
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let check = |dns: Dns, expected: &str| {
            for reach in [ALONE, Reach::Everything] {
                let dns = Dns { servers: vec![address("1.1.1.1"), address("::1")], ..dns.clone() };
                assert_eq!(resolv_conf(&host, &reach, &dns), expected);
            }
        };
        let servers = "nameserver 1.1.1.1\nnameserver ::1\n";
        check(Dns::default(), &format!("search a b\noptions ndots:2\n{servers}"));
        check(Dns { search: words(&["x", "y"]), ..Dns::default() }, &format!("options ndots:2\n{servers}search x y\n"));
        check(Dns { search: words(&["."]), ..Dns::default() }, &format!("options ndots:2\n{servers}"));
        check(
            Dns { options: words(&["use-vc", "timeout:1"]), ..Dns::default() },
            &format!("search a b\n{servers}options use-vc timeout:1\n"),
        );
    }

    #[test]
    fn name_servers_are_found_where_they_are() {
        let check = |host: &str, upstream: Option<&str>, expected: NameServers| {
            let host = HostFiles { resolv_conf: host.to_owned(), upstream: upstream.map(str::to_owned) };
            assert_eq!(NameServers::find(&host, &Dns::default()), expected, "{host:?}");
            let given = Dns { servers: vec![address("1.1.1.1")], ..Dns::default() };
            assert_eq!(NameServers::find(&host, &given), NameServers::Reachable);
        };
        check("nameserver 127.0.0.1\n", None, NameServers::OnLoopback);
        check("nameserver 127.0.0.53\n", Some("nameserver ::1\n"), NameServers::OnLoopback);
        check("nameserver 127.0.0.53\n", Some("nameserver 9.9.9.9\n"), NameServers::Mixed);
        check("nameserver 127.0.0.1\nnameserver 9.9.9.9\n", None, NameServers::Mixed);
        check("nameserver 9.9.9.9\n", None, NameServers::Reachable);
        // Nobody answers there, whatever the network.
        check("", None, NameServers::Reachable);
    }
}
