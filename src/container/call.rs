//! The system calls that may be asked about instead of being carried out: those that a user namespace
//! forbids or cannot say, although the layer that comes of a step can.

/// A system call by what it means; the 32-bit machines have several numbers for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Mknod,
    Mknodat,
}

/// How wide the ids among a call's arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// The oldest calls of 32-bit machines.
    Bits16,
    Bits32,
}

/// The names that the lists of numbers have for these calls.
#[cfg(test)]
pub const NAMES: &[(&str, Call)] = &[("mknod", Call::Mknod), ("mknodat", Call::Mknodat)];

/// Which calls of a step are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// Those that make device nodes.
    Nodes,
}
