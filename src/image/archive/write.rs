//! Writing a layout: planned as a sorted map of names to bytes or blobs, then put into a tar, a file or
//! a directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use super::passage::pass;
use super::{Assembled, Contents, Format, LayerBlob, VerifyingReader, assemble};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::Digest;
use crate::image::manifest::{Descriptor, Index, annotation};
use crate::progress::{Meter, Metered};

/// Pieces of blobs are larger and pass it by.
const BUFFER_BYTES: usize = 64 << 10;
/// Of a tar.
const BLOCK_BYTES: usize = 512;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

enum Entry<'a> {
    Bytes(Vec<u8>),
    Layer(&'a LayerBlob<'a>),
}

struct Plan<'a> {
    /// By path, which is the order in a tar.
    entries: BTreeMap<String, Entry<'a>>,
    /// What `index.json` lists.
    listed: Vec<Descriptor>,
    /// Of each image, the first first.
    assembled: Vec<Assembled>,
}

impl Plan<'_> {
    fn into_first(self) -> Assembled {
        let mut assembled = self.assembled;
        // An archive is of at least one image.
        assembled.swap_remove(0)
    }
}

/// Writes a tar, entries sorted by name, without times or owners. When it fails, part of it has been
/// written. What is returned is of the first image.
pub fn write_tar(
    contents: &Contents<'_>,
    format: Format,
    out: &mut dyn Write,
    meter: Option<&Meter<'_>>,
) -> Result<Assembled> {
    let plan = plan(contents, format)?;
    let doing = || "cannot write the image";
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    for name in ["blobs/", "blobs/sha256/"] {
        out.write_all(header(name, 0).context(doing)?.as_bytes()).context(doing)?;
    }
    for (name, entry) in &plan.entries {
        let size_bytes = match entry {
            Entry::Bytes(bytes) => bytes.len() as u64,
            Entry::Layer(layer) => layer.descriptor.size_bytes,
        };
        out.write_all(header(name, size_bytes).context(doing)?.as_bytes()).context(doing)?;
        match entry {
            Entry::Bytes(bytes) => out.write_all(bytes).context(doing)?,
            Entry::Layer(layer) => pass(open(layer, meter)?, size_bytes, &mut out).context(doing)?,
        }
        out.write_all(&[0; BLOCK_BYTES][..size_bytes.wrapping_neg() as usize % BLOCK_BYTES]).context(doing)?;
    }
    out.write_all(&[0; 2 * BLOCK_BYTES]).and_then(|()| out.flush()).context(doing)?;
    Ok(plan.into_first())
}

fn header(name: &str, size_bytes: u64) -> io::Result<tar::Header> {
    let is_directory = name.ends_with('/');
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_mode(if is_directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size_bytes);
    header.set_cksum();
    Ok(header)
}

/// Writes a tar to a file, which appears when it is complete; a device or pipe is written to as it
/// is.
pub fn write_file(
    contents: &Contents<'_>,
    format: Format,
    path: &Path,
    meter: Option<&Meter<'_>>,
) -> Result<Assembled> {
    let cannot_write = || format!("cannot write `{}`", path.display());
    // A link is followed, as by any program that writes to it.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Ok(metadata) = fs::metadata(&target) {
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Diagnostic::error(format!("cannot write `{}`: it is a directory", path.display())));
        }
        if kind.is_char_device() || kind.is_fifo() || kind.is_socket() || kind.is_block_device() {
            let mut file = File::options().write(true).open(&target).context(cannot_write)?;
            return write_tar(contents, format, &mut file, meter);
        }
    }
    let mut file = beside(&target).context(cannot_write)?;
    let assembled = write_tar(contents, format, &mut file, meter).map_err(|error| Diagnostic {
        message: format!("{}: {}", cannot_write(), error.message.trim_start_matches("cannot write the image: ")),
        ..error
    })?;
    file.persist(&target).map_err(|error| error.error).context(cannot_write)?;
    Ok(assembled)
}

/// Writes a directory. A new one appears when it is complete. In an existing layout the image takes the
/// place of those with its names and others stay; `index.json` is replaced last.
pub fn write_directory(contents: &Contents<'_>, path: &Path, meter: Option<&Meter<'_>>) -> Result<Assembled> {
    let cannot_write = || format!("cannot write `{}`", path.display());
    let plan = plan(contents, Format::Oci)?;
    match fs::read_dir(path) {
        Ok(mut entries) => {
            let is_empty = entries.next().is_none();
            if !is_empty && !path.join("oci-layout").is_file() {
                return Err(Diagnostic::error(format!(
                    "cannot write `{}`: it is neither empty nor an OCI image layout",
                    path.display()
                )));
            }
            // Two builds that write to the same layout must not lose each other's names.
            let lock = File::open(path).context(cannot_write)?;
            lock.lock().context(cannot_write)?;
            fill(path, &plan, meter)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = parent_of(path);
            let made = tempfile::Builder::new().prefix(".layout-").tempdir_in(parent).context(cannot_write)?;
            let inner = made.path().join("layout");
            fs::create_dir(&inner).context(cannot_write)?;
            fill(&inner, &plan, meter)?;
            match fs::rename(&inner, path) {
                Ok(()) => {}
                // Another build was first: this one is added to its layout.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    return write_directory(contents, path, meter);
                }
                Err(error) => return Err(error).context(cannot_write),
            }
        }
        Err(error) => return Err(error).context(cannot_write),
    }
    Ok(plan.into_first())
}

fn plan<'a>(contents: &'a Contents<'a>, format: Format) -> Result<Plan<'a>> {
    let mut plan = Plan { entries: BTreeMap::new(), listed: Vec::new(), assembled: Vec::new() };
    let mut table = Vec::new();
    for contents in contents.all() {
        let assembled = assemble(&contents.images, contents.media_types)?;
        if format == Format::Docker && contents.images.len() > 1 {
            return Err(Diagnostic::error("a docker archive holds an image for one platform only")
                .hint("write several platforms with `type=oci`"));
        }
        let documents = assembled.manifests.iter().chain(&assembled.index);
        for (descriptor, bytes) in documents {
            plan.entries.insert(blob(&descriptor.digest), Entry::Bytes(bytes.clone()));
        }
        for image in &contents.images {
            plan.entries.insert(blob(&Digest::of(&image.config)), Entry::Bytes(image.config.clone()));
            for layer in &image.layers {
                plan.entries.insert(blob(&layer.descriptor.digest), Entry::Layer(layer));
            }
        }
        if format == Format::Docker {
            let image = &contents.images[0];
            let tags = contents.names.iter().filter(|name| name.tag.is_some()).map(|name| name.familiar());
            table.push(json!({
                "Config": blob(&Digest::of(&image.config)),
                "RepoTags": tags.collect::<Vec<_>>(),
                "Layers": image.layers.iter().map(|layer| blob(&layer.descriptor.digest)).collect::<Vec<_>>(),
            }));
        }
        plan.listed.extend(listed(assembled.root(), contents));
        plan.assembled.push(assembled);
    }
    plan.entries.insert("index.json".into(), Entry::Bytes(Index::new(plan.listed.clone()).to_json()));
    plan.entries.insert("oci-layout".into(), Entry::Bytes(LAYOUT.to_vec()));
    if format == Format::Docker {
        plan.entries.insert("manifest.json".into(), Entry::Bytes(Value::from(table).to_string().into_bytes()));
    }
    Ok(plan)
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The image once for each of its names.
fn listed(root: &Descriptor, contents: &Contents<'_>) -> Vec<Descriptor> {
    let mut unnamed = root.clone();
    if let Some(created) = &contents.created {
        unnamed.annotations.insert(annotation::CREATED.into(), created.clone());
    }
    if contents.names.is_empty() {
        return vec![unnamed];
    }
    let named = |name: &super::Reference| {
        let mut descriptor = unnamed.clone();
        descriptor.annotations.insert(annotation::IMAGE_NAME.into(), name.to_string());
        if let Some(tag) = &name.tag {
            descriptor.annotations.insert(annotation::REF_NAME.into(), tag.clone());
        }
        descriptor
    };
    contents.names.iter().map(named).collect()
}

fn open<'a>(layer: &'a LayerBlob<'_>, meter: Option<&'a Meter<'_>>) -> Result<Box<dyn Read + Send + 'a>> {
    let inner = VerifyingReader::new((layer.open)()?, layer.descriptor.digest, layer.descriptor.size_bytes);
    Ok(match meter {
        Some(meter) => Box::new(Metered { inner, meter }),
        None => Box::new(inner),
    })
}

/// Writes the plan into an empty directory or over an older layout.
fn fill(root: &Path, plan: &Plan<'_>, meter: Option<&Meter<'_>>) -> Result<()> {
    let cannot_write = |path: &Path| format!("cannot write `{}`", path.display());
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).context(|| cannot_write(&blobs))?;
    for (name, entry) in &plan.entries {
        let path = root.join(name);
        match entry {
            Entry::Bytes(_) if name == "index.json" => {}
            Entry::Bytes(bytes) => put(&path, &bytes[..], bytes.len() as u64)?,
            Entry::Layer(layer) if is_whole(&path, &layer.descriptor) => {}
            Entry::Layer(layer) => put(&path, open(layer, meter)?, layer.descriptor.size_bytes)?,
        }
    }
    let index_path = root.join("index.json");
    let index = match fs::read(&index_path) {
        Ok(earlier) => merge(&earlier, &plan.listed)
            .ok_or_else(|| Diagnostic::error(format!("`{}` is no OCI image index", index_path.display())))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::new(plan.listed.clone()).to_json(),
        Err(error) => return Err(error).context(|| format!("cannot read `{}`", index_path.display())),
    };
    put(&index_path, &index[..], index.len() as u64)
}

/// An earlier `index.json` with these entries in place of those that have their names. What else is
/// in it stays as it is, known or not.
fn merge(earlier: &[u8], listed: &[Descriptor]) -> Option<Vec<u8>> {
    let mut index: Value = serde_json::from_slice(earlier).ok()?;
    let manifests = index.get_mut("manifests")?.as_array_mut()?;
    let of = |entry: &Value, key: &str| entry["annotations"][key].as_str().map(str::to_owned);
    manifests.retain(|old| {
        !listed.iter().map(Descriptor::to_value).any(|new| {
            match (of(old, annotation::IMAGE_NAME), of(&new, annotation::IMAGE_NAME)) {
                (Some(old), Some(new)) => old == new,
                // Other programs write the tag alone; an unnamed image replaces an unnamed one.
                _ => of(old, annotation::REF_NAME) == of(&new, annotation::REF_NAME),
            }
        })
    });
    // First, so that who asks for a tag that two images have gets the newer.
    manifests.splice(0..0, listed.iter().map(Descriptor::to_value));
    Some(index.to_string().into_bytes())
}

fn is_whole(path: &Path, descriptor: &Descriptor) -> bool {
    let Ok(file) = File::open(path) else { return false };
    io::copy(&mut VerifyingReader::new(file, descriptor.digest, descriptor.size_bytes), &mut io::sink()).is_ok()
}

fn put(path: &Path, bytes: impl Read + Send, size_bytes: u64) -> Result<()> {
    let cannot_write = || format!("cannot write `{}`", path.display());
    let mut file = beside(path).context(cannot_write)?;
    pass(bytes, size_bytes, &mut file).context(cannot_write)?;
    file.persist(path).map_err(|error| error.error).context(cannot_write)?;
    Ok(())
}

/// A file in the same directory, to be renamed to `path`; gone if it is not.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    // The umask applies, as to any file a program makes for its user.
    let permissions = fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".image-").permissions(permissions).tempfile_in(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
