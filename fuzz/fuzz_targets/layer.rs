//! A tar that unpacks as a layer packs, and what it packs to unpacks to the same.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use wythe::layer;

fuzz_target!(|bytes: &[u8]| {
    let unpacked = |tar: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        let fd = File::open(directory.path()).unwrap();
        layer::unpack(&mut &*tar, fd.as_fd(), &[]).ok().map(|_| (directory, fd))
    };
    let packed = |fd: &File| {
        let mut tar = Vec::new();
        layer::pack(fd.as_fd(), &mut tar).expect("what was unpacked packs");
        tar
    };
    let Some((_directory, fd)) = unpacked(bytes) else { return };
    let first = packed(&fd);
    let (_again, fd) = unpacked(&first).expect("what was packed unpacks");
    assert_eq!(packed(&fd), first);
});
