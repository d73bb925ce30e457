//! Any file is an archive of images or refused, and what it says it has can be asked for.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use wythe::image::Platform;
use wythe::image::archive::{Archive, Selector};

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    std::fs::write(&path, bytes).unwrap();
    let Ok(archive) = Archive::open(&path) else { return };
    let names = archive.names().unwrap_or_default();
    let selectors = names.into_iter().take(10).map(Selector::Name).chain([Selector::Only]);
    for selector in selectors {
        let Ok(image) = archive.image(&selector, &Platform::host()) else { continue };
        for layer in image.layers.iter().take(10) {
            let Ok(content) = archive.open_layer(layer) else { continue };
            let _ = std::io::copy(&mut content.take(1 << 20), &mut std::io::sink());
        }
    }
});
