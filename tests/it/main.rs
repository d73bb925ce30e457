//! The one integration test binary: a module for each thing tested.

mod compression;
mod layer;
mod overlay;
mod store;
mod tree;
mod unpack;
