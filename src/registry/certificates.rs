//! Whom we trust to say who a server is, and who we are to it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};

use super::Options;

const MAX_FILE_BYTES: u64 = 4 << 20;

/// Where distributions keep the certificates they trust.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The file the user named, else the system's, else Mozilla's as this program was built with.
pub(super) fn usual(options: &Options) -> TlsConfig {
    let roots = trusted(options.certificates.as_deref());
    TlsConfig::builder().root_certs(roots.map_or(RootCerts::WebPki, RootCerts::from)).build()
}

/// Those of a host's own directory, as docker and podman have them: `*.crt` are trusted besides the usual
/// ones, `NAME.cert` with `NAME.key` is who we are.
pub(super) fn of_host(directory: &Path, named: Option<&Path>) -> Result<TlsConfig, String> {
    let cannot_read = |path: &Path, why: &str| format!("cannot read `{}`: {why}", path.display());
    let entries = std::fs::read_dir(directory).map_err(|error| cannot_read(directory, &error.to_string()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let (mut roots, mut client) = (trusted(named).unwrap_or_default(), None);
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => match certificates(path) {
                Some(found) => roots.extend(found),
                None => return Err(cannot_read(path, "it holds no certificate")),
            },
            Some("cert") if client.is_none() => {
                let key = path.with_extension("key");
                let chain = certificates(path).ok_or_else(|| cannot_read(path, "it holds no certificate"))?;
                let key = private_key(&key).ok_or_else(|| cannot_read(&key, "it holds no private key"))?;
                client = Some(ClientCert::new_with_certs(&chain, key));
            }
            _ => {}
        }
    }
    let roots = if roots.is_empty() { RootCerts::WebPki } else { RootCerts::from(roots) };
    Ok(TlsConfig::builder().root_certs(roots).client_cert(client).build())
}

fn trusted(named: Option<&Path>) -> Option<Vec<Certificate<'static>>> {
    named.into_iter().chain(SYSTEM.map(Path::new)).find_map(certificates)
}

/// `None` where there are none to be read.
fn certificates(path: &Path) -> Option<Vec<Certificate<'static>>> {
    let found: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    (!found.is_empty()).then_some(found)
}

fn private_key(path: &Path) -> Option<PrivateKey<'static>> {
    items(path)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    })
}

fn items(path: &Path) -> Option<Vec<PemItem<'static>>> {
    let mut pem = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut pem).ok()?;
    Some(ureq::tls::parse_pem(&pem).flatten().collect())
}
