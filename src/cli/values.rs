//! Values of options: sizes, ages, hosts, limits, `key=value` lists.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Failure, usage};
use crate::container::HostAddress;
use crate::host::{NamedContext, Secret};
use crate::image::archive::Selector;
use crate::location::Location;

type Parsed<T> = Result<T, Failure>;

/// `k=v,k=v`, values in double quotes where they hold commas (CSV, as docker has it).
pub fn fields(text: &str) -> Vec<(String, Option<String>)> {
    let mut fields = vec![String::new()];
    let mut in_quotes = false;
    for c in text.chars() {
        match c {
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => fields.push(String::new()),
            // The vector begins with one field and only grows.
            _ => fields.last_mut().into_iter().for_each(|field| field.push(c)),
        }
    }
    fields
        .into_iter()
        .filter(|field| !field.is_empty())
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.trim().to_owned(), None),
        })
        .collect()
}

/// `64m`, `1g`, `65536`; binary units.
pub fn size(option: &str, text: &str) -> Parsed<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(usage(format!("`{text}` is not a size for `{option}`: use a number with b, k, m or g"))),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| usage(format!("`{text}` is not a size for `{option}`: use a number with b, k, m or g")))
}

/// `90s`, `30m`, `12h`, `7d`, in seconds.
pub fn age(option: &str, text: &str) -> Parsed<i64> {
    let wrong = || usage(format!("`{text}` is not an age for `{option}`: use a number with s, m, h, d or w"));
    let unit = text.chars().last().ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - 1];
    number.parse::<u32>().map(|number| i64::from(number) * factor).map_err(|_| wrong())
}

/// `name:address`, `name=address`; the address may be `host-gateway`.
pub fn host(text: &str) -> Parsed<(String, HostAddress)> {
    let wrong = |why: &str| usage(format!("`--add-host {text}`: {why}"));
    let (name, address) =
        text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| wrong("write it as NAME:ADDRESS"))?;
    let address = match address {
        "host-gateway" => HostAddress::Gateway,
        address => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            HostAddress::Ip(address.parse::<IpAddr>().map_err(|_| wrong("the address is no IP address"))?)
        }
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(wrong("the name is empty or has white space"));
    }
    Ok((name.to_owned(), address))
}

/// One word, as it stands in `/etc/resolv.conf`.
pub fn word(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if is_word { Ok(text.to_owned()) } else { Err("it must be one word".into()) }
}

/// `nofile=1024:2048`; the hard limit defaults to the soft one, -1 is unlimited.
pub fn ulimit(text: &str) -> Parsed<(String, u64, u64)> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = |why: String| usage(format!("`--ulimit {text}`: {why}"));
    let (name, limits) = text.split_once('=').ok_or_else(|| wrong("write it as NAME=SOFT[:HARD]".into()))?;
    if !NAMES.contains(&name) {
        return Err(wrong(format!("there is no limit `{name}`; known are {}", NAMES.join(", "))));
    }
    let limit = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse::<u64>().map_err(|_| wrong(format!("`{text}` is no number"))),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (limit(soft)?, limit(hard)?),
        None => (limit(limits)?, limit(limits)?),
    };
    if soft > hard {
        return Err(wrong("the soft limit is above the hard one".into()));
    }
    Ok((name.to_owned(), soft, hard))
}

/// `id=ID,src=FILE` or `id=ID,env=VARIABLE`; with neither, the variable called ID if it is set,
/// else the file of that name.
pub fn secret(text: &str) -> Parsed<(String, Secret)> {
    let wrong = |why: String| usage(format!("`--secret {text}`: {why}"));
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for (key, value) in fields(text) {
        let Some(value) = value else { return Err(wrong(format!("`{key}` has no value"))) };
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => source = Some(value),
            "env" => variable = Some(value),
            "type" if value == "file" || value == "env" => kind = Some(value),
            "type" => return Err(wrong(format!("there is no type `{value}`; use file or env"))),
            _ => return Err(wrong(format!("there is no key `{key}`; known are id, src, env, type"))),
        }
    }
    let id = id.ok_or_else(|| wrong("`id=` is missing".into()))?;
    if kind.as_deref() == Some("env") && variable.is_none() {
        variable = Some(source.take().unwrap_or_else(|| id.clone()));
    }
    let from_environment = |name: &str| {
        use std::os::unix::ffi::OsStringExt as _;
        std::env::var_os(name).map(|value| Secret::Value(value.into_vec()))
    };
    let secret = match (source, variable) {
        (_, Some(name)) => {
            from_environment(&name).ok_or_else(|| wrong(format!("the environment variable `{name}` is not set")))?
        }
        (Some(path), None) => Secret::File(PathBuf::from(path)),
        (None, None) => match from_environment(&id).filter(|_| kind.is_none()) {
            Some(value) => value,
            None => Secret::File(PathBuf::from(&id)),
        },
    };
    if let Secret::File(path) = &secret
        && !path.is_file()
    {
        return Err(wrong(format!("there is no file `{}`", path.display())));
    }
    Ok((id, secret))
}

/// `NAME=PATH`, `NAME=oci-layout://PATH[:TAG|@DIGEST]`, `NAME=docker-image://REFERENCE`. The name
/// is normalised.
pub fn named_context(text: &str) -> Parsed<(String, NamedContext)> {
    let wrong = |why: String| usage(format!("`--build-context {}`: {why}", crate::location::redact(text)));
    let (name, value) = text.split_once('=').ok_or_else(|| wrong("write it as NAME=PATH".into()))?;
    let name = crate::plan::context_name(name);
    if name.is_empty() {
        return Err(wrong("the name is empty".into()));
    }
    let context = if let Some(layout) = value.strip_prefix("oci-layout://") {
        let (path, wanted) = match layout.split_once('@') {
            Some((path, digest)) => (path, Selector::Digest(digest.parse().map_err(|why| wrong(format!("{why}")))?)),
            None => match layout.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, Selector::Name(tag.to_owned())),
                _ => (layout, Selector::Only),
            },
        };
        NamedContext::Layout { path: PathBuf::from(path), wanted }
    } else if let Some(reference) = value.strip_prefix("docker-image://") {
        match reference {
            "scratch" => NamedContext::Empty,
            reference => NamedContext::Image(reference.to_owned()),
        }
    } else if let Some(location) = Location::parse(value).filter(|_| !Path::new(value).is_dir()) {
        NamedContext::Remote(location.map_err(wrong)?)
    } else if value.starts_with("target:") {
        return Err(wrong("targets are of bake files, which are not read".into()));
    } else if value.contains("://") {
        return Err(wrong("known are directories, oci-layout://, docker-image://, git and http addresses".into()));
    } else {
        let path = PathBuf::from(value);
        if !path.is_dir() {
            return Err(wrong(format!("`{value}` is no directory")));
        }
        NamedContext::Directory(std::path::absolute(&path).unwrap_or(path))
    };
    Ok((name, context))
}

/// `NAME=VALUE`; without a value it is taken from the environment, and left out if unset there.
pub fn build_args(list: &[String]) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for text in list {
        match text.split_once('=') {
            Some((name, value)) => {
                values.insert(name.to_owned(), value.to_owned());
            }
            None => {
                if let Ok(value) = std::env::var(text) {
                    values.insert(text.clone(), value);
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages() {
        assert_eq!(size("--shm-size", "64m").ok(), Some(64 << 20));
        assert_eq!(size("--shm-size", "1G").ok(), Some(1 << 30));
        assert_eq!(size("--shm-size", "100").ok(), Some(100));
        assert!(size("--shm-size", "1x").is_err());
        assert!(size("--shm-size", "99999999999999999999g").is_err());
        assert_eq!(age("--older-than", "7d").ok(), Some(604_800));
        assert!(age("--older-than", "d").is_err());
    }

    #[test]
    fn hosts_take_both_separators() {
        let known = |text: &str| host(text).ok();
        assert_eq!(known("db:10.1.2.3"), Some(("db".into(), HostAddress::Ip([10, 1, 2, 3].into()))));
        let six = HostAddress::Ip(std::net::Ipv6Addr::LOCALHOST.into());
        assert_eq!(known("db=::1"), Some(("db".into(), six)));
        assert_eq!(known("db:[::1]"), Some(("db".into(), six)));
        assert_eq!(known("me:host-gateway"), Some(("me".into(), HostAddress::Gateway)));
        assert!(host("db").is_err());
    }

    #[test]
    fn limits() {
        assert_eq!(ulimit("nofile=10:20").ok(), Some(("nofile".into(), 10, 20)));
        assert_eq!(ulimit("nofile=10").ok(), Some(("nofile".into(), 10, 10)));
        assert!(ulimit("nofile=20:10").is_err());
        assert!(ulimit("frob=1").is_err());
    }

    #[test]
    fn layouts_take_tags_and_digests() {
        let layout = |text: &str| match named_context(text) {
            Ok((name, NamedContext::Layout { path, wanted })) => Some((name, path, wanted)),
            _ => None,
        };
        assert_eq!(layout("Base:latest=oci-layout:///a/b"), Some(("base".into(), "/a/b".into(), Selector::Only)));
        let tagged = Some(("b".into(), "a".into(), Selector::Name("1.0".into())));
        assert_eq!(layout("b=oci-layout://a:1.0"), tagged);
        let digest = crate::digest::Digest::of(b"");
        let pinned = Some(("b".into(), "a".into(), Selector::Digest(digest)));
        assert_eq!(layout(&format!("b=oci-layout://a@{digest}")), pinned);
        assert_eq!(layout("b=oci-layout://a@sha256:ab"), None);
    }

    #[test]
    fn quoted_fields_keep_commas() {
        assert_eq!(
            fields("type=oci,\"dest=a,b\""),
            [("type".into(), Some("oci".into())), ("dest".into(), Some("a,b".into()))]
        );
    }
}
