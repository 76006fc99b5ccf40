//! Timelines over HTTP: for members on short connections, and for the backend.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, COOKIE, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use goim_ports::{
    Accepted, AuthFailure, CloseReason, ConnectError, ConnectRequest, Mid, Operation, Sequence, SessionKey,
    TimelineError, TimelineSeq, Version,
};
use goim_wire::sync::{self, Body as _};
use goim_wire::{Packet, ReconnectPolicy};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::Values;
use super::rate::network;
use super::{guard, reply};
use crate::timelines::{Ending, NoWait, Placed, Reader, Timelines, Unread, Wait, Waited};
use crate::{IdentityMethod, Logic, TimelinesError};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What a client is told to wait when the store has more to do than it can.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What a client is told to wait when as many wait as may: waits are long.
const FULL_WAIT: Duration = Duration::from_secs(5);

/// A stream says this often that it is there: proxies cut off what is silent.
const STREAM_WAIT: Duration = Duration::from_secs(20);

/// Who asks, and what of it decides who that is.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) peer: Option<IpAddr>,
    pub(super) headers: &'a HeaderMap,
    /// Who that is, where it had to be known before the body was read.
    pub(super) reader: Option<&'a Reader>,
}

/// What comes behind a position: at once, later, or as a stream.
pub(super) async fn sync(logic: &Logic, values: &Values<'_>, asking: Asking<'_>) -> Response<Body> {
    let timelines = match open(logic) {
        Ok(timelines) => timelines,
        Err(response) => return response,
    };
    let wait = match duration(values.text("wait")) {
        Some(wait) => wait.min(logic.config.timelines.long_poll_timeout),
        None => return reply::bad_parameter("wait must be a time such as 30s or 500ms"),
    };
    let reader = match member(logic, values, asking, protover(logic, values)).await {
        Ok(reader) => reader,
        Err(response) => return response,
    };
    let mut request = request_of(values);
    let accepts = |kind: &[u8]| accepts(asking.headers, kind);
    let address = asking.peer.map(network);
    if accepts(b"text/event-stream") {
        if let Some(position) = last_event(asking.headers) {
            request.position = Some(position);
        }
        return stream(Arc::clone(timelines), reader, request, address).await;
    }
    let found = if wait.is_zero() {
        timelines.sync(&reader, &request).await
    } else {
        match sync_within(timelines, &reader, &request, address, wait).await {
            Ok(found) => found,
            Err(response) => return response,
        }
    };
    match found {
        Ok(found) if accepts(b"application/octet-stream") => packet(&found),
        Ok(found) => value(&reply_json(&found)),
        Err(error) => refused(&error),
    }
}

/// What comes behind a position within a time. Whoever may not wait is answered when there is something to say, and refused when not:
/// answered with nothing it would ask again at once.
async fn sync_within(
    timelines: &Timelines,
    reader: &Reader,
    request: &sync::SyncRequest,
    address: Option<IpAddr>,
    time: Duration,
) -> Result<Result<sync::SyncReply, TimelinesError>, Response<Body>> {
    let wait = match timelines.begin_wait(reader, &request.timeline, address) {
        Ok(wait) => wait,
        Err(refusal @ TimelinesError::NoWait(_)) => {
            return match timelines.sync(reader, request).await {
                Ok(found) if found.messages.is_empty() && !found.gap => Err(refused(&refusal)),
                found => Ok(found),
            };
        }
        Err(error) => return Ok(Err(error)),
    };
    match timelines.sync_waiting(reader, request, &wait, time).await {
        Ok(Waited::Found(found)) => Ok(Ok(found)),
        Ok(Waited::Ended(Ending::Draining)) => Ok(timelines.sync(reader, request).await),
        Ok(Waited::Ended(ending)) => Err(ended(ending)),
        Err(error) => Ok(Err(error)),
    }
}

/// The answer to a request whose wait was ended: as it would be if it came now.
fn ended(ending: Ending) -> Response<Body> {
    let Farewell { reason, may_return, .. } = Farewell::of(ending);
    if may_return {
        reply::unauthorized(&format!(
            "{reason}: needs a new token in the header Authorization (Bearer TOKEN)"
        ))
    } else {
        reply::refusal(StatusCode::FORBIDDEN, &format!("{reason}: the backend has ended this session"))
    }
}

/// What is said at the end of a stream: as in operation 6 of a session that ends.
struct Farewell {
    code: u16,
    reason: &'static str,
    may_return: bool,
}

impl Farewell {
    fn of(ending: Ending) -> Self {
        let reason = match ending {
            Ending::Expired => CloseReason::TokenExpired,
            Ending::Draining => CloseReason::Draining,
            Ending::Ordered(reason) => reason,
        };
        let may_return = reason.reconnect() != ReconnectPolicy::Never;
        Self { code: reason.code(), reason: reason.label(), may_return }
    }
}

/// A page of what came before.
pub(super) async fn history(logic: &Logic, values: &Values<'_>, asking: Asking<'_>) -> Response<Body> {
    let timelines = match open(logic) {
        Ok(timelines) => timelines,
        Err(response) => return response,
    };
    let reader = match backend_or_member(logic, values, asking, protover(logic, values)).await {
        Ok(reader) => reader,
        Err(response) => return response,
    };
    let before = u64::try_from(values.number("before")).ok().filter(|before| *before > 0).map(TimelineSeq);
    let limit = u32::try_from(values.number32("limit")).unwrap_or_default();
    let name = String::from_utf8_lossy(values.text("timeline"));
    match timelines.history(&reader, &name, before, limit).await {
        Ok((head, messages)) => {
            let oldest = messages.first().map_or(head.latest.0, |message| message.seq);
            value(&json!({
                "timeline": name,
                "epoch": head.epoch.0,
                "latest": head.latest.0,
                "first": head.first.0,
                "more": !messages.is_empty() && oldest > head.first.0,
                "messages": messages.iter().map(message_json).collect::<Vec<_>>(),
            }))
        }
        Err(error) => refused(&error),
    }
}

/// How much is unread.
pub(super) async fn unread(logic: &Logic, values: &Values<'_>, asking: Asking<'_>) -> Response<Body> {
    let timelines = match open(logic) {
        Ok(timelines) => timelines,
        Err(response) => return response,
    };
    let reader = match backend_or_member(logic, values, asking, logic.config.versions.highest()).await {
        Ok(reader) => reader,
        Err(response) => return response,
    };
    if reader.mid.is_anonymous() {
        return reply::bad_parameter("mid must name the member whose messages are counted");
    }
    let names = values.texts("timelines").iter().map(|name| String::from_utf8_lossy(name).into_owned());
    match timelines.unread(&reader, &names.collect::<Vec<_>>()).await {
        Ok(found) => value(&found.iter().map(unread_json).collect()),
        Err(error) => refused(&error),
    }
}

/// Who moves a cursor, found out before a byte of the body is read.
pub(super) async fn acknowledging(
    logic: &Logic,
    values: &Values<'_>,
    asking: Asking<'_>,
) -> Result<Reader, Response<Body>> {
    open(logic)?;
    member(logic, values, asking, logic.config.versions.highest()).await
}

/// Moves the member's cursor.
pub(super) async fn acknowledge(logic: &Logic, reader: &Reader, body: &[u8]) -> Response<Body> {
    let timelines = match open(logic) {
        Ok(timelines) => timelines,
        Err(response) => return response,
    };
    let Place { timeline, seq } = match Place::read(body) {
        Ok(place) => place,
        Err(wrong) => return reply::refusal(StatusCode::BAD_REQUEST, &wrong),
    };
    match timelines.acknowledge(reader, &sync::Ack { timeline, seq }).await {
        Ok(sync::AckReply { timeline, seq, unread }) => {
            value(&json!({ "timeline": timeline, "seq": seq, "unread": unread }))
        }
        Err(error) => refused(&error),
    }
}

/// Takes the body out of a message.
pub(super) async fn delete(logic: &Logic, body: &[u8]) -> Response<Body> {
    let timelines = match open(logic) {
        Ok(timelines) => timelines,
        Err(response) => return response,
    };
    let Place { timeline, seq } = match Place::read(body) {
        Ok(place) => place,
        Err(wrong) => return reply::refusal(StatusCode::BAD_REQUEST, &wrong),
    };
    match timelines.delete(&timeline, TimelineSeq(seq)).await {
        Ok(deleted) => value(&json!({ "deleted": deleted })),
        Err(error) => refused(&error),
    }
}

/// Where messages are that are kept now: a list for each.
pub(super) fn placed(messages: &[Vec<Placed>]) -> Response<Body> {
    let positions: Vec<Vec<Value>> =
        messages.iter().map(|placed| placed.iter().map(placed_json).collect()).collect();
    let answer = json!({ "code": 0, "message": "", "accepted": positions.len(), "positions": positions });
    reply::document(answer.to_string().into())
}

/// The same for one message, in goim's envelope.
pub(super) fn placed_one(placed: &[Placed]) -> Response<Body> {
    value(&json!({ "positions": placed.iter().map(placed_json).collect::<Vec<_>>() }))
}

/// Why something was not done.
pub(super) fn refused(error: &TimelinesError) -> Response<Body> {
    let text = error.public();
    match error {
        TimelinesError::Store(TimelineError::Busy(_)) => reply::too_many(&text, BUSY_WAIT),
        TimelinesError::NoWait(NoWait::Member | NoWait::Address) => reply::too_many(&text, FULL_WAIT),
        TimelinesError::NoWait(NoWait::Full | NoWait::Draining) => reply::unavailable(&text, FULL_WAIT),
        TimelinesError::Invalid(_)
        | TimelinesError::TooLarge { .. }
        | TimelinesError::Store(TimelineError::Invalid(_)) => reply::refusal(StatusCode::BAD_REQUEST, &text),
        TimelinesError::Limited { retry_after, .. } => reply::too_many(&text, *retry_after),
        TimelinesError::Forbidden(_) | TimelinesError::Reserved(_) => {
            reply::refusal(StatusCode::FORBIDDEN, &text)
        }
        TimelinesError::None => reply::refusal(StatusCode::NOT_IMPLEMENTED, &text),
        TimelinesError::Store(_) | TimelinesError::Undecided(_) => {
            reply::refusal(StatusCode::SERVICE_UNAVAILABLE, &text)
        }
    }
}

#[allow(clippy::result_large_err, reason = "as in `dispatch`")]
fn open(logic: &Logic) -> Result<&Arc<Timelines>, Response<Body>> {
    logic.timelines.as_ref().ok_or_else(|| refused(&TimelinesError::None))
}

/// A place in a timeline, as a request names it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    timeline: String,
    seq: u64,
}

impl Place {
    fn read(body: &[u8]) -> Result<Self, String> {
        // A list would be read as the fields in their order.
        let object: serde_json::Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| format!("wants an object with `timeline` and `seq`: {error}"))?;
        serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
    }
}

fn request_of(values: &Values<'_>) -> sync::SyncRequest {
    let number = |name| u64::try_from(values.number(name)).unwrap_or_default();
    sync::SyncRequest {
        timeline: String::from_utf8_lossy(values.text("timeline")).into_owned(),
        position: Some(sync::Position { epoch: number("epoch"), seq: number("seq") }),
        limit: u32::try_from(values.number32("limit")).unwrap_or_default(),
    }
}

/// `30s`, `500ms`, `1m`; nothing is no time.
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

fn accepts(headers: &HeaderMap, kind: &[u8]) -> bool {
    let named = headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    named
        .filter_map(|named| named.split(|byte| *byte == b';').next())
        .any(|named| named.trim_ascii().eq_ignore_ascii_case(kind))
}

/// `epoch:seq`, as the events of a stream are named.
fn last_event(headers: &HeaderMap) -> Option<sync::Position> {
    let (epoch, seq) = headers.get(LAST_EVENT_ID)?.to_str().ok()?.trim().split_once(':')?;
    Some(sync::Position { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
}

/// The backend, when it presents a key, or else the member whose token it is.
async fn backend_or_member(
    logic: &Logic,
    values: &Values<'_>,
    asking: Asking<'_>,
    protover: Version,
) -> Result<Reader, Response<Body>> {
    let keys = &logic.config.http.api_keys;
    let is_local = keys.is_empty() && !asking.headers.contains_key(AUTHORIZATION);
    let may = guard::check(keys, asking.peer, asking.headers).is_ok();
    if may && (is_local || !keys.is_empty()) {
        let mid = Mid(values.number("mid"));
        let key = SessionKey::from("");
        return Ok(Reader { mid, scope: None, protover, is_backend: true, key, expires_at: None });
    }
    member(logic, values, asking, protover).await
}

/// The member whose token it is.
async fn member(
    logic: &Logic,
    values: &Values<'_>,
    Asking { peer, headers, .. }: Asking<'_>,
    protover: Version,
) -> Result<Reader, Response<Body>> {
    let identity = &logic.config.identity;
    let is_believed = identity.method == IdentityMethod::Open;
    if is_believed && !identity.allow_remote && !guard::is_local(peer, headers) {
        return Err(reply::refusal(
            StatusCode::FORBIDDEN,
            "clients are believed who they are (logic.identity.method = \"open\"), and this request is not from \
             this machine: choose \"jwt\" or \"webhook\", or, in a network that you trust, set \
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
    match logic.identity.identify(&request).await {
        Ok((accepted, _)) => {
            let protover = accepted.protover.unwrap_or(protover);
            let Accepted { mid, scope, key, expires_at, .. } = accepted;
            Ok(Reader { mid, scope, protover, is_backend: false, key, expires_at })
        }
        Err(error) => Err(unknown(&error)),
    }
}

fn unknown(error: &ConnectError) -> Response<Body> {
    match error.reason {
        AuthFailure::AuthUnavailable => {
            reply::refusal(StatusCode::SERVICE_UNAVAILABLE, "who asks cannot be found out; try again later")
        }
        AuthFailure::AuthDenied | AuthFailure::RoomNotAllowed | AuthFailure::TokenMismatch => {
            reply::refusal(StatusCode::FORBIDDEN, error.reason.label())
        }
        reason => {
            let wants = "needs the member's token in the header Authorization (Bearer TOKEN)";
            reply::unauthorized(&format!("{}: {wants}", reason.label()))
        }
    }
}

/// What the client says that it reads; everything, when it says nothing.
fn protover(logic: &Logic, values: &Values<'_>) -> Version {
    let highest = logic.config.versions.highest();
    match i16::try_from(values.number32("protover")) {
        Ok(given) if given > 0 => Version(given).min(highest),
        _ => highest,
    }
}

fn value(value: &Value) -> Response<Body> {
    reply::data(|out| out.extend_from_slice(value.to_string().as_bytes()))
}

fn placed_json(Placed { timeline, kept }: &Placed) -> Value {
    json!({
        "timeline": timeline.to_string(),
        "epoch": kept.position.epoch.0,
        "seq": kept.position.seq.0,
        "duplicate": kept.is_duplicate,
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

fn reply_json(reply: &sync::SyncReply) -> Value {
    json!({
        "timeline": reply.timeline,
        "epoch": reply.epoch,
        "latest": reply.latest,
        "after": reply.after,
        "more": reply.more,
        "gap": reply.gap,
        "messages": reply.messages.iter().map(message_json).collect::<Vec<_>>(),
    })
}

/// A body that is text is one, any other is in base64.
fn message_json(message: &sync::Message) -> Value {
    let mut object = json!({
        "seq": message.seq,
        "operation": message.operation,
        "version": message.version,
        "time_ms": message.time_ms,
        "sender": message.sender,
    });
    if message.deleted {
        object["deleted"] = Value::Bool(true);
    } else if message.unreadable {
        object["unreadable"] = Value::Bool(true);
    } else {
        match std::str::from_utf8(&message.body) {
            Ok(text) => object["body"] = text.into(),
            Err(_) => object["body_base64"] = STANDARD.encode(&message.body).into(),
        }
    }
    object
}

/// As it would have come over a connection.
fn packet(found: &sync::SyncReply) -> Response<Body> {
    let body = found.write();
    let packet = Packet {
        version: Version::GOIM,
        operation: Operation::SYNC_REPLY,
        sequence: Sequence::NONE,
        body: &body,
    };
    reply::bytes("application/octet-stream", packet.to_owned().to_message_bytes())
}

/// Events without end: each has the messages that came, and is named by the position behind them.
async fn stream(
    timelines: Arc<Timelines>,
    reader: Reader,
    request: sync::SyncRequest,
    address: Option<IpAddr>,
) -> Response<Body> {
    // Who may not read, or not wait, is told so by the status; so is whom the store does not answer.
    let wait = match timelines.begin_wait(&reader, &request.timeline, address) {
        Ok(wait) => wait,
        Err(error) => return refused(&error),
    };
    if let Err(error) = timelines.sync(&reader, &sync::SyncRequest { limit: 1, ..request.clone() }).await {
        return refused(&error);
    }
    let streaming = Streaming { timelines, reader, request, wait, resets: 0 };
    let mut response = Response::new(Body::new(Events { next: Some(streaming.next()) }));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What comes next.
type Pending = Pin<Box<dyn Future<Output = Option<Said>> + Send>>;

/// A part of a stream, and how to go on; the last has nothing behind it.
struct Said {
    text: Bytes,
    next: Option<Pending>,
}

struct Events {
    next: Option<Pending>,
}

/// A stream between two events.
struct Streaming {
    timelines: Arc<Timelines>,
    reader: Reader,
    request: sync::SyncRequest,
    /// Held as long as the stream is there, whether or not it waits: that is what bounds how many there are.
    wait: Wait,
    /// Holes in a row.
    resets: u32,
}

impl Streaming {
    fn next(self) -> Pending {
        Box::pin(self.say())
    }

    /// The next event, or a word that the stream is there. Each turn waits for something: for messages, for time, or, where a timeline
    /// has one hole after the other, for a second.
    async fn say(mut self) -> Option<Said> {
        if self.resets > 1 {
            Timelines::pause(&self.wait).await;
        }
        let waited = self.timelines.sync_waiting(&self.reader, &self.request, &self.wait, STREAM_WAIT).await;
        let found = match waited {
            Ok(Waited::Found(found)) => found,
            Ok(Waited::Ended(ending)) => return Some(self.farewell(ending)),
            Err(error) => {
                tracing::debug!(%error, "a stream of messages ends; its client comes back");
                return None;
            }
        };
        let is_news = found.gap || !found.messages.is_empty();
        let seq = found.messages.last().map_or(found.after, |message| message.seq);
        let text = if is_news {
            format!("id: {}:{seq}\nevent: messages\ndata: {}\n\n", found.epoch, reply_json(&found))
        } else {
            ":\n\n".to_owned()
        };
        // Behind a hole at whose end nothing is, the stream begins as one that knows nothing yet.
        self.request.position = (found.epoch != 0).then_some(sync::Position { epoch: found.epoch, seq });
        self.resets = if found.gap { self.resets + 1 } else { 0 };
        Some(Said { text: text.into(), next: Some(self.next()) })
    }

    /// Why the stream ends, and what its client should do. Whoever goes away sends its clients back at different times.
    fn farewell(&self, ending: Ending) -> Said {
        let Farewell { code, reason, may_return } = Farewell::of(ending);
        let delay_ms = match ending {
            Ending::Draining => 500 + self.wait.number() % 45 * 100,
            _ => 0,
        };
        let data = json!({
            "code": code,
            "reason": reason,
            "reconnect": may_return,
            "delay_ms": delay_ms,
        });
        let retry = if delay_ms > 0 { format!("retry: {delay_ms}\n") } else { String::new() };
        Said { text: format!("{retry}event: end\ndata: {data}\n\n").into(), next: None }
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(pending) = &mut self.next else { return Poll::Ready(None) };
        let said = std::task::ready!(pending.as_mut().poll(context));
        self.next = None;
        Poll::Ready(said.map(|Said { text, next }| {
            self.next = next;
            Ok(Frame::data(text))
        }))
    }
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
