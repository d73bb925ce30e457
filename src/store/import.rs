//! Images from elsewhere into the store. Nothing an image says of itself is believed: blobs are
//! hashed against their descriptors, and what they unpack to against the config's diff IDs.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, SyncSender};

use super::blobs::Tee;
use super::{Arrival, Draft, Form, ImageLayer, ImageRecord, Layer, LayerMeta, Store};
use crate::diag::{Diagnostic, Result};
use crate::digest::{ChainId, DiffId, Digest, HashingReader};
use crate::image::archive::{Archive, ArchivedImage, ArchivedLayer};
use crate::image::manifest::Descriptor;
use crate::image::{ImageConfig, Platform, validate};
use crate::layer::{self, Summary, Table};
use crate::parallel;

/// What may follow the end of a layer's tar: tars are padded, by default to 10 KiB.
const MAX_TRAILER_BYTES: u64 = 64 << 20;

impl Store {
    /// Takes an image of an archive into the store: config and manifest as they are, each layer's blob,
    /// whose diff ID is then known to be the one the config claims. Nothing heavy is done for what is
    /// there already. The caller names it with `put_image`.
    pub fn import_image(&self, archive: &Archive, image: &ArchivedImage, platform: &Platform) -> Result<ImageRecord> {
        let config = ImageConfig::from_json(&image.config)
            .map_err(|error| Diagnostic::error("the image config cannot be read").caused_by(error))?;
        let descriptors: Vec<Descriptor> = image.layers.iter().map(|layer| layer.descriptor.clone()).collect();
        validate::layers(&config, &descriptors)?;
        self.import_layers(archive, &image.layers, &config.rootfs.diff_ids)?;
        let manifest = image.manifest.as_deref().map(|manifest| self.put_blob(manifest)).transpose()?;
        let layers = descriptors.iter().zip(&config.rootfs.diff_ids);
        Ok(ImageRecord {
            manifest,
            config: self.put_blob(&image.config)?,
            platform: platform.clone(),
            layers: layers
                .map(|(descriptor, diff_id)| ImageLayer { diff_id: *diff_id, blob: Some(descriptor.digest) })
                .collect(),
            created: config.created,
        })
    }

    /// Imports layers, several at once; of several errors the lowest layer's is returned.
    fn import_layers(&self, archive: &Archive, layers: &[ArchivedLayer], diff_ids: &[DiffId]) -> Result<()> {
        let import = |layer: &ArchivedLayer, diff_id| {
            if self.has_form(diff_id, &layer.descriptor.digest)? {
                return Ok(());
            }
            let mut blob = archive.open_layer(layer)?;
            self.import_layer(&mut blob, &layer.descriptor, diff_id).map(drop)
        };
        let numbered: Vec<_> = layers.iter().zip(diff_ids).enumerate().collect();
        parallel::each(&numbered, parallel::processors(), |(index, (layer, diff_id))| {
            import(layer, diff_id).map_err(|error| Diagnostic {
                message: format!("cannot import layer {} of {}: {}", index + 1, layers.len(), error.message),
                ..error
            })
        })
    }

    /// Whether this blob is in the store and known to hold this layer.
    pub fn has_form(&self, diff_id: &DiffId, blob: &Digest) -> Result<bool> {
        match self.forms(diff_id)?.iter().find(|form| form.digest == *blob) {
            Some(form) => self.is_usable(diff_id, form),
            None => Ok(false),
        }
    }

    /// Copies a layer's blob into the store and, in the same pass, decompresses and hashes it. Nothing
    /// is left behind if its digest, size or diff ID is another one than claimed.
    pub fn import_layer(
        &self,
        input: &mut (dyn Read + Send),
        descriptor: &Descriptor,
        diff_id: &DiffId,
    ) -> Result<Form> {
        let input = input.take(descriptor.size_bytes.saturating_add(1));
        let mut tee = Tee { input, blob: self.blob_writer()?, error: None };
        let plain = read_plain(&mut tee);
        // What follows a compressed stream belongs to the blob.
        let rest = io::copy(&mut tee, &mut io::sink()).map(|_| ());
        let blob = tee.finish(rest, &descriptor.digest)?;
        // That the blob is damaged says more than that it then could not be decompressed.
        let verified = blob.verified(&descriptor.digest, descriptor.size_bytes)?;
        let (plain_digest, table) = plain?;
        check_diff_id(&descriptor.digest, &plain_digest, diff_id)?;
        verified.publish()?;
        let form = self.new_form(descriptor.media_type.clone(), descriptor.digest, descriptor.size_bytes, None);
        self.record_form(diff_id, &form)?;
        self.note_table(diff_id, table.as_ref())?;
        Ok(form)
    }

    /// Makes sure that a blob on its way holds the layer, while it comes, and notes it.
    pub fn verify_arrival(&self, arrival: &Arrival, diff_id: &DiffId) -> Result<()> {
        let plain = read_plain(&mut arrival.reader());
        if !arrival.wait() {
            return Err(arrival.why());
        }
        let (digest, table) = plain?;
        self.note_arrival(arrival, diff_id, &digest)?;
        self.note_table(diff_id, table.as_ref())
    }

    /// Unpacks a blob on its way onto the layers below (topmost first), while it comes.
    pub fn unpack_arrival(
        &self,
        id: &ChainId,
        diff_id: &DiffId,
        arrival: &Arrival,
        lowers: &[BorrowedFd<'_>],
    ) -> Result<Layer> {
        // Two builders that need it unpack it once.
        let _lock = self.lock_name(format!("layer-{}", id.hex()), || {})?;
        if let Some(layer) = self.layer(id)? {
            return Ok(layer);
        }
        let draft = self.draft()?;
        let unpacked = self.unpack_into(&draft, arrival.reader(), diff_id, lowers);
        if !arrival.wait() {
            return Err(arrival.why());
        }
        let (plain, summary) = unpacked?;
        self.note_arrival(arrival, diff_id, &plain.digest)?;
        draft.commit(id, meta(diff_id, &plain, &summary))
    }

    /// All of the blob is there and decompresses to `plain`. One that is not the layer is of no use.
    fn note_arrival(&self, arrival: &Arrival, diff_id: &DiffId, plain: &Digest) -> Result<()> {
        let Descriptor { media_type, digest, size_bytes, .. } = &arrival.descriptor;
        if let Err(error) = check_diff_id(digest, plain, diff_id) {
            self.discard_blob(digest);
            return Err(error);
        }
        self.record_form(diff_id, &self.new_form(media_type.clone(), *digest, *size_bytes, None))
    }

    /// Unpacks a layer onto the layers below (topmost first) from any blob that is known to hold it.
    pub fn unpack_form(&self, id: &ChainId, diff_id: &DiffId, lowers: &[BorrowedFd<'_>]) -> Result<Layer> {
        self.enter()?;
        // Two builders that need it unpack it once.
        let _lock = self.lock_name(format!("layer-{}", id.hex()), || {})?;
        match self.usable_form(diff_id, |_| true)? {
            Some(form) => {
                let descriptor = Descriptor::new(form.media_type, form.digest, form.size_bytes);
                self.unpack_blob(id, diff_id, &descriptor, lowers)
            }
            None => Err(Diagnostic::error(format!("the layer `{diff_id}` is no longer in the store"))
                .hint("build with `--no-cache`, or import the base image again")),
        }
    }

    /// Unpacks a layer's blob onto the layers below (topmost first), unless it is there. What the
    /// blob decompresses to must have this diff ID; then it is noted as a form of it.
    pub fn unpack_blob(
        &self,
        id: &ChainId,
        diff_id: &DiffId,
        descriptor: &Descriptor,
        lowers: &[BorrowedFd<'_>],
    ) -> Result<Layer> {
        if let Some(layer) = self.layer(id)? {
            return Ok(layer);
        }
        let Some(blob) = self.open_blob(&descriptor.digest)? else {
            return Err(Diagnostic::error(format!("blob `{}` of a layer is not in the store", descriptor.digest)));
        };
        let draft = self.draft()?;
        let unpacked = self.unpack_into(&draft, blob, diff_id, lowers).and_then(|unpacked| {
            check_diff_id(&descriptor.digest, &unpacked.0.digest, diff_id)?;
            Ok(unpacked)
        });
        let (plain, summary) = match unpacked {
            Ok(unpacked) => unpacked,
            // Damaged in the store, or made so? The first is a miss of what can be had again.
            Err(error) if self.verify_blob(&descriptor.digest)? => return Err(error),
            Err(_) => {
                return Err(Diagnostic::error(format!(
                    "blob `{}` was damaged in the store `{}` and has been removed",
                    descriptor.digest,
                    self.inner.path.display()
                ))
                .hint("run the same build again: it fetches the layer anew"));
            }
        };
        let form = self.new_form(descriptor.media_type.clone(), descriptor.digest, descriptor.size_bytes, None);
        self.record_form(diff_id, &form)?;
        draft.commit(id, meta(diff_id, &plain, &summary))
    }

    /// Unpacks what a blob decompresses to. It is decompressed and hashed on a thread of its own: that takes
    /// about as long as making the files.
    fn unpack_into(
        &self,
        draft: &Draft,
        blob: impl Read + Send,
        diff_id: &DiffId,
        lowers: &[BorrowedFd<'_>],
    ) -> Result<(Plain, Summary)> {
        let (sender, pieces) = mpsc::sync_channel(PIECES);
        std::thread::scope(|scope| {
            let decompressor = scope.spawn(move || decompress_into(blob, &sender));
            let mut tar = Pieces { pieces, piece: Vec::new(), read: 0 };
            let unpacked = layer::unpack(&mut tar, draft.upper(), lowers).and_then(|summary| {
                let trailer_size = io::copy(&mut (&mut tar).take(MAX_TRAILER_BYTES + 1), &mut io::sink())
                    .map_err(|error| Diagnostic::error("the layer cannot be decompressed").caused_by(error))?;
                match trailer_size <= MAX_TRAILER_BYTES {
                    true => Ok(summary),
                    false => Err(Diagnostic::error(format!(
                        "layer `{diff_id}` has more than {MAX_TRAILER_BYTES} bytes after the end of its tar"
                    ))),
                }
            });
            // A decompressor that still writes is told that nobody reads.
            drop(tar);
            let plain = decompressor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((plain?, unpacked?))
        })
    }
}

/// What a blob decompressed to.
#[derive(Clone, Copy)]
struct Plain {
    digest: Digest,
    size_bytes: u64,
}

const PIECE_BYTES: usize = 256 << 10;
/// How many pieces may be waiting.
const PIECES: usize = 16;

/// Sends the plain content on, in pieces, until nobody wants more. What goes wrong is also told to the
/// reader, by an end before the end.
fn decompress_into(blob: impl Read + Send, pieces: &SyncSender<io::Result<Vec<u8>>>) -> Result<Plain> {
    let mut plain = HashingReader::new(layer::decompress(blob)?);
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&mut plain).take(PIECE_BYTES as u64).read_to_end(&mut piece);
        if let Err(error) = read {
            let _ = pieces.send(Err(io::Error::new(error.kind(), error.to_string())));
            return Err(Diagnostic::error("the layer cannot be decompressed").caused_by(error));
        }
        if piece.is_empty() || pieces.send(Ok(piece)).is_err() {
            break;
        }
    }
    let (_, digest, size_bytes) = plain.finish();
    Ok(Plain { digest, size_bytes })
}

/// Reads what another thread sends.
struct Pieces {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    read: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => (self.piece, self.read) = (piece?, 0),
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

fn meta(diff_id: &DiffId, plain: &Plain, summary: &Summary) -> LayerMeta {
    LayerMeta {
        diff_id: *diff_id,
        tree: None,
        tar_size_bytes: plain.size_bytes,
        checksum: None,
        size_bytes: summary.size_bytes,
        entries: summary.entries,
        boot_id: String::new(),
        is_synced: false,
    }
}

/// The digest of what a blob decompresses to, and its table.
fn read_plain(blob: &mut (impl Read + Send)) -> Result<(Digest, Option<Table>)> {
    let mut plain = HashingReader::new(layer::decompress(blob)?);
    let table = layer::tabulate(&mut plain)
        .map_err(|error| Diagnostic::error("the layer cannot be decompressed").caused_by(error))?;
    Ok((plain.finish().1, table))
}

fn check_diff_id(blob: &Digest, actual: &Digest, claimed: &DiffId) -> Result<()> {
    if actual == claimed.digest() {
        return Ok(());
    }
    Err(Diagnostic::error(format!(
        "blob `{blob}` holds the layer `{actual}`, but the image config claims it is `{claimed}`"
    )))
}
