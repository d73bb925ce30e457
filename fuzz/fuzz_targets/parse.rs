//! Any text is parsed or refused, and what is said about it can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wythe::diag::Source;
use wythe::dockerfile::{parse, parse_trigger};

fuzz_target!(|text: &str| {
    let said = match parse(Source::new("Dockerfile", text)) {
        Ok(file) => {
            assert!(!file.stages.is_empty());
            file.warnings
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors
        }
    };
    for diagnostic in said {
        let shown = diagnostic.render(false);
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
    }
    let _ = parse_trigger(Source::new("trigger", text), '`');
});
