//! Who the user is to a registry: docker's `config.json` and podman's `auth.json`, and the programs
//! that keep passwords for them.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::diag::{Context as _, Diagnostic, Result};

const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A file of credentials. One that is not there has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFile(pub PathBuf);

/// What is shown to a registry or its token server. Not shown to anybody else, and so without `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// Exchanged for tokens.
    Refresh(String),
    /// A token as it is.
    Bearer(String),
}

/// The credential for a repository: of the first file that has one.
pub fn find(files: &[CredentialFile], registry: &str, repository: &str) -> Result<Option<Credential>> {
    for CredentialFile(path) in files {
        let cannot_read = || format!("cannot read the credentials in `{}`", path.display());
        let mut text = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => file.take(MAX_FILE_BYTES).read_to_end(&mut text).context(cannot_read)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(cannot_read),
        };
        let config: Value =
            serde_json::from_slice(&text).map_err(|error| Diagnostic::error(cannot_read()).caused_by(error))?;
        if let Some(credential) = of_config(&config, registry, repository)? {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

fn of_config(config: &Value, registry: &str, repository: &str) -> Result<Option<Credential>> {
    let server = server(registry);
    let helper = config.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
        helpers.iter().find(|(key, _)| is_registry(key, registry)).and_then(|(_, helper)| helper.as_str())
    });
    if let Some(helper) = helper {
        return ask(helper, &server);
    }
    if let Some(helper) = config.get("credsStore").and_then(Value::as_str).filter(|helper| !helper.is_empty())
        && let Some(credential) = ask(helper, &server)?
    {
        return Ok(Some(credential));
    }
    let Some(entries) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
    // Podman has credentials for a part of a registry: the longest that fits counts.
    let full = format!("{registry}/{repository}");
    let fits = |key: &str| full == key || full.strip_prefix(key).is_some_and(|rest| rest.starts_with('/'));
    let best = entries
        .iter()
        .filter(|(key, _)| is_registry(key, registry) || fits(key))
        .filter_map(|(key, entry)| Some((key.len(), credential(entry)?)));
    Ok(best.max_by_key(|(length, _)| *length).map(|(_, credential)| credential))
}

/// An entry of `auths`.
fn credential(entry: &Value) -> Option<Credential> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("registrytoken") {
        return Some(Credential::Bearer(token.to_owned()));
    }
    if let Some(token) = text("identitytoken") {
        return Some(Credential::Refresh(token.to_owned()));
    }
    if let Some(auth) = text("auth") {
        let decoded = String::from_utf8(decode_base64(auth)?).ok()?;
        // Docker pads the password with zeros.
        let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
        return Some(Credential::Password { user: user.to_owned(), password: password.to_owned() });
    }
    let (user, password) = (text("username")?, text("password")?);
    Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
}

/// Runs `docker-credential-<helper> get`.
fn ask(helper: &str, server: &str) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{helper}");
    let wrong = |why: &str| {
        Diagnostic::error(format!("`{program}` does not give the credentials of `{server}`")).caused_by(why)
    };
    if !helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(wrong("its name is not one of a program"));
    }
    let spawned =
        Command::new(&program).arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|error| wrong(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not listen says why, or nothing.
        let _ = writeln!(stdin, "{server}");
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).context(|| format!("cannot read from `{program}`"))?;
    }
    let status = child.wait().context(|| format!("cannot wait for `{program}`"))?;
    if !status.success() {
        // The protocol's own words, on standard output.
        let text = String::from_utf8_lossy(&answer);
        return match text.contains("credentials not found") {
            true => Ok(None),
            false => Err(wrong(text.lines().next().unwrap_or("it failed"))),
        };
    }
    let value: Value = serde_json::from_slice(&answer).map_err(|_| wrong("its answer is no JSON"))?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(match (text("Username"), text("Secret")) {
        (_, secret) if secret.is_empty() => None,
        (user, secret) if user == "<token>" => Some(Credential::Refresh(secret)),
        (user, password) => Some(Credential::Password { user, password }),
    })
}

/// What docker calls the registry in its files; for the default one it is an old address.
fn server(registry: &str) -> String {
    match registry {
        "docker.io" => format!("https://index.{registry}/v1/"),
        other => other.to_owned(),
    }
}

/// Whether a key of a file means the whole registry: `host`, `https://host/v1/`.
fn is_registry(key: &str, registry: &str) -> bool {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    key == registry || registry == "docker.io" && matches!(key.strip_suffix(".docker.io"), Some("index" | "registry-1"))
}

pub fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number =
            group.iter().enumerate().fold(0_u32, |sum, (place, byte)| sum | u32::from(*byte) << (16 - 8 * place));
        for place in 0..4 {
            match place <= group.len() {
                true => text.push(DIGITS[(number >> (18 - 6 * place) & 63) as usize].into()),
                false => text.push('='),
            }
        }
    }
    text
}

pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str, repository: &str) -> Option<String> {
        let config = serde_json::from_str(config).unwrap();
        of_config(&config, registry, repository).unwrap().map(|credential| match credential {
            Credential::Password { user, password } => format!("{user}:{password}"),
            Credential::Refresh(token) => format!("refresh {token}"),
            Credential::Bearer(token) => format!("bearer {token}"),
        })
    }

    #[test]
    fn base64() {
        for text in ["", "a", "ab", "abc", "user:pass?>~"] {
            assert_eq!(decode_base64(&encode_base64(text.as_bytes())).unwrap(), text.as_bytes());
        }
        assert_eq!(encode_base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
        assert_eq!(decode_base64("a b"), None);
    }

    #[test]
    fn entries_are_found() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHVi OnB3"},
            "a.test": {"auth": "dTpw"},
            "a.test/team": {"auth": "dDpw"},
            "b.test:5000": {"identitytoken": "abc"},
            "c.test": {"registrytoken": "abc"},
            "d.test": {"username": "u", "password": "p:q"}}}"#
            .replace("aHVi OnB3", "aHViOnB3");
        for (registry, repository, expected) in [
            ("docker.io", "library/x", Some("hub:pw")),
            ("a.test", "x", Some("u:p")),
            ("a.test", "team/x", Some("t:p")),
            ("a.test", "teams/x", Some("u:p")),
            ("b.test:5000", "x", Some("refresh abc")),
            ("b.test", "x", None),
            ("c.test", "x", Some("bearer abc")),
            ("d.test", "x", Some("u:p:q")),
            ("x.a.test", "x", None),
        ] {
            assert_eq!(found(&config, registry, repository).as_deref(), expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn a_helper_is_a_program() {
        let config: Value = serde_json::from_str(r#"{"credsStore": "../../bin/sh"}"#).unwrap();
        assert!(of_config(&config, "a.test", "x").is_err());
    }
}
