//! `--chmod`: octal and symbolic modes, read as chmod(1) does under a file creation mask of 0.

use crate::diag::{Diagnostic, Result};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

/// A checked value of `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The permission bits themselves, at most 7777.
    Octal(u32),
    /// What is done to the bits a file has, in this order.
    Symbolic(Vec<Change>),
}

/// One step of a symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Add(u32),
    Remove(u32),
    /// `X`: adds to directories, and to files that had an execute bit before the first change.
    AddIfExecutable(u32),
    /// `g=u`: takes the permissions of one class (its shift) and combines them with those of others.
    Copy {
        from: u32,
        to: u32,
        operator: Operator,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Add,
    Remove,
    Set,
}

impl Mode {
    /// Reads `0755`, `64`, `u=rwX,go=rX`, `+x`, `a+x,g-r`, `g=u`, `+t`.
    pub fn parse(text: &str) -> Result<Self> {
        let parsed = if text.starts_with(|c: char| c.is_ascii_digit()) { octal(text) } else { symbolic(text) };
        parsed.ok_or_else(|| {
            Diagnostic::error(format!("`{text}` is not a file mode")).hint(
                "use an octal mode of at most 7777, as in `--chmod=0755`, or a symbolic one, as in `--chmod=u=rwX,go=rX`",
            )
        })
    }

    /// The bits of a file or directory that had `mode`.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(bits) => return *bits,
            Self::Symbolic(changes) => changes,
        };
        // POSIX has `X` look at the unmodified bits, not at what earlier clauses made of them.
        let is_executable = is_directory || mode & EXECUTE != 0;
        changes.iter().fold(mode & 0o7777, |mode, change| match *change {
            Change::Add(bits) => mode | bits,
            Change::Remove(bits) => mode & !bits,
            Change::AddIfExecutable(bits) if is_executable => mode | bits,
            Change::AddIfExecutable(_) => mode,
            Change::Copy { from, to, operator } => {
                let bits = (((mode >> from) & 7) * EXECUTE) & to;
                match operator {
                    Operator::Add => mode | bits,
                    Operator::Remove => mode & !bits,
                    Operator::Set => (mode & !to) | bits,
                }
            }
        })
    }

    /// The mode of directories made on the way: an octal mode counts for them too, without its
    /// setuid, setgid and sticky bits; a symbolic one has nothing to change.
    pub fn of_made_directories(&self) -> u32 {
        match self {
            Self::Octal(bits) => bits & 0o777,
            Self::Symbolic(_) => 0o755,
        }
    }
}

fn octal(text: &str) -> Option<Mode> {
    let is_octal = text.len() <= 8 && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let bits = if is_octal { u32::from_str_radix(text, 8).ok()? } else { return None };
    (bits <= 0o7777).then_some(Mode::Octal(bits))
}

/// `clause[,clause…]`, a clause being `[ugoa]*` and one or more of `[+-=]([rwxXst]*|[ugo])`.
fn symbolic(text: &str) -> Option<Mode> {
    let mut changes = Vec::new();
    for clause in text.split(',') {
        let operators = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let who = who(&clause[..clause.len() - operators.len()]);
        let mut rest = operators;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let operator = match rest.as_bytes()[0] {
                b'+' => Operator::Add,
                b'-' => Operator::Remove,
                b'=' => Operator::Set,
                _ => return None,
            };
            rest = &rest[1..];
            let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
            action(who, operator, &rest[..end], &mut changes)?;
            rest = &rest[end..];
        }
    }
    Some(Mode::Symbolic(changes))
}

/// The classes of a clause as the bits they own; 0 when it names none.
fn who(letters: &str) -> u32 {
    letters.bytes().fold(0, |bits, letter| {
        bits | match letter {
            b'u' => SETUID | 0o700,
            b'g' => SETGID | 0o070,
            b'o' => 0o007,
            _ => SETUID | SETGID | 0o777,
        }
    })
}

fn action(who: u32, operator: Operator, permissions: &str, changes: &mut Vec<Change>) -> Option<()> {
    let named = if who == 0 { SETUID | SETGID | 0o777 } else { who };
    if let Some(from) = match permissions {
        "u" => Some(6),
        "g" => Some(3),
        "o" => Some(0),
        _ => None,
    } {
        changes.push(Change::Copy { from, to: named & 0o777, operator });
        return Some(());
    }
    // `o` owns no set-id and no sticky bit: `o+s` and `o+t` do nothing.
    let has_special = named & (SETUID | SETGID) != 0;
    let (mut bits, mut cleared, mut conditional) = (0, named, 0);
    for letter in permissions.bytes() {
        match letter {
            b'r' => bits |= 0o444 & named,
            b'w' => bits |= 0o222 & named,
            b'x' => bits |= EXECUTE & named,
            b'X' => conditional |= EXECUTE & named,
            b's' => bits |= (SETUID | SETGID) & named,
            b't' if has_special => {
                bits |= STICKY;
                cleared |= STICKY;
            }
            b't' => {}
            _ => return None,
        }
    }
    match operator {
        // Without an execute bit there is nothing for `-X` to remove, so it is `-x`.
        Operator::Remove => changes.push(Change::Remove(bits | conditional)),
        Operator::Add => changes.extend([Change::Add(bits), Change::AddIfExecutable(conditional)]),
        Operator::Set => {
            changes.extend([Change::Remove(cleared), Change::Add(bits), Change::AddIfExecutable(conditional)]);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mode, bits of a file before and after, bits of a directory before and after; octal.
    const TABLE: &str = include_str!("../../testdata/copy/chmod.txt");

    #[test]
    fn modes_apply_as_in_the_table() {
        for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let bits = |i: usize| u32::from_str_radix(words[i], 8).unwrap();
            let mode = Mode::parse(words[0]).unwrap_or_else(|error| panic!("{line}: {}", error.message));
            assert_eq!(format!("{:04o}", mode.apply(bits(1), false)), words[2], "file: {line}");
            assert_eq!(format!("{:04o}", mode.apply(bits(3), true)), words[4], "directory: {line}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for wrong in
            ["", "8", "0x1", "10000", "77777", "755 ", "rwx", "u", "u+q", ",", "u+r,", "u=rw;g=r", "-", "u+gw", "é+x"]
        {
            // A lone operator is a change of nothing to chmod(1).
            assert_eq!(Mode::parse(wrong).is_err(), wrong != "-", "{wrong}");
        }
        let error = Mode::parse("rwx").unwrap_err();
        assert_eq!(error.message, "`rwx` is not a file mode");
        assert_eq!(error.hints.len(), 1);
    }

    #[test]
    fn directories_made_on_the_way_take_an_octal_mode() {
        for (text, expected) in [("0700", 0o700), ("4711", 0o711), ("1777", 0o777), ("a+x,g-r", 0o755)] {
            assert_eq!(Mode::parse(text).unwrap().of_made_directories(), expected, "{text}");
        }
    }
}
