//! Netlink: requests to the kernel's network, and its answers.
//!
//! ```text
//! message     length u32 · kind u16 · flags u16 · sequence u32 · port u32 · fixed part · attributes
//! attribute   length u16 · kind u16 · value, padded to 4 bytes; a value may be attributes again
//! ```
//!
//! Numbers are the machine's; what is on the wire (addresses, and all of nf_tables) is big-endian.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER_BYTES: usize = 16;
/// The kernel fills at most this much at once.
const PIECE_BYTES: usize = 64 * 1024;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACKNOWLEDGE: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
/// To make what is not there; what is there is an error.
pub const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// A request in the making.
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `fixed` is the structure that messages of this kind begin with.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    pub fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        // Our values are short.
        let length = 4 + value.len() as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&attribute.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Text with a zero byte at its end.
    pub fn with_text(self, attribute: u16, text: &str) -> Self {
        self.with(attribute, &[text.as_bytes(), &[0]].concat())
    }

    /// An attribute whose value is what `fill` adds.
    pub fn nest(mut self, attribute: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(attribute | libc::NLA_F_NESTED as u16).to_ne_bytes());
        let mut message = fill(self);
        let length = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message
    }

    /// Bytes that are no attribute, within [`Message::nest`].
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn seal(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6] |= flags.to_ne_bytes()[0];
        self.bytes[7] |= flags.to_ne_bytes()[1];
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// What the kernel sent.
#[derive(Debug)]
pub struct Answer {
    pub kind: u16,
    sequence: u32,
    body: Vec<u8>,
}

impl Answer {
    /// The structure at its beginning, as far as it goes.
    pub fn fixed<const N: usize>(&self) -> [u8; N] {
        self.body.first_chunk().copied().unwrap_or([0; N])
    }

    /// The attributes behind a fixed part of this length.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.body.get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// Attributes, in order. Ends at the first that is not whole.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those within the value of an attribute.
    pub fn within(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// The value of the first of this kind.
    pub fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & libc::NLA_TYPE_MASK as u16;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A socket to one part of the kernel's network, in the network namespace of its maker.
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// For requests about links, addresses and routes.
    pub fn open() -> Result<Self, Errno> {
        Self::bind(None, SocketAddrNetlink::new(0, 0))
    }

    /// For requests to `protocol` from a socket of this number, which is different from all others'.
    pub fn open_as(protocol: Protocol, number: u32) -> Result<Self, Errno> {
        Self::bind(Some(protocol), SocketAddrNetlink::new(number, 0))
    }

    /// One that is told of what happens to the `RTMGRP_*` groups.
    pub fn listen(groups: i32) -> Result<Self, Errno> {
        Self::bind(None, SocketAddrNetlink::new(0, groups as u32))
    }

    fn bind(protocol: Option<Protocol>, address: SocketAddrNetlink) -> Result<Self, Errno> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::bind(&fd, &address)?;
        Ok(Self { fd, sequence: Cell::new(0) })
    }

    /// Sends a request and waits until it is done.
    pub fn request(&self, message: Message) -> Result<(), Errno> {
        let sequence = self.send(message, ACKNOWLEDGE)?;
        self.await_all(sequence..=sequence)
    }

    /// Sends requests of which all are done or none, as the `begin` and `end` around them say.
    pub fn batch(&self, begin: Message, requests: Vec<Message>, end: Message) -> Result<(), Errno> {
        let first = self.sequence.get().wrapping_add(1);
        let count = requests.len() as u32;
        let mut bytes = begin.seal(0, first);
        for (index, request) in requests.into_iter().enumerate() {
            bytes.extend(request.seal(ACKNOWLEDGE, first.wrapping_add(1 + index as u32)));
        }
        bytes.extend(end.seal(0, first.wrapping_add(count + 1)));
        self.sequence.set(first.wrapping_add(count + 1));
        self.send_bytes(&bytes)?;
        self.await_all(first.wrapping_add(1)..=first.wrapping_add(count))
    }

    /// Asks for one object.
    pub fn get(&self, message: Message) -> Result<Answer, Errno> {
        let sequence = self.send(message, 0)?;
        loop {
            for answer in self.receive(RecvFlags::empty())? {
                if answer.sequence == sequence {
                    return match error_of(&answer) {
                        Some(errno) => Err(errno.unwrap_or(Errno::NODATA)),
                        None => Ok(answer),
                    };
                }
            }
        }
    }

    /// Asks for all objects of a kind.
    pub fn dump(&self, message: Message) -> Result<Vec<Answer>, Errno> {
        let sequence = self.send(message, DUMP)?;
        let mut found = Vec::new();
        loop {
            for answer in self.receive(RecvFlags::empty())? {
                if answer.sequence != sequence {
                    continue;
                }
                if let Some(Some(errno)) = error_of(&answer) {
                    return Err(errno);
                }
                if i32::from(answer.kind) == libc::NLMSG_DONE {
                    return Ok(found);
                }
                found.push(answer);
            }
        }
    }

    /// What has come to a listening socket.
    pub fn events(&self) -> Vec<Answer> {
        let mut events = Vec::new();
        loop {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(more) => events.extend(more),
                // Some were lost: there may be more all the same.
                Err(Errno::NOBUFS) => {}
                Err(_) => return events,
            }
        }
    }

    fn send(&self, message: Message, flags: u16) -> Result<u32, Errno> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        self.send_bytes(&message.seal(flags, sequence))?;
        Ok(sequence)
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))?;
        Ok(())
    }

    /// Waits until each of these is done; the first error is returned.
    fn await_all(&self, sequences: std::ops::RangeInclusive<u32>) -> Result<(), Errno> {
        let before = sequences.start().wrapping_sub(1);
        let mut left = sequences.end().wrapping_sub(*sequences.start()) + 1;
        while left > 0 {
            for answer in self.receive(RecvFlags::empty())? {
                match error_of(&answer) {
                    Some(None) if sequences.contains(&answer.sequence) => left -= 1,
                    // One of the whole, which is the beginning's, ends it too.
                    Some(Some(errno)) if sequences.contains(&answer.sequence) || answer.sequence == before => {
                        // More may be said of the rest.
                        let _ = self.events();
                        return Err(errno);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn receive(&self, flags: RecvFlags) -> Result<Vec<Answer>, Errno> {
        let mut piece = vec![0; PIECE_BYTES];
        let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, piece.as_mut_slice(), flags))?;
        Ok(split(&piece[..length.min(PIECE_BYTES)]))
    }
}

impl From<OwnedFd> for Socket {
    /// One that another process has opened, and does not use any more.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, sequence: Cell::new(0) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn split(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEADER_BYTES>() {
        let number = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = number(0) as usize;
        let Some(body) = bytes.get(HEADER_BYTES..length) else { break };
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        answers.push(Answer { kind, sequence: number(8), body: body.to_vec() });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

/// `None` for what is no acknowledgement; the error it tells of, if any. The end of a dump may tell of
/// one too.
fn error_of(answer: &Answer) -> Option<Option<Errno>> {
    match i32::from(answer.kind) {
        libc::NLMSG_ERROR | libc::NLMSG_DONE => {
            let code = i32::from_ne_bytes(answer.fixed());
            Some((code != 0).then(|| Errno::from_raw_os_error(code.saturating_neg())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let message = Message::new(16, CREATE, &[0; 16])
            .with_text(3, "eth0")
            .nest(18, |info| info.with_text(1, "veth").nest(2, |data| data.with(4, &7_u32.to_ne_bytes())));
        let bytes = message.seal(ACKNOWLEDGE, 5);
        let expected: Vec<u8> = [
            &72_u32.to_ne_bytes()[..],
            &16_u16.to_ne_bytes(),
            &0x605_u16.to_ne_bytes(),
            &5_u32.to_ne_bytes(),
            &[0; 4],
            &[0; 16],
            &9_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            b"eth0\0\0\0\0",
            &28_u16.to_ne_bytes(),
            &0x8012_u16.to_ne_bytes(),
            &9_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"veth\0\0\0\0",
            &12_u16.to_ne_bytes(),
            &0x8002_u16.to_ne_bytes(),
            &8_u16.to_ne_bytes(),
            &4_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn answers_are_read_with_their_attributes() {
        let one = Message::new(24, 0, &[1; 12]).with(1, &[10, 0, 0, 1]).with_text(3, "a").seal(0, 9);
        let two = Message::new(3, 0, &(-2_i32).to_ne_bytes()).seal(0, 10);
        let answers = split(&[one, two].concat());
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[0].attributes(12).collect::<Vec<_>>(), [(1, &[10, 0, 0, 1][..]), (3, b"a\0")]);
        assert_eq!(answers[0].attributes(12).get(3), Some(&b"a\0"[..]));
        assert_eq!(error_of(&answers[0]), None);
        assert_eq!(error_of(&answers[1]), Some(Some(Errno::NOENT)));
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let whole = Message::new(24, 0, &[1; 12]).with(1, &[10, 0, 0, 1]).seal(0, 9);
        for length in 0..whole.len() {
            assert!(split(&whole[..length]).is_empty(), "{length}");
        }
        assert_eq!(Attributes::within(&[8, 0, 1, 0, 1, 2]).next(), None);
        assert_eq!(Attributes::within(&[2, 0, 1, 0]).next(), None);
    }
}
