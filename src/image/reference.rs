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

impl Reference {
    /// The short form people type: without `docker.io/library/` and with the tag.
    pub fn familiar(&self) -> String {
        todo!()
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
        let _ = text;
        todo!()
    }
}
