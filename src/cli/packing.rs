//! `compression=`, `compression-level=`, `force-compression=` and `oci-mediatypes=`, as docker buildx has
//! them; and the same as options of their own.

use super::args;
use super::{Failure, usage};
use crate::image::MediaTypes;
use crate::layer::Compression;
use crate::store::Packing;

/// What was said, as typed.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub compression: Option<String>,
    pub level: Option<String>,
    pub is_forced: bool,
    pub media_types: MediaTypes,
}

impl Said {
    /// What it means, or why it means nothing.
    pub fn packing(&self) -> Result<Packing, String> {
        let level = |default: Compression, highest: u32| match (&self.level, default) {
            (None, default) => Ok(default),
            (Some(text), default) => match text.parse() {
                Ok(level) if level <= highest => Ok(match default {
                    Compression::Zstd { .. } => Compression::Zstd { level },
                    _ => Compression::Gzip { level },
                }),
                _ => {
                    let name = if matches!(default, Compression::Zstd { .. }) { "zstd" } else { "gzip" };
                    Err(format!("{name} has no level `{text}`: use 0 to {highest}"))
                }
            },
        };
        let compression = match self.compression.as_deref() {
            None | Some("gzip") => level(Compression::DEFAULT, Compression::MAX_GZIP_LEVEL)?,
            Some("zstd") if self.media_types == MediaTypes::Docker => {
                return Err("docker's media types have none for zstd: use gzip, or OCI's media types".into());
            }
            Some("zstd") => level(Compression::ZSTD, Compression::MAX_ZSTD_LEVEL)?,
            Some("uncompressed") if self.level.is_some() => return Err("`uncompressed` has no level".into()),
            Some("uncompressed") => Compression::None,
            Some(other) => {
                return Err(format!("there is no compression `{other}`: use gzip, zstd or uncompressed"));
            }
        };
        Ok(Packing { compression, is_forced: self.is_forced, media_types: self.media_types })
    }
}

/// What the options of `push` and `save` say; `None` where they say nothing.
pub fn of_options(options: &args::Packing) -> Result<Option<Packing>, Failure> {
    if options.compression.is_none() && options.compression_level.is_none() && !options.force_compression {
        return Ok(None);
    }
    let said = Said {
        compression: options.compression.clone(),
        level: options.compression_level.clone(),
        is_forced: options.force_compression,
        media_types: MediaTypes::Oci,
    };
    said.packing().map(Some).map_err(|why| usage(format!("`--compression`: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_compression() {
        let said = |compression: &str, level: &str, media_types| {
            let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            Said { compression: text(compression), level: text(level), is_forced: false, media_types }
                .packing()
                .map(|packing| packing.compression)
        };
        for (compression, level, expected) in [
            ("", "", Some(Compression::Gzip { level: 6 })),
            ("", "9", Some(Compression::Gzip { level: 9 })),
            ("gzip", "0", Some(Compression::Gzip { level: 0 })),
            ("gzip", "10", None),
            ("gzip", "-1", None),
            ("zstd", "", Some(Compression::Zstd { level: 3 })),
            ("zstd", "22", Some(Compression::Zstd { level: 22 })),
            ("zstd", "23", None),
            ("zstd", "fast", None),
            ("uncompressed", "", Some(Compression::None)),
            ("uncompressed", "1", None),
            ("estargz", "", None),
        ] {
            assert_eq!(said(compression, level, MediaTypes::Oci).ok(), expected, "{compression} {level}");
        }
        assert!(said("zstd", "", MediaTypes::Docker).is_err());
        assert!(said("gzip", "", MediaTypes::Docker).is_ok());
    }
}
