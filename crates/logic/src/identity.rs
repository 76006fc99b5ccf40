//! Who somebody is who presents a token.
//!
//! `open` is goim's way and so far the only one: the client is believed. Others (signed tokens, asking the business)
//! are further implementations of [`Identify`]; they may take their time, so the answer is a [`Call`].

mod json;
mod token;

use std::time::Duration;

use goim_ports::{Accepted, Call, ConnectError, ConnectRequest, Mid, RoomId, SessionKey, Version};

use token::Token;

/// Highest packet version that this server sends.
const PROTOVER_MAX: i64 = 1;

/// Decides whether somebody gets a session, and whose.
pub(crate) trait Identify: Send + Sync {
    /// The session that the token stands for, or why there is none.
    fn identify(&self, request: &ConnectRequest) -> Call<Result<Accepted, ConnectError>>;
}

/// goim's identity: the token is a JSON object in which the client says who it is.
pub(crate) struct Open {
    /// A session ends after this much time without a heartbeat.
    pub(crate) heartbeat: Duration,
}

impl Identify for Open {
    fn identify(&self, request: &ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        Call::Ready(self.accept(&request.token))
    }
}

impl Open {
    fn accept(&self, token: &[u8]) -> Result<Accepted, ConnectError> {
        // The reason names the place and never quotes the token.
        let token = Token::parse(token).map_err(|error| ConnectError::Refused(error.to_string()))?;
        let key = if token.key.is_empty() { random_key()? } else { SessionKey::from(token.key) };
        let room = (!token.room_id.is_empty()).then(|| RoomId::from(token.room_id));
        Ok(Accepted {
            mid: Mid(token.mid),
            key,
            room,
            accepts: token.accepts,
            heartbeat: self.heartbeat,
            protover: token.protover.map(agree),
        })
    }
}

/// The packet version for a client that reads versions up to `offered`. 0 and 1 mean the same, so that 1 is the least.
fn agree(offered: i64) -> Version {
    let agreed = offered.clamp(1, PROTOVER_MAX);
    Version(i16::try_from(agreed).unwrap_or(Version::GOIM.0))
}

/// A random UUID (version 4) in lower case, as goim draws it for clients that bring no key.
fn random_key() -> Result<SessionKey, ConnectError> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| ConnectError::Unavailable(format!("no random numbers: {error}")))?;
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
        Open { heartbeat: Duration::from_secs(480) }.accept(token.as_bytes())
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
        for (offered, agreed) in [("0", 1), ("1", 1), ("2", 1), ("70000", 1), ("-3", 1)] {
            let accepted = accept(&format!(r#"{{"protover":{offered}}}"#)).unwrap();
            assert_eq!(accepted.protover, Some(Version(agreed)), "{offered}");
        }
        assert_eq!(accept(r#"{"protover":null}"#).unwrap().protover, None);
        assert!(matches!(accept(r#"{"protover":"2"}"#), Err(ConnectError::Refused(_))));
    }

    #[test]
    fn a_refusal_does_not_quote_the_token() {
        let Err(ConnectError::Refused(reason)) = accept(r#"{"key":"secret","mid":"secret"}"#) else {
            panic!("accepted");
        };
        assert!(!reason.contains("secret"), "{reason}");
    }
}
