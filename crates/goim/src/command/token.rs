//! `goim token`: a signed token for testing, as the backend would issue it.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};

use goim_settings::parse_duration;

use super::{Failure, print};
use crate::environment;

/// The minimum length of a secret, as on the server.
const SECRET_BYTES_MIN: usize = 32;

/// Exit status: 0 printed, 64 wrong arguments.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The member
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    mid: i64,
    /// The only key that the session may use
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// A room that the session joins at login; may be given many times
    #[arg(long, value_name = "TYPE://ROOM")]
    room: Vec<String>,
    /// Rooms that it may join: a name, or a prefix with *; may be given many times
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// Audience of the token (aud)
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,
    /// Issuer of the token (iss)
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,
    /// Lifetime of the token: 90s, 1h, 30m
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    expires: String,
    /// A further claim, its value in JSON; may be given many times
    #[arg(long, value_name = "NAME=JSON")]
    claim: Vec<String>,
    /// The secret for HS256: one of logic.identity.jwt.secrets
    #[arg(
        long,
        env = environment::TOKEN_SECRET,
        hide_env_values = true,
        conflicts_with = "private_key",
        value_name = "TEXT"
    )]
    secret: Option<String>,
    /// A private key in PEM: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA), PKCS #8
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
    /// Id of the key (kid)
    #[arg(long, value_name = "TEXT")]
    kid: Option<String>,
    /// Print the whole body of the auth packet instead of the token alone
    #[arg(long)]
    body: bool,
}

const AFTER_HELP: &str = "\
Examples:
  export GOIM_TOKEN_SECRET=$(openssl rand -hex 32)
  GOIM_LOGIC_IDENTITY_JWT_SECRETS=$GOIM_TOKEN_SECRET goim serve --set logic.identity.method=jwt
  goim connect --token \"$(goim token --mid 17 --room live://1000 --body)\"
  goim token --mid 17 --private-key key.pem --kid 2026-11 --audience chat --expires 10m";

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (algorithm, key) = key(arguments)?;
    let header = Header { kid: arguments.kid.clone(), ..Header::new(algorithm) };
    let claims = claims(arguments)?;
    let token = jsonwebtoken::encode(&header, &claims, &key)
        .map_err(|error| Failure::usage(format!("cannot sign: {error}")))?;
    let line = if arguments.body {
        json!({ "token": token, "protover": 1, "accepts": [1000] }).to_string()
    } else {
        token
    };
    print(&format!("{line}\n"))
}

fn key(arguments: &Arguments) -> Result<(Algorithm, EncodingKey), Failure> {
    match (&arguments.secret, &arguments.private_key) {
        (Some(secret), None) if secret.len() >= SECRET_BYTES_MIN => {
            Ok((Algorithm::HS256, EncodingKey::from_secret(secret.as_bytes())))
        }
        (Some(_), None) => {
            Err(Failure::usage("the secret must have at least 32 bytes, as the server requires"))
        }
        (None, Some(path)) => read_key(path),
        _ => {
            Err(Failure::usage("name a secret (--secret, or better GOIM_TOKEN_SECRET) or --private-key FILE"))
        }
    }
}

fn read_key(path: &Path) -> Result<(Algorithm, EncodingKey), Failure> {
    let pem = std::fs::read(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let readers: [(Algorithm, fn(&[u8]) -> _); 3] = [
        (Algorithm::RS256, EncodingKey::from_rsa_pem),
        (Algorithm::ES256, EncodingKey::from_ec_pem),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem),
    ];
    let found = readers.into_iter().find_map(|(algorithm, read)| Some((algorithm, read(&pem).ok()?)));
    found.ok_or_else(|| {
        Failure::usage(format!(
            "{} is not a private key of RSA, P-256 or Ed25519 in PEM (PKCS #8)",
            path.display()
        ))
    })
}

fn claims(arguments: &Arguments) -> Result<Map<String, Value>, Failure> {
    let lifetime = parse_duration(&arguments.expires).ok_or_else(|| {
        Failure::usage(format!("--expires {}: must be a duration such as 10m or 1h", arguments.expires))
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut claims = Map::new();
    claims.insert("mid".to_owned(), arguments.mid.into());
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), (now + lifetime).as_secs().into());
    for (name, text) in [("key", &arguments.key), ("aud", &arguments.audience), ("iss", &arguments.issuer)] {
        if let Some(text) = text {
            claims.insert(name.to_owned(), text.as_str().into());
        }
    }
    for (name, list) in [("rooms", &arguments.room), ("rooms_allowed", &arguments.allow)] {
        if !list.is_empty() {
            claims.insert(name.to_owned(), list.clone().into());
        }
    }
    for claim in &arguments.claim {
        let wrong = || {
            Failure::usage(format!(
                "--claim {claim}: must be NAME=JSON, for example role=\\\"admin\\\" or level=3"
            ))
        };
        let (name, value) = claim.split_once('=').ok_or_else(wrong)?;
        claims.insert(name.to_owned(), serde_json::from_str(value).map_err(|_| wrong())?);
    }
    Ok(claims)
}
