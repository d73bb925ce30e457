//! The cache, or a part of it, to go: one tar that another machine takes in.
//!
//! ```text
//! wythe-cache.json       version, and the blobs that hold the layers
//! blobs/<digest>
//! mounts/<n>.json        what a cache mount is called and whose it is, then
//! mounts/<n>.tar         what is in it
//! records/<key>          of steps; last, so that none leads nowhere if the tar ends early
//! ```
//!
//! Blobs must hold the layers they are said to hold, and records hash to their keys. That the layers are what
//! the steps made is believed: a parcel is taken from somebody who may decide what is built here.

use std::io::{self, Read, Seek as _, Write};

use serde::{Deserialize, Serialize};

use super::inventory::{What, parent};
use super::{Filter, Inventory, Record, Records};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{CacheKey, ChainId, DiffId, Digest};
use crate::image::manifest::Descriptor;
use crate::layer::{self, Compression};
use crate::store::{Form, MountMeta, Packing, Store};

const VERSION: u32 = 1;
const HEAD: &str = "wythe-cache.json";
/// More than the list of a hundred thousand layers takes.
const MAX_HEAD_BYTES: u64 = 64 << 20;
const MAX_RECORD_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    version: u32,
    layers: Vec<Held>,
}

/// A layer, and the blob that holds it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    diff_id: DiffId,
    media_type: String,
    digest: Digest,
    size_bytes: u64,
}

/// What was put into a parcel, or taken out of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub steps: u64,
    pub layers: u64,
    pub mounts: u64,
    /// Of layers as blobs and of cache mounts.
    pub size_bytes: u64,
    /// Not put in because somebody uses it, or not taken out because there is one already.
    pub left: Vec<String>,
}

/// Writes a parcel with the steps, their layers, and the cache mounts that all of `filters` hold for.
pub fn send(store: &Store, filters: &[Filter], out: &mut dyn Write) -> Result<Contents> {
    store.enter()?;
    let inventory = Inventory::take(store)?;
    let wanted: Vec<_> =
        inventory.items.iter().filter(|item| filters.iter().all(|filter| filter.holds(item))).collect();
    let (mut steps, mut layers, mut contents) = (Vec::new(), Vec::new(), Contents::default());
    for key in wanted.iter().filter_map(|item| match item.what {
        What::Step(key) => Some(key),
        _ => None,
    }) {
        let Some(record) = Records::of(store).peek(&key)? else { continue };
        match form_of(store, &record)? {
            None if record.layer.is_some() => continue,
            form => layers.extend(form),
        }
        steps.push((key, record));
    }
    layers.sort_by_key(|held| held.digest);
    layers.dedup_by_key(|held| held.digest);

    let doing = || "cannot write the cache";
    let mut tar = Writer { tar: tar::Builder::new(io::BufWriter::with_capacity(1 << 20, out)) };
    tar.json(HEAD, &Head { version: VERSION, layers: layers.clone() })?;
    for held in &layers {
        let Some(mut blob) = store.open_blob(&held.digest)? else {
            return Err(Diagnostic::error(doing()).caused_by(format!("blob `{}` was pruned meanwhile", held.digest)));
        };
        tar.member(&format!("blobs/{}", held.digest.hex()), held.size_bytes, &mut blob)?;
        contents.size_bytes += held.size_bytes;
    }
    for item in &wanted {
        let What::Mount(folder) = &item.what else { continue };
        let Some((meta, mut packed)) = store.pack_cache_mount(folder)? else {
            contents.left.push(item.title.clone());
            continue;
        };
        let size_bytes = packed.seek(io::SeekFrom::End(0)).context(doing)?;
        packed.rewind().context(doing)?;
        tar.json(&format!("mounts/{}.json", contents.mounts), &meta)?;
        tar.member(&format!("mounts/{}.tar", contents.mounts), size_bytes, &mut packed)?;
        contents.mounts += 1;
        contents.size_bytes += size_bytes;
    }
    for (key, record) in &steps {
        tar.json(&format!("records/{}", key.hex()), record)?;
    }
    tar.tar.into_inner().and_then(|mut out| out.flush()).context(doing)?;
    contents.steps = steps.len() as u64;
    contents.layers = layers.len() as u64;
    Ok(contents)
}

/// Takes in what a parcel holds and the store has not: what is there already stays as it is.
pub fn receive(store: &Store, input: impl Read + Send) -> Result<Contents> {
    store.enter()?;
    let doing = || "cannot read the cache";
    let wrong = |why: &str| Diagnostic::error("the input is no cache of `wythe cache export`").caused_by(why);
    let mut tar = tar::Archive::new(layer::decompress(input)?);
    let mut members = tar.entries().context(doing)?;
    let head: Head = match members.next() {
        Some(member) => {
            let mut member = member.map_err(|error| wrong(&error.to_string()))?;
            if name_of(&member) != HEAD {
                return Err(wrong(&format!("it does not begin with `{HEAD}`")));
            }
            json(&mut member, MAX_HEAD_BYTES)?
        }
        None => return Err(wrong("it is empty")),
    };
    if head.version != VERSION {
        return Err(wrong(&format!("it has version {}, not {VERSION}", head.version)));
    }
    let (mut contents, mut meta) = (Contents::default(), None::<MountMeta>);
    for member in members {
        let mut member = member.context(doing)?;
        let name = name_of(&member);
        let size_bytes = member.size();
        if member.header().entry_type().is_dir() {
            // Of one who packed it anew.
            continue;
        }
        if let Some(digest) = name.strip_prefix("blobs/").and_then(Digest::from_hex) {
            let held = head.layers.iter().find(|held| held.digest == digest && held.size_bytes == size_bytes);
            let held = held.ok_or_else(|| wrong(&format!("nothing says what `{name}` is")))?;
            if !store.has_original_form(&held.diff_id)? {
                // By way of a file, which several threads can read.
                let mut file = tempfile::tempfile_in(store.root().join("tmp")).context(doing)?;
                io::copy(&mut member, &mut file).context(doing)?;
                file.rewind().context(doing)?;
                let descriptor = Descriptor::new(held.media_type.clone(), held.digest, held.size_bytes);
                let form = store.import_layer(&mut file, &descriptor, &held.diff_id)?;
                store.mark_as_carried(&held.diff_id, &form)?;
                contents.layers += 1;
                contents.size_bytes += size_bytes;
            }
        } else if let Some(key) = name.strip_prefix("records/").and_then(Digest::from_hex).map(CacheKey::new) {
            let record: Record = json(&mut member, MAX_RECORD_BYTES)?;
            if record.facts.key() != key {
                return Err(wrong(&format!("`{name}` is the record of another step")));
            }
            if !is_of_use(store, Records::of(store).peek(&key)?)? {
                Records::of(store).put(&record, &record.title)?;
                contents.steps += 1;
            }
        } else if name.starts_with("mounts/") && name.ends_with(".json") {
            meta = Some(json(&mut member, MAX_RECORD_BYTES)?);
        } else if name.starts_with("mounts/") {
            let meta = meta.take().ok_or_else(|| wrong(&format!("nothing says what `{name}` is")))?;
            match store.put_cache_mount(&meta, &mut member)? {
                true => {
                    contents.mounts += 1;
                    contents.size_bytes += size_bytes;
                }
                false => contents.left.push(format!("cache mount {}", meta.shown())),
            }
        } else {
            return Err(wrong(&format!("it holds `{}`", name.escape_debug())));
        }
    }
    Ok(contents)
}

/// A blob that holds the layer of a step, made if there is none.
fn form_of(store: &Store, record: &Record) -> Result<Option<Held>> {
    let Some(result) = record.layer else { return Ok(None) };
    let held = |form: Form| Held {
        diff_id: result.diff_id,
        media_type: form.media_type.clone(),
        digest: form.digest,
        size_bytes: form.size_bytes,
    };
    if let Some(form) = store.form(&result.diff_id, Packing::from(Compression::ZSTD))? {
        return Ok(Some(held(form)));
    }
    for id in ids_of(record, &result.diff_id) {
        if let Some(layer) = store.layer(&id)? {
            return store.pack(&layer, Compression::ZSTD, None).map(|form| Some(held(form)));
        }
    }
    // Never unpacked here.
    match store.carried_form(&result.diff_id)? {
        None if store.has_any_form(&result.diff_id)? => {
            store.repack(&result.diff_id, Compression::ZSTD, None).map(|form| Some(held(form)))
        }
        carried => Ok(carried.map(held)),
    }
}

/// The names that the directory of a step's layer may have.
fn ids_of(record: &Record, diff_id: &DiffId) -> [ChainId; 2] {
    [ChainId::extend(parent(record).as_ref(), diff_id), ChainId::extend(None, diff_id)]
}

/// Whether this is a record, and its layer is here.
fn is_of_use(store: &Store, record: Option<Record>) -> Result<bool> {
    let Some(record) = record else { return Ok(false) };
    let Some(result) = record.layer else { return Ok(true) };
    for id in ids_of(&record, &result.diff_id) {
        if store.layer(&id)?.is_some() {
            return Ok(true);
        }
    }
    store.has_original_form(&result.diff_id)
}

struct Writer<W: Write> {
    tar: tar::Builder<W>,
}

impl<W: Write> Writer<W> {
    fn member(&mut self, name: &str, size_bytes: u64, bytes: &mut dyn Read) -> Result<()> {
        let doing = || "cannot write the cache";
        let mut header = tar::Header::new_ustar();
        header.set_path(name).context(doing)?;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size_bytes);
        header.set_cksum();
        self.tar.append(&header, bytes.take(size_bytes)).context(doing)
    }

    fn json(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::from).context(|| "cannot write the cache")?;
        self.member(name, bytes.len() as u64, &mut &bytes[..])
    }
}

fn name_of<R: Read>(member: &tar::Entry<'_, R>) -> String {
    String::from_utf8_lossy(&member.path_bytes()).into_owned()
}

fn json<T: serde::de::DeserializeOwned>(member: &mut impl Read, max_bytes: u64) -> Result<T> {
    let doing = || "cannot read the cache";
    let mut bytes = Vec::new();
    member.take(max_bytes).read_to_end(&mut bytes).context(doing)?;
    serde_json::from_slice(&bytes).map_err(io::Error::from).context(doing)
}
