//! Registries and other servers: images pulled and pushed, files downloaded. The only module that
//! opens sockets.
//!
//! ```text
//! pull ─┐                 ┌─ auth ── credentials   401 → token or password
//! push ─┼─ Client::ask ───┤
//!       │                 └─ http                  retries, redirects, proxies, TLS
//! download ───────────────┘
//! ```
//!
//! What always holds: nothing a server sends is believed. Bytes are hashed as they come and kept only if
//! they are what was asked for; manifests and configs have a largest size; who speaks plain http is
//! on this machine or was named by the user.

mod auth;
mod blob;
mod certificates;
mod credentials;
mod download;
pub mod http;
mod origin;
mod package;
mod places;
mod pull;
mod push;
mod remote;

use std::path::PathBuf;
use std::time::Duration;

use ::ureq::http::Uri;

use self::auth::Tokens;
use self::http::{Answer, Http};
use self::places::By;
use crate::diag::{Diagnostic, Result};
use crate::image::Reference;

pub use credentials::{CredentialFile, decode_base64, encode_base64};
pub use download::{Download, Wanted, last_download};
pub use origin::size_of;
pub use package::{Package, contents};
pub use places::{PlaceFiles, Places};
pub use pull::{pull, resolve};
pub use push::push;
pub use remote::{Incoming, Remote, Whereabouts};

/// What the user's machine says about registries.
#[derive(Clone, Debug)]
pub struct Options {
    /// Hosts, with or without a port, that are spoken to without TLS.
    pub insecure: Vec<String>,
    pub proxies: Proxies,
    /// Asked in this order.
    pub credentials: Vec<CredentialFile>,
    /// Trusted certificates (PEM), instead of the system's.
    pub certificates: Option<PathBuf>,
    /// Directories of directories called like hosts, with what these are trusted by (`*.crt`) and how they
    /// know us (`*.cert` and `*.key`).
    pub host_certificates: Vec<PathBuf>,
    pub places: Places,
    /// Before the first repetition of a request; doubled before each further one.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            proxies: Proxies::default(),
            credentials: Vec::new(),
            certificates: None,
            host_certificates: Vec::new(),
            places: Places::default(),
            pause: Duration::from_millis(500),
        }
    }
}

/// Proxies by the scheme of the target.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    /// Hosts and domains that are reached without one (`NO_PROXY`).
    pub except: Vec<String>,
}

impl Proxies {
    /// `*`, a host, or a domain with everything below it, with or without a leading dot.
    fn excepts(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.except.iter().map(|name| name.trim().to_ascii_lowercase()).any(|name| {
            let name = name.trim_start_matches("*.").trim_start_matches('.');
            let name = http::host_of(name);
            !name.is_empty() && (name == "*" || host == name || host.ends_with(&format!(".{name}")))
        })
    }
}

/// Speaks to registries and servers; shared by threads.
pub struct Client {
    http: Http,
    tokens: Tokens,
}

/// What may be done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Pull,
    Push,
}

/// A repository, and the other one that a blob may be mounted from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    registry: String,
    repository: String,
    access: Access,
    from: Option<String>,
}

impl Scope {
    fn pull(place: places::Place) -> Self {
        Self { registry: place.registry, repository: place.repository, access: Access::Pull, from: None }
    }
}

impl Client {
    pub fn new(mut options: Options) -> Self {
        let tokens = Tokens::new(std::mem::take(&mut options.credentials));
        Self { http: Http::new(options), tokens }
    }

    /// Where the image may be had, the best place first.
    fn scopes(&self, reference: &Reference) -> Result<Vec<Scope>> {
        let by = if reference.digest.is_some() { By::Digest } else { By::Tag };
        Ok(self.http.places().of(&reference.name(), by)?.into_iter().map(Scope::pull).collect())
    }

    /// Where a blob may be had that `registry/repository` has. A name that may not be asked for is none.
    fn scopes_of_blob(&self, name: &str) -> Vec<Scope> {
        self.http.places().of(name, By::Digest).unwrap_or_default().into_iter().map(Scope::pull).collect()
    }

    /// Where it is pushed to: never to a mirror.
    fn scope_of_push(&self, reference: &Reference) -> Result<Scope> {
        let place = self.http.places().of(&reference.name(), By::Tag)?.pop();
        // There is at least the name's own place.
        let place = place.ok_or_else(|| Diagnostic::error(format!("there is no place for `{}`", reference.name())))?;
        Ok(Scope { access: Access::Push, ..Scope::pull(place) })
    }

    /// Ends all transfers; what was asked fails.
    pub fn cancel(&self) {
        self.http.cancel();
    }

    pub fn is_canceled(&self) -> bool {
        self.http.is_canceled()
    }

    /// `/v2/<repository>/<path>` of the registry.
    fn url(&self, scope: &Scope, path: &str) -> Result<Uri> {
        let host = api_host(&scope.registry);
        let scheme = if self.http.is_plain(&host) { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/{path}", scope.repository);
        text.parse().map_err(|_| Diagnostic::error(format!("`{text}` is no address")))
    }
}

/// Where the registry of this name answers: the default one's name is not its host's.
fn api_host(registry: &str) -> String {
    match registry {
        "docker.io" => format!("registry-1.{registry}"),
        other => other.to_owned(),
    }
}

/// What a registry says is wrong: the messages in its JSON, or the status alone.
fn complaint(answer: Answer) -> String {
    const MAX_TEXT_BYTES: u64 = 64 << 10;
    let status = answer.status;
    let text = answer.text(MAX_TEXT_BYTES);
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let errors = value.get("errors").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let messages = errors.iter().filter_map(|error| {
        let text = |key: &str| error.get(key).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
        let message = text("message").or_else(|| text("code"))?;
        Some(message.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    });
    let messages: Vec<String> = messages.take(3).collect();
    match messages.is_empty() {
        true => format!("status {status}"),
        false => format!("status {status}: {}", messages.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_from_proxies() {
        let except =
            |list: &str| Proxies { except: list.split(',').map(str::to_owned).collect(), ..Proxies::default() };
        for (list, host) in [
            ("*", "a.test"),
            ("a.test", "A.test"),
            (".test", "a.test"),
            ("x, test", "a.b.test"),
            ("*.test", "a.test"),
            ("a.test:80", "a.test"),
        ] {
            assert!(except(list).excepts(host), "{list} {host}");
        }
        for (list, host) in [("", "a.test"), ("b.test", "a.test"), ("a.test", "ba.test"), (".", "a.test")] {
            assert!(!except(list).excepts(host), "{list} {host}");
        }
    }
}
