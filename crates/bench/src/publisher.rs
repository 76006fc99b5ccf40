//! How messages get into the server under test: by its HTTP API, or straight into the bare send loop.

use std::time::{Duration, Instant};

use crate::bare::{Bare, Order};
use crate::error::BenchError;
use crate::http::{Answer, Api};
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
            Self::Http(http) => http.publish(audience, &message.encode(size)).map(drop),
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
    /// Whether the server takes several messages in one request, once that is known.
    pub(crate) batches: Option<bool>,
}

impl HttpPublisher {
    /// Publishes one message and waits until it is accepted. Gives how often it was told to come again.
    ///
    /// # Errors
    /// [`BenchError::Refused`] with the server's words, or when it is held back for [`HELD_BACK_MAX`];
    /// [`BenchError::Failed`] when it does not answer.
    pub(crate) fn publish(&mut self, audience: Audience, body: &[u8]) -> Result<u64, BenchError> {
        until_taken(&[()], |_| self.try_publish(audience, body))
    }

    /// Publishes one message, unless the server says that it has no room at the moment.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn try_publish(&mut self, audience: Audience, body: &[u8]) -> Result<Taken, BenchError> {
        let answer = self.api.post(&self.path(audience), "", body)?;
        taken(&answer)
    }

    /// Publishes several messages at once and waits until all are accepted: in one request, or, where the server has no
    /// form for that, in as many requests, written at once on one connection. Gives how often it was told to come again.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`]; and when of messages in requests of their own one in the middle was held back, since
    /// those behind it have overtaken it.
    pub(crate) fn publish_together(
        &mut self,
        audience: Audience,
        bodies: &[Vec<u8>],
    ) -> Result<u64, BenchError> {
        until_taken(bodies, |rest| self.try_together(audience, rest))
    }

    fn try_together(&mut self, audience: Audience, bodies: &[Vec<u8>]) -> Result<Taken, BenchError> {
        if self.has_batches()? {
            let (kind, room) = &self.room;
            let to = match audience {
                Audience::Room => format!(r#"{{"room":"{kind}://{room}"}}"#),
                Audience::All => r#"{"all":true}"#.to_owned(),
            };
            let request = batch(&to, self.operation, bodies);
            return taken(&self.api.post(BATCHES, JSON, request.as_bytes())?);
        }
        let answers = self.api.post_together(&self.path(audience), bodies)?;
        let answers: Vec<Taken> = answers.iter().map(taken).collect::<Result<_, _>>()?;
        let held_back = |taken: &Taken| matches!(taken, Taken::Front { .. });
        let Some(first) = answers.iter().position(held_back) else { return Ok(Taken::All) };
        match answers.get(first) {
            Some(Taken::Front { again_in, .. }) if answers.iter().skip(first).all(held_back) => {
                Ok(Taken::Front { accepted: first, again_in: *again_in })
            }
            _ => {
                let text =
                    "status 429 in the middle of a burst, which is out of order then; take a smaller --burst";
                Err(BenchError::Refused(text.into()))
            }
        }
    }

    /// Whether the server takes several messages in one request; asked once.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn has_batches(&mut self) -> Result<bool, BenchError> {
        if let Some(known) = self.batches {
            return Ok(known);
        }
        // No message at all: a refusal of that is as good as an answer.
        let answer = self.api.post(BATCHES, JSON, br#"{"messages":[]}"#)?;
        let has = !matches!(answer.status, 404 | 405);
        self.batches = Some(has);
        Ok(has)
    }

    fn path(&self, audience: Audience) -> String {
        let Self { operation, room: (kind, room), .. } = self;
        match audience {
            Audience::Room => format!("/goim/push/room?operation={operation}&type={kind}&room={room}"),
            Audience::All => format!("/goim/push/all?operation={operation}"),
        }
    }

    /// Publishes a message to several keys and waits until it is accepted.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn publish_to_keys(&mut self, keys: &[String], body: &[u8]) -> Result<(), BenchError> {
        let query: String = keys.iter().map(|key| format!("&keys={key}")).collect();
        let path = format!("/goim/push/keys?operation={}{query}", self.operation);
        until_taken(&[()], |_| taken(&self.api.post(&path, "", body)?)).map(drop)
    }

    /// Publishes a message to all sessions of a member and waits until it is accepted.
    ///
    /// # Errors
    /// As [`HttpPublisher::publish`].
    pub(crate) fn publish_to_member(&mut self, member: u32, body: &[u8]) -> Result<(), BenchError> {
        let path = format!("/goim/push/mids?operation={}&mids={member}", self.operation);
        until_taken(&[()], |_| taken(&self.api.post(&path, "", body)?)).map(drop)
    }
}

/// What became of the messages of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    All,
    /// So many from the front; the server has no room for the rest at the moment.
    Front {
        accepted: usize,
        /// When to come again, as the server said, or soon.
        again_in: Duration,
    },
}

const JSON: &str = "Content-Type: application/json\r\n";

/// Where several messages are taken in one request.
const BATCHES: &str = "/v1/push";

/// Wait after a 429 that does not say how long.
const AGAIN_IN: Duration = Duration::from_millis(50);

/// How long a message may be held back by 429 before the run is given up.
const HELD_BACK_MAX: Duration = Duration::from_secs(60);

/// Repeats the attempt with what is left until all are taken; gives how often there was something left.
fn until_taken<T>(
    mut items: &[T],
    mut attempt: impl FnMut(&[T]) -> Result<Taken, BenchError>,
) -> Result<u64, BenchError> {
    let (began, mut held_back) = (Instant::now(), 0);
    loop {
        let Taken::Front { accepted, again_in } = attempt(items)? else { return Ok(held_back) };
        items = items.get(accepted..).unwrap_or_default();
        held_back += 1;
        if began.elapsed() > HELD_BACK_MAX {
            let text = format!("status 429 for {HELD_BACK_MAX:?}; publish more slowly, or ask for less");
            return Err(BenchError::Refused(text));
        }
        std::thread::sleep(again_in);
    }
}

/// Reads an answer to one message or to several.
fn taken(answer: &Answer) -> Result<Taken, BenchError> {
    if answer.status != 429 {
        return accepted(answer.status, &answer.body).map(|()| Taken::All);
    }
    let envelope: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let count = envelope.get("accepted").and_then(serde_json::Value::as_u64).unwrap_or_default();
    let accepted = usize::try_from(count).unwrap_or_default();
    Ok(Taken::Front { accepted, again_in: answer.again_in.unwrap_or(AGAIN_IN) })
}

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
    fn what_is_held_back_is_offered_again_from_there() {
        let answer = |status, body: &str, seconds: Option<u64>| Answer {
            status,
            body: body.into(),
            again_in: seconds.map(Duration::from_secs),
        };
        let front = |accepted, again_in| Taken::Front { accepted, again_in };
        for (given, expect) in [
            (answer(200, r#"{"code":0}"#, None), Taken::All),
            (answer(429, r#"{"code":-429,"accepted":2}"#, Some(3)), front(2, Duration::from_secs(3))),
            (answer(429, "busy", None), front(0, AGAIN_IN)),
        ] {
            assert_eq!(taken(&given).unwrap(), expect, "{given:?}");
        }
        let mut offered = Vec::new();
        let attempt = |rest: &[u8]| {
            offered.push(rest.to_vec());
            Ok(if offered.len() < 3 { front(1, Duration::ZERO) } else { Taken::All })
        };
        assert_eq!(until_taken(&[1, 2, 3], attempt).unwrap(), 2);
        assert_eq!(offered, [vec![1, 2, 3], vec![2, 3], vec![3]]);
    }

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
