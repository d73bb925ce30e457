//! Machines that programs are made for.

use serde::{Deserialize, Serialize};

use crate::image::Platform;

/// The machine of an ELF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// 1 for 32 bits, 2 for 64.
    class: u8,
    /// 1 for little-endian, 2 for big-endian.
    order: u8,
    /// `e_machine`.
    number: u16,
}

/// Names of machines: class, order, number; what platforms call them; what qemu does.
const KNOWN: [(u8, u8, u16, &str, &str); 14] = [
    (2, 1, 62, "amd64", "x86_64"),
    (1, 1, 3, "386", "i386"),
    (2, 1, 183, "arm64", "aarch64"),
    (1, 1, 40, "arm", "arm"),
    (2, 1, 243, "riscv64", "riscv64"),
    (1, 1, 243, "riscv", "riscv32"),
    (2, 1, 21, "ppc64le", "ppc64le"),
    (2, 2, 21, "ppc64", "ppc64"),
    (2, 2, 22, "s390x", "s390x"),
    (2, 1, 258, "loong64", "loongarch64"),
    (2, 1, 8, "mips64le", "mips64el"),
    (2, 2, 8, "mips64", "mips64"),
    (1, 1, 8, "mipsle", "mipsel"),
    (1, 2, 8, "mips", "mips"),
];

impl Machine {
    /// What a file that begins so was made for; `None` if it is no ELF file.
    pub fn of(head: &[u8]) -> Option<Self> {
        let [0x7f, b'E', b'L', b'F', class @ (1 | 2), order @ (1 | 2)] = *head.first_chunk()? else { return None };
        let number = *head.get(18..)?.first_chunk()?;
        let number = if order == 1 { u16::from_le_bytes(number) } else { u16::from_be_bytes(number) };
        Some(Self { class, order, number })
    }

    /// Those of an architecture as platforms name it.
    pub fn of_architecture(name: &str) -> Option<Self> {
        Self::all().find(|machine| machine.is_named(name))
    }

    /// All that have a name.
    pub fn all() -> impl Iterator<Item = Self> {
        KNOWN.iter().map(|known| Self { class: known.0, order: known.1, number: known.2 })
    }

    /// The one that this program was compiled for.
    pub fn is_native(self) -> bool {
        self.is_named(&Platform::host().architecture)
    }

    /// Whether nearly every processor of this machine's runs its programs. Not all kernels let them.
    pub fn is_native_too(self) -> bool {
        let pairs = [("amd64", "386"), ("arm64", "arm")];
        let host = Platform::host().architecture;
        pairs.iter().any(|(own, other)| *own == host && self.is_named(other))
    }

    /// Whether platforms call it so.
    pub fn is_named(self, name: &str) -> bool {
        self.known().is_some_and(|(known, _)| known == name)
    }

    fn known(self) -> Option<(&'static str, &'static str)> {
        let own = (self.class, self.order, self.number);
        KNOWN.iter().find(|known| (known.0, known.1, known.2) == own).map(|known| (known.3, known.4))
    }

    /// As platforms name it.
    pub fn name(self) -> String {
        self.known().map_or_else(|| format!("machine {}", self.number), |(name, _)| name.to_owned())
    }

    /// The name of its emulator.
    pub fn qemu(self) -> Option<&'static str> {
        self.known().map(|(_, qemu)| qemu)
    }

    /// How its programs begin, and which bits of that say so: those for whatever system, bound to an
    /// address or not.
    pub fn pattern(self) -> ([u8; 20], [u8; 20]) {
        let mut magic = [0; 20];
        magic[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', self.class, self.order, 1]);
        let mut mask = [0xff; 20];
        mask[7] = 0;
        // ET_EXEC is 2, ET_DYN is 3.
        let (kind, kind_mask, number) = match self.order {
            1 => (2_u16.to_le_bytes(), 0xfffe_u16.to_le_bytes(), self.number.to_le_bytes()),
            _ => (2_u16.to_be_bytes(), 0xfffe_u16.to_be_bytes(), self.number.to_be_bytes()),
        };
        magic[16..18].copy_from_slice(&kind);
        mask[16..18].copy_from_slice(&kind_mask);
        magic[18..].copy_from_slice(&number);
        (magic, mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, order: u8, number: [u8; 2]) -> Vec<u8> {
        let mut head = [b"\x7fELF".as_slice(), &[class, order, 1], &[0; 11]].concat();
        head.extend(number);
        head
    }

    #[test]
    fn machines_are_told_apart() {
        let name = |class, order, number| Machine::of(&head(class, order, number)).unwrap().name();
        assert_eq!(name(2, 1, [183, 0]), "arm64");
        assert_eq!(name(1, 1, [40, 0]), "arm");
        assert_eq!(name(2, 1, [21, 0]), "ppc64le");
        assert_eq!(name(2, 2, [0, 21]), "ppc64");
        assert_eq!(name(2, 1, [1, 1]), "machine 257");
        for wrong in [&b"#!/bin/sh"[..], b"\x7fELF", b"", b"\x7fELF\x03\x01\x01"] {
            assert_eq!(Machine::of(wrong), None);
        }
    }

    #[test]
    fn this_program_is_native() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(Machine::of(&own).unwrap().is_native());
        assert!(!Machine::of(&head(2, 2, [0, 8])).unwrap().is_native());
    }

    #[test]
    fn a_pattern_is_that_of_its_programs() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let fits = |machine: Machine| {
            let (magic, mask) = machine.pattern();
            (0..20).all(|place| own[place] & mask[place] == magic[place] & mask[place])
        };
        assert_eq!(Machine::all().filter(|machine| fits(*machine)).collect::<Vec<_>>(), [Machine::of(&own).unwrap()]);
        let (magic, mask) = Machine::of_architecture("s390x").unwrap().pattern();
        assert_eq!((&magic[16..], &mask[16..]), (&[0, 2, 0, 22][..], &[0xff, 0xfe, 0xff, 0xff][..]));
        assert_eq!(Machine::of_architecture("wasm"), None);
    }
}
