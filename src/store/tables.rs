//! The tables of layers that came as blobs: made in the pass that a blob is decompressed and hashed in anyway, else when
//! one is asked for. They go when the last blob of their layer does.

use super::Store;
use crate::diag::{Context as _, Result};
use crate::digest::{DiffId, HashingReader};
use crate::layer::{self, Table};

const DIRECTORY: &str = "files/table";

impl Store {
    /// The table of a layer, made now from a blob that holds it where nobody made it before. `None` where there is no such
    /// blob, or no table can be made of it.
    pub fn table(&self, diff_id: &DiffId) -> Result<Option<Table>> {
        if let Some(noted) = self.noted_table(diff_id)? {
            return Ok(noted);
        }
        // Two that want it make it once.
        let _lock = self.lock_name(format!("table-{}", diff_id.hex()), || {})?;
        if let Some(noted) = self.noted_table(diff_id)? {
            return Ok(noted);
        }
        let Some(form) = self.usable_form(diff_id, |_| true)? else { return Ok(None) };
        let Some(blob) = self.open_blob(&form.digest)? else { return Ok(None) };
        // Of a damaged blob there is none: who unpacks it will say so.
        let Ok(plain) = layer::decompress(blob) else { return Ok(None) };
        let mut plain = HashingReader::new(plain);
        let Ok(table) = layer::tabulate(&mut plain) else { return Ok(None) };
        if plain.finish().1 != *diff_id.digest() {
            return Ok(None);
        }
        self.note_table(diff_id, table.as_ref())?;
        Ok(table)
    }

    /// Whether it is known, be it that there is none.
    pub fn has_table(&self, diff_id: &DiffId) -> Result<bool> {
        Ok(self.record_time(DIRECTORY, &diff_id.hex())?.is_some())
    }

    fn noted_table(&self, diff_id: &DiffId) -> Result<Option<Option<Table>>> {
        Ok(self.read_record(DIRECTORY, &diff_id.hex())?.and_then(|bytes| Table::from_bytes(&bytes)))
    }

    /// Keeps the table of a tar that was seen to have this digest.
    pub(super) fn note_table(&self, diff_id: &DiffId, table: Option<&Table>) -> Result<()> {
        let bytes = Table::to_bytes(table).context(|| "cannot keep the table of a layer")?;
        self.write_record(DIRECTORY, &diff_id.hex(), &bytes)
    }

    /// Forgets the tables of layers that are not `wanted`.
    pub(super) fn forget_tables(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let tables = self.records(DIRECTORY)?;
        tables.iter().filter(|name| !wanted(name)).try_for_each(|name| self.remove_record(DIRECTORY, name))
    }
}
