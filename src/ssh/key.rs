//! Private keys in files, and signing with them. `ring`, which TLS brings anyway, does the signing.
//!
//! | file begins with        | keys                                   |
//! |-------------------------|----------------------------------------|
//! | `OPENSSH PRIVATE KEY`   | ed25519, ECDSA P-256 and P-384, RSA    |
//! | `PRIVATE KEY`           | the same                               |
//! | `RSA PRIVATE KEY`       | RSA                                    |

use std::io::Read as _;
use std::path::Path;

use ring::rand::SystemRandom;
use ring::rsa::{self, KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding,
};

use super::wire::{Fields, put, put_number};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::registry::decode_base64;

const MAX_FILE_BYTES: u64 = 100 << 10;
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Flags of a request: which digest an RSA signature is made of.
const SHA256: u32 = 2;
const SHA512: u32 = 4;

/// A private key without a passphrase.
pub struct Key {
    /// The public key, as it is sent.
    pub public: Vec<u8>,
    pub comment: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa { pair: EcdsaKeyPair, curve: &'static Curve },
    Rsa(rsa::KeyPair),
}

struct Curve {
    name: &'static str,
    algorithm: &'static EcdsaSigningAlgorithm,
    number_bytes: usize,
}

static CURVES: [Curve; 2] = [
    Curve { name: "nistp256", algorithm: &ECDSA_P256_SHA256_FIXED_SIGNING, number_bytes: 32 },
    Curve { name: "nistp384", algorithm: &ECDSA_P384_SHA384_FIXED_SIGNING, number_bytes: 48 },
];

/// Why a file gives no key.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    NoKey,
    Damaged,
    Passphrase,
    /// Of a kind that only a real agent can use.
    Kind(String),
}

impl Key {
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let doing = || format!("cannot read the key `{shown}`");
        let mut text = Vec::new();
        let file = std::fs::File::open(path).context(doing)?;
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).context(doing)?;
        let comment = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self::parse(&text, comment).map_err(|fault| {
            let error = Diagnostic::error(doing());
            let agent =
                format!("give it to an agent with `ssh-add {shown}`, and that to the build with `--ssh default`");
            match fault {
                Fault::NoKey => error.caused_by("it is neither the socket of an agent nor a private key"),
                Fault::Damaged => error.caused_by("it is damaged"),
                Fault::Passphrase => error.caused_by("it has a passphrase").hint(agent),
                Fault::Kind(kind) => error.caused_by(format!("keys of the kind `{kind}` need an agent")).hint(agent),
            }
        })
    }

    fn parse(text: &[u8], comment: String) -> Result<Self, Fault> {
        let (label, bytes) = pem(text).ok_or(Fault::NoKey)?;
        let rejected = |_: ring::error::KeyRejected| Fault::Damaged;
        match label.as_str() {
            "OPENSSH PRIVATE KEY" => openssh(&bytes),
            "RSA PRIVATE KEY" => {
                if !bytes.starts_with(&[0x30]) {
                    return Err(Fault::Passphrase);
                }
                Ok(of_rsa(rsa::KeyPair::from_der(&bytes).map_err(rejected)?, comment))
            }
            "PRIVATE KEY" => pkcs8(&bytes, comment),
            "ENCRYPTED PRIVATE KEY" => Err(Fault::Passphrase),
            label => Err(match label.strip_suffix(" PRIVATE KEY") {
                Some(kind) => Fault::Kind(kind.to_owned()),
                None => Fault::NoKey,
            }),
        }
    }

    /// The signature as it is sent, its kind first; `None` where this key cannot make what is asked for.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut signature = Vec::new();
        match &self.pair {
            Pair::Ed25519(pair) => {
                put(&mut signature, b"ssh-ed25519");
                put(&mut signature, pair.sign(data).as_ref());
            }
            Pair::Ecdsa { pair, curve } => {
                let numbers = pair.sign(&random, data).ok()?;
                let (r, s) = numbers.as_ref().split_at_checked(curve.number_bytes)?;
                let mut both = Vec::new();
                put_number(&mut both, r);
                put_number(&mut both, s);
                put(&mut signature, format!("ecdsa-sha2-{}", curve.name).as_bytes());
                put(&mut signature, &both);
            }
            Pair::Rsa(pair) => {
                // Without a flag it would be SHA-1, which servers refuse by now.
                let (name, encoding): (&[u8], &dyn RsaEncoding) = match flags {
                    flags if flags & SHA512 != 0 => (b"rsa-sha2-512", &RSA_PKCS1_SHA512),
                    flags if flags & SHA256 != 0 => (b"rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut bytes = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, data, &mut bytes).ok()?;
                put(&mut signature, name);
                put(&mut signature, &bytes);
            }
        }
        Some(signature)
    }
}

/// The label and the content of the first block of a PEM file. An encrypted RSA block has headers before
/// its content, and gives none.
fn pem(text: &[u8]) -> Option<(String, Vec<u8>)> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    if body.contains(':') {
        return Some((label.to_owned(), Vec::new()));
    }
    let body: String = body.split_whitespace().collect();
    Some((label.to_owned(), decode_base64(&body)?))
}

fn openssh(bytes: &[u8]) -> Result<Key, Fault> {
    let mut fields = Fields(bytes.strip_prefix(MAGIC).ok_or(Fault::Damaged)?);
    let damaged = || Fault::Damaged;
    let cipher = fields.string().ok_or_else(damaged)?;
    let (_, _) = (fields.string().ok_or_else(damaged)?, fields.string().ok_or_else(damaged)?);
    if fields.number() != Some(1) {
        return Err(Fault::Damaged);
    }
    let public = fields.string().ok_or_else(damaged)?.to_vec();
    if cipher != b"none" {
        return Err(Fault::Passphrase);
    }
    let mut fields = Fields(fields.string().ok_or_else(damaged)?);
    // Twice the same number, so that who decrypts sees whether it worked.
    if fields.number().ok_or_else(damaged)? != fields.number().ok_or_else(damaged)? {
        return Err(Fault::Damaged);
    }
    let mut string = || fields.string().ok_or(Fault::Damaged);
    let kind = String::from_utf8_lossy(string()?).into_owned();
    let pair = match kind.as_str() {
        "ssh-ed25519" => {
            let (own, both) = (string()?, string()?);
            let seed = both.get(..32).ok_or(Fault::Damaged)?;
            Pair::Ed25519(Ed25519KeyPair::from_seed_and_public_key(seed, own).map_err(|_| Fault::Damaged)?)
        }
        "ssh-rsa" => {
            let (n, e, d, inverse, p, q) = (string()?, string()?, string()?, string()?, string()?, string()?);
            let [n, e, d, inverse, p, q] = [n, e, d, inverse, p, q].map(trimmed);
            let (d_p, d_q) = (remainder(d, &less_one(p)), remainder(d, &less_one(q)));
            let public_key = PublicKeyComponents { n, e };
            let components = KeyPairComponents { public_key, d, p, q, dP: &d_p, dQ: &d_q, qInv: inverse };
            Pair::Rsa(rsa::KeyPair::from_components(&components).map_err(|_| Fault::Damaged)?)
        }
        kind => {
            let of_kind = |curve: &&Curve| kind.strip_prefix("ecdsa-sha2-") == Some(curve.name);
            let curve = CURVES.iter().find(of_kind).ok_or_else(|| Fault::Kind(kind.to_owned()))?;
            let (_, point, number) = (string()?, string()?, trimmed(string()?));
            let missing = curve.number_bytes.checked_sub(number.len()).ok_or(Fault::Damaged)?;
            let number = [&vec![0; missing], number].concat();
            let pair =
                EcdsaKeyPair::from_private_key_and_public_key(curve.algorithm, &number, point, &SystemRandom::new());
            Pair::Ecdsa { pair: pair.map_err(|_| Fault::Damaged)?, curve }
        }
    };
    let comment = String::from_utf8_lossy(string()?).into_owned();
    Ok(Key { public, comment, pair })
}

fn pkcs8(bytes: &[u8], comment: String) -> Result<Key, Fault> {
    if let Ok(pair) = rsa::KeyPair::from_pkcs8(bytes) {
        return Ok(of_rsa(pair, comment));
    }
    let mut public = Vec::new();
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
        put(&mut public, b"ssh-ed25519");
        put(&mut public, pair.public_key().as_ref());
        return Ok(Key { public, comment, pair: Pair::Ed25519(pair) });
    }
    for curve in &CURVES {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.algorithm, bytes, &SystemRandom::new()) {
            put(&mut public, format!("ecdsa-sha2-{}", curve.name).as_bytes());
            put(&mut public, curve.name.as_bytes());
            put(&mut public, pair.public_key().as_ref());
            return Ok(Key { public, comment, pair: Pair::Ecdsa { pair, curve } });
        }
    }
    Err(Fault::Kind("PKCS#8".into()))
}

fn of_rsa(pair: rsa::KeyPair, comment: String) -> Key {
    let components = PublicKeyComponents::<Vec<u8>>::from(pair.public());
    let mut public = Vec::new();
    put(&mut public, b"ssh-rsa");
    put_number(&mut public, &components.e);
    put_number(&mut public, &components.n);
    Key { public, comment, pair: Pair::Rsa(pair) }
}

// ---- numbers, as big-endian bytes: OpenSSH leaves out what follows from the rest

fn trimmed(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..]
}

/// A number that is odd, less one.
fn less_one(number: &[u8]) -> Vec<u8> {
    let mut number = number.to_vec();
    if let Some(last) = number.last_mut() {
        *last &= 0xfe;
    }
    number
}

/// `number` modulo `modulus`, bit by bit: it is done once a key.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    let length = modulus.len() + 1;
    let modulus = [&[0], modulus].concat();
    let mut rest = vec![0_u8; length];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (byte, less) in rest.iter_mut().zip(&modulus).rev() {
                let (difference, first) = byte.overflowing_sub(*less);
                let (difference, second) = difference.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (difference, first || second);
            }
        }
    }
    trimmed(&rest).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders() {
        for (number, modulus, expected) in
            [(1000_u32, 7_u32, 6_u32), (6, 7, 6), (7, 7, 0), (0xffff_ffff, 0x1_0001, 0), (0xffff_fffe, 0xfffe, 0xfffe)]
        {
            let expected = if modulus == 0xfffe { number % modulus } else { expected };
            let got = remainder(&number.to_be_bytes(), trimmed(&modulus.to_be_bytes()));
            assert_eq!(got, trimmed(&expected.to_be_bytes()), "{number} % {modulus}");
        }
    }

    #[test]
    fn what_is_no_key_is_told() {
        let fault = |text: &str| Key::parse(text.as_bytes(), String::new()).err();
        assert_eq!(fault("hello"), Some(Fault::NoKey));
        assert_eq!(fault("-----BEGIN CERTIFICATE-----\naa==\n-----END CERTIFICATE-----"), Some(Fault::NoKey));
        assert_eq!(
            fault("-----BEGIN EC PRIVATE KEY-----\naa==\n-----END EC PRIVATE KEY-----"),
            Some(Fault::Kind("EC".into()))
        );
        assert_eq!(
            fault("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\naa==\n-----END RSA PRIVATE KEY-----"),
            Some(Fault::Passphrase)
        );
        assert_eq!(
            fault("-----BEGIN OPENSSH PRIVATE KEY-----\naGVsbG8=\n-----END OPENSSH PRIVATE KEY-----"),
            Some(Fault::Damaged)
        );
    }
}
