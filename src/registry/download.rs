//! Files from web servers (ADD). What was downloaded is a blob of the store; a record by URL says
//! which, so that a server that still has the same file need not send it again.

use std::io::Read as _;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use ureq::http::{Method, Uri, header};

use super::Client;
use super::http::{Answer, Call};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{Digest, HashingReader};
use crate::location::redact;
use crate::progress::{Audience, Meter, Metered};
use crate::store::Store;

const DIRECTORY: &str = "files/url";
const MAX_TRIES: u32 = 3;

/// What to download.
pub struct Wanted<'a> {
    pub url: &'a str,
    /// If the store has it, nobody is asked.
    pub checksum: Option<Digest>,
    /// An `Authorization` header.
    pub authorization: Option<String>,
}

/// A file, as a blob of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    pub digest: Digest,
    pub size_bytes: u64,
    /// `Last-Modified` in seconds since the epoch; 0 when the server does not tell.
    pub mtime: i64,
}

/// What is known of a URL.
#[derive(Serialize, Deserialize)]
struct Known {
    digest: Digest,
    size_bytes: u64,
    etag: Option<String>,
    last_modified: Option<String>,
}

impl Known {
    fn download(&self) -> Download {
        let time = self.last_modified.as_deref().and_then(|text| httpdate::parse_http_date(text).ok());
        let seconds = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs());
        let mtime = i64::try_from(seconds).unwrap_or(0);
        Download { digest: self.digest, size_bytes: self.size_bytes, mtime }
    }
}

/// What the last download gave, without asking whether the server still has the same.
pub fn last_download(store: &Store, wanted: &Wanted<'_>) -> Result<Option<Download>> {
    Ok(known(store, wanted)?.map(|known| known.download()))
}

fn known(store: &Store, wanted: &Wanted<'_>) -> Result<Option<Known>> {
    let known = store.read_record(DIRECTORY, &name_of(wanted))?;
    let known = known.and_then(|bytes| serde_json::from_slice::<Known>(&bytes).ok());
    // A blob that is gone, or of which a part is, is downloaded again.
    let known = known.filter(
        |known| matches!(store.open_blob(&known.digest), Ok(Some(blob)) if blob.size_bytes == known.size_bytes),
    );
    // With a checksum what is known either is it, or is of no use.
    Ok(known.filter(|known| wanted.checksum.is_none_or(|checksum| checksum == known.digest)))
}

fn name_of(wanted: &Wanted<'_>) -> String {
    Digest::of(wanted.url.as_bytes()).hex()
}

impl Client {
    /// Downloads the file into the store, unless the store has it and the server says that it is still
    /// the same. Only what is transferred is shown. Nothing is kept that has another checksum.
    pub fn download(&self, store: &Store, wanted: &Wanted<'_>, audience: Audience<'_>) -> Result<Download> {
        let known = known(store, wanted)?;
        if let Some(known) = known.as_ref().filter(|_| wanted.checksum.is_some()) {
            return Ok(known.download());
        }
        let answer = self.get(wanted, known.as_ref())?;
        if answer.status == 304
            && let Some(known) = known
        {
            return Ok(known.download());
        }
        let title = format!("[download] {}", redact(wanted.url));
        let fetched = audience.show(&title, |meter| self.fetch(store, wanted, answer, meter))?;
        // Our own types always serialise.
        store.write_record(DIRECTORY, &name_of(wanted), &serde_json::to_vec(&fetched).unwrap_or_default())?;
        Ok(fetched.download())
    }

    fn get(&self, wanted: &Wanted<'_>, known: Option<&Known>) -> Result<Answer> {
        let no_address = || Diagnostic::error(format!("`{}` is no address", redact(wanted.url)));
        let url: Uri = wanted.url.split('#').next().unwrap_or_default().parse().map_err(|_| no_address())?;
        if url.host().is_none_or(str::is_empty) {
            return Err(no_address());
        }
        let mut call = Call::new(Method::GET, url);
        if let Some(authorization) = &wanted.authorization {
            call = call.with(header::AUTHORIZATION, authorization.clone());
        }
        match known {
            Some(Known { etag: Some(etag), .. }) => call = call.with(header::IF_NONE_MATCH, etag.clone()),
            Some(Known { last_modified: Some(time), .. }) => call = call.with(header::IF_MODIFIED_SINCE, time.clone()),
            _ => {}
        }
        let answer = self.http.send(call)?;
        match answer.status {
            304 if known.is_some() => Ok(answer),
            200 => Ok(answer),
            status => Err(Diagnostic::error(format!(
                "cannot download `{}`: its server answers with status {status}",
                redact(wanted.url)
            ))),
        }
    }

    fn fetch(&self, store: &Store, wanted: &Wanted<'_>, answer: Answer, meter: &Meter<'_>) -> Result<Known> {
        let mut tries = 0;
        let mut answer = Some(answer);
        loop {
            tries += 1;
            let current = match answer.take() {
                Some(answer) => answer,
                None => self.get(wanted, None)?,
            };
            let text = |name: header::HeaderName| current.header(name).map(str::to_owned);
            let (etag, last_modified) = (text(header::ETAG), text(header::LAST_MODIFIED));
            if let Some(length) = current.header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()) {
                meter.expect(if tries == 1 { length } else { 0 });
            }
            let mut blob = store.blob_writer()?;
            let mut reader = HashingReader::new(Metered { inner: current.into_reader(), meter });
            let mut buffer = vec![0; 128 << 10];
            let broken = loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break None,
                    Ok(count) => {
                        let written = std::io::Write::write_all(&mut blob, &buffer[..count]);
                        written.context(|| format!("cannot keep `{}` in the store", redact(wanted.url)))?;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => break Some(error),
                }
            };
            if let Some(error) = broken {
                if tries == MAX_TRIES || self.is_canceled() {
                    return Err(error).context(|| format!("cannot download `{}`", redact(wanted.url)));
                }
                self.http.wait(self.http.pause() * tries);
                continue;
            }
            let (_, digest, size_bytes) = reader.finish();
            if let Some(checksum) = wanted.checksum.filter(|checksum| *checksum != digest) {
                return Err(Diagnostic::error(format!(
                    "`{}` has the checksum `{digest}` instead of `{checksum}`",
                    redact(wanted.url)
                )));
            }
            blob.commit()?;
            return Ok(Known { digest, size_bytes, etag, last_modified });
        }
    }
}
