//! Any ignore file is read or refused. Going down a tree comes to the same as asking for each path, and below a
//! directory that may be pruned nothing is visible. Behind the first NUL are the paths, a line each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wythe::context::ignore::{IgnoreRules, Verdict};

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let rules = match IgnoreRules::parse(".dockerignore", &bytes[..split]) {
        Ok(rules) => rules,
        Err(error) => return assert!(!error.render(false).is_empty()),
    };
    for path in bytes[split..].split(|byte| *byte == b'\n').take(20) {
        let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).take(8).collect();
        let (mut verdict, mut is_pruned) = (Verdict::default(), false);
        for depth in 1..=components.len() {
            let path = components[..depth].join(&b'/');
            verdict = rules.judge(verdict, &path);
            assert_eq!(rules.hides(verdict), rules.is_ignored(&path));
            assert!(!is_pruned || rules.hides(verdict), "something is visible below what may be pruned");
            is_pruned |= rules.may_prune(verdict, &path);
        }
    }
});
