//! EXPOSE: `[[ip:]host:]port[-port][/protocol]`. Only the container's side is kept.

use std::net::IpAddr;

/// The ports a word stands for, each as `number/protocol`, ascending. The error says what is wrong with
/// `word`.
pub(super) fn parse(word: &str) -> Result<Vec<String>, String> {
    let mut parts = word.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let (host, address) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    if ports.is_empty() {
        return Err(format!("`{word}` has no port"));
    }
    let protocol = match protocol.to_ascii_lowercase() {
        protocol if protocol.is_empty() => "tcp".to_owned(),
        protocol if matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => protocol,
        protocol => return Err(format!("unknown protocol `{protocol}`: it is tcp, udp or sctp")),
    };
    let bare_address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && bare_address.parse::<IpAddr>().is_err() {
        return Err(format!("`{address}` is no IP address"));
    }
    let (first, last) = range(ports)?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host)?;
        // A range of host ports may stand for one container port.
        if last != first && last - first != host_last - host_first {
            return Err(format!("the ranges `{host}` and `{ports}` differ in length"));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(port) if is_number => Ok(port),
            _ if is_number => Err(format!("port `{text}` is above 65535")),
            _ => Err(format!("`{text}` is no port number")),
        }
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if last < first {
        return Err(format!("the range `{text}` ends before it begins"));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_form() {
        for (word, ports) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("9/sctp", "9/sctp"),
            ("80/", "80/tcp"),
            ("0", "0/tcp"),
            ("65535", "65535/tcp"),
            ("7000-7002/udp", "7000/udp 7001/udp 7002/udp"),
            ("8080:80", "80/tcp"),
            ("8000-8010:80", "80/tcp"),
            ("127.0.0.1:8080:80", "80/tcp"),
            ("[::1]:8080:80", "80/tcp"),
            ("::1:8080:80", "80/tcp"),
        ] {
            assert_eq!(parse(word).map(|ports| ports.join(" ")), Ok(ports.to_owned()), "{word}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (word, message) in [
            ("http", "`http` is no port number"),
            ("80/bogus", "unknown protocol `bogus`: it is tcp, udp or sctp"),
            ("65536", "port `65536` is above 65535"),
            ("/tcp", "`/tcp` has no port"),
            ("9-3", "the range `9-3` ends before it begins"),
            ("1-2-3", "`2-3` is no port number"),
            ("+1", "`+1` is no port number"),
            ("1-3:5-6", "the ranges `1-3` and `5-6` differ in length"),
            ("nope:1:2", "`nope` is no IP address"),
        ] {
            assert_eq!(parse(word), Err(message.to_owned()), "{word}");
        }
    }
}
