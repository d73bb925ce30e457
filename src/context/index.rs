//! Remembered content hashes of files, by (device, inode, size, mtime, ctime).

/// The hash index of one context directory.
#[derive(Debug, Default)]
pub struct HashIndex {
    _todo: (),
}
