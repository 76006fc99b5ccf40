//! Handlers of the timeline routes, for members on short connections and for the backend.
//!
//! Identifies the requester, reads the request and writes the answer. `crate::timelines` decides
//! what a reader may do; [`stream`] has the answer that never ends.

mod render;
mod stream;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT, AUTHORIZATION, COOKIE, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use goim_ports::{Accepted, ConnectRequest, Mid, Operation, Sequence, SessionKey, TimelineSeq, Version};
use goim_wire::Packet;
use goim_wire::sync::{self, Body as _};
use serde::Deserialize;
use serde_json::{Value, json};

use render::{EndNotice, message_json, reply_json};

use super::error::{ApiError, Reply};
use super::guard;
use super::query::QueryValues;
use super::rate::network;
use super::reply;
use crate::config::IdentityMethod;
use crate::logic::Logic;
use crate::timelines::push::AppendedMessage;
use crate::timelines::reader::{LongPollOutcome, Reader, Unread};
use crate::timelines::{LongPollEnd, TimelineRequestError, Timelines};

/// Who sent a request, and what identifies them.
#[derive(Clone, Copy)]
pub(super) struct Requester<'a> {
    pub(super) peer: Option<IpAddr>,
    pub(super) headers: &'a HeaderMap,
    /// Set when the route identifies its requester before it reads the body.
    pub(super) reader: Option<&'a Reader>,
}

/// Messages after a position: immediately, as a long poll, or as a stream of events.
pub(super) async fn sync(logic: &Logic, values: &QueryValues<'_>, requester: Requester<'_>) -> Reply {
    let timelines = timelines_of(logic)?;
    let wait = duration(values.text("wait"))
        .ok_or_else(|| ApiError::bad_parameter("wait must be a time such as 30s or 500ms"))?
        .min(logic.config.timelines.long_poll_timeout);
    let reader = member(logic, values, requester, protover(logic, values)).await?;
    let mut request = request_of(values);
    let accepts = |media_type: &[u8]| accepts(requester.headers, media_type);
    let address = requester.peer.map(network);
    if accepts(b"text/event-stream") {
        if let Some(position) = stream::last_event(requester.headers) {
            request.position = Some(position);
        }
        return stream::open(Arc::clone(timelines), reader, request, address).await;
    }
    let found = if wait.is_zero() {
        timelines.sync(&reader, &request).await?
    } else {
        long_poll(timelines, &reader, &request, address, wait).await?
    };
    if accepts(b"application/octet-stream") { Ok(packet(&found)) } else { Ok(data(&reply_json(&found))) }
}

/// Messages after a position, within `time`. A requester over a limit of long polls still gets
/// stored messages; an empty answer would make it repeat the request immediately, so it
/// gets the error instead.
async fn long_poll(
    timelines: &Timelines,
    reader: &Reader,
    request: &sync::SyncRequest,
    address: Option<IpAddr>,
    time: Duration,
) -> Result<sync::SyncReply, ApiError> {
    let wait = match timelines.begin_long_poll(reader, &request.timeline, address) {
        Ok(wait) => wait,
        Err(refusal @ TimelineRequestError::LongPoll(_)) => {
            let found = timelines.sync(reader, request).await?;
            let is_empty = found.messages.is_empty() && !found.gap;
            return if is_empty { Err(refusal.into()) } else { Ok(found) };
        }
        Err(error) => return Err(error.into()),
    };
    match timelines.sync_waiting(reader, request, &wait, time).await? {
        LongPollOutcome::Found(found) => Ok(found),
        LongPollOutcome::Ended(LongPollEnd::Draining) => Ok(timelines.sync(reader, request).await?),
        LongPollOutcome::Ended(end) => Err(ended(end)),
    }
}

/// The error for a long poll that was ended: the one that the same request would get now.
fn ended(end: LongPollEnd) -> ApiError {
    let EndNotice { reason, may_reconnect, .. } = EndNotice::of(end);
    if may_reconnect {
        ApiError::unauthorized(format!(
            "{reason}: needs a new token in the header Authorization (Bearer TOKEN)"
        ))
    } else {
        ApiError::new(StatusCode::FORBIDDEN, format!("{reason}: the backend has ended this session"))
    }
}

/// One page of a timeline, backwards.
pub(super) async fn history(logic: &Logic, values: &QueryValues<'_>, requester: Requester<'_>) -> Reply {
    let timelines = timelines_of(logic)?;
    let reader = backend_or_member(logic, values, requester, protover(logic, values)).await?;
    let before = u64::try_from(values.number("before")).ok().filter(|before| *before > 0).map(TimelineSeq);
    let limit = u32::try_from(values.number32("limit")).unwrap_or_default();
    let name = String::from_utf8_lossy(values.text("timeline"));
    let (head, messages) = timelines.history(&reader, &name, before, limit).await?;
    let oldest = messages.first().map_or(head.latest.0, |message| message.seq);
    Ok(data(&json!({
        "timeline": name,
        "epoch": head.epoch.0,
        "latest": head.latest.0,
        "first": head.first.0,
        "more": !messages.is_empty() && oldest > head.first.0,
        "messages": messages.iter().map(message_json).collect::<Vec<_>>(),
    })))
}

/// Numbers of unread messages.
pub(super) async fn unread(logic: &Logic, values: &QueryValues<'_>, requester: Requester<'_>) -> Reply {
    let timelines = timelines_of(logic)?;
    let reader = backend_or_member(logic, values, requester, logic.config.versions.highest()).await?;
    if reader.mid.is_anonymous() {
        return Err(ApiError::bad_parameter("mid must name the member whose messages are counted"));
    }
    let names = values.texts("timelines").iter().map(|name| String::from_utf8_lossy(name).into_owned());
    let found = timelines.unread(&reader, &names.collect::<Vec<_>>()).await?;
    Ok(data(&found.iter().map(unread_json).collect()))
}

/// Identifies the member of a request to `/v1/ack`, before a byte of the body is read.
pub(super) async fn acknowledging_member(
    logic: &Logic,
    values: &QueryValues<'_>,
    requester: Requester<'_>,
) -> Result<Reader, ApiError> {
    timelines_of(logic)?;
    member(logic, values, requester, logic.config.versions.highest()).await
}

/// Moves the member's cursor.
pub(super) async fn acknowledge(logic: &Logic, reader: &Reader, body: &[u8]) -> Reply {
    let timelines = timelines_of(logic)?;
    let MessageRef { timeline, seq } = MessageRef::read(body)?;
    let sync::AckReply { timeline, seq, unread } =
        timelines.acknowledge(reader, &sync::Ack { timeline, seq }).await?;
    Ok(data(&json!({ "timeline": timeline, "seq": seq, "unread": unread })))
}

/// Deletes the body of a message.
pub(super) async fn delete(logic: &Logic, body: &[u8]) -> Reply {
    let timelines = timelines_of(logic)?;
    let MessageRef { timeline, seq } = MessageRef::read(body)?;
    let deleted = timelines.delete(&timeline, TimelineSeq(seq)).await?;
    Ok(data(&json!({ "deleted": deleted })))
}

/// The positions of the stored messages of a batch, one list for each message.
pub(super) fn stored(messages: &[Vec<AppendedMessage>]) -> Response<Body> {
    let positions: Vec<Vec<Value>> =
        messages.iter().map(|appended| appended.iter().map(appended_json).collect()).collect();
    let answer = json!({ "code": 0, "message": "", "accepted": positions.len(), "positions": positions });
    reply::document(answer.to_string().into())
}

/// The positions of one stored message, in goim v2's envelope.
pub(super) fn stored_one(appended: &[AppendedMessage]) -> Response<Body> {
    data(&json!({ "positions": appended.iter().map(appended_json).collect::<Vec<_>>() }))
}

fn timelines_of(logic: &Logic) -> Result<&Arc<Timelines>, ApiError> {
    logic.timelines.as_ref().ok_or_else(|| TimelineRequestError::None.into())
}

/// A message of a timeline, as a request body names it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageRef {
    timeline: String,
    seq: u64,
}

impl MessageRef {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        // serde would read a list as the fields in their order.
        let object: serde_json::Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!("expected an object with `timeline` and `seq`: {error}"))
        })?;
        serde_json::from_value(Value::Object(object))
            .map_err(|error| ApiError::bad_request(error.to_string()))
    }
}

fn request_of(values: &QueryValues<'_>) -> sync::SyncRequest {
    let number = |name| u64::try_from(values.number(name)).unwrap_or_default();
    sync::SyncRequest {
        timeline: String::from_utf8_lossy(values.text("timeline")).into_owned(),
        position: Some(sync::Position { epoch: number("epoch"), seq: number("seq") }),
        limit: u32::try_from(values.number32("limit")).unwrap_or_default(),
    }
}

/// Parses `30s`, `500ms` or `1m`. An empty text is zero.
fn duration(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if text.is_empty() {
        return Some(Duration::ZERO);
    }
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// True when the header `Accept` names the media type itself; `*/*` does not count.
fn accepts(headers: &HeaderMap, media_type: &[u8]) -> bool {
    let named = headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    named
        .filter_map(|named| named.split(|byte| *byte == b';').next())
        .any(|named| named.trim_ascii().eq_ignore_ascii_case(media_type))
}

/// Identifies the requester as the backend, by its API key, or as a member, by the token.
async fn backend_or_member(
    logic: &Logic,
    values: &QueryValues<'_>,
    requester: Requester<'_>,
    protover: Version,
) -> Result<Reader, ApiError> {
    let keys = &logic.config.http.api_keys;
    let is_local = keys.is_empty() && !requester.headers.contains_key(AUTHORIZATION);
    let may = guard::check(keys, requester.peer, requester.headers).is_ok();
    if may && (is_local || !keys.is_empty()) {
        let mid = Mid(values.number("mid"));
        let key = SessionKey::from("");
        return Ok(Reader { mid, scope: None, protover, is_backend: true, key, expires_at: None });
    }
    member(logic, values, requester, protover).await
}

/// Identifies the requester as a member, by the token.
async fn member(
    logic: &Logic,
    values: &QueryValues<'_>,
    Requester { peer, headers, .. }: Requester<'_>,
    protover: Version,
) -> Result<Reader, ApiError> {
    let identity = &logic.config.identity;
    let is_open = identity.method == IdentityMethod::Open;
    if is_open && !identity.allow_remote && !guard::is_local(peer, headers) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "clients are not authenticated (logic.identity.method = \"open\") and this request is not from this \
             machine: choose \"jwt\" or \"webhook\", or, in a network that you trust, set \
             logic.identity.allow_remote = true",
        ));
    }
    let text =
        |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let credential = guard::bearer_tokens(headers).next().unwrap_or_default();
    let token = json!({
        "mid": values.number("mid"),
        "token": String::from_utf8_lossy(credential),
        "protover": protover.0,
    });
    let request = ConnectRequest {
        server: "".into(),
        cookie: text(COOKIE).to_owned(),
        user_agent: text(USER_AGENT).to_owned(),
        token: token.to_string().into(),
        remote: peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let (accepted, _) = logic.identity.identify(&request).await?;
    let protover = accepted.protover.unwrap_or(protover);
    let Accepted { mid, scope, key, expires_at, .. } = accepted;
    Ok(Reader { mid, scope, protover, is_backend: false, key, expires_at })
}

/// The packet version that the client names, at most the server's; the highest when it names none.
fn protover(logic: &Logic, values: &QueryValues<'_>) -> Version {
    let highest = logic.config.versions.highest();
    match i16::try_from(values.number32("protover")) {
        Ok(given) if given > 0 => Version(given).min(highest),
        _ => highest,
    }
}

fn data(value: &Value) -> Response<Body> {
    reply::data(|out| out.extend_from_slice(value.to_string().as_bytes()))
}

fn appended_json(AppendedMessage { timeline, appended }: &AppendedMessage) -> Value {
    json!({
        "timeline": timeline.to_string(),
        "epoch": appended.position.epoch.0,
        "seq": appended.position.seq.0,
        "duplicate": appended.is_duplicate,
    })
}

fn unread_json(unread: &Unread) -> Value {
    json!({
        "timeline": unread.timeline.to_string(),
        "unread": unread.count(),
        "cursor": unread.cursor.0,
        "epoch": unread.head.epoch.0,
        "latest": unread.head.latest.0,
    })
}

/// The packet of operation 22, as a connection would get it.
fn packet(found: &sync::SyncReply) -> Response<Body> {
    let body = found.write();
    let packet = Packet {
        version: Version::GOIM,
        operation: Operation::SYNC_REPLY,
        sequence: Sequence::NONE,
        body: &body,
    };
    reply::with_body("application/octet-stream", packet.to_owned().to_message_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait() {
        for (text, expected) in [
            ("", Some(0)),
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("30", None),
            ("s", None),
            ("-1s", None),
            ("1h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(duration(text.as_bytes()), expected.map(Duration::from_millis), "{text}");
        }
    }
}
