//! Names of images, platforms and places are read or refused, and what is written of one is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wythe::image::{Platform, Reference};
use wythe::location::{self, Location};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
        assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
        let name = reference.file_name();
        assert!(!name.contains('/') && name.len() < 256);
        assert!(name.starts_with('%') || Reference::from_file_name(&name).as_ref() == Some(&reference));
    }
    let _ = Reference::from_file_name(text);
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse().as_ref(), Ok(&platform));
    }
    if let Some(Ok(location)) = Location::parse(text) {
        let _ = location.shown();
    }
    assert_eq!(location::mask(text).len(), text.len());
    assert_eq!(location::redact(&location::redact(text)), location::redact(text));
    let _ = location::split_user(text);
});
