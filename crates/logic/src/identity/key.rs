//! Keys that verify signatures. Each has one algorithm, which is derived from the key and never
//! from a token.

use std::path::{Path, PathBuf};

use goim_ports::Secret;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

/// The minimum length of an RSA modulus in characters of base64url: 2048 bits.
const RSA_MODULUS_CHARACTERS_MIN: usize = 342;

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("logic.identity.jwt.public_keys: {}: {reason}", .path.display())]
pub struct KeyError {
    /// The file.
    path: PathBuf,
    /// What is wrong, and what would be right.
    reason: String,
}

/// One key.
#[derive(Clone)]
pub(super) struct VerificationKey {
    /// The key id that tokens name, if any.
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

impl VerificationKey {
    pub(super) fn secret(secret: &Secret) -> Self {
        let decoding = DecodingKey::from_secret(secret.reveal().as_bytes());
        Self { id: None, algorithm: Algorithm::HS256, decoding }
    }

    /// Reads a public key in PEM.
    ///
    /// # Errors
    /// [`KeyError`] when the file cannot be read or is not a supported public key.
    pub(super) fn read(path: &Path) -> Result<Self, KeyError> {
        let error = |reason: String| KeyError { path: path.to_owned(), reason };
        let pem = std::fs::read(path).map_err(|failure| error(failure.to_string()))?;
        if pem.windows(11).any(|part| part == b"PRIVATE KEY") {
            return Err(error("holds a private key; give the public one".to_owned()));
        }
        let readers: [(Algorithm, fn(&[u8]) -> _); 3] = [
            (Algorithm::RS256, DecodingKey::from_rsa_pem),
            (Algorithm::ES256, DecodingKey::from_ec_pem),
            (Algorithm::EdDSA, DecodingKey::from_ed_pem),
        ];
        for (algorithm, read) in readers {
            if let Ok(decoding) = read(&pem) {
                return Ok(Self { id: None, algorithm, decoding });
            }
        }
        Err(error("is not a public key of RSA, P-256 or Ed25519 in PEM".to_owned()))
    }

    /// Reads a public key of a key set. `None` for a key that is not supported. A shared secret is
    /// not: the set is public.
    pub(super) fn of_set(jwk: &Jwk) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if rsa.n.len() >= RSA_MODULUS_CHARACTERS_MIN => {
                (Algorithm::RS256, KeyAlgorithm::RS256)
            }
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        if jwk.common.key_algorithm.is_some_and(|other| other != named) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        Some(Self { id: jwk.common.key_id.clone(), algorithm, decoding })
    }
}
