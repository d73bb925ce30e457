//! The system call filter: Docker's default list, as a binary search over numbers, so that the
//! kernel goes through some ten instructions a call and checks a short program at its installation.
//!
//! ```text
//! machine? ─┬─ native  ─ number ─ tree ─▶ allow │ EPERM │ ENOSYS │ ask │ look at the arguments
//!           ├─ 32-bit  ─ number ─ tree ─▶ …
//!           └─ other   ─▶ EPERM
//! ```

use super::call::{Call, Watch, Width};
use super::seccomp_table::NATIVE;
use crate::sys::Instruction;

/// What one machine's numbers mean.
pub struct Abi {
    /// `AUDIT_ARCH_*`.
    pub machine: u32,
    /// The first number that was not given out when the table was made. From there on the answer is
    /// ENOSYS, so that a C library falls back to what it used before; below, EPERM.
    pub end: u32,
    /// First and last numbers of runs that are allowed, ascending.
    pub allowed: &'static [(u32, u32)],
    pub clone: u32,
    pub clone3: u32,
    pub personality: u32,
    pub socket: u32,
    /// Calls that may be asked about, by ascending number; all of them are allowed.
    pub asked: &'static [(u32, Call, Width)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Errno(u16),
    /// Allowed without namespace flags.
    Clone,
    /// Allowed for Linux's own personalities and the query.
    Personality,
    /// Allowed but for the kernel's crypto and virtual machine sockets.
    Socket,
    /// Asked about if a device is to be made; `mode` is the place of that argument, and the device's
    /// number comes after it.
    Node {
        mode: u32,
    },
    Ask,
    /// Asked about if the argument at this place has any of these bits.
    AskIf {
        place: u32,
        bits: u32,
    },
    /// Asked about if the argument at this place is this one.
    AskIfEqual {
        place: u32,
        value: u32,
    },
}

/// From `asm-generic/resource.h`; C libraries differ in its type.
const RLIMIT_RTTIME: u32 = 15;
const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);
/// Nothing is done, and that succeeds.
const PRETEND: Action = Action::Errno(0);

/// CLONE_NEW* but CLONE_NEWTIME, which `clone` does not know.
const NAMESPACE_FLAGS: u32 = 0x7e02_0000;
/// PER_LINUX, PER_LINUX32, both with UNAME26, and "tell me".
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;

/// What is decided about calls that nobody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    /// Docker's default list.
    Sandbox,
    /// Everything is allowed.
    Everything,
}

/// A filter in the making.
#[derive(Clone, Copy)]
struct Filter {
    base: Base,
    watch: Watch,
}

impl Filter {
    fn action(self, abi: &Abi, number: u32) -> Action {
        match abi.call(number).and_then(|(call, _)| asked(call, self.watch)) {
            Some(action) => action,
            None if self.base == Base::Everything => Action::Allow,
            None => abi.action(number),
        }
    }

    /// Runs of numbers with one action: the first number of each, ascending from 0.
    fn runs(self, abi: &Abi) -> Vec<(u32, Action)> {
        let mut starts = vec![0, abi.end];
        starts.extend(abi.allowed.iter().flat_map(|(first, last)| [*first, last + 1]));
        let single = [abi.clone, abi.clone3, abi.personality, abi.socket].into_iter();
        let single = single.chain(abi.asked.iter().map(|(number, ..)| *number));
        starts.extend(single.flat_map(|number| [number, number + 1]));
        starts.sort_unstable();
        let mut runs: Vec<(u32, Action)> = starts.into_iter().map(|start| (start, self.action(abi, start))).collect();
        runs.dedup_by(|later, earlier| later.1 == earlier.1);
        runs
    }
}

/// What the filter does about a call that is watched; `None` for one that is not.
fn asked(call: Call, watch: Watch) -> Option<Action> {
    /// O_CREAT and __O_TMPFILE, the same on all machines.
    const MAKING: u32 = 0o20_000_100;
    let is_attribute = matches!(call, Call::Setxattr | Call::Lsetxattr | Call::Fsetxattr | Call::Setxattrat);
    match (call, watch) {
        (Call::Mknod, Watch::Nodes | Watch::Attributes) => Some(Action::Node { mode: 1 }),
        (Call::Mknodat, Watch::Nodes | Watch::Attributes) => Some(Action::Node { mode: 2 }),
        (_, Watch::Attributes) if is_attribute => Some(Action::Ask),
        (_, Watch::Nodes | Watch::Attributes) => None,
        (_, Watch::Owners) if is_attribute => None,
        (Call::Utimensat | Call::UtimensatTime64, Watch::Owners) => {
            Some(Action::AskIf { place: 3, bits: libc::AT_SYMLINK_NOFOLLOW as u32 })
        }
        (Call::Open, Watch::Owners) => Some(Action::AskIf { place: 1, bits: MAKING }),
        (Call::Openat, Watch::Owners) => Some(Action::AskIf { place: 2, bits: MAKING }),
        (Call::Capset, Watch::Owners) => Some(PRETEND),
        (Call::Prctl, Watch::Owners) => {
            Some(Action::AskIfEqual { place: 0, value: libc::PR_SET_KEEPCAPS.cast_unsigned() })
        }
        (Call::Prlimit64, Watch::Owners) => Some(Action::AskIfEqual { place: 1, value: RLIMIT_RTTIME }),
        (Call::Setrlimit | Call::Getrlimit | Call::Ugetrlimit, Watch::Owners) => {
            Some(Action::AskIfEqual { place: 0, value: RLIMIT_RTTIME })
        }
        (_, Watch::Owners) => Some(Action::Ask),
    }
}

impl Abi {
    /// The call of this number, if it may be asked about.
    fn call(&self, number: u32) -> Option<(Call, Width)> {
        let at = self.asked.binary_search_by_key(&number, |(number, ..)| *number).ok()?;
        self.asked.get(at).map(|(_, call, width)| (*call, *width))
    }

    fn action(&self, number: u32) -> Action {
        match number {
            // Its flags lie in memory, where a filter cannot look.
            number if number == self.clone3 => ENOSYS,
            number if number == self.clone => Action::Clone,
            number if number == self.personality => Action::Personality,
            number if number == self.socket => Action::Socket,
            number if self.allowed.iter().any(|(first, last)| (*first..=*last).contains(&number)) => Action::Allow,
            number if number < self.end => EPERM,
            _ => ENOSYS,
        }
    }
}

// Offsets into `struct seccomp_data`, and the few instructions that are needed.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
/// The lower half of an argument; the kernel looks at no more of those that are looked at here.
fn argument(place: u32) -> u32 {
    16 + 8 * place
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_ANY_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump_if(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// The answers of one machine's part, each once: every branch of the search ends in one.
struct Answers {
    actions: Vec<Action>,
    starts: Vec<usize>,
    program: Vec<Instruction>,
}

impl Answers {
    fn to(runs: &[(u32, Action)]) -> Self {
        let mut answers = Self { actions: Vec::new(), starts: Vec::new(), program: Vec::new() };
        for (_, action) in runs {
            if !answers.actions.contains(action) {
                answers.actions.push(*action);
                answers.starts.push(answers.program.len());
                answers.program.extend(answer(*action));
            }
        }
        answers
    }

    /// How many instructions after `left` more ones of the search.
    fn distance(&self, action: Action, left: usize) -> u8 {
        // Every action of the runs was put in, and the tables are small; the tests compile them all.
        let at = self.actions.iter().position(|known| *known == action).expect("an answer for every action");
        u8::try_from(left + self.starts[at]).expect("a search of at most 255 instructions")
    }
}

fn answer(action: Action) -> Vec<Instruction> {
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    const ASK: u32 = 0x7fc0_0000;
    const TYPE: u32 = 0o170_000;
    const CHARACTER: u32 = 0o020_000;
    const BLOCK: u32 = 0o060_000;
    let (allow, deny) = (plain(RETURN, ALLOW), plain(RETURN, ERRNO | 1));
    let load = plain(LOAD, argument(0));
    match action {
        Action::Allow => vec![allow],
        Action::Errno(errno) => vec![plain(RETURN, ERRNO | u32::from(errno))],
        Action::Clone => vec![load, jump_if(JUMP_IF_ANY_SET, NAMESPACE_FLAGS, 1, 0), allow, deny],
        Action::Socket => {
            vec![load, jump_if(JUMP_IF_EQUAL, AF_ALG, 2, 0), jump_if(JUMP_IF_EQUAL, AF_VSOCK, 1, 0), allow, deny]
        }
        Action::Personality => {
            let count = PERSONALITIES.len();
            let tests = PERSONALITIES.iter().enumerate();
            let tests = tests.map(|(index, known)| jump_if(JUMP_IF_EQUAL, *known, (count - index) as u8, 0));
            [load].into_iter().chain(tests).chain([deny, allow]).collect()
        }
        Action::Ask => vec![plain(RETURN, ASK)],
        Action::AskIf { place, bits } => {
            vec![plain(LOAD, argument(place)), jump_if(JUMP_IF_ANY_SET, bits, 0, 1), plain(RETURN, ASK), allow]
        }
        Action::AskIfEqual { place, value } => {
            vec![plain(LOAD, argument(place)), jump_if(JUMP_IF_EQUAL, value, 0, 1), plain(RETURN, ASK), allow]
        }
        Action::Node { mode } => vec![
            plain(LOAD, argument(mode)),
            plain(AND, TYPE),
            jump_if(JUMP_IF_EQUAL, BLOCK, 3, 0),
            jump_if(JUMP_IF_EQUAL, CHARACTER, 0, 4),
            plain(LOAD, argument(mode + 1)),
            // The device 0:0 deletes: no step makes one.
            jump_if(JUMP_IF_EQUAL, 0, 1, 0),
            plain(RETURN, ASK),
            deny,
            allow,
        ],
    }
}

/// A binary search: one comparison between any two runs, then the answers.
fn search(runs: &[(u32, Action)]) -> Vec<Instruction> {
    let answers = Answers::to(runs);
    let mut program = Vec::new();
    compare(runs, &answers, runs.len() - 1, &mut program);
    program.extend(answers.program);
    program
}

/// Adds the comparisons for `runs`, of which there are two at least; the whole search has `length`.
fn compare(runs: &[(u32, Action)], answers: &Answers, length: usize, program: &mut Vec<Instruction>) {
    let (below, above) = runs.split_at(runs.len() / 2);
    let left = length - program.len() - 1;
    // The comparisons for the lower half come next, those for the upper half after them.
    let to = |half: &[(u32, Action)], comparisons_between: usize| match half {
        [(_, action)] => answers.distance(*action, left),
        _ => u8::try_from(comparisons_between).expect("a search of at most 255 instructions"),
    };
    program.push(jump_if(JUMP_IF_AT_LEAST, above[0].0, to(above, below.len() - 1), to(below, 0)));
    for half in [below, above] {
        if half.len() > 1 {
            compare(half, answers, length, program);
        }
    }
}

/// The filter for the machine this was compiled for and its 32-bit kind.
pub fn filter(base: Base, watch: Watch) -> Vec<Instruction> {
    compile(NATIVE, Filter { base, watch })
}

/// What a filter of ours asked about.
pub fn call(machine: u32, number: u32) -> Option<(Call, Width)> {
    NATIVE.iter().find(|abi| abi.machine == machine)?.call(number)
}

/// Whether the machine has 32 bits.
pub fn is_narrow(machine: u32) -> bool {
    /// `__AUDIT_ARCH_64BIT`
    const WIDE: u32 = 0x8000_0000;
    machine & WIDE == 0
}

fn compile(abis: &[&Abi], filter: Filter) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, MACHINE)];
    for abi in abis {
        let mut decide = vec![plain(LOAD, NUMBER)];
        decide.extend(search(&filter.runs(abi)));
        // Over the next jump if it is this machine; that one leads to the next.
        program.push(jump_if(JUMP_IF_EQUAL, abi.machine, 1, 0));
        program.push(plain(JUMP, decide.len() as u32));
        program.extend(decide);
    }
    program.extend(answer(match filter.base {
        Base::Sandbox => EPERM,
        Base::Everything => Action::Allow,
    }));
    program
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;

    use super::super::call::NAMES;
    use super::super::seccomp_table::{AARCH64, ARM, I386, X86_64};
    use super::*;

    const SANDBOX: Filter = Filter { base: Base::Sandbox, watch: Watch::Nodes };

    /// Runs a program as the kernel would.
    fn decide(program: &[Instruction], machine: u32, number: u32, arguments: &[u64]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER => number,
                        MACHINE => machine,
                        16.. if k % 8 == 0 => arguments.get((k as usize - 16) / 8).copied().unwrap_or_default() as u32,
                        _ => panic!("load at {k}"),
                    }
                }
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => branch(accumulator == k),
                JUMP_IF_AT_LEAST => branch(accumulator >= k),
                JUMP_IF_ANY_SET => branch(accumulator & k != 0),
                RETURN => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    const ALLOWED: u32 = 0x7fff_0000;
    const DENIED: u32 = 0x0005_0001;
    const UNKNOWN: u32 = 0x0005_0026;

    struct Machine {
        constant: &'static str,
        abi: &'static Abi,
        audit: u32,
        /// As `allowed.txt` says "only on this one".
        family: &'static str,
        numbers: &'static str,
    }

    const MACHINES: [Machine; 4] = [
        Machine {
            constant: "X86_64",
            abi: &X86_64,
            audit: 0xc000_003e,
            family: "x86_64",
            numbers: include_str!("../../testdata/container/seccomp/x86_64.txt"),
        },
        Machine {
            constant: "I386",
            abi: &I386,
            audit: 0x4000_0003,
            family: "x86_64",
            numbers: include_str!("../../testdata/container/seccomp/x86.txt"),
        },
        Machine {
            constant: "AARCH64",
            abi: &AARCH64,
            audit: 0xc000_00b7,
            family: "aarch64",
            numbers: include_str!("../../testdata/container/seccomp/aarch64.txt"),
        },
        Machine {
            constant: "ARM",
            abi: &ARM,
            audit: 0x4000_0028,
            family: "aarch64",
            numbers: include_str!("../../testdata/container/seccomp/arm.txt"),
        },
    ];
    const ALLOWED_NAMES: &str = include_str!("../../testdata/container/seccomp/allowed.txt");

    impl Machine {
        fn numbers(&self) -> BTreeMap<&'static str, u32> {
            let line = |line: &'static str| {
                let (number, name) = line.split_once(' ').unwrap();
                (name, number.parse().unwrap())
            };
            self.numbers.lines().map(line).collect()
        }

        fn allows(&self, name: &str) -> bool {
            ALLOWED_NAMES.lines().filter(|line| !line.starts_with('#')).any(|line| {
                let (known, family) = line.split_once(' ').unwrap_or((line, self.family));
                known == name && family == self.family
            })
        }

        /// The calls that may be asked about.
        fn asked(&self) -> Vec<(u32, Call, Width)> {
            let numbers = self.numbers();
            let mut asked = Vec::new();
            for (name, call) in NAMES {
                // Where there are two, the one without a number in its name is the older one.
                let wide = numbers.get(format!("{name}32").as_str());
                let narrow = if wide.is_some() { Width::Bits16 } else { Width::Bits32 };
                asked.extend(numbers.get(name).map(|number| (*number, *call, narrow)));
                asked.extend(wide.map(|number| (*number, *call, Width::Bits32)));
            }
            asked.sort_unstable_by_key(|(number, ..)| *number);
            asked
        }

        /// The generated constant.
        fn constant(&self) -> String {
            let numbers = self.numbers();
            let mut allowed: Vec<u32> =
                numbers.iter().filter(|(name, _)| self.allows(name)).map(|(_, number)| *number).collect();
            allowed.sort_unstable();
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for number in allowed {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 >= number => *last = number,
                    _ => runs.push((number, number)),
                }
            }
            // Numbers of arm's own lie far above the common ones.
            let end = numbers.values().filter(|number| **number < 0xf_0000).max().unwrap() + 1;
            let mut text = format!("pub const {}: Abi = Abi {{\n", self.constant);
            let _ = writeln!(text, "    machine: {:#010x},\n    end: {end},\n    allowed: &[", self.audit);
            for (first, last) in runs {
                let _ = writeln!(text, "        ({first}, {last}),");
            }
            text.push_str("    ],\n");
            for name in ["clone", "clone3", "personality", "socket"] {
                let _ = writeln!(text, "    {name}: {},", numbers[name]);
            }
            text.push_str("    asked: &[\n");
            for (number, call, width) in self.asked() {
                let _ = writeln!(text, "        ({number}, Call::{call:?}, Width::{width:?}),");
            }
            text.push_str("    ],\n};\n");
            text
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "BLESS is for whoever runs the tests")]
    fn the_table_is_what_the_lists_say() {
        let mut text = String::from(
            "//! Which system calls are allowed or asked about, by number. Made from `testdata/container/seccomp` by the tests of\n\
             //! `seccomp.rs`: run them with BLESS=1 when the lists change.\n\n\
             use super::call::{Call, Width};\n\
             use super::seccomp::Abi;\n\n\
             /// This machine, and the one whose programs it also runs.\n\
             #[cfg(target_arch = \"x86_64\")]\n\
             pub const NATIVE: &[&Abi] = &[&X86_64, &I386];\n\
             #[cfg(target_arch = \"aarch64\")]\n\
             pub const NATIVE: &[&Abi] = &[&AARCH64, &ARM];\n",
        );
        for machine in &MACHINES {
            let unused = "\n#[cfg_attr(not(test), allow(dead_code, reason = \"one machine is native\"))]\n";
            text.push_str(unused);
            text.push_str(&machine.constant());
        }
        if std::env::var_os("BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/container/seccomp_table.rs");
            std::fs::write(path, &text).unwrap();
        } else {
            assert!(
                text == include_str!("seccomp_table.rs"),
                "seccomp_table.rs is not what the lists say; run with BLESS=1"
            );
        }
    }

    /// Every number of every machine, decided by the program.
    #[test]
    fn the_program_decides_as_the_lists_do() {
        let program = compile(&[&X86_64, &I386, &AARCH64, &ARM], SANDBOX);
        for machine in &MACHINES {
            let numbers = machine.numbers();
            let by_argument = ["clone", "clone3", "personality", "socket"];
            for (name, number) in &numbers {
                if by_argument.contains(name) {
                    continue;
                }
                // Two of arm's own numbers are no system calls and lie beyond the end.
                let denied = if *number < machine.abi.end { DENIED } else { UNKNOWN };
                let expected = if machine.allows(name) { ALLOWED } else { denied };
                assert_eq!(decide(&program, machine.audit, *number, &[]), expected, "{} {name}", machine.constant);
            }
            for number in [machine.abi.end, 2000, 0x4000_0000, 0x4000_0001, u32::MAX] {
                assert_eq!(decide(&program, machine.audit, number, &[]), UNKNOWN, "{} {number}", machine.constant);
            }
            let check = |name: &str, argument: u64, expected: u32| {
                let decided = decide(&program, machine.audit, numbers[name], &[argument]);
                assert_eq!(decided, expected, "{} {name} {argument:#x}", machine.constant);
            };
            check("clone3", 0, UNKNOWN);
            check("clone", 0x0121_1200, ALLOWED);
            for flag in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
                check("clone", flag | 17, DENIED);
            }
            check("personality", 0, ALLOWED);
            check("personality", 0x2_0008, ALLOWED);
            check("personality", 0xffff_ffff, ALLOWED);
            check("personality", 0x40_0000, DENIED);
            for (family, expected) in [(2, ALLOWED), (38, DENIED), (39, ALLOWED), (40, DENIED), (41, ALLOWED)] {
                check("socket", family, expected);
            }
            for name in ["mount", "unshare", "setns", "keyctl", "bpf", "init_module", "swapon", "umount2", "reboot"] {
                assert_eq!(decide(&program, machine.audit, numbers[name], &[]), DENIED, "{} {name}", machine.constant);
            }
            for name in ["read", "execve", "chroot", "ptrace", "seccomp"] {
                assert_eq!(decide(&program, machine.audit, numbers[name], &[]), ALLOWED, "{} {name}", machine.constant);
            }
        }
        // Machines that are not asked about.
        assert_eq!(decide(&program, 0xc000_00f3, 0, &[]), DENIED);
        assert_eq!(decide(&compile(&[&X86_64], SANDBOX), 0x4000_0003, 3, &[]), DENIED);
    }

    #[test]
    fn programs_are_short() {
        assert!(compile(&[&X86_64], SANDBOX).len() < 120);
        assert!(compile(&[&X86_64, &I386], SANDBOX).len() < 300);
        assert!(compile(&[&AARCH64, &ARM], SANDBOX).len() < 300);
    }

    const ASKED: u32 = 0x7fc0_0000;

    /// Every call of every machine, where all of them that say whose a file is are asked about.
    #[test]
    fn all_that_says_whose_something_is_is_asked_about() {
        for base in [Base::Sandbox, Base::Everything] {
            let program = compile(&[&X86_64, &I386, &AARCH64, &ARM], Filter { base, watch: Watch::Owners });
            let ordinary = compile(&[&X86_64, &I386, &AARCH64, &ARM], Filter { base, watch: Watch::Nodes });
            for machine in &MACHINES {
                for (name, number) in machine.numbers() {
                    let decide = |program, arguments: &[u64]| decide(program, machine.audit, number, arguments);
                    let check = |arguments: &[u64], expected: u32| {
                        assert_eq!(decide(&program, arguments), expected, "{} {name} {arguments:x?}", machine.constant);
                    };
                    match machine.abi.call(number).map(|(call, _)| call) {
                        None => check(&[], decide(&ordinary, &[])),
                        Some(Call::Setxattr | Call::Lsetxattr | Call::Fsetxattr | Call::Setxattrat) => {
                            check(&[], ALLOWED)
                        }
                        Some(Call::Capset) => check(&[], 0x0005_0000),
                        Some(Call::Open) => {
                            check(&[0, 0o100], ASKED);
                            check(&[0o100, 0o2_003, 0o100], ALLOWED);
                        }
                        Some(Call::Openat) => {
                            check(&[0, 0, 0o20_200_002], ASKED);
                            check(&[0o100, 0o100, 0o201_001, 0o100], ALLOWED);
                        }
                        Some(Call::Utimensat | Call::UtimensatTime64) => {
                            check(&[0, 0, 0, 0x100], ASKED);
                            check(&[0x100, 0x100, 0x100, 0], ALLOWED);
                        }
                        Some(Call::Prctl) => {
                            check(&[8, 1], ASKED);
                            check(&[15, 8], ALLOWED);
                        }
                        Some(Call::Prlimit64) => {
                            check(&[0, 15], ASKED);
                            check(&[15, 7], ALLOWED);
                        }
                        Some(Call::Setrlimit | Call::Getrlimit | Call::Ugetrlimit) => {
                            check(&[15], ASKED);
                            check(&[7, 15], ALLOWED);
                        }
                        Some(_) => check(&[], ASKED),
                    }
                }
            }
        }
    }

    #[test]
    fn only_devices_are_asked_about() {
        for base in [Base::Sandbox, Base::Everything] {
            let program = compile(&[&X86_64, &I386, &AARCH64, &ARM], Filter { base, watch: Watch::Nodes });
            for machine in &MACHINES {
                let numbers = machine.numbers();
                let calls = [("mknod", [0, 0].as_slice()), ("mknodat", &[0, 0, 0])];
                for (name, before) in calls.into_iter().filter(|(name, _)| numbers.contains_key(name)) {
                    let before = &before[1..];
                    for (mode, device, expected) in [
                        (0o020_666, 0x103, ASKED),
                        (0o060_600, 0x800, ASKED),
                        (0o060_600, 0, ASKED),
                        (0o020_000, 0, DENIED),
                        (0o010_644, 0, ALLOWED),
                        (0o100_644, 0, ALLOWED),
                        (0o140_644, 0x103, ALLOWED),
                        (0o644, 0x103, ALLOWED),
                        // The kernel looks at no more than 16 bits of it.
                        (0xdead_0000_2000, 0x103, ASKED),
                    ] {
                        let arguments = [before, &[mode, device]].concat();
                        let decided = decide(&program, machine.audit, numbers[name], &arguments);
                        assert_eq!(decided, expected, "{} {name} {mode:o} {device:#x}", machine.constant);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_asked_about_is_known_by_its_number() {
        for machine in &MACHINES {
            let numbers = machine.numbers();
            for (name, call) in NAMES {
                if let Some(number) = numbers.get(name) {
                    assert_eq!(machine.abi.call(*number).map(|(call, _)| call), Some(*call), "{name}");
                    assert!(machine.allows(name), "{name}");
                }
            }
            assert_eq!(machine.abi.call(numbers["read"]), None);
        }
    }

    #[test]
    fn without_a_sandbox_everything_else_is_allowed() {
        let program = compile(&[&X86_64, &I386], Filter { base: Base::Everything, watch: Watch::Nodes });
        for (audit, number) in
            [(0xc000_003e, 165), (0xc000_003e, 435), (0x4000_0003, 21), (0xc000_003e, 9999), (0xc000_00b7, 0)]
        {
            assert_eq!(decide(&program, audit, number, &[0x7e02_0000]), ALLOWED, "{number}");
        }
        assert!(program.len() < 60, "{}", program.len());
    }
}
