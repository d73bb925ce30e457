//! The devices of this machine that steps may be given: the Container Device Interface. A specification file, YAML
//! or JSON, says of each device which nodes, mounts and variables a container needs for it.
//!
//! ```text
//! /etc/cdi/example.yaml        kind: example.com/gpu          the class
//! /var/run/cdi/other.json      devices: [{name: one, …}]      RUN --device=example.com/gpu=one
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::diag::{Diagnostic, nearest};

/// Where specifications are looked for, what is found later wins.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

const SIZE_LIMIT_BYTES: u64 = 4 << 20;

/// A device with this annotation may be used without being allowed.
const FREE: &str = "org.mobyproject.buildkit.device.autoallow";
/// Another name for several devices.
const CLASS: &str = "org.mobyproject.buildkit.device.class";

/// What a container needs for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub groups: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// In the container.
    pub path: String,
    pub host_path: Option<String>,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

/// A program that a runtime would run on the host. Here it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Hook {
    pub path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<DeviceSpec>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceSpec {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    /// Those of its file, then its own.
    pub edits: [Edits; 2],
    pub is_free: bool,
    class: Option<String>,
    file: PathBuf,
}

/// What the machine has.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    known: BTreeMap<String, Device>,
    /// Two files of one directory say different things of these.
    ambiguous: BTreeMap<String, [PathBuf; 2]>,
    /// Files that cannot be read.
    faults: Vec<Diagnostic>,
}

impl Devices {
    /// Reads all specifications. A directory that is not there has none.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut devices = Self::default();
        for directory in directories {
            let mut here: BTreeMap<String, Device> = BTreeMap::new();
            let mut ambiguous = BTreeMap::new();
            for path in files(directory) {
                match read(&path) {
                    Ok(found) => {
                        for device in found {
                            if let Some(other) = here.get(&device.name) {
                                ambiguous.insert(device.name.clone(), [other.file.clone(), path.clone()]);
                            }
                            here.insert(device.name.clone(), device);
                        }
                    }
                    Err(fault) => devices.faults.push(fault),
                }
            }
            devices.ambiguous.retain(|name, _| !here.contains_key(name));
            devices.ambiguous.append(&mut ambiguous);
            devices.known.append(&mut here);
        }
        devices
    }

    /// The devices that `name` means: `vendor/class=name`, `vendor/class=*` for all of a class, `vendor/class` for
    /// the first, or the class of an annotation. The error says what there is instead.
    pub fn find(&self, name: &str) -> Result<Vec<&Device>, Diagnostic> {
        let found: Vec<&Device> = match name.split_once('=') {
            Some((kind, "*")) => self.of_kind(kind).collect(),
            Some(_) => self.known.get(name).into_iter().collect(),
            None if name.contains('/') => self.of_kind(name).take(1).collect(),
            None => self.known.values().filter(|device| device.class.as_deref() == Some(name)).collect(),
        };
        for device in &found {
            if let Some([one, other]) = self.ambiguous.get(&device.name) {
                let fault = Diagnostic::error(format!("there are two devices `{}`", device.name));
                return Err(fault.caused_by(format!("`{}` and `{}` describe it", one.display(), other.display())));
            }
        }
        if found.is_empty() { Err(self.missing(name)) } else { Ok(found) }
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Device> {
        self.known.values().filter(move |device| device.name.split('=').next() == Some(kind))
    }

    fn missing(&self, name: &str) -> Diagnostic {
        let mut fault = Diagnostic::error(format!("this machine has no device `{name}`"));
        if let Some(unread) = self.faults.first() {
            let why = unread.cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}"));
            fault = fault.caused_by(format!("{}{why}", unread.message));
        }
        let names: Vec<&str> = self.known.keys().map(String::as_str).collect();
        match nearest(name, names.iter().copied()) {
            Some(near) => fault.hint(format!("did you mean `--device={near}`?")),
            None if names.is_empty() => {
                fault.hint("devices are described by files in `/etc/cdi` and `/var/run/cdi`: there is none")
            }
            None => fault.hint(format!("the devices are: {}", names.join(", "))),
        }
    }
}

/// The specification files of a directory, by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "json" || kind == "yaml");
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(is_spec).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Vec<Device>, Diagnostic> {
    let doing = || Diagnostic::error(format!("cannot read the devices of `{}`", path.display()));
    let size = std::fs::metadata(path).map_err(|error| doing().caused_by(error))?.len();
    if size > SIZE_LIMIT_BYTES {
        return Err(doing().caused_by("the file is too large"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| doing().caused_by(error))?;
    // JSON is YAML.
    let spec: Spec = serde_yaml_ng::from_str(&text).map_err(|error| doing().caused_by(error))?;
    if !is_kind(&spec.kind) {
        return Err(doing().caused_by(format!("`{}` is no kind such as `vendor.example/class`", spec.kind)));
    }
    let annotated = |annotations: &BTreeMap<String, String>, key: &str| {
        annotations.get(key).or_else(|| spec.annotations.get(key)).cloned()
    };
    let device = |device: &DeviceSpec| Device {
        name: format!("{}={}", spec.kind, device.name),
        edits: [spec.container_edits.clone(), device.container_edits.clone()],
        is_free: annotated(&device.annotations, FREE).is_some_and(|value| value == "true" || value == "1"),
        class: annotated(&device.annotations, CLASS),
        file: path.to_owned(),
    };
    Ok(spec.devices.iter().map(device).collect())
}

/// `vendor.example/class`.
pub fn is_kind(text: &str) -> bool {
    let is_name = |text: &str, others: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    text.split_once('/').is_some_and(|(vendor, class)| is_name(vendor, "_-.") && is_name(class, "_-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(devices: &Devices, name: &str) -> Vec<String> {
        devices.find(name).into_iter().flatten().map(|device| device.name.clone()).collect()
    }

    #[test]
    fn devices_are_found_by_every_name() {
        let (etc, run) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let yaml = "cdiVersion: 0.6.0\nkind: example.com/gpu\nannotations: {org.mobyproject.buildkit.device.class: big}\n\
                    containerEdits: {env: [A=1]}\ndevices:\n- name: zero\n  containerEdits:\n    env: [B=2]\n    \
                    deviceNodes: [{path: /dev/x, hostPath: /dev/null, fileMode: 438}]\n- name: '1'\n";
        std::fs::write(etc.path().join("a.yaml"), yaml).expect("written");
        std::fs::write(etc.path().join("b.txt"), "no specification").expect("written");
        let json = r#"{"kind": "example.com/gpu", "devices": [{"name": "zero", "annotations":
            {"org.mobyproject.buildkit.device.autoallow": "true"}}]}"#;
        std::fs::write(run.path().join("a.json"), json).expect("written");
        let devices = Devices::read(&[etc.path().into(), run.path().into(), "/does/not/exist".into()]);
        assert_eq!(found(&devices, "example.com/gpu=zero"), ["example.com/gpu=zero"]);
        assert_eq!(found(&devices, "example.com/gpu=*"), ["example.com/gpu=1", "example.com/gpu=zero"]);
        assert_eq!(found(&devices, "example.com/gpu"), ["example.com/gpu=1"]);
        assert_eq!(found(&devices, "big"), ["example.com/gpu=1"]);
        // The later directory wins.
        let zero = devices.find("example.com/gpu=zero").expect("found")[0];
        assert!(zero.is_free && zero.edits[0].env.is_empty());
        let fault = devices.find("example.com/gpu=zeor").expect_err("a typo");
        assert_eq!(fault.hints, ["did you mean `--device=example.com/gpu=zero`?"]);
        let first = Devices::read(&[etc.path().into()]);
        let zero = first.find("example.com/gpu=zero").expect("found")[0];
        assert_eq!((zero.edits[0].env.clone(), zero.edits[1].env.clone()), (vec!["A=1".into()], vec!["B=2".into()]));
        assert_eq!(zero.edits[1].device_nodes[0].host_path.as_deref(), Some("/dev/null"));
        assert!(!zero.is_free);
    }

    #[test]
    fn two_files_that_describe_one_device_are_a_fault() {
        let etc = tempfile::tempdir().expect("a directory");
        for name in ["a.json", "b.json"] {
            let text = r#"{"kind": "example.com/x", "devices": [{"name": "y"}]}"#;
            std::fs::write(etc.path().join(name), text).expect("written");
        }
        let devices = Devices::read(&[etc.path().into()]);
        assert!(devices.find("example.com/x=y").is_err_and(|fault| fault.message.contains("two devices")));
        std::fs::write(etc.path().join("a.json"), "{").expect("written");
        let devices = Devices::read(&[etc.path().into()]);
        assert!(devices.find("example.com/x=y").is_ok());
        assert!(devices.find("example.com/x=z").is_err_and(|fault| fault.cause.is_some()));
    }

    #[test]
    fn kinds() {
        assert!(is_kind("vendor.com/net") && is_kind("a/b"));
        assert!(!is_kind("vendor.com") && !is_kind("/x") && !is_kind("a/b/c") && !is_kind("a b/c"));
    }
}
