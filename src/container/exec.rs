//! Starting the payload's program, and saying precisely why that was not possible. Runs as the
//! payload's user in its root, under its filter.

use std::ffi::CString;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::machine::Machine;
use crate::diag::Diagnostic;
use crate::sys;

/// Why no program was started.
pub struct Refusal {
    pub reason: Box<Diagnostic>,
    /// The program is for this machine, which the kernel does not run here.
    pub machine: Option<Machine>,
}

impl From<Diagnostic> for Refusal {
    fn from(reason: Diagnostic) -> Self {
        Self { reason: Box::new(reason), machine: None }
    }
}

/// Runs `argv`, its first word looked up in the PATH of `env` if it has no slash. Returns only when
/// that failed.
pub fn exec(argv: &[String], env: &[(String, String)]) -> Refusal {
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        return Diagnostic::error("cannot execute an empty command").into();
    };
    let arguments = argv.iter().map(|argument| CString::new(argument.as_str())).collect::<Result<Vec<_>, _>>();
    let environment =
        env.iter().map(|(name, value)| CString::new(format!("{name}={value}"))).collect::<Result<Vec<_>, _>>();
    let (Ok(arguments), Ok(environment)) = (arguments, environment) else {
        return refused(program, "an argument or variable holds a zero byte");
    };
    if program.contains('/') {
        return match attempt(program, &arguments, &environment) {
            Failed::Missing => refused(program, "no such file in the image"),
            Failed::Denied(reason) | Failed::Broken(reason) => refused(program, &reason),
            Failed::Foreign(machine) => foreign(program, machine),
        };
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    let mut denied = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match attempt(&format!("{dir}/{program}"), &arguments, &environment) {
            Failed::Missing => {}
            // As a shell does: a later directory may have one that works.
            Failed::Denied(reason) => denied = denied.or(Some(reason)),
            Failed::Broken(reason) => return refused(program, &reason),
            Failed::Foreign(machine) => return foreign(program, machine),
        }
    }
    refused(program, denied.as_deref().unwrap_or("not found in PATH"))
}

fn refused(program: &str, reason: &str) -> Refusal {
    Diagnostic::error(format!("cannot execute `{program}`: {reason}")).into()
}

fn foreign(program: &str, machine: Machine) -> Refusal {
    let reason = format!("it is a program for {}, which does not run here", machine.name());
    Refusal { machine: Some(machine), ..refused(program, &reason) }
}

enum Failed {
    Missing,
    Denied(String),
    Broken(String),
    Foreign(Machine),
}

fn attempt(path: &str, arguments: &[CString], environment: &[CString]) -> Failed {
    let Ok(c_path) = CString::new(path) else { return Failed::Missing };
    let error = sys::exec(&c_path, arguments, environment);
    let stat = rustix::fs::statat(CWD, path, AtFlags::empty());
    let is_directory = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    match Errno::from_io_error(&error) {
        // The file may be there, and what the kernel misses is the program to run it with.
        Some(Errno::NOENT) if stat.is_ok() => match (interpreter(path), foreign_machine(path)) {
            // The kernel's handler for such programs may be missing in the image as well.
            (interpreter, Some(machine)) if interpreter.as_deref().is_none_or(exists) => Failed::Foreign(machine),
            (Some(interpreter), _) => Failed::Broken(format!("its interpreter `{interpreter}` is not in the image")),
            (None, _) => Failed::Broken("its interpreter is not in the image".to_owned()),
        },
        Some(Errno::NOENT | Errno::NOTDIR) => Failed::Missing,
        Some(Errno::ACCESS) if is_directory => Failed::Denied(format!("`{path}` is a directory")),
        Some(Errno::ACCESS) => Failed::Denied(format!("permission denied for `{path}`")),
        Some(Errno::NOEXEC) => match foreign_machine(path) {
            Some(machine) => Failed::Foreign(machine),
            None => Failed::Broken(format!("`{path}` is {}", nature(path))),
        },
        _ => Failed::Broken(error.to_string()),
    }
}

/// What a file is that the kernel cannot run.
fn nature(path: &str) -> &'static str {
    match head(path) {
        Some(head) if head.starts_with(b"\x7fELF") => "a damaged program",
        Some(head) if head.is_empty() => "an empty file",
        _ => "neither a program nor a script that begins with `#!`",
    }
}

/// The machine of a program, or of a script's interpreter, if it is not this one.
fn foreign_machine(path: &str) -> Option<Machine> {
    let mut head = head(path)?;
    if head.starts_with(b"#!") {
        head = self::head(&interpreter(path)?)?;
    }
    Machine::of(&head).filter(|machine| !machine.is_native())
}

fn exists(path: &str) -> bool {
    rustix::fs::statat(CWD, path, AtFlags::empty()).is_ok()
}

/// The interpreter that a script or a dynamically linked program names.
fn interpreter(path: &str) -> Option<String> {
    let head = head(path)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        // A carriage return is part of the name: then it had better be shown.
        let words = String::from_utf8_lossy(line).into_owned();
        return Some(words.split([' ', '\t']).find(|word| !word.is_empty())?.escape_debug().to_string());
    }
    loader(&head)
}

/// The loader that a program names which begins so: PT_INTERP of a little-endian ELF file, 32 or 64 bits.
pub fn loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let is_64_bit = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', class @ (1 | 2), 1] => *class == 2,
        _ => return None,
    };
    let number = |offset: usize, size: usize| -> Option<u64> {
        let bytes = head.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    // e_phoff, e_phentsize, e_phnum; p_offset, p_filesz.
    let (table, entry_size, count) = if is_64_bit {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * entry_size)?).ok()?;
        if number(header, 4)? != PT_INTERP {
            continue;
        }
        let (offset, size) = if is_64_bit {
            (number(header + 8, 8)?, number(header + 32, 8)?)
        } else {
            (number(header + 4, 4)?, number(header + 16, 4)?)
        };
        let start = usize::try_from(offset).ok()?;
        let name = head.get(start..start.checked_add(usize::try_from(size).ok()?)?)?;
        return Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
    }
    None
}

fn head(path: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let mut head = vec![0; 4096];
    let length = rustix::io::read(&file, &mut head).ok()?;
    head.truncate(length);
    Some(head)
}
