//! wythe builds container images from Dockerfiles.
//!
//! The modules, bottom to top; each uses only those above it in this list (`tests/it/tidy.rs` holds
//! that). `build` is where to start reading.

pub mod digest;
pub mod location;
pub mod diag;
pub mod secret;
pub mod sys;
pub mod ids;
pub mod cdi;
pub mod parallel;
pub mod progress;
pub mod image;
pub mod layer;
pub mod dockerfile;
pub mod context;
pub mod store;
pub mod plan;
pub mod journal;
pub mod cache;
pub mod container;
pub mod doctor;
pub mod registry;
pub mod ssh;
pub mod git;
pub mod copy;
pub mod host;
pub mod source;
pub mod resolve;
pub mod solve;
pub mod export;
pub mod build;
pub mod cli;
