//! `os/architecture[/variant]`, normalised as containerd does, and which of an index's images runs
//! on one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

const OPERATING_SYSTEMS: [&str; 15] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];

const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "sparc64", "wasm",
];

impl Platform {
    /// The machine this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::normalized("linux", architecture, None)
    }

    /// Aliases resolved, and a variant that says nothing dropped: `arm64/v8` is `arm64`, `amd64/v1` is
    /// `amd64`, `arm` is `arm/v7`.
    pub fn normalized(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".into(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
            ("x86_64" | "x86-64" | "amd64", None | Some("v1" | "1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", Some("9" | "v9.0")) => ("arm64", Some("v9")),
            ("aarch64" | "arm64", other) => ("arm64", other),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (other, variant) => (other, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The platforms whose images this one runs, itself first, then by how well they fit.
    pub fn compatible(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: Option<&str>| Self {
            os: self.os.clone(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        };
        let arm = |newest: u32| (5..=newest).rev().map(move |version| with("arm", Some(&format!("v{version}"))));
        let version = |default: u32| match self.variant.as_deref() {
            None => Some(default),
            Some(variant) => variant.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok()),
        };
        match self.architecture.as_str() {
            "amd64" => match version(1) {
                Some(newest @ 1..=16) => {
                    let levels = (2..=newest).rev().map(|level| with("amd64", Some(&format!("v{level}"))));
                    levels.chain([with("amd64", None), with("386", None)]).collect()
                }
                _ => vec![self.clone()],
            },
            "arm" => match version(7) {
                Some(newest @ 5..=8) => arm(newest).collect(),
                _ => vec![self.clone()],
            },
            "arm64" => {
                let own = self.variant.is_some().then(|| self.clone());
                own.into_iter().chain([with("arm64", None)]).chain(arm(8)).collect()
            }
            _ => vec![self.clone()],
        }
    }

    /// How well an image for `offered` fits, 0 being best; none if it does not run here.
    pub fn fit(&self, offered: &Self) -> Option<usize> {
        let offered = Self::normalized(&offered.os, &offered.architecture, offered.variant.as_deref());
        self.compatible().iter().position(|platform| *platform == offered)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// `os/architecture[/variant]`; an operating system alone is for this machine's architecture, an
/// architecture alone for Linux. The parts must be well-formed, not known.
impl FromStr for Platform {
    /// Why the text is no platform.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        for part in &parts {
            if part.is_empty() {
                return Err(format!("`{text}` is not of the form `os/architecture[/variant]`"));
            }
            if let Some(wrong) = part.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '.')) {
                return Err(format!("`{text}` is no platform: it cannot contain `{}`", wrong.escape_default()));
            }
            if part.bytes().all(|byte| byte == b'.') {
                return Err(format!("`{text}` is no platform: `{part}` is no name"));
            }
        }
        match parts[..] {
            [one] => {
                let os = Self::normalized(one, "", None).os;
                if OPERATING_SYSTEMS.contains(&os.as_str()) {
                    return Ok(Self { os, ..Self::host() });
                }
                let platform = Self::normalized("linux", one, None);
                if ARCHITECTURES.contains(&platform.architecture.as_str()) {
                    return Ok(platform);
                }
                let known = OPERATING_SYSTEMS.into_iter().chain(ARCHITECTURES);
                Err(match crate::diag::nearest(one, known) {
                    Some(near) => {
                        format!("`{one}` is neither an operating system nor an architecture; is it `{near}`?")
                    }
                    None => format!("`{one}` is neither an operating system nor an architecture"),
                })
            }
            [os, architecture] => Ok(Self::normalized(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::normalized(os, architecture, Some(variant))),
            _ => Err(format!("`{text}` is not of the form `os/architecture[/variant]`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of `input = normal form`, or `input ! reason`.
    #[test]
    fn parsing() {
        for line in include_str!("../../testdata/image/platforms").lines() {
            if let Some((input, expected)) = line.split_once(" = ") {
                assert_eq!(input.parse::<Platform>().map(|p| p.to_string()), Ok(expected.into()), "{line}");
            } else if let Some((input, reason)) = line.split_once(" ! ") {
                assert_eq!(input.parse::<Platform>(), Err(reason.into()), "{line}");
            } else {
                panic!("what is `{line}`?");
            }
        }
        assert_eq!("linux".parse(), Ok(Platform::host()));
    }

    fn best(wanted: &str, offered: &[&str]) -> Option<String> {
        let wanted: Platform = wanted.parse().unwrap();
        let offered = offered.iter().map(|text| text.parse::<Platform>().unwrap());
        offered.filter_map(|o| Some((wanted.fit(&o)?, o))).min().map(|(_, o)| o.to_string())
    }

    #[test]
    fn matching() {
        assert_eq!(best("linux/arm64", &["linux/amd64", "linux/arm64/v8"]), Some("linux/arm64".into()));
        assert_eq!(best("linux/arm", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]), Some("linux/arm/v6".into()));
        assert_eq!(best("linux/arm/v5", &["linux/arm/v6", "linux/arm/v7"]), None);
        assert_eq!(best("linux/arm64", &["linux/arm/v7", "linux/amd64"]), Some("linux/arm/v7".into()));
        assert_eq!(best("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"]), Some("linux/amd64/v2".into()));
        assert_eq!(best("linux/amd64", &["linux/amd64/v2", "linux/386"]), Some("linux/386".into()));
        assert_eq!(best("linux/s390x", &["linux/ppc64le", "windows/s390x", "unknown/unknown"]), None);
        assert_eq!(best("linux/riscv64", &["linux/riscv64"]), Some("linux/riscv64".into()));
    }

    #[test]
    fn what_is_compatible_begins_with_itself() {
        for text in
            ["linux/amd64", "linux/amd64/v4", "linux/arm64", "linux/arm64/v9", "linux/arm", "linux/ppc64le", "a/b/c"]
        {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.fit(&platform), Some(0), "{text}");
        }
    }
}
