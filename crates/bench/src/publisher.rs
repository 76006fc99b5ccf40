//! Publishing messages through the HTTP API of the server under test.

use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::http::{Api, Response};

/// The receivers of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The room that all clients have joined.
    Room,
    /// Every session of the server.
    All,
}

/// Publishes through the HTTP API, one request after the other on one persistent connection.
#[derive(Debug)]
pub(crate) struct HttpPublisher {
    pub(crate) api: Api,
    pub(crate) operation: i32,
    /// The type and the name of the room.
    pub(crate) room: (String, String),
    /// Whether the server takes several messages in one request; `None` before the first attempt.
    pub(crate) batches: Option<bool>,
}

impl HttpPublisher {
    /// Publishes one message, and repeats it until it is accepted. Returns the number of 429
    /// responses.
    ///
    /// # Errors
    /// [`BenchError::Refused`] for another response, or after [`THROTTLED_MAX`];
    /// [`BenchError::Failed`] without a response.
    pub(crate) fn publish(&mut self, audience: Audience, body: &[u8]) -> Result<u64, BenchError> {
        until_accepted(&[()], |_| self.try_publish(audience, body))
    }

    /// Publishes one message once.
    ///
    /// # Errors
    /// See [`HttpPublisher::publish`].
    pub(crate) fn try_publish(&mut self, audience: Audience, body: &[u8]) -> Result<Accepted, BenchError> {
        let response = self.api.post(&self.path(audience), "", body)?;
        read_acceptance(&response)
    }

    /// Publishes several messages together, and repeats them until all are accepted: in one
    /// request, or, where the server takes one message per request, in as many requests that are
    /// written at once. Returns the number of 429 responses.
    ///
    /// # Errors
    /// See [`HttpPublisher::publish`]; also when one of several requests got a 429 and a later one
    /// did not, since the messages are then out of order.
    pub(crate) fn publish_together(
        &mut self,
        audience: Audience,
        bodies: &[Vec<u8>],
    ) -> Result<u64, BenchError> {
        until_accepted(bodies, |rest| self.try_together(audience, rest))
    }

    fn try_together(&mut self, audience: Audience, bodies: &[Vec<u8>]) -> Result<Accepted, BenchError> {
        if self.has_batches()? {
            let (kind, room) = &self.room;
            let to = match audience {
                Audience::Room => format!(r#"{{"room":"{kind}://{room}"}}"#),
                Audience::All => r#"{"all":true}"#.to_owned(),
            };
            let request = batch(&to, self.operation, bodies);
            return read_acceptance(&self.api.post(BATCHES, JSON, request.as_bytes())?);
        }
        let responses = self.api.post_together(&self.path(audience), bodies)?;
        let results: Vec<Accepted> = responses.iter().map(read_acceptance).collect::<Result<_, _>>()?;
        let throttled = |result: &Accepted| matches!(result, Accepted::First { .. });
        let Some(first) = results.iter().position(throttled) else { return Ok(Accepted::All) };
        match results.get(first) {
            Some(Accepted::First { retry_after, .. }) if results.iter().skip(first).all(throttled) => {
                Ok(Accepted::First { accepted: first, retry_after: *retry_after })
            }
            _ => {
                let text =
                    "status 429 in the middle of a burst, which is then out of order; use a smaller --burst";
                Err(BenchError::Refused(text.into()))
            }
        }
    }

    /// Returns whether the server takes several messages in one request. Asks once.
    ///
    /// # Errors
    /// When there is no response.
    pub(crate) fn has_batches(&mut self) -> Result<bool, BenchError> {
        if let Some(known) = self.batches {
            return Ok(known);
        }
        // Without messages, so that nothing is published. A refusal shows that the endpoint exists.
        let response = self.api.post(BATCHES, JSON, br#"{"messages":[]}"#)?;
        let has = !matches!(response.status, 404 | 405);
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

    /// Publishes a message to several keys, and repeats it until it is accepted.
    ///
    /// # Errors
    /// See [`HttpPublisher::publish`].
    pub(crate) fn publish_to_keys(&mut self, keys: &[String], body: &[u8]) -> Result<(), BenchError> {
        let query: String = keys.iter().map(|key| format!("&keys={key}")).collect();
        let path = format!("/goim/push/keys?operation={}{query}", self.operation);
        until_accepted(&[()], |_| read_acceptance(&self.api.post(&path, "", body)?)).map(drop)
    }

    /// Publishes a message to all sessions of a member, and repeats it until it is accepted.
    ///
    /// # Errors
    /// See [`HttpPublisher::publish`].
    pub(crate) fn publish_to_member(&mut self, member: u32, body: &[u8]) -> Result<(), BenchError> {
        let path = format!("/goim/push/mids?operation={}&mids={member}", self.operation);
        until_accepted(&[()], |_| read_acceptance(&self.api.post(&path, "", body)?)).map(drop)
    }
}

/// Which messages of a request were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    All,
    /// The first of them; the server is overloaded (429).
    First {
        accepted: usize,
        /// When to retry.
        retry_after: Duration,
    },
}

const JSON: &str = "Content-Type: application/json\r\n";

/// The endpoint for several messages in one request.
const BATCHES: &str = "/v1/push";

/// Wait after a 429 without `Retry-After`.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long a message may get 429 responses before the run fails.
const THROTTLED_MAX: Duration = Duration::from_secs(60);

/// Repeats an attempt with the remaining items until all are accepted. Returns the number of
/// repetitions.
fn until_accepted<T>(
    mut items: &[T],
    mut attempt: impl FnMut(&[T]) -> Result<Accepted, BenchError>,
) -> Result<u64, BenchError> {
    let (began, mut throttled) = (Instant::now(), 0);
    loop {
        let Accepted::First { accepted, retry_after } = attempt(items)? else { return Ok(throttled) };
        items = items.get(accepted..).unwrap_or_default();
        throttled += 1;
        if began.elapsed() > THROTTLED_MAX {
            let text = format!("status 429 for {THROTTLED_MAX:?}; reduce the rate");
            return Err(BenchError::Refused(text));
        }
        std::thread::sleep(retry_after);
    }
}

/// Reads the response to one message or to several.
fn read_acceptance(response: &Response) -> Result<Accepted, BenchError> {
    if response.status != 429 {
        return accepted(response.status, &response.body).map(|()| Accepted::All);
    }
    let envelope: serde_json::Value = serde_json::from_slice(&response.body).unwrap_or_default();
    let count = envelope.get("accepted").and_then(serde_json::Value::as_u64).unwrap_or_default();
    let accepted = usize::try_from(count).unwrap_or_default();
    Ok(Accepted::First { accepted, retry_after: response.retry_after.unwrap_or(RETRY_AFTER) })
}

/// Encodes the body of a request with several messages for the same receivers.
pub(crate) fn batch(to: &str, operation: i32, bodies: &[Vec<u8>]) -> String {
    let messages = bodies.iter().map(|body| {
        let body = base64(body);
        format!(r#"{{"to":{to},"operation":{operation},"body_base64":"{body}"}}"#)
    });
    format!(r#"{{"messages":[{}]}}"#, messages.collect::<Vec<_>>().join(","))
}

/// Encodes base 64, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = group.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = ALPHABET[(number >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// Reads the API's envelope: `{"code":0,...}` is accepted. goim v2 answers failures with status 200
/// too.
fn accepted(status: u16, body: &[u8]) -> Result<(), BenchError> {
    let envelope: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if status == 200 && envelope.get("code").and_then(serde_json::Value::as_i64) == Some(0) {
        return Ok(());
    }
    let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
    let hint = match status {
        401 | 403 => "; set a key of the push API with --api-key, or run on the server's machine",
        404 => "; is this goim's HTTP API?",
        _ => "",
    };
    Err(BenchError::Refused(format!("status {status}, {text}{hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_were_not_accepted_are_repeated() {
        let response = |status, body: &str, seconds: Option<u64>| Response {
            status,
            body: body.into(),
            retry_after: seconds.map(Duration::from_secs),
        };
        let first = |accepted, retry_after| Accepted::First { accepted, retry_after };
        for (given, expect) in [
            (response(200, r#"{"code":0}"#, None), Accepted::All),
            (response(429, r#"{"code":-429,"accepted":2}"#, Some(3)), first(2, Duration::from_secs(3))),
            (response(429, "busy", None), first(0, RETRY_AFTER)),
        ] {
            assert_eq!(read_acceptance(&given).unwrap(), expect, "{given:?}");
        }
        let mut offered = Vec::new();
        let attempt = |rest: &[u8]| {
            offered.push(rest.to_vec());
            Ok(if offered.len() < 3 { first(1, Duration::ZERO) } else { Accepted::All })
        };
        assert_eq!(until_accepted(&[1, 2, 3], attempt).unwrap(), 2);
        assert_eq!(offered, [vec![1, 2, 3], vec![2, 3], vec![3]]);
    }

    #[test]
    fn base64_has_padding() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn responses_are_classified() {
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
