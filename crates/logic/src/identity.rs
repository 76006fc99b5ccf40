//! Authenticates clients by the token in their auth packet.
//!
//! The body of the auth packet is goim v2's JSON object ([`token`]). With the method `open`, as in
//! goim v2, its members are accepted as they are. `jwt` verifies a signed token, `webhook` asks the
//! backend; both produce a `Grant`, and what the client claims must agree with it.

mod authenticator;
mod grant;
mod json;
mod jwks;
mod jwt;
mod key;
mod session;
mod token;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, HttpClient, Mid, RefreshRequest, Refreshed, RoomId,
    SessionKey, SyncOptions, Version,
};

use crate::config::{IdentityConfig, IdentityMethod};
use authenticator::{Authenticator, Credentials};
use session::{SessionTerms, check_names, random_key};
use token::Token;

pub use key::KeyError;

/// Authenticates clients and assigns session keys.
pub(crate) struct Identity {
    /// `None` accepts what the client claims.
    authenticator: Option<Box<dyn Authenticator>>,
    /// With an authenticator: clients may choose their session keys.
    allow_client_keys: bool,
    terms: SessionTerms,
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
        let authenticator: Option<Box<dyn Authenticator>> = match config.method {
            IdentityMethod::Open => None,
            IdentityMethod::Jwt => Some(Box::new(jwt::JwtAuthenticator::new(config.jwt.clone(), http)?)),
            IdentityMethod::Webhook => {
                Some(Box::new(webhook::WebhookAuthenticator::new(config.webhook.clone(), http)))
            }
        };
        Ok(Self {
            authenticator,
            allow_client_keys: config.allow_client_keys,
            terms: SessionTerms { heartbeat, protover_max },
        })
    }

    /// Returns why no token can be checked yet, or `None` when it can.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        self.authenticator.as_ref()?.not_ready()
    }

    /// Fetches what checks need. Returns true when it is complete.
    pub(crate) fn prepare(&self) -> Call<bool> {
        self.authenticator.as_ref().map_or(Call::Ready(true), |authenticator| authenticator.prepare())
    }

    /// Returns the session for the token and the platform that the client names.
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
        let Some(authenticator) = &self.authenticator else {
            let accepted = self.accept(token).map(|accepted| (accepted, platform));
            return Call::Ready(accepted.map_err(|error| ConnectError { negotiated, ..error }));
        };
        let credentials = Credentials {
            token: token.clone(),
            remote: request.remote,
            cookie: request.cookie.clone(),
            user_agent: request.user_agent.clone(),
            server: request.server.to_string(),
        };
        let (allow_client_keys, terms) = (self.allow_client_keys, self.terms);
        authenticator.authenticate(credentials).map(move |grant| {
            let accepted = grant.and_then(|grant| grant.accept(token, allow_client_keys, terms));
            accepted
                .map(|accepted| (accepted, platform))
                .map_err(|error| ConnectError { negotiated, ..error })
        })
    }

    /// Returns what a new token changes of a session.
    pub(crate) fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        let RefreshRequest { session, token, remote } = request;
        let token = match read(&token) {
            Ok(token) => token,
            Err(error) => return Call::Ready(Err(error)),
        };
        let Some(authenticator) = &self.authenticator else {
            return Call::Ready(Ok(Refreshed { scope: None, expires_at: None }));
        };
        let (cookie, user_agent) = (String::new(), String::new());
        let credentials =
            Credentials { token, remote, cookie, user_agent, server: session.server.to_string() };
        authenticator.authenticate(credentials).map(move |grant| grant?.refresh(session.mid, &session.key))
    }

    /// Accepts what the client claims, as goim v2 does.
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
            protover: token.protover.map(|offered| self.terms.negotiate(offered)),
            syncing: token
                .positions
                .filter(|_| negotiated)
                .map(|positions| SyncOptions { resume: positions, notify_only: token.notify_only }),
        })
    }
}

/// Parses a token. Errors name the position and never quote the token.
fn read(token: &[u8]) -> Result<Token, ConnectError> {
    Token::parse(token).map_err(|error| ConnectError::refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::{AuthFailure, Operation};

    fn accept(token: &str) -> Result<Accepted, ConnectError> {
        let terms = SessionTerms { heartbeat: Duration::from_secs(480), protover_max: Version(3) };
        let open = Identity { authenticator: None, allow_client_keys: false, terms };
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
    fn row_6_an_anonymous_client_gets_a_random_key() {
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
    fn protover_makes_a_negotiated_client() {
        for (offered, agreed) in [("0", 1), ("1", 1), ("2", 2), ("3", 3), ("4", 3), ("70000", 3), ("-3", 1)] {
            let accepted = accept(&format!(r#"{{"protover":{offered}}}"#)).unwrap();
            assert_eq!(accepted.protover, Some(Version(agreed)), "{offered}");
        }
        assert_eq!(accept(r#"{"protover":null}"#).unwrap().protover, None);
        assert_eq!(accept(r#"{"protover":"2"}"#).unwrap_err().reason, AuthFailure::AuthRefused);
    }

    #[test]
    fn rooms_are_for_negotiated_clients() {
        let rooms = |token: &str| accept(token).unwrap().rooms;
        assert_eq!(
            rooms(r#"{"protover":1,"rooms":["a://1","b://2"]}"#),
            ["a://1", "b://2"].map(RoomId::from)
        );
        let error = accept(r#"{"protover":1,"rooms":["a://1",""]}"#).unwrap_err();
        assert_eq!(error.reason, AuthFailure::RoomNotAllowed, "a room without a name");
        // goim v2 ignores the member, whatever its value.
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
