//! The image config blob (OCI image spec, config.md) with Docker's fields (`Healthcheck`, `OnBuild`,
//! `Shell`, `ArgsEscaped`), which `oci_spec` drops. Unknown keys survive, maps are sorted, so the
//! same config always has the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::digest::DiffId;

/// `null` where an object or list is due is taken as absent: hostile and old images have it.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "null_is_default")]
    pub history: Vec<History>,
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    /// Bottom first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The `config` object: what a container of the image starts with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=value`, in order.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Durations in nanoseconds; 0 means inherit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthConfig {
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl ImageConfig {
    /// Unknown keys are kept; a config that is not an object of the expected shape is an error.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Compact JSON; the same value always gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings, numbers and string-keyed maps always serialises.
        #[allow(clippy::unwrap_used)]
        serde_json::to_vec(self).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Docker's fields and unknown ones are there after reading and writing, and the bytes do not depend
    /// on the order they came in.
    #[test]
    fn nothing_is_lost() {
        let text = include_str!("../../testdata/image/config.json");
        let config = ImageConfig::from_json(text.as_bytes()).unwrap();
        let written = config.to_json();
        assert_eq!(
            serde_json::from_slice::<Value>(&written).unwrap(),
            serde_json::from_str::<Value>(text).unwrap(),
            "{}",
            String::from_utf8_lossy(&written)
        );
        assert_eq!(ImageConfig::from_json(&written).unwrap().to_json(), written);
        // A `Value` is sorted; written from it, the keys came in another order.
        let reordered = serde_json::from_str::<Value>(text).unwrap().to_string();
        assert_eq!(ImageConfig::from_json(reordered.as_bytes()).unwrap().to_json(), written);
        assert_eq!(config.config.healthcheck.as_ref().map(|check| check.retries), Some(3));
        assert_eq!(config.config.shell, ["/bin/bash", "-c"]);
    }

    #[test]
    fn null_is_absent() {
        let text = r#"{"architecture":null,"os":"linux","config":null,"rootfs":null,"history":null,"created":null}"#;
        let config = ImageConfig::from_json(text.as_bytes()).unwrap();
        assert_eq!(config, ImageConfig { os: "linux".into(), ..ImageConfig::default() });
        let text = r#"{"config":{"Env":null,"Labels":null,"Volumes":null,"Cmd":null,"OnBuild":null,"Healthcheck":null},
                       "rootfs":{"type":"layers","diff_ids":null}}"#;
        assert_eq!(ImageConfig::from_json(text.as_bytes()).unwrap(), ImageConfig::default());
    }

    #[test]
    fn what_is_no_config_is_an_error() {
        for text in ["", "null", "[]", "7", r#"{"config":[]}"#, r#"{"history":{}}"#, r#"{"rootfs":{"diff_ids":[]}}"#] {
            assert!(ImageConfig::from_json(text.as_bytes()).is_err(), "{text}");
        }
        let text = r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../../etc/passwd"]}}"#;
        assert!(ImageConfig::from_json(text.as_bytes()).is_err());
    }
}
