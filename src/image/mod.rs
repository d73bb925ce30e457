//! OCI and Docker images as values: config, manifest, references, platforms, and the archives that
//! carry them. `config` and `reference` are pure; `archive` reads and writes tars and layouts.

pub mod config;
pub mod platform;
pub mod reference;

pub use config::{ContainerConfig, HealthConfig, History, ImageConfig, RootFs};
pub use platform::Platform;
pub use reference::Reference;
