//! Every `unsafe` of the crate: the system calls that rustix does not wrap. One call a block, each
//! with the sentence that says why it is sound.
#![allow(unsafe_code)]
