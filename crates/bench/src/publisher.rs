//! How messages get into the server under test: by its HTTP API, or straight into the bare send loop.

use crate::bare::{Bare, Order};
use crate::error::BenchError;
use crate::http::Api;
use crate::message::Message;
use crate::sizes::Sizes;

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The room that all clients are in.
    Room,
    /// Every session of the server.
    All,
}

/// Takes messages for an audience. An accepted message is to reach everybody in it.
pub(crate) enum Publisher<'a> {
    Http(HttpPublisher),
    Bare(&'a mut Bare),
}

impl Publisher<'_> {
    /// Publishes one message and waits until it is accepted.
    ///
    /// # Errors
    /// [`BenchError::Refused`] with the server's words, [`BenchError::Failed`] when it does not answer.
    pub(crate) fn publish(
        &mut self,
        audience: Audience,
        message: &Message,
        size: usize,
    ) -> Result<(), BenchError> {
        match self {
            Self::Bare(bare) => bare
                .send(&Order {
                    run: message.run,
                    stream: message.stream,
                    first: message.number,
                    burst: 1,
                    sizes: Sizes::Fixed(size),
                    due_ns: message.due_ns,
                    flood_ms: 0,
                })
                .map(drop),
            Self::Http(http) => http.publish(audience, &message.encode(size)),
        }
    }
}

/// Publishes by the HTTP API, one request after the other on one kept connection.
#[derive(Debug)]
pub(crate) struct HttpPublisher {
    pub(crate) api: Api,
    pub(crate) operation: i32,
    /// `type` and `room` of the room's id.
    pub(crate) room: (String, String),
}

impl HttpPublisher {
    /// Publishes one message and waits until it is accepted.
    ///
    /// # Errors
    /// [`BenchError::Refused`] with the server's words, [`BenchError::Failed`] when it does not answer.
    pub(crate) fn publish(&mut self, audience: Audience, body: &[u8]) -> Result<(), BenchError> {
        let Self { api, operation, room: (kind, room) } = self;
        let path = match audience {
            Audience::Room => format!("/goim/push/room?operation={operation}&type={kind}&room={room}"),
            Audience::All => format!("/goim/push/all?operation={operation}"),
        };
        let answer = api.post(&path, "", body)?;
        accepted(answer.status, &answer.body)
    }

    /// The same; false when the server says that it has no room at the moment.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn try_publish(&mut self, audience: Audience, body: &[u8]) -> Result<bool, BenchError> {
        let Self { api, operation, room: (kind, room) } = self;
        let path = match audience {
            Audience::Room => format!("/goim/push/room?operation={operation}&type={kind}&room={room}"),
            Audience::All => format!("/goim/push/all?operation={operation}"),
        };
        let answer = api.post(&path, "", body)?;
        if answer.status == 429 {
            return Ok(false);
        }
        accepted(answer.status, &answer.body).map(|()| true)
    }

    /// Publishes several messages in one request and waits until all are accepted.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn publish_together(
        &mut self,
        audience: Audience,
        bodies: &[Vec<u8>],
    ) -> Result<(), BenchError> {
        let (kind, room) = &self.room;
        let to = match audience {
            Audience::Room => format!(r#"{{"room":"{kind}://{room}"}}"#),
            Audience::All => r#"{"all":true}"#.to_owned(),
        };
        let request = batch(&to, self.operation, bodies);
        let answer = self.api.post("/v1/push", JSON, request.as_bytes())?;
        accepted(answer.status, &answer.body)
    }

    /// Publishes a message to several keys and waits until it is accepted.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn publish_to_keys(&mut self, keys: &[String], body: &[u8]) -> Result<(), BenchError> {
        let query: String = keys.iter().map(|key| format!("&keys={key}")).collect();
        let path = format!("/goim/push/keys?operation={}{query}", self.operation);
        let answer = self.api.post(&path, "", body)?;
        accepted(answer.status, &answer.body)
    }

    /// Publishes a message to all sessions of a member and waits until it is accepted.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn publish_to_member(&mut self, member: u32, body: &[u8]) -> Result<(), BenchError> {
        let path = format!("/goim/push/mids?operation={}&mids={member}", self.operation);
        let answer = self.api.post(&path, "", body)?;
        accepted(answer.status, &answer.body)
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

/// The body of a request with several messages for the same receivers.
pub(crate) fn batch(to: &str, operation: i32, bodies: &[Vec<u8>]) -> String {
    let messages = bodies.iter().map(|body| {
        let body = base64(body);
        format!(r#"{{"to":{to},"operation":{operation},"body_base64":"{body}"}}"#)
    });
    format!(r#"{{"messages":[{}]}}"#, messages.collect::<Vec<_>>().join(","))
}

/// The bytes in base 64, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = ALPHABET[(number >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Reads the API's envelope: `{"code":0,...}` is yes. goim answers 200 to failures too.
fn accepted(status: u16, body: &[u8]) -> Result<(), BenchError> {
    let envelope: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if status == 200 && envelope.get("code").and_then(serde_json::Value::as_i64) == Some(0) {
        return Ok(());
    }
    let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
    let hint = match status {
        401 | 403 => "; give a key of the push API with --api-key, or run on the server's machine",
        404 => "; is this goim's HTTP API?",
        _ => "",
    };
    Err(BenchError::Refused(format!("status {status}, {text}{hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_as_others_write_it() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let check = |status, body: &str, expect: &str| match accepted(status, body.as_bytes()) {
            Ok(()) => assert_eq!(expect, "", "{status} {body}"),
            Err(error) => {
                assert!(!expect.is_empty() && error.to_string().contains(expect), "{status} {body}: {error}");
            }
        };
        check(200, r#"{"code":0,"message":""}"#, "");
        check(200, r#"{"code":-500,"message":"kafka"}"#, "kafka");
        check(400, r#"{"code":0}"#, "status 400");
        check(401, "", "--api-key");
        check(404, "404 page not found", "is this goim's HTTP API?");
        check(200, "hello", "hello");
    }
}
