//! Any bytes are a tar or an error, and its members have as many bytes as they say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wythe::layer::archive::{Archive, Chunk};
use wythe::layer::decompress;

fuzz_target!(|bytes: &[u8]| {
    let Ok(plain) = decompress(bytes) else { return };
    let mut archive = Archive::new(plain);
    let mut buffer = [0; 1000];
    for _ in 0..1000 {
        let Ok(Some(member)) = archive.next_member() else { return };
        let mut length = 0_u64;
        loop {
            match archive.next_chunk(&mut buffer) {
                Ok(Some(Chunk::Data(count))) => length += count as u64,
                Ok(Some(Chunk::Hole(count))) => length += count,
                Ok(None) => break assert_eq!(length, member.size_bytes),
                Err(_) => return,
            }
            assert!(length <= member.size_bytes);
        }
    }
});
