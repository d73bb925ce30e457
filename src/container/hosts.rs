//! `/etc/hosts` and `/etc/resolv.conf` of a container, as texts.

use std::net::IpAddr;

/// `/etc/hosts` for this host name and the names of `--add-host`.
pub fn hosts(hostname: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// The host's `resolv.conf` for a network of one's own, from which the host's loopback cannot be
/// reached: name servers there are left out. If systemd's stub is the only one, `upstream` (the file
/// in which systemd lists the real ones) is taken instead.
pub fn resolv_conf_without_loopback(host: &str, upstream: Option<&str>) -> String {
    let mut servers = host.lines().filter_map(nameserver);
    let is_stub = servers.next() == Some("127.0.0.53") && servers.next().is_none();
    let text = upstream.filter(|_| is_stub).unwrap_or(host);
    let is_reachable = |line: &&str| {
        // An address may have a zone: `fe80::1%eth0`.
        let address = nameserver(line).and_then(|server| server.split('%').next()?.parse::<IpAddr>().ok());
        !address.is_some_and(|address| address.is_loopback())
    };
    text.lines().filter(is_reachable).map(|line| format!("{line}\n")).collect()
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_as_buildkit_writes_them() {
        let extra = [("db".to_owned(), "10.1.2.3".parse().unwrap()), ("six".to_owned(), "fd00::1".parse().unwrap())];
        assert_eq!(
            hosts("buildkitsandbox", &extra),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\nfd00::1\tsix\n"
        );
    }

    #[test]
    fn loopback_name_servers_are_left_out() {
        let check = |host: &str, upstream: Option<&str>, expected: &str| {
            assert_eq!(resolv_conf_without_loopback(host, upstream), expected);
        };
        check("search a\nnameserver 10.0.0.1\n", None, "search a\nnameserver 10.0.0.1\n");
        check("nameserver 127.0.0.1\nnameserver ::1\nnameserver 10.0.0.1", None, "nameserver 10.0.0.1\n");
        check("nameserver 127.0.0.53\noptions edns0\n", Some("nameserver 9.9.9.9\n"), "nameserver 9.9.9.9\n");
        check("nameserver 127.0.0.53\nnameserver 10.0.0.1\n", Some("nameserver 9.9.9.9\n"), "nameserver 10.0.0.1\n");
        check(
            "nameserver fe80::1%eth0\n# nameserver 127.0.0.1\n",
            None,
            "nameserver fe80::1%eth0\n# nameserver 127.0.0.1\n",
        );
    }
}
