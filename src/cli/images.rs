//! `wythe images`, `tag`, `rmi`, `history`, `inspect`.

use std::process::ExitCode;

use super::args::Images;
use super::cache::{age, one_line};
use super::{Failure, print};
use crate::diag::{Diagnostic, Result};
use crate::image::{ImageConfig, Platform, Reference};
use crate::progress::units;
use crate::store::{ImageLookup, ImageRecord, Store};

/// The most digits of an ID that are shown.
const SHORT: usize = 12;

pub fn list(store: &Store, arguments: &Images) -> std::result::Result<ExitCode, Failure> {
    let images = store.images()?;
    let mut rows = Vec::new();
    for (reference, record) in images.iter().flat_map(|(name, images)| images.iter().map(move |image| (name, image))) {
        let config = store.image_config(record)?;
        rows.push((reference, record, size(store, record), config));
    }
    if arguments.json {
        let list: Vec<_> = rows
            .iter()
            .map(|(reference, record, size, config)| {
                serde_json::json!({
                    "name": reference.familiar(),
                    "id": record.config.to_string(),
                    "platform": record.platform.to_string(),
                    "created": config.created,
                    "sizeBytes": size,
                    "layers": record.layers.len(),
                })
            })
            .collect();
        print(&format!("{}\n", serde_json::Value::from(list)));
    } else if arguments.quiet {
        rows.iter().for_each(|(_, record, ..)| print(&format!("{}\n", record.config)));
    } else {
        let now = super::cache::now();
        let width = rows.iter().map(|(reference, ..)| reference.familiar().len()).max().unwrap_or(0).max(4);
        let mut text = format!("{:<width$}  {:<SHORT$}  {:>9}  {:>8}\n", "NAME", "ID", "CREATED", "SIZE");
        for (reference, record, size, config) in rows {
            let made = config.created.as_deref().and_then(crate::host::seconds).map(|made| age(now - made));
            text.push_str(&format!(
                "{:<width$}  {:<SHORT$}  {:>9}  {:>8}\n",
                reference.familiar(),
                &record.config.hex()[..SHORT],
                made.unwrap_or_default(),
                units::size(size),
            ));
        }
        print(&text);
    }
    Ok(ExitCode::SUCCESS)
}

pub fn tag(store: &Store, image: &str, name: &str) -> std::result::Result<ExitCode, Failure> {
    let reference = name.parse::<Reference>().map_err(|why| super::usage(format!("`{name}`: {why}")))?;
    if let Ok(from) = image.parse::<Reference>()
        && store.tag_image(&from, &reference)?
    {
        return Ok(ExitCode::SUCCESS);
    }
    let (_, record) = find(store, image)?;
    store.put_image(&reference, &record)?;
    Ok(ExitCode::SUCCESS)
}

pub fn remove(store: &Store, images: &[String]) -> std::result::Result<ExitCode, Failure> {
    // All or nothing: a misspelt name removes none of the others.
    let mut references = Vec::new();
    for image in images {
        match image.parse::<Reference>() {
            Ok(reference) if !store.images_named(&reference)?.is_empty() => references.push(reference),
            _ => references.extend(find(store, image)?.0),
        }
    }
    for reference in references {
        if store.remove_image(&reference)? {
            print(&format!("removed {}\n", reference.familiar()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn history(store: &Store, image: &str, as_json: bool, count: usize) -> std::result::Result<ExitCode, Failure> {
    let (_, record) = find(store, image)?;
    let config = store.image_config(&record)?;
    let sizes = layer_sizes(store, &record);
    let mut layers = sizes.iter();
    let mut rows: Vec<_> = config
        .history
        .iter()
        .map(|entry| (entry, if entry.empty_layer { 0 } else { layers.next().copied().unwrap_or(0) }))
        .collect();
    rows.reverse();
    rows.truncate(count);
    if as_json {
        let list: Vec<_> = rows
            .iter()
            .map(|(entry, size)| {
                serde_json::json!({
                    "created": entry.created,
                    "createdBy": entry.created_by,
                    "comment": entry.comment,
                    "sizeBytes": size,
                    "emptyLayer": entry.empty_layer,
                })
            })
            .collect();
        print(&format!("{}\n", serde_json::Value::from(list)));
        return Ok(ExitCode::SUCCESS);
    }
    let now = super::cache::now();
    let mut text = format!("{:>9}  {:>8}  STEP\n", "CREATED", "SIZE");
    for (entry, size) in rows {
        let made = entry.created.as_deref().and_then(crate::host::seconds).map(|made| age(now - made));
        let step = entry.created_by.as_deref().or(entry.comment.as_deref()).unwrap_or_default();
        text.push_str(&format!("{:>9}  {:>8}  {}\n", made.unwrap_or_default(), units::size(size), one_line(step, 100)));
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

pub fn inspect(store: &Store, images: &[String]) -> std::result::Result<ExitCode, Failure> {
    let mut list = Vec::new();
    for image in images {
        let (references, record) = find(store, image)?;
        let config: ImageConfig = store.image_config(&record)?;
        list.push(serde_json::json!({
            "id": record.config.to_string(),
            "names": references.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "sizeBytes": size(store, &record),
            "layers": layer_sizes(store, &record).iter().zip(&record.layers).map(|(size, layer)| serde_json::json!({
                "diffId": layer.diff_id.to_string(),
                "sizeBytes": size,
            })).collect::<Vec<_>>(),
            "config": config,
        }));
    }
    // A value of strings and numbers always serialises.
    let text = serde_json::to_string_pretty(&list).unwrap_or_default();
    print(&format!("{text}\n"));
    Ok(ExitCode::SUCCESS)
}

/// All names of the image that `text` names (for this machine's platform, or the only one) or
/// whose ID it begins, and the image.
pub fn find(store: &Store, text: &str) -> Result<(Vec<Reference>, ImageRecord)> {
    if let Ok(reference) = text.parse::<Reference>() {
        let images = store.images_named(&reference)?;
        let here = images.iter().position(|image| image.platform == Platform::host()).unwrap_or(0);
        if let Some(record) = images.into_iter().nth(here) {
            return Ok((vec![reference], record));
        }
    }
    match store.image_by_id(text)? {
        ImageLookup::Found { record, references } => Ok((references, record)),
        ImageLookup::NotFound => Err(unknown(store, text)?),
        ImageLookup::Ambiguous(_) => {
            Err(Diagnostic::error(format!("several images have an ID that begins with `{text}`"))
                .hint("give more digits"))
        }
    }
}

fn unknown(store: &Store, text: &str) -> Result<Diagnostic> {
    let names: Vec<_> = store.images()?.keys().map(Reference::familiar).collect();
    let error = Diagnostic::error(format!("there is no image `{text}` in the local store"));
    Ok(match crate::diag::nearest(text, names.iter().map(String::as_str)) {
        Some(nearest) => error.hint(format!("did you mean `{nearest}`?")),
        None => error.hint("`wythe images` lists what is there"),
    })
}

fn size(store: &Store, record: &ImageRecord) -> u64 {
    layer_sizes(store, record).iter().sum()
}

/// Bytes of files by layer, bottom first: of the unpacked layer, or, of one that was never unpacked,
/// of its blob, be that here or in a registry.
fn layer_sizes(store: &Store, record: &ImageRecord) -> Vec<u64> {
    let mut stack = crate::solve::Stack::default();
    let mut sizes = Vec::new();
    for layer in &record.layers {
        let unpacked = [crate::solve::Standing::OnStack, crate::solve::Standing::Alone]
            .into_iter()
            .find_map(|standing| store.layer(&stack.id_above(&layer.diff_id, standing)).ok().flatten());
        sizes.push(match unpacked {
            Some(unpacked) => unpacked.meta.size_bytes,
            None => store
                .forms(&layer.diff_id)
                .ok()
                .and_then(|forms| forms.first().map(|form| form.size_bytes))
                .or_else(|| crate::registry::size_of(store, layer.blob.as_ref()?))
                .unwrap_or(0),
        });
        stack = stack.with(layer.diff_id, crate::solve::Standing::OnStack);
    }
    sizes
}
