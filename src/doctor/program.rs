//! The smallest programs that end well, one for each architecture, made here: what runs them runs the
//! programs of images.
//!
//! ```text
//! ELF header │ one program header: all of the file, to be loaded and executed │ exit(0)
//! ```

/// What differs between architectures.
struct Machine {
    architecture: &'static str,
    /// `e_machine`.
    number: u16,
    is_64_bit: bool,
    is_big_endian: bool,
    /// `e_flags`: the ABI.
    flags: u32,
    /// `exit(0)`.
    code: &'static [u8],
}

const MACHINES: [Machine; 7] = [
    Machine {
        architecture: "amd64",
        number: 62,
        is_64_bit: true,
        is_big_endian: false,
        flags: 0,
        // xor edi, edi; mov eax, 60; syscall
        code: &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
    },
    Machine {
        architecture: "386",
        number: 3,
        is_64_bit: false,
        is_big_endian: false,
        flags: 0,
        // xor ebx, ebx; mov eax, 1; int 0x80
        code: &[0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80],
    },
    Machine {
        architecture: "arm64",
        number: 183,
        is_64_bit: true,
        is_big_endian: false,
        flags: 0,
        // mov x0, #0; mov x8, #93; svc #0
        code: &[0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
    },
    Machine {
        architecture: "arm",
        number: 40,
        is_64_bit: false,
        is_big_endian: false,
        flags: 0x0500_0000,
        // mov r0, #0; mov r7, #1; svc #0
        code: &[0x00, 0x00, 0xa0, 0xe3, 0x01, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef],
    },
    Machine {
        architecture: "riscv64",
        number: 243,
        is_64_bit: true,
        is_big_endian: false,
        flags: 0,
        // li a0, 0; li a7, 93; ecall
        code: &[0x13, 0x05, 0x00, 0x00, 0x93, 0x08, 0xd0, 0x05, 0x73, 0x00, 0x00, 0x00],
    },
    Machine {
        architecture: "ppc64le",
        number: 21,
        is_64_bit: true,
        is_big_endian: false,
        flags: 2,
        // li r3, 0; li r0, 1; sc
        code: &[0x00, 0x00, 0x60, 0x38, 0x01, 0x00, 0x00, 0x38, 0x02, 0x00, 0x00, 0x44],
    },
    Machine {
        architecture: "s390x",
        number: 22,
        is_64_bit: true,
        is_big_endian: true,
        flags: 0,
        // lghi %r2, 0; svc 1
        code: &[0xa7, 0x29, 0x00, 0x00, 0x0a, 0x01],
    },
];

/// Those that there is a program for.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    MACHINES.iter().map(|machine| machine.architecture)
}

/// A program that exits with 0.
pub fn of(architecture: &str) -> Option<Vec<u8>> {
    MACHINES.iter().find(|machine| machine.architecture == architecture).map(image)
}

const LOAD_ADDRESS: u64 = 0x10_0000;
/// Of pages on the machines where they are largest.
const ALIGNMENT: u64 = 0x1_0000;
const EXECUTABLE: u16 = 2;
const LOADED: u32 = 1;
const READ_AND_EXECUTE: u32 = 5;

fn image(machine: &Machine) -> Vec<u8> {
    let (header_size, entry_size) = if machine.is_64_bit { (64_u64, 56_u16) } else { (52, 32) };
    let code_at = header_size + u64::from(entry_size);
    let size = code_at + machine.code.len() as u64;
    let mut image = Writer { machine, bytes: Vec::new() };
    let (class, order) = (if machine.is_64_bit { 2 } else { 1 }, if machine.is_big_endian { 2 } else { 1 });
    image.bytes.extend([0x7f, b'E', b'L', b'F', class, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    image.half(EXECUTABLE);
    image.half(machine.number);
    image.word(1);
    image.address(LOAD_ADDRESS + code_at);
    image.address(header_size);
    image.address(0);
    image.word(machine.flags);
    // Sizes of the headers, one program header, no sections.
    for half in [header_size as u16, entry_size, 1, 0, 0, 0] {
        image.half(half);
    }
    image.word(LOADED);
    if machine.is_64_bit {
        image.word(READ_AND_EXECUTE);
    }
    for address in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size] {
        image.address(address);
    }
    if !machine.is_64_bit {
        image.word(READ_AND_EXECUTE);
    }
    image.address(ALIGNMENT);
    image.bytes.extend(machine.code);
    image.bytes
}

struct Writer<'a> {
    machine: &'a Machine,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn half(&mut self, value: u16) {
        self.put(u64::from(value), 2);
    }

    fn word(&mut self, value: u32) {
        self.put(u64::from(value), 4);
    }

    fn address(&mut self, value: u64) {
        self.put(value, if self.machine.is_64_bit { 8 } else { 4 });
    }

    fn put(&mut self, value: u64, size: usize) {
        match self.machine.is_big_endian {
            true => self.bytes.extend(&value.to_be_bytes()[8 - size..]),
            false => self.bytes.extend(&value.to_le_bytes()[..size]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_end_where_the_code_begins() {
        for machine in &MACHINES {
            let image = image(machine);
            let headers = if machine.is_64_bit { 64 + 56 } else { 52 + 32 };
            assert_eq!(&image[headers..], machine.code, "{}", machine.architecture);
        }
        assert_eq!(of("mips"), None);
    }
}
