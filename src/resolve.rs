//! From the names a Dockerfile uses to images: named contexts first, then the local store, then a
//! registry.

use crate::diag::{self, Diagnostic, Result};
use crate::host::{Host, NamedContext, Pulls};
use crate::image::archive::Archive;
use crate::image::{ImageConfig, Reference, validate};
use crate::plan::Wanted;
use crate::registry;
use crate::source;
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
        Some(NamedContext::Directory(_) | NamedContext::Empty | NamedContext::Remote(_)) => {
            source::context(Some(name), host).map_err(located)?;
            Ok(Resolved::Directory)
        }
        Some(NamedContext::Layout { path, wanted: selector }) => {
            let archive = Archive::open(path).map_err(located)?;
            let image = archive.image(selector, &wanted.key.platform).map_err(located)?;
            let record = host.store.import_image(&archive, &image, &image.platform).map_err(located)?;
            finish(record, host)
        }
        Some(NamedContext::Image(reference)) => of_name(reference, wanted, host).map_err(located),
        None => of_name(&wanted.key.name, wanted, host).map_err(located),
    }
}

fn of_name(name: &str, wanted: &Wanted, host: &Host<'_>) -> Result<Resolved> {
    let reference: Reference =
        name.parse().map_err(|why| Diagnostic::error(format!("`{name}` is no image reference: {why}")))?;
    let platform = &wanted.key.platform;
    if host.pulls != Pulls::Always
        && let Some(record) = host.store.image(&reference, platform)?
    {
        return finish(record, host);
    }
    if host.pulls == Pulls::Never {
        return Err(not_stored(name, &reference, wanted, host)?);
    }
    // What has to be fetched was never built on: the rest of the build will take it anyway.
    host.store.enter()?;
    let title = format!("[resolve] {}", reference.familiar());
    let resolved =
        host.audience().show(&title, |meter| registry::resolve(host.registry, host.store, &reference, platform, meter));
    match resolved {
        Ok(record) => {
            host.store.put_image(&reference, &record)?;
            finish(record, host)
        }
        // What is in the store may be what was meant.
        Err(error) => Err(match nearest(&reference, host)? {
            Some(nearest) if nearest != reference.familiar() => error.hint(format!("did you mean `{nearest}`?")),
            _ => error,
        }),
    }
}

/// Says what the store has instead.
fn not_stored(name: &str, reference: &Reference, wanted: &Wanted, host: &Host<'_>) -> Result<Diagnostic> {
    let others: Vec<_> = host.store.images_named(reference)?.iter().map(|record| record.platform.to_string()).collect();
    if !others.is_empty() {
        return Ok(Diagnostic::error(format!(
            "the image `{name}` of the local store is for {}, not for {}",
            others.join(", "),
            wanted.key.platform
        )));
    }
    let error = Diagnostic::error(format!("there is no image `{name}` in the local store"));
    Ok(match nearest(reference, host)? {
        Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
        None => error.hint(format!("`wythe pull {name}` fetches it from its registry")),
    })
}

/// The name in the local store that is most like this one.
fn nearest(reference: &Reference, host: &Host<'_>) -> Result<Option<String>> {
    let names: Vec<_> = host.store.images()?.keys().map(Reference::familiar).collect();
    Ok(diag::nearest(&reference.familiar(), names.iter().map(String::as_str)).map(str::to_owned))
}

fn finish(record: ImageRecord, host: &Host<'_>) -> Result<Resolved> {
    let mut config = host.store.image_config(&record)?;
    // Ours appends to the history, and must be right as a whole.
    validate::repair_history(&mut config);
    Ok(Resolved::Image(Box::new(config), record))
}
