//! The one integration test binary: a module per kind of test.
#![allow(clippy::unwrap_used)]

mod dockerfile;
