//! From the names a Dockerfile uses to images: named contexts first, then the local store.

use crate::diag::{self, Diagnostic, Result};
use crate::host::{Host, NamedContext};
use crate::image::archive::Archive;
use crate::image::{ImageConfig, Reference, validate};
use crate::plan::Wanted;
use crate::store::ImageRecord;

/// What a name stands for.
pub enum Resolved {
    Image(Box<ImageConfig>, ImageRecord),
    /// A named context that is a directory.
    Directory,
}

/// Resolves one name. An image of a layout is taken into the store, its layers verified.
pub fn resolve(wanted: &Wanted, host: &Host<'_>) -> Result<Resolved> {
    let name = wanted.key.name.to_ascii_lowercase();
    let name = name.strip_suffix(":latest").unwrap_or(&name);
    let located = |error: Diagnostic| {
        if error.labels.is_empty() { error.at(&wanted.at.source, wanted.at.span, "") } else { error }
    };
    match host.named_contexts.get(name) {
        Some(NamedContext::Directory(_)) => Ok(Resolved::Directory),
        Some(NamedContext::Layout { path, wanted: selector }) => {
            let archive = Archive::open(path).map_err(located)?;
            let image = archive.image(selector, &wanted.key.platform).map_err(located)?;
            let record = host.store.import_image(&archive, &image, &image.platform).map_err(located)?;
            finish(record, host)
        }
        Some(NamedContext::Image(reference)) => of_store(reference, wanted, host).map_err(located),
        None => of_store(&wanted.key.name, wanted, host).map_err(located),
    }
}

fn of_store(name: &str, wanted: &Wanted, host: &Host<'_>) -> Result<Resolved> {
    let reference: Reference =
        name.parse().map_err(|why| Diagnostic::error(format!("`{name}` is no image reference: {why}")))?;
    if let Some(record) = host.store.image(&reference, &wanted.key.platform)? {
        return finish(record, host);
    }
    let others: Vec<_> =
        host.store.images_named(&reference)?.iter().map(|record| record.platform.to_string()).collect();
    if !others.is_empty() {
        return Err(Diagnostic::error(format!(
            "the image `{name}` of the local store is for {}, not for {}",
            others.join(", "),
            wanted.key.platform
        )));
    }
    let names: Vec<_> = host.store.images()?.keys().map(Reference::familiar).collect();
    let error = Diagnostic::error(format!("there is no image `{name}` in the local store"));
    Err(match diag::nearest(&reference.familiar(), names.iter().map(String::as_str)) {
        Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
        None => error.hint(format!("give one with `--build-context {name}=oci-layout://DIR`")),
    })
}

fn finish(record: ImageRecord, host: &Host<'_>) -> Result<Resolved> {
    let mut config = host.store.image_config(&record)?;
    // Ours appends to the history, and must be right as a whole.
    validate::repair_history(&mut config);
    Ok(Resolved::Image(Box::new(config), record))
}
