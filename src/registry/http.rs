//! HTTP: one request, sent again where that may help, its redirects followed.
//!
//! What always holds: plain http only to loopback and to hosts the user named; an `Authorization`
//! header goes to the host it was made for and to no other; redirects, attempts, pauses and the
//! silence of a peer are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method, Request, Uri, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Proxy, SendBody};

use super::places::{Places, is_named};
use super::{Options, certificates};
use crate::diag::{Diagnostic, Result};
use crate::location::redact;

const MAX_REDIRECTS: usize = 10;
const MAX_ATTEMPTS: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer may be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest that a `Retry-After` is obeyed.
const MAX_PAUSE: Duration = Duration::from_secs(60);
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Sends requests; shared by threads.
pub struct Http {
    options: Options,
    direct: OnceLock<Agent>,
    /// For `http:` and `https:` targets.
    proxied: [OnceLock<Agent>; 2],
    /// For hosts that have certificates of their own, or that nobody vouches for.
    particular: Mutex<BTreeMap<String, Agent>>,
    /// Hosts that may be spoken to without TLS but insist on it.
    insistent: Mutex<BTreeSet<String>>,
    canceled: AtomicBool,
}

/// A request.
pub struct Call<'a> {
    pub method: Method,
    pub url: Uri,
    pub headers: Vec<(header::HeaderName, String)>,
    pub body: Body<'a>,
}

pub enum Body<'a> {
    None,
    Bytes(&'a [u8]),
    /// Sent once, and never again: the reader and its length.
    Stream(Box<dyn Read + 'a>, u64),
}

/// A response: its status may be any.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end.
    pub url: Uri,
    body: ureq::Body,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, url: Uri) -> Self {
        Self { method, url, headers: Vec::new(), body: Body::None }
    }

    pub fn with(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(self, body: Body<'a>) -> Self {
        Self { body, ..self }
    }
}

impl Answer {
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as it comes. One that ends early is an error where its length was told.
    pub fn into_reader(self) -> impl Read + Send + 'static {
        self.body.into_reader()
    }

    /// The whole body, or its first bytes where it is longer.
    pub fn text(self, max_size_bytes: u64) -> Vec<u8> {
        let mut text = Vec::new();
        // What came of a text that explains an error is better than nothing.
        let _ = self.body.into_reader().take(max_size_bytes).read_to_end(&mut text);
        text
    }
}

/// What went wrong with one attempt.
struct Broken {
    why: String,
    may_pass: bool,
}

impl Http {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            direct: OnceLock::new(),
            proxied: [OnceLock::new(), OnceLock::new()],
            particular: Mutex::default(),
            insistent: Mutex::default(),
            canceled: AtomicBool::new(false),
        }
    }

    /// Ends what is under way, and lets nothing more begin.
    pub fn cancel(&self) {
        self.canceled.store(true, Ordering::Relaxed);
        for agent in self.proxied.iter().chain([&self.direct]) {
            if let Some(agent) = agent.get() {
                agent.clone().shutdown();
            }
        }
        locked(&self.particular).values().for_each(|agent| agent.clone().shutdown());
    }

    pub fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Relaxed)
    }

    pub fn places(&self) -> &Places {
        &self.options.places
    }

    /// Before the first repetition.
    pub fn pause(&self) -> Duration {
        self.options.pause
    }

    /// Whether this host (and port) is spoken to without TLS.
    pub fn is_plain(&self, authority: &str) -> bool {
        self.may_be_plain(authority) && !locked(&self.insistent).contains(authority)
    }

    /// Whether nobody need vouch for this host (and port). Who says what it is to be trusted by says otherwise.
    fn may_be_plain(&self, authority: &str) -> bool {
        let is_insecure = is_loopback(host_of(authority))
            || self.options.insecure.iter().any(|name| is_named(authority, name))
            || self.options.places.are_insecure_at(authority);
        is_insecure && self.certificates_of(authority).is_none()
    }

    /// Whether a host that was spoken to without TLS, and did not understand, is from now on spoken to with
    /// it.
    pub fn insists_on_tls(&self, authority: &str) -> bool {
        if self.is_canceled() || !self.is_plain(authority) {
            return false;
        }
        let Ok(url) = format!("https://{authority}/v2/").parse() else { return false };
        let answers = self.once(&mut Call::new(Method::HEAD, url)).is_ok();
        if answers {
            locked(&self.insistent).insert(authority.to_owned());
        }
        answers
    }

    /// The directory with the certificates for this host (and port).
    fn certificates_of(&self, authority: &str) -> Option<PathBuf> {
        if authority.contains('/') || authority.starts_with('.') {
            return None;
        }
        self.options.host_certificates.iter().map(|all| all.join(authority)).find(|own| own.is_dir())
    }

    /// Sends the request and follows redirects of GET and HEAD. A busy or failing server, and a
    /// connection that broke, are asked again, unless the body is a stream; the last answer is returned
    /// whatever its status is. An error means that there is no answer.
    pub fn send(&self, mut call: Call<'_>) -> Result<Answer> {
        let mut redirects = 0;
        loop {
            let answer = self.insist(&mut call)?;
            let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect || !matches!(call.method, Method::GET | Method::HEAD) {
                return Ok(answer);
            }
            let Some(location) = answer.header(header::LOCATION) else { return Ok(answer) };
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                let url = call.url.to_string();
                return Err(Diagnostic::error(format!("`{}` redirects more than {MAX_REDIRECTS} times", redact(&url))));
            }
            let next = self.join(&call.url, location)?;
            if origin(&next) != origin(&call.url) {
                call.headers.retain(|(name, _)| *name != header::AUTHORIZATION);
            }
            call.url = next;
        }
    }

    /// The address `location` as seen from `base`. One without TLS is refused where the base has it.
    pub fn join(&self, base: &Uri, location: &str) -> Result<Uri> {
        let shown = redact(&base.to_string()).into_owned();
        let wrong = || {
            Diagnostic::error(format!("`{shown}` leads to `{}`, which is no address", redact(location).escape_debug()))
        };
        let location = location.split('#').next().unwrap_or_default();
        let authority = base.authority().map_or("", |authority| authority.as_str());
        let scheme = base.scheme_str().unwrap_or("https");
        let text = if location.contains("://") {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else {
            let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{scheme}://{authority}{directory}/{location}")
        };
        let url: Uri = text.parse().map_err(|_| wrong())?;
        match (url.scheme_str(), url.authority()) {
            (Some("https"), Some(_)) => Ok(url),
            (Some("http"), Some(other)) if scheme == "http" || self.is_plain(other.as_str()) => Ok(url),
            (Some("http"), Some(other)) => Err(Diagnostic::error(format!(
                "`{shown}` leads to `{}` without encryption",
                without_user(other.as_str())
            ))),
            _ => Err(wrong()),
        }
    }

    fn insist(&self, call: &mut Call<'_>) -> Result<Answer> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let is_last = attempt == MAX_ATTEMPTS || matches!(call.body, Body::Stream(..));
            let mut pause = self.options.pause * 2_u32.pow(attempt - 1);
            match self.once(call) {
                Ok(answer) if is_last || !matches!(answer.status, 408 | 429 | 500 | 502 | 503 | 504) => {
                    return Ok(answer);
                }
                Ok(answer) => {
                    pause = retry_after(&answer).unwrap_or(pause);
                }
                Err(broken) if is_last || !broken.may_pass || self.is_canceled() => {
                    let host = call.url.authority().map_or("", |authority| without_user(authority.as_str()));
                    let error = match self.is_canceled() {
                        true => Diagnostic::error("the transfer was canceled"),
                        false => {
                            let through = if self.proxy(&call.url).is_some() { " through the proxy" } else { "" };
                            Diagnostic::error(format!("cannot reach `{host}`{through}")).caused_by(broken.why)
                        }
                    };
                    return Err(error);
                }
                Err(_) => {}
            }
            self.wait(pause.min(MAX_PAUSE));
        }
    }

    fn once(&self, call: &mut Call<'_>) -> std::result::Result<Answer, Broken> {
        if self.is_canceled() {
            return Err(Broken { why: "canceled".into(), may_pass: false });
        }
        let lasting = |why: String| Broken { why, may_pass: false };
        let mut request = Request::builder().method(call.method.clone()).uri(call.url.clone());
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let agent = self.agent(&call.url).map_err(lasting)?;
        let sent = match &mut call.body {
            Body::None if call.method == Method::POST || call.method == Method::PUT => {
                request.body(&b""[..]).map(|request| agent.run(request))
            }
            Body::None => request.body(()).map(|request| agent.run(request)),
            Body::Bytes(bytes) => request.body(*bytes).map(|request| agent.run(request)),
            Body::Stream(reader, size_bytes) => request
                .header(header::CONTENT_LENGTH, size_bytes.to_string())
                .body(SendBody::from_reader(&mut **reader))
                .map(|request| agent.run(request)),
        };
        let response = sent.map_err(|error| lasting(error.to_string()))?.map_err(broken)?;
        let (parts, body) = response.into_parts();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, url: call.url.clone(), body })
    }

    /// Waits, in short naps: who cancels does not wait.
    pub(super) fn wait(&self, pause: Duration) {
        const NAP: Duration = Duration::from_millis(50);
        let begun = Instant::now();
        while !self.is_canceled() {
            match pause.checked_sub(begun.elapsed()) {
                Some(rest) if !rest.is_zero() => std::thread::sleep(rest.min(NAP)),
                _ => return,
            }
        }
    }

    /// The agent for this address: they differ in the proxy and in certificates.
    fn agent(&self, url: &Uri) -> std::result::Result<Agent, String> {
        let is_tls = url.scheme_str() == Some("https");
        let (slot, proxy) = match self.proxy(url) {
            Some(proxy) => {
                // It may hold a password, and so is not shown.
                let parsed = Proxy::new(proxy).map_err(|error| format!("the proxy is no address: {error}"))?;
                (&self.proxied[usize::from(is_tls)], Some(parsed))
            }
            None => (&self.direct, None),
        };
        let authority = url.authority().map_or("", |authority| authority.as_str());
        if is_tls && let Some(agent) = locked(&self.particular).get(authority) {
            return Ok(agent.clone());
        }
        let tls = match self.certificates_of(authority) {
            Some(directory) if is_tls => certificates::of_host(&directory, self.options.certificates.as_deref())?,
            _ if is_tls && self.may_be_plain(authority) => TlsConfig::builder().disable_verification(true).build(),
            _ => {
                return Ok(slot.get_or_init(|| new_agent(proxy, certificates::usual(&self.options))).clone());
            }
        };
        let agent = new_agent(proxy, tls);
        Ok(locked(&self.particular).entry(authority.to_owned()).or_insert(agent).clone())
    }

    fn proxy(&self, url: &Uri) -> Option<&str> {
        let proxies = &self.options.proxies;
        let proxy = if url.scheme_str() == Some("https") { &proxies.https } else { &proxies.http };
        let host = host_of(url.authority().map_or("", |authority| authority.as_str()));
        proxy.as_deref().filter(|_| !is_loopback(host) && !proxies.excepts(host))
    }
}

fn new_agent(proxy: Option<Proxy>, tls: TlsConfig) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(proxy)
        .tls_config(tls)
        .user_agent(concat!("wythe/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_response_header_size(MAX_HEADER_BYTES)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(Some(SILENCE_TIMEOUT))
        .timeout_per_write(Some(SILENCE_TIMEOUT))
        .build();
    config.new_agent()
}

/// How long to wait, in seconds or until a date by the server's own clock.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let text = answer.header(header::RETRY_AFTER)?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = httpdate::parse_http_date(answer.header(header::DATE)?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: ureq::Error) -> Broken {
    use io::ErrorKind;
    match error {
        ureq::Error::HostNotFound => Broken { why: "there is no such host, or no network".into(), may_pass: false },
        // What `getaddrinfo` said has no kind of its own.
        ureq::Error::Io(error) if error.to_string().starts_with("failed to lookup address") => {
            Broken { why: "there is no such host, or no network".into(), may_pass: false }
        }
        // How TLS says that a certificate is not trusted.
        ureq::Error::Io(error) if error.kind() == ErrorKind::InvalidData => {
            Broken { why: format!("{error} (`SSL_CERT_FILE` names certificates to trust)"), may_pass: false }
        }
        ureq::Error::Io(error) => {
            let lasts = matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::PermissionDenied
                    | ErrorKind::AddrNotAvailable
            );
            Broken { why: error.to_string(), may_pass: !lasts }
        }
        error @ ureq::Error::Timeout(_) => Broken { why: error.to_string(), may_pass: true },
        other => Broken { why: other.to_string(), may_pass: false },
    }
}

/// Scheme, host and port, which a credential is for.
fn origin(url: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
    (url.scheme_str(), url.host().map(str::to_ascii_lowercase), url.port_u16().or(Some(default)))
}

/// The user may be a password.
fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// `host:port` and `[address]:port` without the port.
pub fn host_of(authority: &str) -> &str {
    let authority = without_user(authority);
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_spoken_to_plainly() {
        let http = Http::new(Options {
            insecure: ["lab.test:5000", "old.test", "*.all.test"].map(String::from).into(),
            ..Options::default()
        });
        for host in [
            "a.all.test",
            "a.b.all.test:80",
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:5000",
            "lab.test:5000",
            "old.test:81",
        ] {
            assert!(http.is_plain(host), "{host}");
        }
        for host in [
            "127.0.0.1.test",
            "lab.test",
            "all.test",
            ".all.test",
            "lab.test:5001",
            "128.0.0.1",
            "[::2]:5000",
            "localhost.test",
        ] {
            assert!(!http.is_plain(host), "{host}");
        }
    }

    #[test]
    fn locations_are_joined() {
        let http = Http::new(Options::default());
        let joined =
            |base: &str, location: &str| http.join(&base.parse().unwrap(), location).map(|url| url.to_string());
        let check = |base, location, expected: &str| assert_eq!(joined(base, location).unwrap(), expected);
        check("https://a.test/v2/x", "/v2/y?z=1", "https://a.test/v2/y?z=1");
        check("https://a.test/v2/x", "y", "https://a.test/v2/y");
        check("https://a.test:4/v2/x", "//b.test/y", "https://b.test/y");
        check("https://a.test/v2/x", "https://b.test/y#part", "https://b.test/y");
        check("http://127.0.0.1:1/x", "http://127.0.0.1:2/y", "http://127.0.0.1:2/y");
        assert!(joined("https://a.test/x", "http://a.test/x").is_err());
        assert!(joined("https://a.test/x", "file:///etc/passwd").is_err());
        assert!(joined("https://a.test/x", "http://").is_err());
    }

    #[test]
    fn a_credential_is_for_an_origin() {
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://a.test/x", "https://A.test:443/y"));
        assert!(!same("https://a.test/x", "http://a.test/x"));
        assert!(!same("https://a.test/x", "https://a.test:444/x"));
        assert!(!same("https://a.test/x", "https://b.test/x"));
    }
}
