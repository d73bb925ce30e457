//! Manifests, indexes and descriptors, OCI's and Docker's. They are parsed and written with
//! `oci_spec`'s types, and used as these: with digests that are checked and maps that are sorted.

use std::collections::BTreeMap;
use std::io::Read;

use oci_spec::image as oci;

use super::Platform;
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::Digest;

/// Registries refuse larger manifests, and so does this program.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

pub mod media_type {
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, INDEX | DOCKER_LIST)
    }

    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, MANIFEST | DOCKER_MANIFEST)
    }

    pub fn is_config(media_type: &str) -> bool {
        matches!(media_type, CONFIG | DOCKER_CONFIG)
    }

    /// A layer whose blob is to be had. What it is compressed with its first bytes say.
    pub fn is_layer(media_type: &str) -> bool {
        matches!(media_type, LAYER_TAR | LAYER_GZIP | LAYER_ZSTD | DOCKER_LAYER | DOCKER_LAYER_GZIP)
            || media_type == "application/vnd.docker.image.rootfs.diff.tar.zstd"
            // Before OCI's was named, some wrote Docker's with its suffix.
            || media_type == "application/vnd.docker.image.rootfs.diff.tar+zstd"
    }

    /// A layer that may not be distributed, and so is not there.
    pub fn is_foreign_layer(media_type: &str) -> bool {
        media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
            || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
    }

    /// Docker's types in OCI's words, for a manifest that is written anew; others as they are.
    pub fn to_oci(media_type: &str) -> &str {
        match media_type {
            DOCKER_LIST => INDEX,
            DOCKER_MANIFEST => MANIFEST,
            DOCKER_CONFIG => CONFIG,
            DOCKER_LAYER => LAYER_TAR,
            DOCKER_LAYER_GZIP => LAYER_GZIP,
            "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.diff.tar+zstd" => LAYER_ZSTD,
            other => other,
        }
    }
}

/// In whose words an image is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaTypes {
    #[default]
    Oci,
    /// As registries and programs know that are older than OCI's. There is none for zstd.
    Docker,
}

impl MediaTypes {
    pub fn manifest(self) -> &'static str {
        match self {
            Self::Oci => media_type::MANIFEST,
            Self::Docker => media_type::DOCKER_MANIFEST,
        }
    }

    pub fn index(self) -> &'static str {
        match self {
            Self::Oci => media_type::INDEX,
            Self::Docker => media_type::DOCKER_LIST,
        }
    }

    pub fn config(self) -> &'static str {
        match self {
            Self::Oci => media_type::CONFIG,
            Self::Docker => media_type::DOCKER_CONFIG,
        }
    }

    /// A layer's type, whosever it is, in these words; `None` where they have none for it.
    pub fn layer(self, of: &str) -> Option<&str> {
        match (self, media_type::to_oci(of)) {
            (Self::Oci, oci) => Some(oci),
            (Self::Docker, media_type::LAYER_TAR) => Some(media_type::DOCKER_LAYER),
            (Self::Docker, media_type::LAYER_GZIP) => Some(media_type::DOCKER_LAYER_GZIP),
            (Self::Docker, media_type::LAYER_ZSTD) => None,
            (Self::Docker, other) => Some(other),
        }
    }
}

pub mod annotation {
    /// The tag alone.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    pub const CREATED: &str = "org.opencontainers.image.created";
    /// The full reference.
    pub const IMAGE_NAME: &str = "io.containerd.image.name";
    /// Marks what is about an image and is none (`attestation-manifest`).
    pub const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
}

/// Names a blob and says what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size_bytes: u64,
    pub platform: Option<Platform>,
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn new(media_type: impl Into<String>, digest: Digest, size_bytes: u64) -> Self {
        Self { media_type: media_type.into(), digest, size_bytes, platform: None, annotations: BTreeMap::new() }
    }

    /// Of these bytes.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Whether it is about an image rather than one (a provenance or SBOM attestation).
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key(annotation::REFERENCE_TYPE)
            || self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }

    fn from_oci(descriptor: &oci::Descriptor) -> Result<Self, String> {
        let digest = descriptor.digest().to_string();
        let platform = descriptor.platform().as_ref().map(|platform| Platform {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone(),
        });
        Ok(Self {
            media_type: descriptor.media_type().to_string(),
            digest: digest.parse().map_err(|error| format!("`{}` is {error}", digest.escape_debug()))?,
            size_bytes: descriptor.size(),
            platform,
            annotations: descriptor.annotations().clone().unwrap_or_default().into_iter().collect(),
        })
    }

    fn to_oci(&self) -> oci::Descriptor {
        // A checked digest is one that `oci_spec` accepts.
        #[allow(clippy::unwrap_used)]
        let digest: oci::Digest = self.digest.to_string().parse().unwrap();
        let mut descriptor = oci::Descriptor::new(self.media_type.as_str().into(), self.size_bytes, digest);
        if let Some(platform) = &self.platform {
            let mut written = oci::Platform::default();
            written.set_os(platform.os.as_str().into());
            written.set_architecture(platform.architecture.as_str().into());
            written.set_variant(platform.variant.clone());
            descriptor.set_platform(Some(written));
        }
        if !self.annotations.is_empty() {
            descriptor.set_annotations(Some(self.annotations.clone().into_iter().collect()));
        }
        descriptor
    }

    /// As it stands in an index.
    pub fn to_value(&self) -> serde_json::Value {
        value_of(&self.to_oci())
    }
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Compact JSON with sorted keys: the same manifest always has the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        // All that the builder requires is set here.
        #[allow(clippy::unwrap_used)]
        let mut manifest = oci::ImageManifestBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(self.media_type.as_str())
            .config(self.config.to_oci())
            .layers(self.layers.iter().map(Descriptor::to_oci).collect::<Vec<_>>())
            .build()
            .unwrap();
        if !self.annotations.is_empty() {
            manifest.set_annotations(Some(self.annotations.clone().into_iter().collect()));
        }
        value_of(&manifest).to_string().into_bytes()
    }
}

/// Several manifests: a multi-platform image, or the table of contents of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self { media_type: media_type::INDEX.into(), manifests, annotations: BTreeMap::new() }
    }

    /// Compact JSON with sorted keys: the same index always has the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        // All that the builder requires is set here.
        #[allow(clippy::unwrap_used)]
        let mut index = oci::ImageIndexBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(self.media_type.as_str())
            .manifests(self.manifests.iter().map(Descriptor::to_oci).collect::<Vec<_>>())
            .build()
            .unwrap();
        if !self.annotations.is_empty() {
            index.set_annotations(Some(self.annotations.clone().into_iter().collect()));
        }
        value_of(&index).to_string().into_bytes()
    }
}

/// What a manifest blob turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Says why when it is neither. A document that could be read as both is refused, whatever media
    /// type it came with: two readers must not see two images in it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON: {error}"))?;
        let has = |key: &str| value.get(key).is_some_and(|value| !value.is_null());
        let is_index = has("manifests");
        let is_manifest = has("layers") || has("config");
        let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str);
        let wrong = |error: serde_json::Error| error.to_string();
        match (is_manifest, is_index) {
            (true, true) => Err("it has both `manifests` and `layers`".into()),
            _ if value.get("schemaVersion") == Some(&1.into()) || has("fsLayers") => {
                Err("it is in the old schema 1 format, which is not supported".into())
            }
            (true, false) => {
                let media_type = text("mediaType").unwrap_or(media_type::MANIFEST).to_owned();
                if !media_type::is_manifest(&media_type) {
                    return Err(format!("it says it is `{}`", media_type.escape_debug()));
                }
                let manifest: oci::ImageManifest = serde_json::from_value(value).map_err(wrong)?;
                Ok(Self::Manifest(Manifest {
                    media_type,
                    config: Descriptor::from_oci(manifest.config())?,
                    layers: manifest.layers().iter().map(Descriptor::from_oci).collect::<Result<_, _>>()?,
                    annotations: manifest.annotations().clone().unwrap_or_default().into_iter().collect(),
                }))
            }
            (false, true) => {
                let media_type = text("mediaType").unwrap_or(media_type::INDEX).to_owned();
                if !media_type::is_index(&media_type) {
                    return Err(format!("it says it is `{}`", media_type.escape_debug()));
                }
                let index: oci::ImageIndex = serde_json::from_value(value).map_err(wrong)?;
                Ok(Self::Index(Index {
                    media_type,
                    manifests: index.manifests().iter().map(Descriptor::from_oci).collect::<Result<_, _>>()?,
                    annotations: index.annotations().clone().unwrap_or_default().into_iter().collect(),
                }))
            }
            (false, false) => Err("it is neither an image manifest nor an index".into()),
        }
    }
}

/// Reads all of `input`, or says that `what` is longer than a stranger may make it.
pub fn read_bounded(input: impl Read, max_size_bytes: u64, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(max_size_bytes + 1).read_to_end(&mut bytes).context(|| format!("cannot read {what}"))?;
    if bytes.len() as u64 > max_size_bytes {
        return Err(Diagnostic::error(format!("{what} is larger than {} MiB", max_size_bytes >> 20)));
    }
    Ok(bytes)
}

/// `oci_spec` has hash maps, whose order differs from run to run; a `Value`'s map is sorted.
fn value_of(value: &impl serde::Serialize) -> serde_json::Value {
    // Structs of strings, numbers and string-keyed maps always serialise.
    #[allow(clippy::unwrap_used)]
    serde_json::to_value(value).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let annotations = ["z", "a", "m", "b"].map(|key| (key.to_owned(), format!("of {key}"))).into();
        let mut layer = Descriptor::of(media_type::LAYER_GZIP, b"layer");
        layer.annotations = ["two", "one"].map(|key| (key.to_owned(), String::new())).into();
        Manifest {
            media_type: media_type::MANIFEST.into(),
            config: Descriptor::of(media_type::CONFIG, b"{}"),
            layers: vec![layer],
            annotations,
        }
    }

    /// What an image's digest is made of: it must not change by accident, a serialiser's or ours.
    #[test]
    fn bytes_are_pinned() {
        let manifest = sample();
        assert_eq!(
            String::from_utf8(manifest.to_json()).unwrap() + "\n",
            include_str!("../../testdata/image/manifest.json")
        );
        let mut descriptor = Descriptor::of(media_type::MANIFEST, &manifest.to_json());
        descriptor.platform = Some("linux/arm/v6".parse().unwrap());
        let index = Index::new(vec![descriptor]);
        assert_eq!(String::from_utf8(index.to_json()).unwrap() + "\n", include_str!("../../testdata/image/index.json"));
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = sample();
        assert_eq!(Document::from_json(&manifest.to_json()), Ok(Document::Manifest(manifest.clone())));
        let mut descriptor = Descriptor::of(media_type::MANIFEST, &manifest.to_json());
        descriptor.platform = Some("linux/arm64/v9".parse().unwrap());
        let index = Index { annotations: manifest.annotations, ..Index::new(vec![descriptor]) };
        assert_eq!(Document::from_json(&index.to_json()), Ok(Document::Index(index)));
    }

    #[test]
    fn docker_documents_are_understood() {
        let digest = Digest::of(b"x");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","size":3,"digest":"{digest}"}},
               "layers":[{{"mediaType":"{}","size":4,"digest":"{digest}"}}]}}"#,
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_CONFIG,
            media_type::DOCKER_LAYER_GZIP
        );
        let Ok(Document::Manifest(manifest)) = Document::from_json(text.as_bytes()) else { panic!("{text}") };
        assert!(media_type::is_layer(&manifest.layers[0].media_type));
        assert_eq!(media_type::to_oci(&manifest.config.media_type), media_type::CONFIG);
    }

    #[test]
    fn hostile_documents_are_refused() {
        let digest = Digest::of(b"x");
        let descriptor = format!(r#"{{"mediaType":"a/b","size":1,"digest":"{digest}"}}"#);
        for (text, expected) in [
            (String::new(), "no JSON"),
            ("[".repeat(100_000), "no JSON"),
            ("{}".into(), "neither"),
            ("[]".into(), "neither"),
            (r#"{"layers":null,"config":null,"manifests":null}"#.into(), "neither"),
            (r#"{"layers":[],"manifests":[]}"#.into(), "both"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), "schema 1"),
            (r#"{"layers":[],"config":null}"#.into(), "null"),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{}","layers":[],"config":{descriptor}}}"#, media_type::INDEX), "says it is"),
            (format!(r#"{{"schemaVersion":2,"layers":[null],"config":{descriptor}}}"#), "null"),
            (r#"{"schemaVersion":2,"manifests":[{"mediaType":"a/b","size":1,"digest":"sha256:../../../etc/passwd"}]}"#.into(), ""),
            (r#"{"schemaVersion":2,"manifests":[{"mediaType":"a/b","size":-1,"digest":"x"}]}"#.into(), ""),
            (format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"a/b","size":1,"digest":"sha512:{}"}}]}}"#, "ab".repeat(64)), "not a digest"),
        ] {
            let error = Document::from_json(text.as_bytes()).expect_err(&text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn reading_is_bounded() {
        assert_eq!(read_bounded(&b"1234"[..], 4, "it").unwrap(), b"1234");
        assert_eq!(read_bounded(std::io::repeat(0), 1 << 20, "it").unwrap_err().message, "it is larger than 1 MiB");
    }
}
