//! Image references: `[registry/]name[:tag][@digest]`, normalised as Docker does.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// A checked reference. Without a tag and without a digest the tag is `latest`; without a registry
/// the registry is `docker.io`, and there a name without a slash is below `library/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    /// The path in the registry, such as `library/debian`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

const DEFAULT_REGISTRY: &str = "docker.io";
const OFFICIAL: &str = "library/";
const MAX_REPOSITORY_LENGTH: usize = 255;
const MAX_TAG_LENGTH: usize = 128;
/// Longer encoded references are named by their digest: a file name has 255 bytes at most.
const MAX_FILE_NAME_LENGTH: usize = 240;

impl Reference {
    /// The short form people type: without `docker.io/library/` and with the tag.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(below) = full.strip_prefix("docker.io/") else { return full };
        // The shortest that means the same: `docker.io/a.b/c` without its registry would be in another.
        let shorter = [below.strip_prefix(OFFICIAL), Some(below)];
        let shortest = shorter.into_iter().flatten().find(|short| short.parse().as_ref() == Ok(self));
        shortest.unwrap_or(&full).to_owned()
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// A file name of its own, made of `[A-Za-z0-9._:@-]` and `%XX`. One too long for that is `%` and a
    /// digest, and cannot be read back.
    pub fn file_name(&self) -> String {
        let full = self.to_string();
        let mut name = String::with_capacity(full.len() + 8);
        for byte in full.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b':' | b'@' | b'-' => name.push(byte.into()),
                _ => name.push_str(&format!("%{byte:02X}")),
            }
        }
        if name.len() > MAX_FILE_NAME_LENGTH {
            return format!("%{}", Digest::of(full.as_bytes()));
        }
        name
    }

    /// The reference that has this file name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(name.len());
        let mut rest = name.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'%' {
                bytes.push(byte);
                continue;
            }
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        }
        let reference: Self = String::from_utf8(bytes).ok()?.parse().ok()?;
        // Only what `file_name` writes: no second name for the same reference.
        (reference.file_name() == name).then_some(reference)
    }
}

/// The full form, `registry/repository[:tag][@digest]`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    /// Why the text is no reference.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an image reference cannot be empty".into());
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(format!("an image reference has no `{scheme}://`; write `{rest}`"));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let parsed = digest.parse().map_err(|error| format!("`{digest}` is {error}"))?;
                (named, Some(parsed))
            }
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let after_slash = named.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match named[after_slash..].find(':') {
            Some(colon) => (&named[..after_slash + colon], Some(&named[after_slash + colon + 1..])),
            None => (named, None),
        };
        if name.is_empty() {
            return Err(format!("`{text}` has no image name"));
        }
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        check_registry(registry)?;
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if Digest::from_hex(path).is_some() && registry == DEFAULT_REGISTRY {
            return Err(format!("`{path}` is an image ID, not an image name"));
        }
        let is_official = registry == DEFAULT_REGISTRY && !path.contains('/');
        check_repository(path)?;
        let repository = if is_official { format!("{OFFICIAL}{path}") } else { path.to_owned() };
        if repository.len() > MAX_REPOSITORY_LENGTH {
            return Err(format!(
                "an image name has at most {MAX_REPOSITORY_LENGTH} characters; this one has {}",
                path.len()
            ));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Whether what stands before the first slash is a registry rather than the name's first part.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("`{registry}` is no registry: {why}"));
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) if port.starts_with(':') => (address, Some(&port[1..])),
            _ => return wrong("an IPv6 address stands between `[` and `]`"),
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return wrong("a port is a number");
    }
    if registry.starts_with('[') {
        return match host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') && host.contains(':') {
            true => Ok(()),
            false => wrong("an IPv6 address stands between `[` and `]`"),
        };
    }
    for part in host.split('.') {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric();
        let bytes = part.as_bytes();
        match (bytes.first(), bytes.last()) {
            (Some(&first), Some(&last)) if is_word(first) && is_word(last) => {}
            _ => return wrong("each part of a host name begins and ends with a letter or digit"),
        }
        if let Some(byte) = part.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
            return wrong(&format!("a host name cannot contain `{}`", byte.escape_default()));
        }
    }
    Ok(())
}

fn check_repository(path: &str) -> Result<(), String> {
    let wrong = |why: String| Err(format!("`{path}` is no image name: {why}"));
    for part in path.split('/') {
        if part.is_empty() {
            return wrong("a part between slashes is empty".into());
        }
        if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return wrong(format!("it must be lower case (`{}`)", path.to_ascii_lowercase()));
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if let Some(other) = part.chars().find(|c| !is_word(*c) && !matches!(c, '.' | '_' | '-')) {
            return wrong(format!("it cannot contain `{}`", other.escape_default()));
        }
        if !part.starts_with(is_word) || !part.ends_with(is_word) {
            return wrong(format!("`{part}` must begin and end with a letter or digit"));
        }
        let separators = part.split(is_word).filter(|separator| !separator.is_empty());
        for separator in separators {
            if !matches!(separator, "." | "_" | "__") && separator.contains(['.', '_']) {
                return wrong(format!("`{separator}` cannot stand between two words; `.`, `_`, `__` or dashes can"));
            }
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let wrong = |why: String| Err(format!("`{tag}` is no tag: {why}"));
    if tag.is_empty() {
        return Err("the tag after `:` is empty".into());
    }
    if tag.len() > MAX_TAG_LENGTH {
        return wrong(format!("a tag has at most {MAX_TAG_LENGTH} characters"));
    }
    if let Some(other) = tag.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-')) {
        return wrong(format!("it cannot contain `{}`", other.escape_default()));
    }
    if tag.starts_with(['.', '-']) {
        return wrong("it must begin with a letter, a digit or `_`".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines of `input = full form = familiar form`, or `input ! reason`.
    #[test]
    fn parsing() {
        for line in include_str!("../../testdata/image/references").lines() {
            let fields: Vec<&str> = line.split(" = ").collect();
            if let [input, full, familiar] = fields[..] {
                let reference: Reference = input.parse().unwrap_or_else(|why| panic!("{line}: {why}"));
                assert_eq!(reference.to_string(), full, "{line}");
                assert_eq!(reference.familiar(), familiar, "{line}");
                assert_eq!(full.parse(), Ok(reference.clone()), "{line}");
                assert_eq!(familiar.parse(), Ok(reference.clone()), "{line}");
                assert_eq!(Reference::from_file_name(&reference.file_name()), Some(reference), "{line}");
            } else if let Some((input, reason)) = line.split_once(" ! ") {
                assert_eq!(input.parse::<Reference>(), Err(reason.into()), "{line}");
            } else {
                panic!("what is `{line}`?");
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let longest = "a".repeat(MAX_REPOSITORY_LENGTH - OFFICIAL.len());
        let reference: Reference = longest.parse().unwrap();
        assert!(reference.file_name().len() <= 255);
        assert_eq!(Reference::from_file_name(&reference.file_name()), None);
        assert!(format!("{longest}a").parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(MAX_TAG_LENGTH)).parse::<Reference>().is_ok());
        assert!(format!("a:{}", "t".repeat(MAX_TAG_LENGTH + 1)).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_is_stable(text in "[a-zA-Z0-9./:@_\\[\\] -]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                prop_assert_eq!(reference.familiar().parse(), Ok(reference.clone()));
                let name = reference.file_name();
                prop_assert!(!name.contains('/') && !name.starts_with('.') && name.len() <= 255);
                prop_assert_eq!(Reference::from_file_name(&name), Some(reference));
            }
        }
    }
}
