//! `RUN --device`: what the machine's devices ask of a container.

use super::Solver;
use crate::cdi::{Device, Devices};
use crate::container::{Mount, MountKind};
use crate::diag::{Diagnostic, Result};
use crate::plan::{Run, RunDevice};
use crate::progress::Event;

/// What the devices of a RUN add to its container.
#[derive(Default)]
pub(super) struct Granted {
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub groups: Vec<u32>,
}

impl Solver<'_> {
    /// A device that is missing or not allowed is an error where it is required, else a warning.
    pub(super) fn devices(&self, run: &Run) -> Result<Granted> {
        let mut granted = Granted::default();
        if run.devices.is_empty() {
            return Ok(granted);
        }
        let devices = Devices::read(&self.settings.device_directories);
        for wanted in &run.devices {
            match self.allowed(&devices, wanted) {
                Ok(found) => {
                    for device in found {
                        self.add(device, wanted, &mut granted)?;
                    }
                }
                Err(fault) if wanted.is_required => return Err(fault.at(&wanted.source, wanted.span, "required here")),
                Err(fault) => {
                    let warning = Diagnostic { rule: Some("DeviceNotUsed"), ..Diagnostic::warning("", "") };
                    let warning = Diagnostic {
                        message: format!("{}: the step runs without it", fault.message),
                        hints: fault.hints,
                        cause: fault.cause,
                        ..warning
                    };
                    self.host.reporter.report(Event::Warning(&warning.at(&wanted.source, wanted.span, "")));
                }
            }
        }
        Ok(granted)
    }

    fn allowed<'a>(&self, devices: &'a Devices, wanted: &RunDevice) -> Result<Vec<&'a Device>> {
        let found = devices.find(&wanted.name)?;
        let is_allowed = |device: &&Device| {
            let kind = device.name.split('=').next();
            device.is_free
                || self.settings.allowed_devices.iter().any(|allowed| {
                    allowed.is_empty()
                        || *allowed == device.name
                        || Some(allowed.strip_suffix("=*").unwrap_or(allowed)) == kind
                })
        };
        match found.iter().find(|device| !is_allowed(device)) {
            None => Ok(found),
            Some(device) => Err(Diagnostic::error(format!("this RUN may not use the device `{}`", device.name))
                .hint(format!("to allow it, build with `--allow device={}`", device.name))),
        }
    }

    fn add(&self, device: &Device, wanted: &RunDevice, granted: &mut Granted) -> Result<()> {
        for edits in &device.edits {
            for variable in &edits.env {
                let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                granted.env.push((name.to_owned(), value.to_owned()));
            }
            for node in &edits.device_nodes {
                let path = node.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&node.path);
                let kind = MountKind::Device {
                    path: path.into(),
                    mode: node.file_mode,
                    uid: node.uid.unwrap_or(0),
                    gid: node.gid.unwrap_or(0),
                };
                granted.mounts.push(Mount { target: node.path.clone(), kind });
            }
            for mount in &edits.mounts {
                let kind = match mount.kind.as_deref() {
                    Some("tmpfs") => MountKind::Tmpfs { size_bytes: None },
                    _ => MountKind::Host {
                        path: mount.host_path.clone().into(),
                        is_readonly: mount.options.iter().any(|option| option == "ro"),
                    },
                };
                granted.mounts.push(Mount { target: mount.container_path.clone(), kind });
            }
            granted.groups.extend(&edits.groups);
            if let Some(hook) = edits.hooks.first() {
                let message =
                    format!("the device `{}` has hooks, such as `{}`: they are not run", device.name, hook.path);
                let warning = Diagnostic::warning("DeviceHooks", message).at(&wanted.source, wanted.span, "");
                self.host.reporter.report(Event::Warning(&warning));
            }
        }
        Ok(())
    }
}
