//! Reading a request with many messages: JSON in one document, or a message on each line.
//!
//! Everything is read and checked before the first message is pushed, so that a mistake in the last one pushes nothing.
//! What is wrong is said with the message's place, counted from 0, and with what would be right.

use std::borrow::Cow;
use std::num::NonZeroU32;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use goim_ports::{Mid, Operation, RoomId, SessionKey};
use serde::Deserialize;

use crate::{BatchMessage, Receivers};

/// How messages stand in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"messages": [...]}`
    Document,
    /// A message on each line.
    Lines,
}

impl Form {
    /// By the content type of the request; `None` for another one.
    pub(super) fn of(content_type: Option<&str>) -> Option<Self> {
        let kind = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/json") {
            return Some(Self::Document);
        }
        let lines = ["application/x-ndjson", "application/jsonl", "application/x-jsonlines"];
        lines.iter().any(|name| kind.eq_ignore_ascii_case(name)).then_some(Self::Lines)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    #[serde(borrow)]
    messages: Vec<Given<'a>>,
}

/// A message as it is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given<'a> {
    #[serde(borrow)]
    to: To<'a>,
    operation: i32,
    #[serde(borrow, default)]
    body: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    body_base64: Option<Cow<'a, str>>,
}

/// Whom it is for: one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To<'a> {
    #[serde(borrow, default)]
    keys: Option<Vec<Cow<'a, str>>>,
    #[serde(default)]
    mids: Option<Vec<i64>>,
    #[serde(borrow, default)]
    room: Option<Cow<'a, str>>,
    #[serde(default)]
    all: Option<bool>,
    #[serde(default)]
    speed: Option<u32>,
}

/// The messages of a body.
///
/// # Errors
/// What is wrong, for whoever wrote the request.
pub(super) fn read(form: Form, body: &[u8]) -> Result<Vec<BatchMessage>, String> {
    let given: Vec<Given<'_>> = match form {
        Form::Document => {
            let document: Document<'_> = serde_json::from_slice(body)
                .map_err(|error| format!("the body is not {{\"messages\": [...]}}: {error}"))?;
            document.messages
        }
        Form::Lines => {
            let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
            let given = lines.enumerate().map(|(index, line)| {
                serde_json::from_slice(line).map_err(|error| format!("message {index}: {error}"))
            });
            given.collect::<Result<_, _>>()?
        }
    };
    if given.is_empty() {
        return Err("there is no message in the body".to_owned());
    }
    let messages = given.into_iter().enumerate();
    messages
        .map(|(index, given)| message(given).map_err(|wrong| format!("message {index}: {wrong}")))
        .collect()
}

fn message(given: Given<'_>) -> Result<BatchMessage, String> {
    let body = match (given.body, given.body_base64) {
        (Some(_), Some(_)) => return Err("give body or body_base64, not both".to_owned()),
        (Some(text), None) => Bytes::from(text.into_owned()),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text.as_bytes());
            Bytes::from(bytes.map_err(|error| format!("body_base64 is no base 64: {error}"))?)
        }
        (None, None) => Bytes::new(),
    };
    Ok(BatchMessage { to: receivers(given.to)?, operation: Operation(given.operation), body })
}

fn receivers(to: To<'_>) -> Result<Receivers, String> {
    let named = [to.keys.is_some(), to.mids.is_some(), to.room.is_some(), to.all.is_some()];
    if named.iter().filter(|given| **given).count() != 1 {
        return Err("to wants exactly one of keys, mids, room, all".to_owned());
    }
    if to.speed.is_some() && to.all.is_none() {
        return Err("speed is for all only".to_owned());
    }
    if let Some(keys) = to.keys {
        if keys.is_empty() {
            return Err("keys wants at least one key".to_owned());
        }
        return Ok(Receivers::Keys(keys.iter().map(|key| SessionKey::from(&**key)).collect()));
    }
    if let Some(mids) = to.mids {
        return Ok(Receivers::Mids(mids.into_iter().map(Mid).collect()));
    }
    if let Some(room) = to.room {
        if room.is_empty() {
            return Err("room wants a room's id, for example live://1000".to_owned());
        }
        return Ok(Receivers::Room(RoomId::from(&*room)));
    }
    match to.all {
        Some(true) => Ok(Receivers::All(to.speed.and_then(NonZeroU32::new))),
        _ => Err("all wants to be true".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str, body: &'static [u8]) -> BatchMessage {
        BatchMessage {
            to: Receivers::Room(name.into()),
            operation: Operation(1000),
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let one = r#"{"to":{"room":"live://1"},"operation":1000,"body":"a\n\u00e4"}"#;
        let two = r#"{"operation":1000,"body_base64":"AP8=","to":{"room":"live://2"}}"#;
        let expected = vec![room("live://1", "a\nä".as_bytes()), room("live://2", b"\x00\xff")];
        let document = format!(r#"{{"messages":[{one},{two}]}}"#);
        assert_eq!(read(Form::Document, document.as_bytes()).unwrap(), expected);
        let lines = format!("{one}\n\r\n{two}\n");
        assert_eq!(read(Form::Lines, lines.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn receivers_of_every_kind() {
        let check = |to: &str, expect: Receivers| {
            let line = format!(r#"{{"to":{to},"operation":5}}"#);
            let read = read(Form::Lines, line.as_bytes()).unwrap();
            assert_eq!(
                read,
                [BatchMessage { to: expect, operation: Operation(5), body: Bytes::new() }],
                "{to}"
            );
        };
        check(r#"{"keys":["a","b"]}"#, Receivers::Keys(vec!["a".into(), "b".into()]));
        check(r#"{"mids":[1,-2]}"#, Receivers::Mids(vec![Mid(1), Mid(-2)]));
        check(r#"{"all":true}"#, Receivers::All(None));
        check(r#"{"all":true,"speed":9}"#, Receivers::All(NonZeroU32::new(9)));
        check(r#"{"all":true,"speed":0}"#, Receivers::All(None));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let good = r#"{"to":{"room":"r"},"operation":1}"#;
        for (bad, expect) in [
            (r#"{"to":{},"operation":1}"#, "message 1: to wants exactly one of keys, mids, room, all"),
            (r#"{"to":{"room":"r","all":true},"operation":1}"#, "message 1: to wants exactly one"),
            (r#"{"to":{"keys":[]},"operation":1}"#, "message 1: keys wants at least one key"),
            (r#"{"to":{"room":""},"operation":1}"#, "message 1: room wants a room's id"),
            (r#"{"to":{"all":false},"operation":1}"#, "message 1: all wants to be true"),
            (r#"{"to":{"room":"r","speed":1},"operation":1}"#, "message 1: speed is for all only"),
            (r#"{"to":{"room":"r"}}"#, "message 1: missing field `operation`"),
            (r#"{"to":{"room":"r"},"operation":1,"boddy":""}"#, "message 1: unknown field `boddy`"),
            (r#"{"to":{"room":"r"},"operation":1,"body":"","body_base64":""}"#, "message 1: give body or"),
            (
                r#"{"to":{"room":"r"},"operation":1,"body_base64":"?"}"#,
                "message 1: body_base64 is no base 64",
            ),
            ("hello", "message 1: expected value"),
        ] {
            let wrong = read(Form::Lines, format!("{good}\n{bad}").as_bytes()).unwrap_err();
            assert!(wrong.starts_with(expect), "{bad}: {wrong}");
        }
        assert!(read(Form::Document, b"[]").unwrap_err().starts_with("the body is not {\"messages\""));
        assert_eq!(read(Form::Lines, b"\n").unwrap_err(), "there is no message in the body");
    }

    #[test]
    fn forms_by_content_type() {
        for (kind, expect) in [
            (None, Some(Form::Document)),
            (Some("application/json; charset=utf-8"), Some(Form::Document)),
            (Some("Application/X-NDJSON"), Some(Form::Lines)),
            (Some("text/plain"), None),
        ] {
            assert_eq!(Form::of(kind), expect, "{kind:?}");
        }
    }
}
