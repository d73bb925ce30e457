//! Reading a blob from a registry. A connection that breaks on the way is made again from where it
//! broke; what comes is hashed by whoever reads.

use std::io::{self, Read};
use std::time::Duration;

use ureq::http::{Method, header};

use super::auth::Asked;
use super::http::Call;
use super::{Client, Scope, complaint};
use crate::diag::{Diagnostic, Result};
use crate::image::manifest::Descriptor;
use crate::progress::Meter;

/// In a row, without [`PROGRESS_BYTES`] between them.
const MAX_CUTS: u32 = 5;
const PROGRESS_BYTES: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(200);

pub(super) struct BlobReader<'a> {
    client: &'a Client,
    scopes: &'a [Scope],
    /// The one that is asked.
    asked: usize,
    descriptor: &'a Descriptor,
    meter: &'a Meter<'a>,
    offset: u64,
    body: Option<Box<dyn Read + Send>>,
    cuts: u32,
    cut_at: u64,
}

impl<'a> BlobReader<'a> {
    /// Of the first of these repositories that has it.
    pub fn new(client: &'a Client, scopes: &'a [Scope], descriptor: &'a Descriptor, meter: &'a Meter<'a>) -> Self {
        Self { client, scopes, asked: 0, descriptor, meter, offset: 0, body: None, cuts: 0, cut_at: 0 }
    }

    /// What follows the first `offset` bytes, which are there already.
    pub fn from(self, offset: u64) -> Self {
        self.meter.add(offset);
        Self { offset, cut_at: offset, ..self }
    }

    /// The body from `offset` on; from another repository, if this one has not got it.
    fn open(&mut self) -> Result<Box<dyn Read + Send>> {
        let Some(scope) = self.scopes.get(self.asked) else {
            return Err(Diagnostic::error(format!("nobody has the blob `{}`", self.descriptor.digest)));
        };
        match self.open_at(scope) {
            Err(_) if self.asked + 1 < self.scopes.len() && !self.client.is_canceled() => {
                self.asked += 1;
                self.open()
            }
            opened => opened,
        }
    }

    fn open_at(&self, scope: &Scope) -> Result<Box<dyn Read + Send>> {
        let Descriptor { digest, .. } = self.descriptor;
        let registry = &scope.registry;
        let asked = self.client.ask(scope, || {
            let call = Call::new(Method::GET, self.client.url(scope, &format!("blobs/{digest}"))?);
            Ok(match self.offset {
                0 => call,
                offset => call.with(header::RANGE, format!("bytes={offset}-")),
            })
        })?;
        let answer = match asked {
            Asked::Answered(answer) => answer,
            Asked::Refused(why) => {
                let error = Diagnostic::error(format!("the registry `{registry}` refuses the blob `{digest}`"));
                return Err(error.caused_by(why));
            }
        };
        match answer.status {
            200 => {
                let mut body = answer.into_reader();
                // A server that knows no ranges begins at the beginning.
                let skipped = io::copy(&mut (&mut body).take(self.offset), &mut io::sink());
                match skipped {
                    Ok(count) if count == self.offset => Ok(Box::new(body)),
                    _ => Err(Diagnostic::error(format!("the connection to `{registry}` breaks again and again"))),
                }
            }
            206 if self.offset > 0 => {
                let begins = answer
                    .header(header::CONTENT_RANGE)
                    .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse::<u64>().ok());
                match begins {
                    Some(begin) if begin != self.offset => {
                        Err(Diagnostic::error(format!("the registry `{registry}` sends another range than asked for")))
                    }
                    _ => Ok(Box::new(answer.into_reader())),
                }
            }
            404 => Err(Diagnostic::error(format!("the registry `{registry}` has no blob `{digest}`"))),
            _ => Err(Diagnostic::error(format!("the registry `{registry}` does not give the blob `{digest}`"))
                .caused_by(complaint(answer))),
        }
    }

    fn cut(&mut self, why: io::Error) -> io::Result<()> {
        self.body = None;
        if self.offset >= self.cut_at + PROGRESS_BYTES {
            self.cuts = 0;
        }
        self.cut_at = self.offset;
        self.cuts += 1;
        if self.cuts > MAX_CUTS || self.client.is_canceled() {
            return Err(why);
        }
        self.client.http.wait(PAUSE.min(self.client.http.pause()) * (self.cuts - 1));
        Ok(())
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.offset >= self.descriptor.size_bytes {
            return Ok(0);
        }
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.open().map_err(|error| {
                    let cause = error.cause.map_or(String::new(), |cause| format!(": {cause}"));
                    io::Error::other(format!("{}{cause}", error.message))
                })?,
            };
            match body.read(buffer) {
                Ok(0) => self.cut(io::ErrorKind::UnexpectedEof.into())?,
                Ok(count) => {
                    self.offset += count as u64;
                    self.meter.add(count as u64);
                    self.body = Some(body);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.body = Some(body),
                Err(error) => self.cut(error)?,
            }
        }
    }
}
