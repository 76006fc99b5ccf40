//! Parses the messages of `POST /v1/push` from JSON directly into logic's types.
//!
//! The deserializers are written out instead of derived, so that an error names the message, the
//! field and the expected value.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use goim_ports::{
    Bodies, CloseReason, IdempotencyKey, Mid, Operation, RoomId, Schema, SchemaBody, SessionKey,
};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::batch::{BatchMessage, Delivery, Receivers};

/// The maximum number of messages in one request. It bounds the time that one request delays the
/// others, to about 10 ms.
pub(super) const MESSAGES_MAX: usize = 10_000;

/// The format of a body with messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFormat {
    /// `{"messages":[…]}`.
    Json,
    /// One message per line.
    Lines,
}

impl BodyFormat {
    /// Returns the format that a content type names. Parameters such as a charset are ignored.
    pub(super) fn of(content_type: &[u8]) -> Option<Self> {
        let name = content_type.split(|byte| *byte == b';').next()?.trim_ascii();
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("application/json") {
            return Some(Self::Json);
        }
        is("application/x-ndjson").then_some(Self::Lines)
    }

    /// Parses all messages of a body.
    ///
    /// # Errors
    /// The first invalid message, its field, and the expected value.
    pub(super) fn read(self, body: &[u8]) -> Result<Vec<BatchMessage>, String> {
        let text = std::str::from_utf8(body)
            .map_err(|error| format!("the body is not UTF-8 from byte {} on", error.valid_up_to()))?;
        match self {
            Self::Json => serde_json::from_str(text)
                .map(|BatchDocument(messages)| messages)
                .map_err(|error| error.to_string()),
            Self::Lines => read_lines(text),
        }
    }

    /// Returns the path of a message, as error messages name it.
    pub(super) fn path_of(self, index: usize, body: &[u8]) -> String {
        match self {
            Self::Json => format!("messages[{index}]"),
            Self::Lines => {
                let lines = body.split(|byte| *byte == b'\n').enumerate();
                let mut messages = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
                format!("line {}", messages.nth(index).map_or(index, |(line, _)| line) + 1)
            }
        }
    }
}

/// Empty lines are skipped.
fn read_lines(text: &str) -> Result<Vec<BatchMessage>, String> {
    let mut messages = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        if messages.len() == MESSAGES_MAX {
            return Err(format!("line {}: {}", index + 1, too_many()));
        }
        let Message(message) = serde_json::from_str(line).map_err(|error| of_line(index + 1, &error))?;
        messages.push(message);
    }
    Ok(messages)
}

/// Replaces the parser's line number, which is always 1, by that of the body.
fn of_line(line: usize, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(bare) => format!("line {line}: {bare} at column {}", error.column()),
        None => format!("line {line}: {text}"),
    }
}

fn too_many() -> String {
    format!("a request may have {MESSAGES_MAX} messages at most; send the others in another one")
}

/// A text that is only copied when it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct BorrowedText<'t>(#[serde(borrow)] Cow<'t, str>);

/// Prefixes an error with the name of its location.
fn at<E: Error>(name: impl fmt::Display) -> impl FnOnce(E) -> E {
    move |error| E::custom(format_args!("{name}: {error}"))
}

/// Reads the value of a field. Fails when the field was already read.
fn field<'de, T, A>(map: &mut A, place: &mut Option<T>, name: &str) -> Result<(), A::Error>
where
    T: Deserialize<'de>,
    A: MapAccess<'de>,
{
    if place.is_some() {
        return Err(A::Error::custom(format_args!("{name}: is given twice")));
    }
    *place = Some(map.next_value().map_err(at(name))?);
    Ok(())
}

fn unknown<E: Error>(name: &str, known: &str) -> E {
    E::custom(format_args!("{name}: there is no such field; known are {known}"))
}

/// `{"messages":[…]}`.
struct BatchDocument(Vec<BatchMessage>);

impl<'de> Deserialize<'de> for BatchDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = BatchDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the list `messages`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BatchDocument, A::Error> {
                let mut messages: Option<Messages> = None;
                while let Some(BorrowedText(name)) = map.next_key()? {
                    match &*name {
                        "messages" if messages.is_some() => {
                            return Err(A::Error::custom("messages: is given twice"));
                        }
                        // The list names its elements itself.
                        "messages" => messages = Some(map.next_value()?),
                        other => return Err(unknown(other, "`messages`")),
                    }
                }
                let messages = messages.ok_or_else(|| A::Error::custom("messages: is missing"))?;
                Ok(BatchDocument(messages.0))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

struct Messages(Vec<BatchMessage>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Messages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages under `messages`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut messages = Vec::new();
                loop {
                    let place = format_args!("messages[{}]", messages.len()).to_string();
                    let element = list.next_element().map_err(at(&place))?;
                    let Some(Message(message)) = element else { return Ok(Messages(messages)) };
                    if messages.len() == MESSAGES_MAX {
                        return Err(A::Error::custom(format_args!("{place}: {}", too_many())));
                    }
                    messages.push(message);
                }
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// One message.
struct Message(BatchMessage);

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Message;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `to`, `operation`, and `body`, `body_base64` or `bodies`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
                let (mut to, mut operation, mut text, mut bytes, mut bodies) = (None, None, None, None, None);
                let (mut delivery, mut idempotency_key) = (None, None);
                while let Some(BorrowedText(name)) = map.next_key()? {
                    match &*name {
                        "to" => field(&mut map, &mut to, "to")?,
                        "operation" => field(&mut map, &mut operation, "operation")?,
                        "body" => field(&mut map, &mut text, "body")?,
                        "body_base64" => field(&mut map, &mut bytes, "body_base64")?,
                        "bodies" => field(&mut map, &mut bodies, "bodies")?,
                        "delivery" => field(&mut map, &mut delivery, "delivery")?,
                        "idempotency_key" => field(&mut map, &mut idempotency_key, "idempotency_key")?,
                        other => {
                            return Err(unknown(
                                other,
                                "`to`, `operation`, `body`, `body_base64`, `bodies`, `delivery` and `idempotency_key`",
                            ));
                        }
                    }
                }
                let delivery = delivery_of(delivery, idempotency_key).map_err(A::Error::custom)?;
                let message = message(to, operation, text, bytes, bodies).map_err(A::Error::custom)?;
                Ok(Message(BatchMessage { delivery, ..message }))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn message(
    to: Option<ReceiversField>,
    operation: Option<i32>,
    text: Option<BorrowedText<'_>>,
    bytes: Option<BorrowedText<'_>>,
    bodies: Option<Vec<SchemaBodyFields<'_>>>,
) -> Result<BatchMessage, String> {
    let ReceiversField(to) = to.ok_or("to: is missing; name keys, mids, a room or all")?;
    let operation = operation
        .filter(|operation| *operation != 0)
        .ok_or("operation: must be a number of 32 bits other than 0; the backend's own begin at 1000")?;
    let operation = Operation(operation);
    let Some(bodies) = bodies else {
        let missing =
            "body: is missing; give a text there, bytes in body_base64, or several schemas in bodies";
        let bodies = Bodies::plain(body_of(text, bytes)?.ok_or(missing)?);
        return Ok(BatchMessage { to, operation, bodies, delivery: Delivery::Transient });
    };
    if text.is_some() || bytes.is_some() {
        return Err("bodies: must not be given together with body or body_base64".to_owned());
    }
    let bodies = in_schemas(bodies).map_err(|wrong| format!("bodies{wrong}"))?;
    Ok(BatchMessage { to, operation, bodies, delivery: Delivery::Transient })
}

fn delivery_of(
    delivery: Option<BorrowedText<'_>>,
    idempotency_key: Option<BorrowedText<'_>>,
) -> Result<Delivery, &'static str> {
    match (delivery.as_ref().map(|BorrowedText(text)| &**text), idempotency_key) {
        (None | Some("transient"), None) => Ok(Delivery::Transient),
        (None | Some("transient"), Some(_)) => Err("idempotency_key: requires delivery `stored`"),
        (Some("stored"), None) => Ok(Delivery::Stored { idempotency_key: None }),
        (Some("stored"), Some(BorrowedText(key))) => {
            let idempotency_key =
                IdempotencyKey::new(key.into_owned()).ok_or("idempotency_key: must have 1 to 128 bytes")?;
            Ok(Delivery::Stored { idempotency_key: Some(idempotency_key) })
        }
        (Some(_), _) => Err("delivery: must be `transient` or `stored`"),
    }
}

fn body_of(text: Option<BorrowedText<'_>>, bytes: Option<BorrowedText<'_>>) -> Result<Option<Bytes>, String> {
    match (text, bytes) {
        (Some(BorrowedText(text)), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        (None, Some(BorrowedText(text))) => {
            let decoded = STANDARD.decode(&*text);
            let wrong = |error| format!("body_base64: must be base64 with padding: {error}");
            decoded.map(|bytes| Some(bytes.into())).map_err(wrong)
        }
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("body: must not be given together with body_base64".to_owned()),
    }
}

/// The maximum number of schemas of one message. An upgrade needs two or three.
pub(super) const SCHEMAS_MAX: usize = 16;

/// A message in one schema.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SchemaBodyFields<'t> {
    schema: u16,
    #[serde(borrow, default)]
    body: Option<BorrowedText<'t>>,
    #[serde(borrow, default)]
    body_base64: Option<BorrowedText<'t>>,
}

fn in_schemas(given: Vec<SchemaBodyFields<'_>>) -> Result<Bodies, String> {
    let wrong_number = || format!(": must have 1 to {SCHEMAS_MAX} elements");
    if given.len() > SCHEMAS_MAX {
        return Err(wrong_number());
    }
    let (mut first, mut bodies) = (None, Vec::new());
    for (place, SchemaBodyFields { schema, body, body_base64 }) in given.into_iter().enumerate() {
        let wrong = |what: &str| format!("[{place}]: {what}");
        let body = body_of(body, body_base64).map_err(|error| wrong(&error))?;
        let body = body.ok_or_else(|| wrong("body: is missing"))?;
        let is_there = |known: &SchemaBody| known.schema.0 == schema;
        if schema == 0 || bodies.iter().any(is_there) || schema == Schema::FIRST.0 && first.is_some() {
            return Err(wrong("schema: must be above zero and unique"));
        }
        if schema == Schema::FIRST.0 {
            first = Some(body);
        } else {
            bodies.push(SchemaBody { schema: Schema(schema), body });
        }
    }
    Bodies::new(first, bodies).ok_or_else(wrong_number)
}

/// The receivers of one message.
struct ReceiversField(Receivers);

impl<'de> Deserialize<'de> for ReceiversField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ReceiversField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one of `keys`, `mids`, `room` and `all`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ReceiversField, A::Error> {
                let mut given = ReceiverFields::default();
                while let Some(BorrowedText(name)) = map.next_key()? {
                    match &*name {
                        "keys" => field(&mut map, &mut given.keys, "keys")?,
                        "mids" => field(&mut map, &mut given.mids, "mids")?,
                        "room" => field(&mut map, &mut given.room, "room")?,
                        "all" => field(&mut map, &mut given.all, "all")?,
                        "speed" => field(&mut map, &mut given.speed, "speed")?,
                        other => return Err(unknown(other, "`keys`, `mids`, `room`, `all` and `speed`")),
                    }
                }
                given.receivers().map(ReceiversField).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[derive(Default)]
struct ReceiverFields<'t> {
    keys: Option<Keys>,
    mids: Option<Vec<i64>>,
    room: Option<BorrowedText<'t>>,
    all: Option<bool>,
    speed: Option<u32>,
}

impl ReceiverFields<'_> {
    fn receivers(self) -> Result<Receivers, &'static str> {
        if self.speed.is_some() && self.all.is_none() {
            return Err("speed: requires all");
        }
        match (self.keys, self.mids, self.room, self.all) {
            (Some(Keys(keys)), None, None, None) if !keys.is_empty() => Ok(Receivers::Keys(keys)),
            (Some(_), None, None, None) => Err("keys: must name at least one key"),
            (None, Some(mids), None, None) if !mids.is_empty() && mids.iter().all(|mid| *mid > 0) => {
                Ok(Receivers::Mids(mids.into_iter().map(Mid).collect()))
            }
            (None, Some(_), None, None) => Err("mids: must name at least one member, each above 0"),
            (None, None, Some(BorrowedText(room)), None) => match room.split_once("://") {
                Some((kind, id)) if !kind.is_empty() && !id.is_empty() => {
                    Ok(Receivers::Room(RoomId::from(&*room)))
                }
                _ => Err("room: must be type://id, for example live://1000"),
            },
            (None, None, None, Some(true)) => match self.speed.map(NonZeroU32::new) {
                None => Ok(Receivers::All(None)),
                Some(Some(speed)) => Ok(Receivers::All(Some(speed))),
                Some(None) => Err("speed: must be at least 1; leave it out for no limit"),
            },
            (None, None, None, Some(false)) => Err("all: must be true or left out"),
            _ => Err("must name exactly one of keys, mids, room and all"),
        }
    }
}

struct Keys(Vec<SessionKey>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of keys")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(BorrowedText(key)) = list.next_element()? {
                    if key.is_empty() {
                        return Err(A::Error::custom("no session has an empty key"));
                    }
                    keys.push(SessionKey::from(&*key));
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// A request to end sessions.
pub(super) struct EndRequest {
    pub(super) of: Receivers,
    pub(super) reason: CloseReason,
}

/// The close reasons that the backend may use.
const REASONS: [CloseReason; 2] = [CloseReason::Kicked, CloseReason::Revoked];

impl EndRequest {
    /// Parses `{"of":{…},"reason":"…"}`.
    ///
    /// # Errors
    /// The invalid field and the expected value.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            of: ReceiversField,
            #[serde(default)]
            reason: Option<String>,
        }
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|error| format!("expected an object with `of`: {error}"))?;
        let text = serde_json::Value::Object(object).to_string();
        let Fields { of: ReceiversField(of), reason } =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if matches!(of, Receivers::All(_)) {
            return Err("of: must name keys, mids or a room".to_owned());
        }
        let reason = reason.as_deref().unwrap_or("kicked");
        let known = REASONS.into_iter().find(|known| known.label() == reason);
        let reason = known.ok_or("reason: must be `kicked` or `revoked`")?;
        Ok(Self { of, reason })
    }
}

#[cfg(test)]
mod tests;
