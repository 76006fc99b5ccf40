//! How messages get into the server under test: by its HTTP API, or straight into the bare send loop.

use crate::bare::Bare;
use crate::error::BenchError;
use crate::http::Api;

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
    Http {
        api: Api,
        operation: i32,
        /// `type` and `room` of the room's id.
        room: (String, String),
    },
    Bare(&'a mut Bare),
}

impl Publisher<'_> {
    /// Publishes one message and waits until it is accepted.
    ///
    /// # Errors
    /// [`BenchError::Refused`] with the server's words, [`BenchError::Failed`] when it does not answer.
    pub(crate) fn publish(&mut self, audience: Audience, body: &[u8]) -> Result<(), BenchError> {
        match self {
            Self::Bare(bare) => bare.send(body),
            Self::Http { api, operation, room: (kind, room) } => {
                let path = match audience {
                    Audience::Room => {
                        format!("/goim/push/room?operation={operation}&type={kind}&room={room}")
                    }
                    Audience::All => format!("/goim/push/all?operation={operation}"),
                };
                let answer = api.post(&path, body)?;
                accepted(answer.status, &answer.body)
            }
        }
    }
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
