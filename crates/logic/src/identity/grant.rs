//! What credentials grant, and whether that covers what the client asks for.

use std::sync::Arc;

use goim_ports::{
    Accepted, AuthFailure, ConnectError, ExpiresAt, Mid, Operation, Refreshed, RoomId, RoomScope, SessionKey,
    SyncOptions,
};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::session::{SessionTerms, check_names, random_key};
use super::token::Token;

/// The maximum length of a granted key in bytes, because it is sent with each push to the session.
/// Keys that clients choose are bounded by the size of their packets.
const KEY_BYTES_MAX: usize = 1024;

/// What an authenticator grants a client: the claims of a signed token, or the backend's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    #[serde(deserialize_with = "mid")]
    pub(super) mid: i64,
    /// The only key that the session may have.
    #[serde(default)]
    pub(super) key: Option<String>,
    /// The rooms that the session joins when it opens. With this list or `rooms_allowed` it may
    /// join no rooms but those of both lists.
    #[serde(default)]
    pub(super) rooms: Option<Vec<String>>,
    /// The rooms that it may join: names, and prefixes of names followed by `*`.
    #[serde(default)]
    pub(super) rooms_allowed: Option<Vec<String>>,
    /// The operations that the session subscribes to, instead of the client's.
    #[serde(default)]
    pub(super) accepts: Option<Vec<i32>>,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) expires_at: Option<u64>,
}

/// A number, or a text that is one: issuers of tokens use both.
fn mid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NumberOrText {
        Number(i64),
        Text(String),
    }
    match NumberOrText::deserialize(deserializer) {
        Ok(NumberOrText::Number(number)) => Ok(number),
        Ok(NumberOrText::Text(text)) => {
            text.parse().map_err(|_| D::Error::custom("the member is not an integer"))
        }
        Err(_) => Err(D::Error::custom("the member is not an integer")),
    }
}

impl Grant {
    fn scope(&self) -> Option<RoomScope> {
        if self.rooms.is_none() && self.rooms_allowed.is_none() {
            return None;
        }
        let both = self.rooms.iter().chain(&self.rooms_allowed).flatten().cloned();
        Some(RoomScope(Arc::new(both.collect())))
    }

    fn expires_at(&self) -> Result<Option<ExpiresAt>, ConnectError> {
        let expires_at = self.expires_at.map(ExpiresAt);
        match expires_at {
            Some(at) if at.left().is_zero() => {
                Err(ConnectError::because(AuthFailure::TokenExpired, "the grant has expired"))
            }
            _ => Ok(expires_at),
        }
    }

    /// Normalizes and validates the grant. A blank key is no key, otherwise all sessions with it
    /// would be one. Rooms must have a name.
    fn checked(mut self) -> Result<Self, ConnectError> {
        self.key = self.key.filter(|key| !key.trim().is_empty());
        if self.key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            let what = format!("the granted key has more than {KEY_BYTES_MAX} bytes");
            return Err(ConnectError::because(AuthFailure::TokenMismatch, what));
        }
        check_names(self.rooms.iter().chain(&self.rooms_allowed).flatten())?;
        Ok(self)
    }

    /// Returns the session for a client with this token.
    pub(super) fn accept(
        self,
        token: Token,
        allow_client_keys: bool,
        terms: SessionTerms,
    ) -> Result<Accepted, ConnectError> {
        let granted = self.checked()?;
        if token.mid != 0 && token.mid != granted.mid {
            return Err(mismatch("the client's mid is not the granted one"));
        }
        let expires_at = granted.expires_at()?;
        let scope = granted.scope();
        let negotiated = token.protover.is_some();
        let key = session_key(granted.key, token.key, allow_client_keys)?;
        let wanted = if negotiated { token.rooms } else { Vec::new() };
        check_names(&wanted)?;
        let allows = |room: &str| scope.as_ref().is_none_or(|scope| scope.allows(room));
        if !token.room_id.is_empty() && !allows(&token.room_id) || wanted.iter().any(|room| !allows(room)) {
            return Err(ConnectError::because(
                AuthFailure::RoomNotAllowed,
                "a room that the client asks for is not granted",
            ));
        }
        let rooms = joined_rooms(&token.room_id, wanted, granted.rooms);
        let accepts = match granted.accepts {
            Some(accepts) => accepts.into_iter().map(Operation).collect(),
            None => token.accepts,
        };
        Ok(Accepted {
            mid: Mid(granted.mid),
            key,
            room: (!token.room_id.is_empty()).then(|| RoomId::from(token.room_id)),
            rooms,
            scope,
            expires_at,
            accepts,
            heartbeat: terms.heartbeat,
            protover: token.protover.map(|offered| terms.negotiate(offered)),
            syncing: token
                .positions
                .filter(|_| negotiated)
                .map(|positions| SyncOptions { resume: positions, notify_only: token.notify_only }),
        })
    }

    /// Applies the grant of a new token to an open session.
    pub(super) fn refresh(self, mid: Mid, key: &SessionKey) -> Result<Refreshed, ConnectError> {
        let granted = self.checked()?;
        let same_key = granted.key.as_ref().is_none_or(|granted| granted == key.as_str());
        if granted.mid != mid.0 || !same_key {
            return Err(mismatch("the new token is of another member or session"));
        }
        Ok(Refreshed { expires_at: granted.expires_at()?, scope: granted.scope() })
    }
}

fn mismatch(what: &str) -> ConnectError {
    ConnectError::because(AuthFailure::TokenMismatch, what)
}

/// The key of a session: the granted one, the client's where clients may choose, or a random one.
fn session_key(
    granted: Option<String>,
    asked: String,
    allow_client_keys: bool,
) -> Result<SessionKey, ConnectError> {
    match granted {
        Some(key) if asked.is_empty() || asked == key => Ok(SessionKey::from(key)),
        Some(_) => Err(mismatch("the client's key is not the granted one")),
        None if asked.is_empty() => random_key(),
        None if allow_client_keys => Ok(SessionKey::from(asked)),
        None => Err(mismatch(
            "no key is granted, and clients may not choose theirs (logic.identity.allow_client_keys)",
        )),
    }
}

/// The rooms beside `room_id` that a session joins when it opens, each once: those that the client
/// asks for and those of the grant, without prefixes.
fn joined_rooms(room_id: &str, asked: Vec<String>, granted: Option<Vec<String>>) -> Vec<RoomId> {
    let granted = granted.into_iter().flatten().filter(|room| !room.ends_with('*'));
    let mut rooms: Vec<RoomId> = Vec::new();
    for room in asked.into_iter().chain(granted) {
        if room != room_id && !rooms.iter().any(|known| known.as_str() == room) {
            rooms.push(room.into());
        }
    }
    rooms
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn grant(json: &str) -> Grant {
        serde_json::from_str(json).unwrap()
    }

    fn accept(json: &str, token: &str) -> Result<Accepted, ConnectError> {
        let token = Token::parse(token.as_bytes()).unwrap();
        let terms = SessionTerms { heartbeat: Duration::from_secs(60), protover_max: goim_ports::Version(1) };
        grant(json).accept(token, false, terms)
    }

    #[test]
    fn claims_must_agree_with_the_grant() {
        let reason = |granted: &str, token: &str| accept(granted, token).err().map(|error| error.reason);
        let cases = [
            (r#"{"mid":7}"#, "{}", None),
            (r#"{"mid":"7"}"#, r#"{"mid":7}"#, None),
            (r#"{"mid":7}"#, r#"{"mid":8}"#, Some(AuthFailure::TokenMismatch)),
            (r#"{"mid":7}"#, r#"{"key":"k"}"#, Some(AuthFailure::TokenMismatch)),
            (r#"{"mid":7,"key":"k"}"#, r#"{"key":"k"}"#, None),
            (r#"{"mid":7,"key":"k"}"#, r#"{"key":"other"}"#, Some(AuthFailure::TokenMismatch)),
            (r#"{"mid":7,"rooms":["a://1"]}"#, r#"{"room_id":"a://1"}"#, None),
            (r#"{"mid":7,"rooms":["a://1"]}"#, r#"{"room_id":"a://2"}"#, Some(AuthFailure::RoomNotAllowed)),
            (r#"{"mid":7,"rooms":[]}"#, r#"{"room_id":"a://2"}"#, Some(AuthFailure::RoomNotAllowed)),
            (r#"{"mid":7,"rooms_allowed":["a://*"]}"#, r#"{"room_id":"a://2"}"#, None),
            (
                r#"{"mid":7,"rooms_allowed":["a://*"]}"#,
                r#"{"protover":1,"rooms":["b://2"]}"#,
                Some(AuthFailure::RoomNotAllowed),
            ),
            (r#"{"mid":7,"expires_at":1}"#, "{}", Some(AuthFailure::TokenExpired)),
        ];
        for (granted, token, expected) in cases {
            assert_eq!(reason(granted, token), expected, "{granted} {token}");
        }
    }

    #[test]
    fn a_blank_key_is_none_and_a_room_without_a_name_is_refused() {
        for blank in ["", " ", "\\t\\n"] {
            let granted = format!(r#"{{"mid":7,"key":"{blank}"}}"#);
            let keys = [(), ()].map(|()| accept(&granted, "{}").unwrap().key);
            assert!(keys[0] != keys[1] && keys[0].as_str().len() == 36, "{blank:?}: {keys:?}");
            let chosen = accept(&granted, r#"{"key":"k"}"#).err().map(|error| error.reason);
            assert_eq!(chosen, Some(AuthFailure::TokenMismatch), "as where none is granted");
            assert!(grant(&granted).refresh(Mid(7), &keys[0]).is_ok(), "a new token of the session");
        }
        let long = format!(r#"{{"mid":7,"key":"{}"}}"#, "k".repeat(KEY_BYTES_MAX + 1));
        assert_eq!(accept(&long, "{}").unwrap_err().reason, AuthFailure::TokenMismatch);
        let key = SessionKey::from("k");
        for granted in [
            r#"{"mid":7,"rooms":[""]}"#,
            r#"{"mid":7,"rooms":["a://1",""]}"#,
            r#"{"mid":7,"rooms_allowed":["","a://*"]}"#,
        ] {
            for token in ["{}", r#"{"room_id":"a://1"}"#, r#"{"protover":1,"rooms":["a://1"]}"#] {
                let reason = accept(granted, token).err().map(|error| error.reason);
                assert_eq!(reason, Some(AuthFailure::RoomNotAllowed), "{granted} {token}");
            }
            assert_eq!(grant(granted).refresh(Mid(7), &key).unwrap_err().reason, AuthFailure::RoomNotAllowed);
        }
        for granted in [r#"{"mid":7}"#, r#"{"mid":7,"rooms_allowed":["*"]}"#] {
            let error = accept(granted, r#"{"protover":1,"rooms":["a://1",""]}"#).unwrap_err();
            assert_eq!(error.reason, AuthFailure::RoomNotAllowed, "{granted}");
            // goim's own: no room.
            assert_eq!(accept(granted, r#"{"room_id":""}"#).unwrap().room, None);
            // goim skips the list.
            assert_eq!(accept(granted, r#"{"rooms":[""]}"#).unwrap().rooms, []);
        }
    }

    #[test]
    fn granted_rooms_are_joined_at_once() {
        let granted = r#"{"mid":7,"rooms":["a://1","a://2","b://*"],"accepts":[5]}"#;
        let accepted = accept(granted, r#"{"room_id":"a://2","accepts":[1000]}"#).unwrap();
        assert_eq!((accepted.room, accepted.rooms), (Some("a://2".into()), vec!["a://1".into()]));
        assert_eq!(accepted.accepts, [Operation(5)]);
        assert!(accepted.scope.unwrap().allows("b://9"));
    }

    #[test]
    fn a_new_token_is_of_the_same_member() {
        let key = SessionKey::from("k");
        assert!(grant(r#"{"mid":7,"rooms":["a://1"]}"#).refresh(Mid(7), &key).is_ok());
        for other in [r#"{"mid":8}"#, r#"{"mid":7,"key":"other"}"#] {
            assert_eq!(
                grant(other).refresh(Mid(7), &key).unwrap_err().reason,
                AuthFailure::TokenMismatch,
                "{other}"
            );
        }
        assert_eq!(
            grant(r#"{"mid":7,"expires_at":9}"#).refresh(Mid(7), &key).unwrap_err().reason,
            AuthFailure::TokenExpired
        );
    }
}
