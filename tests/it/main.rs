//! The one test binary. A module a kind of test; cases are folders below `testdata/`, and `BLESS=1`
//! rewrites what they expect.
#![allow(clippy::unwrap_used)] // A test that cannot go on panics.

mod aftermath;
mod build;
mod builder;
mod cache;
mod check;
mod compression;
mod conformance;
mod container;
mod context;
mod deep;
mod devices;
mod dockerfile;
mod doctor;
mod explain;
mod footing;
mod foreign;
mod git;
mod image;
mod insecure;
mod journal;
mod layer;
mod lifecycle;
mod ordinary;
mod overlay;
mod ownership;
mod packed;
mod packing;
mod parcel;
mod pending;
mod plan;
mod progress;
mod prune;
mod registry;
mod relief;
mod sandbox;
mod security;
mod server;
mod shell;
mod ssh;
mod step;
mod store;
mod tidy;
mod tree;
mod unpack;

use std::fs;
use std::path::{Path, PathBuf};

/// The directory `testdata/<name>`.
fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Compares with the golden file `path`, or writes it when blessing.
#[track_caller]
fn check_golden(path: &Path, actual: &[u8]) {
    if is_blessing() {
        fs::write(path, actual).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        return;
    }
    let expected =
        fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error} (BLESS=1 makes it)", path.display()));
    if expected == actual {
        return;
    }
    let (expected, actual) = (String::from_utf8_lossy(&expected), String::from_utf8_lossy(actual));
    let line = expected.lines().zip(actual.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or(expected.lines().count().min(actual.lines().count())) + 1;
    panic!(
        "{} differs from line {line} (BLESS=1 rewrites it)\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}

#[allow(clippy::disallowed_methods)] // A test is its own command line.
fn is_blessing() -> bool {
    std::env::var_os("BLESS").is_some()
}

/// The folders in `testdata/<name>`, sorted; there must be some.
fn cases(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(testdata(name)).unwrap_or_else(|error| panic!("cannot read testdata/{name}: {error}"));
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in testdata/{name}");
    cases
}
