//! What a credential grants, and whether that is what the client asks for.

use std::sync::Arc;

use goim_ports::{
    Accepted, AuthFailure, ConnectError, ExpiresAt, Mid, Operation, Refreshed, RoomId, RoomScope, SessionKey,
    SyncOptions,
};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::token::Token;
use super::{Terms, check_names, random_key};

/// The longest key that is granted, in bytes: it goes with each push to the session. What clients choose is bounded by their packets.
const KEY_BYTES_MAX: usize = 1024;

/// What somebody who can be believed says of a client. The members of a signed token, and of the backend's answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Grant {
    #[serde(deserialize_with = "mid")]
    pub(super) mid: i64,
    /// The only key that the session may have.
    #[serde(default)]
    pub(super) key: Option<String>,
    /// Rooms that the session is in at once. With them or with `rooms_allowed` it may be in no others than those of both lists.
    #[serde(default)]
    pub(super) rooms: Option<Vec<String>>,
    /// Rooms that it may be in: names, and beginnings of names with `*` behind.
    #[serde(default)]
    pub(super) rooms_allowed: Option<Vec<String>>,
    /// What the session wants pushed, in place of what the client says.
    #[serde(default)]
    pub(super) accepts: Option<Vec<i32>>,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) expires_at: Option<u64>,
}

/// A number, or a text that is one: who signs tokens is free to have either.
fn mid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    match Either::deserialize(deserializer) {
        Ok(Either::Number(number)) => Ok(number),
        Ok(Either::Text(text)) => text.parse().map_err(|_| D::Error::custom("the member is no integer")),
        Err(_) => Err(D::Error::custom("the member is no integer")),
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
                Err(ConnectError::because(AuthFailure::TokenExpired, "what grants the session has ended"))
            }
            _ => Ok(expires_at),
        }
    }

    /// What is granted, with what is empty taken for what it means: a key that is blank is none, or all whose key it is would be one
    /// session; a room without a name is none that anybody can be in.
    fn checked(mut self) -> Result<Self, ConnectError> {
        self.key = self.key.filter(|key| !key.trim().is_empty());
        if self.key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            let what = format!("the key that is granted has more than {KEY_BYTES_MAX} bytes");
            return Err(ConnectError::because(AuthFailure::TokenMismatch, what));
        }
        check_names(self.rooms.iter().chain(&self.rooms_allowed).flatten())?;
        Ok(self)
    }

    /// The session for a client that says this of itself.
    pub(super) fn accept(
        self,
        token: Token,
        allow_client_keys: bool,
        terms: Terms,
    ) -> Result<Accepted, ConnectError> {
        let mismatch = |what: &str| Err(ConnectError::because(AuthFailure::TokenMismatch, what));
        let granted = self.checked()?;
        if token.mid != 0 && token.mid != granted.mid {
            return mismatch("the mid that the client gives is not the one that is granted");
        }
        let expires_at = granted.expires_at()?;
        let scope = granted.scope();
        let negotiated = token.protover.is_some();
        let key = match granted.key {
            Some(key) if token.key.is_empty() || token.key == key => SessionKey::from(key),
            Some(_) => return mismatch("the key that the client gives is not the one that is granted"),
            None if token.key.is_empty() => random_key()?,
            None if allow_client_keys => SessionKey::from(token.key),
            None => {
                return mismatch(
                    "no key is granted, and clients may not choose theirs (logic.identity.allow_client_keys)",
                );
            }
        };
        let wanted = if negotiated { token.rooms } else { Vec::new() };
        check_names(&wanted)?;
        let allows = |room: &str| scope.as_ref().is_none_or(|scope| scope.allows(room));
        if !token.room_id.is_empty() && !allows(&token.room_id) || wanted.iter().any(|room| !allows(room)) {
            return Err(ConnectError::because(
                AuthFailure::RoomNotAllowed,
                "a room that the client wants is not granted",
            ));
        }
        let of_grant = granted.rooms.into_iter().flatten().filter(|room| !room.ends_with('*'));
        let mut rooms: Vec<RoomId> = Vec::new();
        for room in wanted.into_iter().chain(of_grant) {
            if room != token.room_id && !rooms.iter().any(|known| known.as_str() == room) {
                rooms.push(room.into());
            }
        }
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
            protover: token.protover.map(|offered| terms.agree(offered)),
            syncing: token
                .positions
                .filter(|_| negotiated)
                .map(|positions| SyncOptions { resume: positions, notify_only: token.notify_only }),
        })
    }

    /// The session goes on, as what it is.
    pub(super) fn refresh(self, mid: Mid, key: &SessionKey) -> Result<Refreshed, ConnectError> {
        let granted = self.checked()?;
        let same_key = granted.key.as_ref().is_none_or(|granted| granted == key.as_str());
        if granted.mid != mid.0 || !same_key {
            let what = "the new token is of another member or session";
            return Err(ConnectError::because(AuthFailure::TokenMismatch, what));
        }
        Ok(Refreshed { expires_at: granted.expires_at()?, scope: granted.scope() })
    }
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
        let terms = Terms { heartbeat: Duration::from_secs(60), protover_max: goim_ports::Version(1) };
        grant(json).accept(token, false, terms)
    }

    #[test]
    fn what_the_client_says_must_agree() {
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
