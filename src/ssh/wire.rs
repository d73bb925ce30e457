//! Messages between ssh and its agent: a length, a type, fields.

use std::io::{self, Read, Write};

/// No message of an agent is longer (OpenSSH's limit).
const MAX_MESSAGE_BYTES: u32 = 256 << 10;

pub const FAILURE: u8 = 5;
pub const LIST: u8 = 11;
pub const LISTED: u8 = 12;
pub const SIGN: u8 = 13;
pub const SIGNED: u8 = 14;

/// A whole message, the type first; `None` where the peer has closed.
pub fn read(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let mut read = 0;
    while read < length.len() {
        match stream.read(&mut length[read..]) {
            Ok(0) if read == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of that length is none of an agent"));
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}

pub fn write(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    // What we send is shorter than what may be received.
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

/// Appends a string: its length, its bytes.
pub fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a number that is not negative, given as big-endian bytes.
pub fn put_number(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..];
    match bytes.first() {
        Some(first) if *first & 0x80 != 0 => put(out, &[&[0], bytes].concat()),
        _ => put(out, bytes),
    }
}

/// Takes fields off the front of a message.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_through() {
        let mut stream = Vec::new();
        write(&mut stream, b"\x0babc").unwrap();
        let mut reader = stream.as_slice();
        assert_eq!(read(&mut reader).unwrap().unwrap(), b"\x0babc");
        assert_eq!(read(&mut reader).unwrap(), None);
    }

    #[test]
    fn lengths_are_not_believed() {
        for bytes in [&b"\0\0"[..], b"\0\0\0\0", b"\0\0\0\x05ab", b"\xff\xff\xff\xff"] {
            assert!(read(&mut &*bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(Fields(b"\0\0\0\x05ab").string(), None);
    }

    #[test]
    fn numbers_are_not_negative() {
        let number = |bytes: &[u8]| {
            let mut out = Vec::new();
            put_number(&mut out, bytes);
            out
        };
        assert_eq!(number(&[0, 0, 1]), [0, 0, 0, 1, 1]);
        assert_eq!(number(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(number(&[0]), [0, 0, 0, 0]);
    }
}
