//! The capabilities of a payload.

use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

use crate::diag::{Context, Result};

/// What Docker gives a container.
pub const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Takes all but `keep` out of the bounding set, for good.
pub fn bound(keep: CapabilitySet) -> Result<()> {
    for number in 0..64 {
        if keep.bits() & 1 << number != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // One past the kernel's last.
            Err(rustix::io::Errno::INVAL) => break,
            removed => removed.context(|| "cannot drop capabilities")?,
        }
    }
    Ok(())
}

/// Sets permitted and effective; nothing is inherited by a program for its user's sake.
pub fn set(capabilities: CapabilitySet) -> Result<()> {
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: capabilities, permitted: capabilities, inheritable })
        .context(|| "cannot set capabilities")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_is_dockers() {
        assert_eq!(super::DEFAULT.bits(), 0xa804_25fb);
    }
}
