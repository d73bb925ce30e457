//! Answers a registry's 401: with a password, or with a token its token server gives for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ureq::http::{Method, Uri, header};

use super::credentials::{self, Credential, CredentialFile, encode_base64};
use super::http::{Answer, Body, Call};
use super::{Access, Client, Scope, complaint};
use crate::diag::{Diagnostic, Result};
use crate::image::manifest::read_bounded;

const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// `Authorization` headers that worked, by what they are for.
pub(super) struct Tokens {
    files: Vec<CredentialFile>,
    known: Mutex<BTreeMap<Scope, String>>,
}

impl Tokens {
    pub fn new(files: Vec<CredentialFile>) -> Self {
        Self { files, known: Mutex::default() }
    }

    fn get(&self, scope: &Scope) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }
}

/// `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// How asking ended.
pub(super) enum Asked {
    Answered(Answer),
    /// The registry does not let us, whoever we say we are.
    Refused(String),
}

impl Client {
    /// Sends a request to the registry of `scope`, as who it wants us to be. `call` makes the request anew
    /// for each attempt.
    pub(super) fn ask<'a>(&self, scope: &Scope, mut call: impl FnMut() -> Result<Call<'a>>) -> Result<Asked> {
        let known = self.tokens.get(scope);
        let mut authorized = |authorization: Option<&String>| {
            let call = call()?;
            self.http.send(match authorization {
                Some(authorization) => call.with(header::AUTHORIZATION, authorization.clone()),
                None => call,
            })
        };
        let host = super::api_host(&scope.registry);
        let answer = match authorized(known.as_ref()) {
            // How servers answer who speaks to them without TLS.
            Ok(answer) if answer.status == 400 && self.http.insists_on_tls(&host) => authorized(known.as_ref())?,
            Err(_) if self.http.insists_on_tls(&host) => authorized(known.as_ref())?,
            answer => answer?,
        };
        if answer.status != 401 {
            return Ok(match answer.status {
                403 => Asked::Refused(complaint(answer)),
                _ => Asked::Answered(answer),
            });
        }
        let challenge = challenge(&answer);
        let why = complaint(answer);
        let Some(challenge) = challenge else { return Ok(Asked::Refused(why)) };
        let Some(authorization) = self.authorize(scope, &challenge, known.as_ref())? else {
            return Ok(Asked::Refused(why));
        };
        let answer = authorized(Some(&authorization))?;
        Ok(match answer.status {
            401 | 403 => Asked::Refused(complaint(answer)),
            _ => Asked::Answered(answer),
        })
    }

    /// A header that answers the challenge, other than the one that was `stale`; `None` when there are
    /// no credentials.
    fn authorize(&self, scope: &Scope, challenge: &Challenge, stale: Option<&String>) -> Result<Option<String>> {
        // Held while a token is fetched: threads that need the same one fetch it once.
        let mut known = self.tokens.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = known.get(scope).filter(|fresh| Some(*fresh) != stale) {
            return Ok(Some(fresh.clone()));
        }
        let credential = credentials::find(&self.tokens.files, &scope.registry, &scope.repository)?;
        let authorization = match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => format!("Bearer {token}"),
            (Challenge::Basic, Some(Credential::Password { user, password })) => basic(&user, &password),
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service }, credential) => {
                match self.token(scope, realm, service.as_deref(), credential)? {
                    Some(token) => format!("Bearer {token}"),
                    None => return Ok(None),
                }
            }
        };
        known.insert(scope.clone(), authorization.clone());
        Ok(Some(authorization))
    }

    /// Asks the token server. `None` when it does not know us.
    fn token(
        &self,
        scope: &Scope,
        realm: &str,
        service: Option<&str>,
        credential: Option<Credential>,
    ) -> Result<Option<String>> {
        let cannot = |why: String| {
            Diagnostic::error(format!("the registry `{}` gives no access token", scope.registry)).caused_by(why)
        };
        // Not to be led from an encrypted registry to a server that is not.
        let realm: Uri = self.http.join(&self.url(scope, "")?, realm)?;
        let mut query: Vec<(&str, String)> = service.iter().map(|service| ("service", (*service).to_owned())).collect();
        let answer = match credential {
            Some(Credential::Refresh(token)) => {
                query.push(("grant_type", "refresh_token".into()));
                query.push(("refresh_token", token));
                query.push(("client_id", "wythe".into()));
                query.push(("scope", scopes(scope).join(" ")));
                let form = encode(&query);
                let call = Call::new(Method::POST, realm)
                    .with(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Body::Bytes(form.as_bytes()));
                self.http.send(call)?
            }
            other => {
                query.extend(scopes(scope).into_iter().map(|scope| ("scope", scope)));
                let text = realm.to_string();
                let separator = if text.contains('?') { '&' } else { '?' };
                let url = format!("{text}{separator}{}", encode(&query));
                let mut call =
                    Call::new(Method::GET, url.parse().map_err(|_| cannot(format!("`{url}` is no address")))?);
                if let Some(Credential::Password { user, password }) = other {
                    call = call.with(header::AUTHORIZATION, basic(&user, &password));
                }
                self.http.send(call)?
            }
        };
        match answer.status {
            401 | 403 => return Ok(None),
            _ if !answer.is_success() => return Err(cannot(complaint(answer))),
            _ => {}
        }
        let text = read_bounded(answer.into_reader(), MAX_TOKEN_BYTES, "the answer of the token server")?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| cannot(error.to_string()))?;
        let token = ["token", "access_token"].iter().find_map(|key| value.get(key)?.as_str());
        let is_header = |token: &&str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        match token.filter(is_header) {
            Some(token) => Ok(Some(token.to_owned())),
            None => Err(cannot("its answer has no token".into())),
        }
    }
}

/// As the token server's `scope` parameters have it.
fn scopes(scope: &Scope) -> Vec<String> {
    let actions = match scope.access {
        Access::Pull => "pull",
        Access::Push => "pull,push",
    };
    let own = format!("repository:{}:{actions}", scope.repository);
    let other = scope.from.iter().map(|from| format!("repository:{from}:pull"));
    [own].into_iter().chain(other).collect()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", encode_base64(format!("{user}:{password}").as_bytes()))
}

/// The first challenge that we know: Bearer before Basic.
fn challenge(answer: &Answer) -> Option<Challenge> {
    let headers = answer.headers.get_all(header::WWW_AUTHENTICATE);
    let mut challenges: Vec<_> = headers.iter().filter_map(|value| parse(value.to_str().ok()?)).collect();
    challenges.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    challenges.into_iter().next()
}

/// `Bearer realm="…",service="…"`.
fn parse(text: &str) -> Option<Challenge> {
    let (kind, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if kind.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !kind.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = BTreeMap::new();
    let mut rest = rest.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name, value.trim().to_owned());
        rest = after;
    }
    let service = parameters.remove("service").filter(|service| !service.is_empty());
    Some(Challenge::Bearer { realm: parameters.remove("realm")?, service })
}

/// As in a query or a form.
fn encode(parameters: &[(&str, String)]) -> String {
    let escape = |text: &str| {
        text.bytes().fold(String::new(), |mut escaped, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' => {
                    escaped.push(byte.into());
                }
                _ => escaped.push_str(&format!("%{byte:02X}")),
            }
            escaped
        })
    };
    parameters.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (text, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://t.test/token\",service=\"r.test\"",
                bearer("https://t.test/token", Some("r.test")),
            ),
            ("bearer service=s, realm=https://t.test/?a=b", bearer("https://t.test/?a=b", Some("s"))),
            ("Bearer realm=\"https://t.test\",scope=\"repository:a,b:pull\"", bearer("https://t.test", None)),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"unclosed", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        let query = [("scope", "repository:a/b:pull,push".to_owned()), ("service", "a b&c".to_owned())];
        assert_eq!(encode(&query), "scope=repository:a/b:pull,push&service=a%20b%26c");
    }
}
