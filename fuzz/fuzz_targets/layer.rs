//! A tar that unpacks as a layer packs, and what it packs to unpacks to the same. Its table tells as many names, and has
//! none for what does not unpack.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use wythe::layer::{self, Relief, Table};

fuzz_target!(|bytes: &[u8]| {
    let unpacked = |tar: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        let fd = File::open(directory.path()).unwrap();
        layer::unpack(&mut &*tar, fd.as_fd(), &[]).ok().map(|summary| (directory, fd, summary))
    };
    let packed = |fd: &File| {
        let mut tar = Vec::new();
        layer::pack(fd.as_fd(), &mut tar).expect("what was unpacked packs");
        tar
    };
    // By way of the bytes that are kept of it.
    let table = layer::tabulate(&mut &*bytes).expect("bytes can be read");
    let table = Table::from_bytes(&Table::to_bytes(table.as_ref()).unwrap()).expect("what was written is read");
    let mut relief = Relief::default();
    let is_told = table.is_some_and(|table| relief.apply(&table).is_ok());
    let Some((_directory, fd, summary)) = unpacked(bytes) else { return };
    // Directories a few hundred deep have none.
    let is_deep = bytes.iter().filter(|byte| **byte == b'/').count() > 200;
    assert!(is_told || is_deep, "what is unpacked has a table");
    assert!(!is_told || relief.paths().len() as u64 == summary.entries);
    let first = packed(&fd);
    let (_again, fd, _) = unpacked(&first).expect("what was packed unpacks");
    assert_eq!(packed(&fd), first);
});
