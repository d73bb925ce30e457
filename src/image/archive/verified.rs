//! A reader that vouches for what it read.

use std::io::{self, Read};

use crate::digest::{Digest, Hasher};

/// Passes a blob's bytes on. The end is reported only if the bytes had the expected size and digest;
/// otherwise the read that would report it fails. Whoever reads to the end has read the blob.
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Hasher,
    remaining: u64,
    expected: Digest,
    is_verified: bool,
}

impl<R: Read> VerifyingReader<R> {
    pub fn new(inner: R, expected: Digest, size_bytes: u64) -> Self {
        Self { inner, hasher: Hasher::default(), remaining: size_bytes, expected, is_verified: false }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.is_verified {
            return Ok(0);
        }
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("blob `{}` {why}", self.expected));
        let count = self.inner.read(buffer)?;
        if count as u64 > self.remaining {
            return Err(damaged("is longer than its descriptor says"));
        }
        if count == 0 && self.remaining > 0 {
            return Err(damaged("is shorter than its descriptor says"));
        }
        if count == 0 {
            if std::mem::take(&mut self.hasher).finish() != self.expected {
                return Err(damaged("is damaged: its bytes have another digest"));
            }
            self.is_verified = true;
        }
        self.remaining -= count as u64;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_bytes_come_to_an_end() {
        let read = |bytes: &'static [u8], size: u64| {
            let mut out = Vec::new();
            let result = VerifyingReader::new(bytes, Digest::of(b"12345"), size).read_to_end(&mut out);
            result.map(|_| out).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"12345", 5), Ok(b"12345".to_vec()));
        assert!(read(b"12344", 5).unwrap_err().contains("damaged"));
        assert!(read(b"1234", 5).unwrap_err().contains("shorter"));
        assert!(read(b"123456", 5).unwrap_err().contains("longer"));
        assert!(read(b"1234", 4).unwrap_err().contains("damaged"));
    }
}
