//! ADD of a URL: the file is a blob of the store before the key is made, and lands like a file of a
//! context.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use super::Solver;
use crate::context::{Entry, EntryKind, Listing, Selection, Tree};
use crate::copy::{self, Landing};
use crate::diag::{Diagnostic, Result};
use crate::digest::{Digest, Hasher};
use crate::location;
use crate::plan::{Copy, Located};
use crate::registry::{self, Download, Wanted};
use crate::source;

/// What a file without a name is called (BuildKit's word).
const UNNAMED: &str = "__unnamed__";

/// A file that was downloaded, and its name in a destination directory.
#[derive(Clone)]
pub(super) struct Downloaded {
    name: Vec<u8>,
    file: Download,
}

impl Downloaded {
    /// Of everything that lands: name, time and bytes.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.field(&self.name);
        hasher.field(self.file.mtime.to_string().as_bytes());
        hasher.field(self.file.digest.as_bytes());
        hasher.finish()
    }
}

/// What this build downloaded, by URL and checksum: it is asked for more than once.
pub(super) type Downloads = Mutex<BTreeMap<(String, Option<Digest>), Download>>;

impl Solver<'_> {
    /// `None` where no server may be asked and nothing is known of the URL.
    pub(super) fn download(&self, copy: &Copy, url: &Located) -> Result<Option<Downloaded>> {
        let name = file_name(&url.text).map_err(|why| url.error(why))?;
        let checksum = copy.checksum.as_ref().and_then(|checksum| checksum.text.parse::<Digest>().ok());
        let mut downloads = self.inputs.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (url.text.clone(), checksum);
        if let Some(file) = downloads.get(&key) {
            return Ok(Some(Downloaded { name, file: file.clone() }));
        }
        let wanted =
            Wanted { url: &url.text, checksum, authorization: source::http_authorization(&url.text, self.host)? };
        let host = self.host;
        if !host.asks_servers {
            let last = registry::last_download(host.store, &wanted)?;
            return Ok(last.map(|file| Downloaded { name, file }));
        }
        // Not asked twice, and not shown twice.
        host.store.enter()?;
        let file = host
            .registry
            .download(host.store, &wanted, host.audience())
            .map_err(|error| error.at(&url.source, url.span, ""))?;
        downloads.insert(key, file.clone());
        Ok(Some(Downloaded { name, file }))
    }

    /// Lands the blob with the mode of a download; it is hashed again as it is copied.
    pub(super) fn land_download(
        &self,
        download: &Downloaded,
        root: BorrowedFd<'_>,
        landing: &Landing<'_>,
    ) -> Result<()> {
        let Download { digest, size_bytes, mtime } = &download.file;
        let blob = self.host.store.open_blob(digest)?;
        if blob.is_none() {
            return Err(
                Diagnostic::error(format!("the download `{digest}` is gone from the store")).hint("build again")
            );
        }
        let entry = Entry {
            path: digest.hex().into_bytes(),
            land: Vec::new(),
            kind: EntryKind::File { size_bytes: *size_bytes, digest: *digest },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (*mtime, 0),
            xattrs: Vec::new(),
            link_group: None,
            is_passed: false,
        };
        let listing = Listing { selections: vec![Selection { name: download.name.clone(), entries: vec![entry] }] };
        let tree = Tree::open(&self.host.store.root().join("blobs/sha256"), None)?;
        let landed = copy::land(&tree, &listing, root, landing);
        // Held until here, so that no prune takes it.
        drop(blob);
        landed
    }
}

/// The last element of the URL's path, decoded: what the URL says, not where it redirects to.
fn file_name(url: &str) -> std::result::Result<Vec<u8>, String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let decoded = location::decode(path);
    let last = decoded.split(|byte| *byte == b'/').rfind(|part| !part.is_empty() && *part != b".");
    match last {
        None => Ok(UNNAMED.into()),
        Some(b"..") => Err(format!("`{}` has no file name: its path ends with `..`", location::redact(url))),
        Some(name) if name.contains(&0) => {
            Err(format!("`{}` has no file name: there is a NUL in it", location::redact(url)))
        }
        Some(name) => Ok(name.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_the_path() {
        for (url, expected) in [
            ("http://a.test/b/c.tar", "c.tar"),
            ("http://a.test/b/c/", "c"),
            ("http://a.test/b?x=/y", "b"),
            ("http://a.test/b#/y", "b"),
            ("http://a.test/a%20b", "a b"),
            ("http://a.test/a%2Fb", "b"),
            ("http://a.test/a%zz", "a%zz"),
            ("http://a.test/a%2", "a%2"),
            ("http://a.test/a%+2b", "a%+2b"),
            ("http://a.test", UNNAMED),
            ("http://a.test/", UNNAMED),
            ("http://a.test?b/c", UNNAMED),
        ] {
            assert_eq!(file_name(url).unwrap(), expected.as_bytes(), "{url}");
        }
        assert!(file_name("http://a.test/..").is_err());
        assert!(file_name("http://a.test/a%00").is_err());
    }
}
