//! Signed tokens: RFC 7519 with HS256, RS256, ES256 and EdDSA.
//!
//! A token's header names an algorithm and perhaps a key. Both only select among the known keys,
//! and each key has one algorithm: a public key is never used for HMAC, and `none` selects no key.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use goim_ports::{AuthFailure, Call, ConnectError, HttpClient};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::authenticator::{Authenticator, Credentials};
use super::grant::Grant;
use super::jwks::Jwks;
use super::key::{KeyError, VerificationKey};
use crate::config::JwtConfig;

/// The maximum number of keys tried for one token: more than a rotation needs, and a bound on the
/// cost of a token without a key id.
const TRIES_MAX: usize = 8;

/// The authenticator of the method `jwt`.
pub(super) struct JwtAuthenticator {
    inner: Arc<JwtVerifier>,
}

struct JwtVerifier {
    config: JwtConfig,
    keys: Vec<VerificationKey>,
    jwks: Option<Jwks>,
}

/// The header of a token.
#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that a reader must understand. None is supported.
    #[serde(default)]
    crit: Option<Value>,
}

impl JwtAuthenticator {
    pub(super) fn new(config: JwtConfig, http: &Arc<dyn HttpClient>) -> Result<Self, KeyError> {
        let mut keys: Vec<VerificationKey> = config.secrets.iter().map(VerificationKey::secret).collect();
        for path in &config.public_keys {
            keys.push(VerificationKey::read(path)?);
        }
        let jwks = config.jwks_url.clone();
        let jwks = jwks.map(|url| {
            Jwks::new(url, config.jwks_refresh_interval, config.jwks_retry_pause, Arc::clone(http))
        });
        Ok(Self { inner: Arc::new(JwtVerifier { config, keys, jwks }) })
    }
}

impl Authenticator for JwtAuthenticator {
    fn authenticate(&self, credentials: Credentials) -> Call<Result<Grant, ConnectError>> {
        let token = credentials.token.token;
        let header = match read_header(&token) {
            Ok(header) => header,
            Err(error) => return Call::Ready(Err(error)),
        };
        // HMAC is cheap enough for a comet thread, the others are not.
        if header.0 == Algorithm::HS256 {
            return Call::Ready(self.inner.verify(&token, &self.inner.candidates(&header, &[])));
        }
        let inner = Arc::clone(&self.inner);
        Call::pending(async move { inner.verify_with_jwks(&token, &header).await })
    }

    fn not_ready(&self) -> Option<&'static str> {
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

/// Parses the algorithm of a token and the id of its key.
fn read_header(token: &str) -> Result<(Algorithm, Option<String>), ConnectError> {
    if token.is_empty() {
        return Err(ConnectError::refused("the token is missing"));
    }
    let malformed = || ConnectError::refused("the token is not a JSON Web Token");
    let first = token.split('.').next().unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(first).map_err(|_| malformed())?;
    let header: JwtHeader = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
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
                "the token's algorithm is not supported",
            ));
        }
    };
    Ok((algorithm, header.kid))
}

impl JwtVerifier {
    /// The keys that may have signed a token with this header.
    fn candidates<'a>(
        &'a self,
        header: &(Algorithm, Option<String>),
        fetched: &'a [VerificationKey],
    ) -> Vec<&'a VerificationKey> {
        let (algorithm, name) = header;
        let may = |key: &&VerificationKey| {
            // A key without an id matches any token; a token without one matches any key.
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
            // The key may be newer than the key set, and it is too early to fetch the set again.
            return Err(ConnectError::unavailable("the token's key is not known yet"));
        }
        self.verify(token, &candidates)
    }

    fn verify(&self, token: &str, candidates: &[&VerificationKey]) -> Result<Grant, ConnectError> {
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
        // `exp` may have a fraction. It is rounded down.
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
        ErrorKind::ExpiredSignature => (AuthFailure::TokenExpired, "the token has expired"),
        ErrorKind::ImmatureSignature => (AuthFailure::TokenNotYetValid, "the token is not valid yet"),
        ErrorKind::InvalidAudience => (AuthFailure::TokenAudience, "the token has another audience"),
        ErrorKind::InvalidIssuer => (AuthFailure::TokenAudience, "the token has another issuer"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" || claim == "iss" => {
            (AuthFailure::TokenAudience, "the token has no audience or no issuer")
        }
        ErrorKind::MissingRequiredClaim(_) => (AuthFailure::AuthRefused, "the token has no expiry (exp)"),
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            (AuthFailure::TokenSignature, "the token's signature is wrong")
        }
        _ => (AuthFailure::AuthRefused, "the token is not a JSON Web Token"),
    };
    ConnectError::because(reason, detail)
}
