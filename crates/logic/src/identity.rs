//! Who somebody is who presents a token.
//!
//! The body of the auth packet is goim's JSON object ([`token`]). Whether the client is believed depends on the method: `open`, as
//! goim, believes it; `jwt` believes what somebody has signed whose key is known; `webhook` asks the backend. The last two
//! find out a [`Grant`], and what the client says of itself must agree with it.

mod grant;
mod json;
mod jwks;
mod jwt;
mod key;
mod token;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Accepted, AuthFailure, Call, ConnectError, ConnectRequest, HttpClient, Mid, RefreshRequest, Refreshed,
    RoomId, SessionKey, SyncOptions, Version,
};

use crate::config::{IdentityConfig, IdentityMethod};
use grant::Grant;
use token::Token;

pub use key::KeyError;

/// What somebody presents, with the facts that may matter to who decides.
#[derive(Clone)]
struct Presented {
    token: Token,
    remote: std::net::IpAddr,
    cookie: String,
    user_agent: String,
    server: String,
}

/// Somebody who decides about credentials.
trait Check: Send + Sync {
    /// What the credential grants, or why it grants nothing.
    fn check(&self, presented: Presented) -> Call<Result<Grant, ConnectError>>;

    /// Why it can judge nobody yet, if it cannot. By default it can.
    fn trouble(&self) -> Option<&'static str> {
        None
    }

    /// Gets what it needs before it can judge anybody; true when it has it.
    fn prepare(&self) -> Call<bool> {
        Call::Ready(true)
    }
}

/// Decides whether somebody gets a session, and whose.
pub(crate) struct Identity {
    /// `None` believes the client.
    check: Option<Box<dyn Check>>,
    /// With a check: clients may name their sessions as they like.
    allow_client_keys: bool,
    terms: Terms,
}

/// What all sessions have in common.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// A session ends after this much time without a heartbeat.
    heartbeat: Duration,
    /// The highest packet version that this server sends.
    protover_max: Version,
}

impl Terms {
    /// The packet version for a client that reads versions up to `offered`. 0 and 1 mean the same, so that 1 is the least.
    fn agree(self, offered: i64) -> Version {
        let agreed = offered.clamp(Version::GOIM.0.into(), self.protover_max.0.max(Version::GOIM.0).into());
        Version(i16::try_from(agreed).unwrap_or(Version::GOIM.0))
    }
}

impl Identity {
    /// # Errors
    /// [`KeyError`] when a key cannot be read.
    pub(crate) fn new(
        config: &IdentityConfig,
        heartbeat: Duration,
        protover_max: Version,
        http: &Arc<dyn HttpClient>,
    ) -> Result<Self, KeyError> {
        let check: Option<Box<dyn Check>> = match config.method {
            IdentityMethod::Open => None,
            IdentityMethod::Jwt => Some(Box::new(jwt::Jwt::new(config.jwt.clone(), http)?)),
            IdentityMethod::Webhook => Some(Box::new(webhook::Webhook::new(config.webhook.clone(), http))),
        };
        Ok(Self {
            check,
            allow_client_keys: config.allow_client_keys,
            terms: Terms { heartbeat, protover_max },
        })
    }

    /// Why no token can be judged yet, if none can.
    pub(crate) fn trouble(&self) -> Option<&'static str> {
        self.check.as_ref()?.trouble()
    }

    /// Gets what is needed before a token can be judged; true when it is there.
    pub(crate) fn prepare(&self) -> Call<bool> {
        self.check.as_ref().map_or(Call::Ready(true), |check| check.prepare())
    }

    /// The session that the token stands for and the platform that the client names, or why there is none.
    pub(crate) fn identify(
        &self,
        request: &ConnectRequest,
    ) -> Call<Result<(Accepted, String), ConnectError>> {
        let token = match read(&request.token) {
            Ok(token) => token,
            Err(error) => return Call::Ready(Err(error)),
        };
        let negotiated = token.protover.is_some();
        let platform = token.platform.clone();
        let Some(check) = &self.check else {
            let accepted = self.accept(token).map(|accepted| (accepted, platform));
            return Call::Ready(accepted.map_err(|error| ConnectError { negotiated, ..error }));
        };
        let presented = Presented {
            token: token.clone(),
            remote: request.remote,
            cookie: request.cookie.clone(),
            user_agent: request.user_agent.clone(),
            server: request.server.to_string(),
        };
        let (allow_client_keys, terms) = (self.allow_client_keys, self.terms);
        check.check(presented).map(move |grant| {
            let accepted = grant.and_then(|grant| grant.accept(token, allow_client_keys, terms));
            accepted
                .map(|accepted| (accepted, platform))
                .map_err(|error| ConnectError { negotiated, ..error })
        })
    }

    /// What a new token changes of a session.
    pub(crate) fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        let RefreshRequest { session, token, remote } = request;
        let token = match read(&token) {
            Ok(token) => token,
            Err(error) => return Call::Ready(Err(error)),
        };
        let Some(check) = &self.check else {
            return Call::Ready(Ok(Refreshed { scope: None, expires_at: None }));
        };
        let (cookie, user_agent) = (String::new(), String::new());
        let presented = Presented { token, remote, cookie, user_agent, server: session.server.to_string() };
        check.check(presented).map(move |grant| grant?.refresh(session.mid, &session.key))
    }

    /// goim's way: the client is who it says.
    fn accept(&self, token: Token) -> Result<Accepted, ConnectError> {
        let key = if token.key.is_empty() { random_key()? } else { SessionKey::from(token.key) };
        let negotiated = token.protover.is_some();
        let rooms = if negotiated { token.rooms } else { Vec::new() };
        check_names(&rooms)?;
        let rooms = rooms.into_iter().map(RoomId::from).collect();
        Ok(Accepted {
            mid: Mid(token.mid),
            key,
            room: (!token.room_id.is_empty()).then(|| RoomId::from(token.room_id)),
            rooms,
            scope: None,
            expires_at: None,
            accepts: token.accepts,
            heartbeat: self.terms.heartbeat,
            protover: token.protover.map(|offered| self.terms.agree(offered)),
            syncing: token
                .positions
                .filter(|_| negotiated)
                .map(|positions| SyncOptions { resume: positions, notify_only: token.notify_only }),
        })
    }
}

/// No list of rooms has one without a name; goim's `room_id` is another matter: empty, it says that there is none.
fn check_names<'a>(rooms: impl IntoIterator<Item = &'a String>) -> Result<(), ConnectError> {
    if rooms.into_iter().any(String::is_empty) {
        return Err(ConnectError::because(AuthFailure::RoomNotAllowed, "a room in a list has no name"));
    }
    Ok(())
}

/// The reason names the place and never quotes the token.
fn read(token: &[u8]) -> Result<Token, ConnectError> {
    Token::parse(token).map_err(|error| ConnectError::refused(error.to_string()))
}

/// A random UUID (version 4) in lower case, as goim draws it for clients that bring no key.
fn random_key() -> Result<SessionKey, ConnectError> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| ConnectError::unavailable(format!("no random numbers: {error}")))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{dash}{byte:02x}");
    }
    Ok(SessionKey::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::Operation;

    fn accept(token: &str) -> Result<Accepted, ConnectError> {
        let terms = Terms { heartbeat: Duration::from_secs(480), protover_max: Version(3) };
        let open = Identity { check: None, allow_client_keys: false, terms };
        open.accept(read(token.as_bytes())?)
    }

    #[test]
    fn row_1_the_example_of_goim() {
        let token = r#"{"mid":123,"room_id":"live://1000","platform":"web","accepts":[1000,1001,1002]}"#;
        let accepted = accept(token).unwrap();
        assert_eq!(accepted.mid, Mid(123));
        assert_eq!(accepted.room, Some(RoomId::from("live://1000")));
        assert_eq!(accepted.accepts, [1000, 1001, 1002].map(Operation));
        assert_eq!(accepted.heartbeat, Duration::from_secs(480));
        assert_eq!(accepted.protover, None);
    }

    #[test]
    fn row_6_nobody_in_particular_gets_a_random_key() {
        for token in ["null", "{}", r#"{"key":null}"#, r#"{"key":""}"#] {
            let accepted = accept(token).unwrap();
            assert_eq!((accepted.mid, accepted.room, accepted.accepts), (Mid(0), None, vec![]), "{token}");
            let key = accepted.key.as_str();
            assert_eq!(key.len(), 36, "{key}");
            assert_eq!(key.to_lowercase(), key);
            assert_eq!(key.as_bytes()[14], b'4', "{key}");
            assert!(b"89ab".contains(&key.as_bytes()[19]), "{key}");
            assert_ne!(accept(token).unwrap().key, accepted.key);
        }
    }

    #[test]
    fn protover_makes_an_extended_client() {
        for (offered, agreed) in [("0", 1), ("1", 1), ("2", 2), ("3", 3), ("4", 3), ("70000", 3), ("-3", 1)] {
            let accepted = accept(&format!(r#"{{"protover":{offered}}}"#)).unwrap();
            assert_eq!(accepted.protover, Some(Version(agreed)), "{offered}");
        }
        assert_eq!(accept(r#"{"protover":null}"#).unwrap().protover, None);
        assert_eq!(accept(r#"{"protover":"2"}"#).unwrap_err().reason, AuthFailure::AuthRefused);
    }

    #[test]
    fn rooms_are_for_extended_clients() {
        let rooms = |token: &str| accept(token).unwrap().rooms;
        assert_eq!(
            rooms(r#"{"protover":1,"rooms":["a://1","b://2"]}"#),
            ["a://1", "b://2"].map(RoomId::from)
        );
        let error = accept(r#"{"protover":1,"rooms":["a://1",""]}"#).unwrap_err();
        assert_eq!(error.reason, AuthFailure::RoomNotAllowed, "a room without a name");
        // What goim skips is skipped.
        assert_eq!(rooms(r#"{"rooms":[""]}"#), []);
        assert_eq!(rooms(r#"{"rooms":["a://1"]}"#), []);
        assert_eq!(rooms(r#"{"rooms":7,"token":{"a":[]},"positions":"x"}"#), []);
    }

    #[test]
    fn a_refusal_does_not_quote_the_token() {
        let error = accept(r#"{"key":"secret","mid":"secret"}"#).unwrap_err();
        assert_eq!(error.reason, AuthFailure::AuthRefused);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
