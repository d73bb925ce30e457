//! The bytes that precede a member's content in a layer tar.
//!
//! ```text
//! ┌ 512: pax header, type x ┬ records, padded to 512 ┐  only if the fields below cannot say it
//! └─────────────────────────┴────────────────────────┘
//! ┌ 512: ustar header ┐
//! └───────────────────┘
//! ```
//!
//! A changed byte here changes the diff ID of every layer: a release that does so must say so.

use std::ffi::CString;

use tar::{EntryType, Header};

pub const BLOCK: usize = 512;

/// What a member of a layer tar is.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Without a leading slash; a directory ends with one.
    pub path: &'a [u8],
    pub entry_type: EntryType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of the content that follows.
    pub size_bytes: u64,
    /// Seconds: tars of layers say no more.
    pub mtime: i64,
    /// Target of a symbolic link; path of the first name of a hard link.
    pub link: &'a [u8],
    pub major: u32,
    pub minor: u32,
    pub xattrs: &'a [(CString, Vec<u8>)],
}

/// The largest numbers that fit in octal digits.
const MAX_ID: u32 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;

/// Appends the headers of a member.
pub fn write(member: &Member<'_>, out: &mut Vec<u8>) {
    let records = records(member);
    if !records.is_empty() {
        let mut header = Header::new_ustar();
        set_bytes(&mut header.as_old_mut().name, b"././@PaxHeader");
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let mut header = Header::new_ustar();
    set_bytes(&mut header.as_old_mut().name, member.path);
    set_bytes(&mut header.as_old_mut().linkname, member.link);
    header.set_entry_type(member.entry_type);
    header.set_mode(member.mode);
    header.set_uid(if member.uid > MAX_ID { 0 } else { member.uid.into() });
    header.set_gid(if member.gid > MAX_ID { 0 } else { member.gid.into() });
    header.set_size(if member.size_bytes > MAX_LONG { 0 } else { member.size_bytes });
    header.set_mtime(u64::try_from(member.mtime).ok().filter(|mtime| *mtime <= MAX_LONG).unwrap_or(0));
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(member.major);
        ustar.set_device_minor(member.minor);
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// The pax records, in a fixed order.
fn records(member: &Member<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    if !fits(member.path) {
        record(b"path", member.path, &mut out);
    }
    if !fits(member.link) {
        record(b"linkpath", member.link, &mut out);
    }
    let mut number = |key: &[u8], value: &dyn ToString| record(key, value.to_string().as_bytes(), &mut out);
    if member.size_bytes > MAX_LONG {
        number(b"size", &member.size_bytes);
    }
    if member.uid > MAX_ID {
        number(b"uid", &member.uid);
    }
    if member.gid > MAX_ID {
        number(b"gid", &member.gid);
    }
    if !u64::try_from(member.mtime).is_ok_and(|mtime| mtime <= MAX_LONG) {
        number(b"mtime", &member.mtime);
    }
    for (name, value) in member.xattrs {
        record(&[b"SCHILY.xattr.", name.to_bytes()].concat(), value, &mut out);
    }
    out
}

/// Whether readers agree about these bytes in a field of 100: beyond ASCII they do not.
fn fits(text: &[u8]) -> bool {
    text.len() <= 100 && text.is_ascii()
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// As much as fits; the rest is in a record.
fn set_bytes(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for value_length in 0..1200 {
            let mut out = Vec::new();
            record(b"path", &vec![b'x'; value_length], &mut out);
            let digits: usize = String::from_utf8_lossy(&out).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(digits, out.len());
        }
    }
}
