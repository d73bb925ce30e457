//! The handlers by which the kernel runs programs of other machines (`binfmt_misc`).
//!
//! What the host has registered is used. Where it has nothing for a machine, but there is an emulator,
//! the emulator is registered for the steps alone: since Linux 6.7 a user namespace can have handlers
//! of its own, which go with it. Nothing of the host is changed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::machine::Machine;
use super::{holder, mount};
use crate::diag::Result;
use crate::sys;

/// Where the kernel shows the host's handlers, and where packages describe theirs.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
const DESCRIPTIONS: &str = "/usr/lib/binfmt.d";

/// Where emulators are looked for.
const PLACES: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// A handler as the kernel shows it.
#[derive(Debug, PartialEq, Eq)]
struct Handler {
    name: String,
    is_enabled: bool,
    /// Opened when it was registered, and so at work in every root.
    is_open: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

/// The handlers of the steps' user namespace; the host's while there are none.
#[derive(Default)]
pub struct Handlers {
    /// Whether any were made, or tried to; once is enough.
    is_settled: bool,
    /// They live as long as their file system is mounted somewhere.
    _mounted: Option<OwnedFd>,
}

impl Handlers {
    /// Sees to it that programs for `architecture` run in `user_namespace`, as far as that can be. Where
    /// it cannot, starting one will fail, and [`hint`] says what is missing.
    pub fn provide(&mut self, architecture: &str, proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) {
        let Some(machine) = Machine::of_architecture(architecture) else { return };
        if self.is_settled
            || machine.is_native()
            || machine.is_native_too()
            || registered().any(|one| one.runs(machine))
        {
            return;
        }
        self.is_settled = true;
        // Handlers of one's own hide all of the host's: so all that there are.
        let emulators: Vec<_> = Machine::all()
            .filter(|machine| !machine.is_native() && !machine.is_native_too())
            .filter_map(|machine| Some((machine, emulator(machine)?)))
            .collect();
        if !emulators.iter().any(|(known, _)| *known == machine) {
            return;
        }
        // An older kernel does not let us.
        self._mounted = register(&emulators, proc, user_namespace).ok();
    }
}

/// Makes handlers for `user_namespace`. They go with the mount namespace that is returned.
fn register(emulators: &[(Machine, PathBuf)], proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let furnish = || {
        move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
        sys::enter_new_mount_namespace()?;
        let handlers = mount::filesystem("binfmt_misc", &[], mount::DATA_ONLY)
            .map_err(|refused| std::io::Error::other(refused.message))?;
        let register = rustix::fs::openat(&handlers, "register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        for (machine, emulator) in emulators {
            rustix::io::write(&register, rule(*machine, emulator).as_bytes())?;
        }
        Ok(mount::make_root(handlers.as_fd())?)
    };
    holder::namespace(proc, "mnt", 0, furnish, |_| Ok(()))
}

/// What registers an emulator: opened now (F), told how the program was called (P), and with the ids of
/// programs that are set-user-id (C), who is nobody outside of the steps' user namespace.
fn rule(machine: Machine, emulator: &Path) -> String {
    let (magic, mask) = machine.pattern();
    let escaped = |bytes: [u8; 20]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let name = machine.qemu().unwrap_or("unknown");
    format!(":qemu-{name}:M::{}:{}:{}:POCF", escaped(magic), escaped(mask), emulator.display())
}

/// An emulator that needs no other file, which it would not find in an image.
fn emulator(machine: Machine) -> Option<PathBuf> {
    let name = machine.qemu()?;
    let named = |dir| [format!("{dir}/qemu-{name}-static"), format!("{dir}/qemu-{name}")];
    PLACES.into_iter().flat_map(named).map(PathBuf::from).find(|path| is_static(path))
}

/// Whether this is a program for this machine that names no loader.
fn is_static(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    let mut head = [0; 4096];
    let length = std::io::Read::read(&mut &file, &mut head).unwrap_or(0);
    let head = &head[..length];
    Machine::of(head).is_some_and(Machine::is_native) && super::exec::loader(head).is_none()
}

/// What the host has.
fn registered() -> impl Iterator<Item = Handler> {
    let entries = std::fs::read_dir(HANDLERS).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Handler::parse(name, &std::fs::read_to_string(entry.path()).ok()?)
    })
}

impl Handler {
    /// `None` for what is none of a kind of program.
    fn parse(name: String, text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        let magic = bytes(field("magic ")?)?;
        let mask = match field("mask ") {
            Some(mask) => bytes(mask)?,
            None => vec![0xff; magic.len()],
        };
        Some(Self {
            name,
            is_enabled: text.starts_with("enabled"),
            is_open: field("flags:")?.contains('F'),
            offset: field("offset ")?.parse().ok()?,
            magic,
            mask,
        })
    }

    /// Whether it runs programs of this machine in a root that does not have it.
    fn runs(&self, machine: Machine) -> bool {
        self.is_enabled && self.is_open && self.fits(machine)
    }

    fn fits(&self, machine: Machine) -> bool {
        let (program, _) = machine.pattern();
        let places = self.magic.iter().zip(&self.mask).enumerate();
        let mut fits = places.map(|(place, (magic, mask))| {
            program.get(self.offset + place).is_some_and(|byte| byte & mask == magic & mask)
        });
        fits.all(|fits| fits)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// What would let this host run programs of a machine in a step for that, where they do not run. Reads
/// what the kernel and packages say, so it is for a process that has the host's files.
pub fn hint(machine: Machine) -> Option<String> {
    let (name, qemu) = (machine.name(), machine.qemu()?);
    let known: Vec<_> = registered().filter(|handler| handler.fits(machine)).collect();
    let description = format!("{DESCRIPTIONS}/qemu-{qemu}.conf");
    let is_described = Path::new(&description).exists();
    Some(match advise(&known, emulator(machine).is_some(), is_described) {
        Advice::Install => format!("install an emulator for {name}: `apt-get install qemu-user-static`"),
        Advice::Register if is_described => format!(
            "the emulator is installed, and before Linux 6.7 it must be registered: as root, \
             `mount -t binfmt_misc binfmt_misc {HANDLERS}` if that is empty, then \
             `cat {description} > {HANDLERS}/register`"
        ),
        Advice::Register => format!(
            "the emulator is installed, and before Linux 6.7 it must be registered in {HANDLERS} by root, with the flag F"
        ),
        Advice::Enable(handler) => {
            format!("the handler for {name} is disabled: as root, `echo 1 > {HANDLERS}/{handler}`")
        }
        Advice::Fix => format!(
            "the handler for {name} is not in the image: register it again with the flag F, with which the kernel \
             opens it at once and outside"
        ),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Advice<'a> {
    Install,
    Register,
    Enable(&'a str),
    /// It is there, but not for those who cannot see its file.
    Fix,
}

/// `known` are the host's handlers for the machine.
fn advise(known: &[Handler], is_installed: bool, is_described: bool) -> Advice<'_> {
    match known {
        [] if is_installed || is_described => Advice::Register,
        [] => Advice::Install,
        [handler, ..] if known.iter().all(|handler| !handler.is_enabled) => Advice::Enable(&handler.name),
        _ => Advice::Fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM64: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POCF\noffset 0\n\
                         magic 7f454c460201010000000000000000000200b700\n\
                         mask ffffffffffffff00fffffffffffffffffeffffff\n";

    fn machine(name: &str) -> Machine {
        Machine::of_architecture(name).unwrap()
    }

    #[test]
    fn a_handler_is_known_by_what_it_handles() {
        let handler = Handler::parse("q".into(), ARM64).unwrap();
        assert!(handler.runs(machine("arm64")));
        assert!(!handler.runs(machine("arm")) && !handler.runs(machine("riscv64")));
        for (old, new) in [("enabled", "disabled"), ("POCF", "OC")] {
            let handler = Handler::parse("q".into(), &ARM64.replace(old, new)).unwrap();
            assert!(handler.fits(machine("arm64")) && !handler.runs(machine("arm64")), "{new}");
        }
        let of_java = "enabled\ninterpreter /usr/bin/jexec\nflags: F\noffset 0\nmagic cafebabe\n";
        assert!(!Handler::parse("q".into(), of_java).unwrap().runs(machine("arm64")));
        for none in ["enabled\n", "", "enabled\ninterpreter /x\nflags: \nextension .py\n"] {
            assert_eq!(Handler::parse("q".into(), none), None, "{none}");
        }
    }

    #[test]
    fn a_rule_is_what_packages_write() {
        let expected = r":qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/q:POCF";
        assert_eq!(rule(machine("arm64"), Path::new("/q")), expected);
    }

    #[test]
    fn advice_is_for_what_is_missing() {
        let with = |old: &str, new: &str| vec![Handler::parse("q".into(), &ARM64.replace(old, new)).unwrap()];
        assert_eq!(advise(&[], false, false), Advice::Install);
        assert_eq!(advise(&[], true, false), Advice::Register);
        assert_eq!(advise(&with("enabled", "disabled"), true, true), Advice::Enable("q"));
        assert_eq!(advise(&with("POCF", "OC"), true, true), Advice::Fix);
    }
}
