//! Signed tokens: RFC 7519 with HS256, RS256, ES256 and EdDSA.
//!
//! The header of a token names an algorithm and perhaps a key; both only choose among the keys that are known, each of which has one
//! algorithm. So a public key can never check an HMAC, and `none` finds no key.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use goim_ports::{AuthFailure, Call, ConnectError, HttpClient};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::grant::Grant;
use super::jwks::Jwks;
use super::key::{Key, KeyError};
use super::{Check, Presented};
use crate::config::JwtConfig;

/// Keys that one token is tried with. More than a rotation needs; bounds what a token without a name of a key costs.
const TRIES_MAX: usize = 8;

/// Checks signed tokens.
pub(super) struct Jwt {
    inner: Arc<Inner>,
}

struct Inner {
    config: JwtConfig,
    keys: Vec<Key>,
    jwks: Option<Jwks>,
}

/// What the header of a token says.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that a reader must know. There are none.
    #[serde(default)]
    crit: Option<Value>,
}

impl Jwt {
    pub(super) fn new(config: JwtConfig, http: &Arc<dyn HttpClient>) -> Result<Self, KeyError> {
        let mut keys: Vec<Key> = config.secrets.iter().map(Key::secret).collect();
        for path in &config.public_keys {
            keys.push(Key::read(path)?);
        }
        let jwks = config.jwks_url.clone();
        let jwks = jwks.map(|url| {
            Jwks::new(url, config.jwks_refresh_interval, config.jwks_retry_pause, Arc::clone(http))
        });
        Ok(Self { inner: Arc::new(Inner { config, keys, jwks }) })
    }
}

impl Check for Jwt {
    fn check(&self, presented: Presented) -> Call<Result<Grant, ConnectError>> {
        let token = presented.token.token;
        let header = match read_header(&token) {
            Ok(header) => header,
            Err(error) => return Call::Ready(Err(error)),
        };
        // Cheap enough for the thread that holds the connections; the others are not.
        if header.0 == Algorithm::HS256 {
            return Call::Ready(self.inner.verify(&token, &self.inner.candidates(&header, &[])));
        }
        let inner = Arc::clone(&self.inner);
        Call::pending(async move { inner.verify_with_jwks(&token, &header).await })
    }

    fn trouble(&self) -> Option<&'static str> {
        let is_missing = self.inner.jwks.as_ref().is_some_and(Jwks::are_missing);
        is_missing.then_some("the keys for tokens (jwt.jwks_url) could not be fetched yet")
    }

    fn prepare(&self) -> Call<bool> {
        let inner = Arc::clone(&self.inner);
        Call::pending(async move {
            match &inner.jwks {
                Some(jwks) if jwks.are_missing() => jwks.fetch().await && !jwks.are_missing(),
                Some(_) | None => true,
            }
        })
    }
}

/// The algorithm of a token and the name of its key.
fn read_header(token: &str) -> Result<(Algorithm, Option<String>), ConnectError> {
    if token.is_empty() {
        return Err(ConnectError::refused("there is no token"));
    }
    let malformed = || ConnectError::refused("the token is no JSON Web Token");
    let first = token.split('.').next().unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(first).map_err(|_| malformed())?;
    let header: Header = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
    if header.crit.is_some() {
        return Err(ConnectError::refused("the token needs extensions that are not known"));
    }
    let algorithm = match header.alg.as_str() {
        "HS256" => Algorithm::HS256,
        "RS256" => Algorithm::RS256,
        "ES256" => Algorithm::ES256,
        "EdDSA" => Algorithm::EdDSA,
        _ => {
            return Err(ConnectError::because(
                AuthFailure::TokenSignature,
                "the token's algorithm is not taken",
            ));
        }
    };
    Ok((algorithm, header.kid))
}

impl Inner {
    /// The keys that may have signed a token with this header.
    fn candidates<'a>(&'a self, header: &(Algorithm, Option<String>), fetched: &'a [Key]) -> Vec<&'a Key> {
        let (algorithm, name) = header;
        let may = |key: &&Key| {
            // A key without a name may be any; a token without one too.
            let same_name = key.id.is_none() || name.is_none() || key.id == *name;
            key.algorithm == *algorithm && same_name
        };
        self.keys.iter().chain(fetched).filter(may).take(TRIES_MAX).collect()
    }

    async fn verify_with_jwks(
        self: Arc<Self>,
        token: &str,
        header: &(Algorithm, Option<String>),
    ) -> Result<Grant, ConnectError> {
        let Some(jwks) = &self.jwks else {
            return self.verify(token, &self.candidates(header, &[]));
        };
        if jwks.are_due() {
            let inner = Arc::clone(&self);
            tokio::spawn(async move {
                if let Some(jwks) = &inner.jwks {
                    jwks.fetch().await;
                }
            });
        }
        let keys = jwks.keys();
        let candidates = self.candidates(header, &keys);
        if !candidates.is_empty() {
            return self.verify(token, &candidates);
        }
        let was_fetched = jwks.fetch().await;
        if jwks.are_missing() {
            return Err(ConnectError::unavailable("the keys for tokens cannot be fetched"));
        }
        let keys = jwks.keys();
        let candidates = self.candidates(header, &keys);
        if candidates.is_empty() && !was_fetched {
            // It may be newer than the keys that are there, and it is too soon to ask for them again.
            return Err(ConnectError::unavailable("the token's key is not known yet"));
        }
        self.verify(token, &candidates)
    }

    fn verify(&self, token: &str, candidates: &[&Key]) -> Result<Grant, ConnectError> {
        let mut refusal = ConnectError::because(
            AuthFailure::TokenSignature,
            "no key is known that could have signed the token",
        );
        for key in candidates {
            let validation = self.validation(key.algorithm);
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation) {
                Ok(decoded) => return self.grant(decoded.claims),
                Err(error) => {
                    refusal = refusal_of(error.kind());
                    if refusal.reason != AuthFailure::TokenSignature {
                        return Err(refusal);
                    }
                }
            }
        }
        Err(refusal)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let JwtConfig { audience, issuer, allow_no_exp, leeway, .. } = &self.config;
        let mut validation = Validation::new(algorithm);
        validation.leeway = leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = Vec::new();
        if !allow_no_exp {
            required.push("exp");
        }
        validation.validate_aud = !audience.is_empty();
        if !audience.is_empty() {
            validation.set_audience(audience);
            required.push("aud");
        }
        if !issuer.is_empty() {
            validation.set_issuer(issuer);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn grant(&self, mut claims: Map<String, Value>) -> Result<Grant, ConnectError> {
        let no_mid = || ConnectError::refused("the token has no claim with the member's number");
        let mid = claims.remove(&self.config.mid_claim).ok_or_else(no_mid)?;
        claims.insert("mid".to_owned(), mid);
        // The end of a token may have a fraction; what is left of its last second does not count.
        let end =
            claims.remove("exp").and_then(|end| end.as_u64().or_else(|| end.as_f64().map(|end| end as u64)));
        let end = end.map(|end| end.saturating_add(self.config.leeway.as_secs()));
        claims.insert("expires_at".to_owned(), end.map_or(Value::Null, Value::from));
        serde_json::from_value(Value::Object(claims))
            .map_err(|_| ConnectError::refused("the token's claims are of the wrong kinds"))
    }
}

fn refusal_of(kind: &ErrorKind) -> ConnectError {
    let (reason, detail) = match kind {
        ErrorKind::ExpiredSignature => (AuthFailure::TokenExpired, "the token has ended"),
        ErrorKind::ImmatureSignature => (AuthFailure::TokenNotYetValid, "the token begins later"),
        ErrorKind::InvalidAudience => (AuthFailure::TokenAudience, "the token is for somebody else"),
        ErrorKind::InvalidIssuer => (AuthFailure::TokenAudience, "the token is from somebody else"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" || claim == "iss" => {
            (AuthFailure::TokenAudience, "the token does not say whom it is for or from")
        }
        ErrorKind::MissingRequiredClaim(_) => (AuthFailure::AuthRefused, "the token has no end (exp)"),
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            (AuthFailure::TokenSignature, "the token's signature is wrong")
        }
        _ => (AuthFailure::AuthRefused, "the token is no JSON Web Token"),
    };
    ConnectError::because(reason, detail)
}
