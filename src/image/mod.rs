//! OCI and Docker images as values: config, manifest, references, platforms, and the archives that
//! carry them. All but `archive` is pure; that reads and writes tars and layouts.

pub mod archive;
pub mod config;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod validate;

pub use config::{ContainerConfig, HealthConfig, History, ImageConfig, RootFs};
pub use manifest::{Descriptor, Document, Index, Manifest, MediaTypes};
pub use platform::Platform;
pub use reference::Reference;
