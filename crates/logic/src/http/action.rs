//! What each route does, once its parameters are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use goim_ports::{
    AcceptedAt, AppendError, Bodies, CometNode, IdempotencyKey, Mid, NewMessage, Operation, RoomId,
    SessionKey, TimelineError,
};

use super::messages::{EndRequest, Form};
use super::query::Values;
use super::table::Action;
use super::timelines::{self, Asking};
use super::{json, openapi, reply};
use crate::{
    BatchError, BatchMessage, Delivery, Logic, NodesReply, PushError, Receivers, StoredPush, StoredTo,
    TimelinesError,
};

/// What a client is told to wait when the push log is full.
const FULL_WAIT: Duration = Duration::from_secs(1);

/// The text of Go's protobuf library for a room that is no text.
const NOT_UTF8: &str = "string field contains invalid UTF-8";

/// Does the work of a route. `body` is empty for routes that take none.
pub(super) async fn act(
    logic: &Logic,
    action: Action,
    values: &Values<'_>,
    asking: Asking<'_>,
    body: Bytes,
) -> Response<Body> {
    match action {
        Action::PushKeys => push_keys(logic, values, body).await,
        Action::PushMids => push_mids(logic, values, body).await,
        Action::PushRoom => push_room(logic, values, body).await,
        Action::PushAll => push_all(logic, values, body).await,
        Action::PushBatch => push_batch(logic, asking.headers, &body).await,
        Action::EndSessions => end_sessions(logic, &body).await,
        Action::RoomMembers => room_members(logic, values).await,
        Action::Sync => timelines::sync(logic, values, asking).await,
        Action::History => timelines::history(logic, values, asking).await,
        Action::Unread => timelines::unread(logic, values, asking).await,
        Action::Ack => match asking.reader {
            Some(reader) => timelines::acknowledge(logic, reader, &body).await,
            // `dispatch` finds out who asks before it reads a body.
            None => reply::broken(),
        },
        Action::DeleteMessage => timelines::delete(logic, &body).await,
        Action::OnlineTop => online_top(logic, values).await,
        Action::OnlineRoom => online_room(logic, values).await,
        Action::OnlineTotal => online_total(logic),
        Action::NodesWeighted => nodes_weighted(logic, values),
        Action::NodesInstances => nodes_instances(logic),
        Action::Protocol => protocol(logic),
        Action::OpenApi => reply::document(openapi::document()),
    }
}

/// The answer to a request that took too long; what it does is broken off.
pub(super) fn late(logic: &Logic, action: Action) -> Response<Body> {
    match action {
        Action::PushKeys | Action::PushMids | Action::PushRoom | Action::PushAll => reply::unknown_as_goim(),
        Action::PushBatch | Action::EndSessions => reply::unknown(None),
        _ => reply::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("not done within {:?}; it may be done in part", logic.config.http.request_timeout),
        ),
    }
}

/// Whether a push of goim's routes is to be kept, and by what a second try of it is known.
///
/// `Err` has the answer to one that says it wrongly, or that cannot be kept.
#[allow(clippy::result_large_err, reason = "as in `dispatch`")]
fn delivery(values: &Values<'_>, can_be_kept: bool) -> Result<Delivery, Response<Body>> {
    let wrong = |text: &str| Err(reply::bad_parameter(text));
    match values.text("delivery") {
        b"" | b"transient" => Ok(Delivery::Transient),
        b"stored" if !can_be_kept => wrong("delivery: only messages to members and to rooms can be stored"),
        b"stored" => match values.text("idempotency_key") {
            b"" => Ok(Delivery::Stored { idempotency_key: None }),
            key => match IdempotencyKey::new(Bytes::copy_from_slice(key)) {
                Some(idempotency_key) => Ok(Delivery::Stored { idempotency_key: Some(idempotency_key) }),
                None => wrong("idempotency_key: must have 1 to 128 bytes"),
            },
        },
        _ => wrong("delivery: must be transient or stored"),
    }
}

/// Keeps one message of goim's routes.
async fn store(
    logic: &Logic,
    values: &Values<'_>,
    to: StoredTo,
    idempotency_key: Option<IdempotencyKey>,
    body: Bytes,
) -> Response<Body> {
    let message = NewMessage {
        sender: Mid::default(),
        operation: operation(values),
        bodies: Bodies::plain(body),
        accepted_at: AcceptedAt::now(),
    };
    match logic.push_stored(vec![StoredPush { to, message, idempotency_key }]).await {
        Ok(placed) => timelines::placed_one(placed.first().map_or(&[][..], Vec::as_slice)),
        Err((_, TimelinesError::Store(TimelineError::Unknown(_)))) => reply::unknown_as_goim(),
        Err((_, error)) => timelines::refused(&error),
    }
}

async fn push_keys(logic: &Logic, values: &Values<'_>, body: Bytes) -> Response<Body> {
    if let Err(response) = delivery(values, false) {
        return response;
    }
    let given = values.texts("keys");
    // No session has an empty key or one that is no text, but a push that names only such ones is a push.
    let keys: Vec<SessionKey> = given
        .iter()
        .filter(|key| !key.is_empty())
        .filter_map(|key| std::str::from_utf8(key).ok().map(SessionKey::from))
        .collect();
    if keys.is_empty() && !given.is_empty() {
        return reply::ok();
    }
    match logic.push_keys(operation(values), keys, body).await {
        Err(error) if !is_full(&error) && !is_unknown(&error) => reply::failure(reply::BAD_REQUEST, ""),
        pushed => pushed_reply(pushed),
    }
}

async fn push_mids(logic: &Logic, values: &Values<'_>, body: Bytes) -> Response<Body> {
    let mids = values.numbers("mids").iter().copied().map(Mid);
    let mids: Vec<Mid> = match delivery(values, true) {
        Ok(Delivery::Transient) => mids.collect(),
        Ok(Delivery::Stored { idempotency_key }) => {
            let to = StoredTo::Mids(mids.filter(|mid| !mid.is_anonymous()).collect());
            return store(logic, values, to, idempotency_key, body).await;
        }
        Err(response) => return response,
    };
    pushed_reply(logic.push_mids(operation(values), mids, body).await)
}

async fn push_room(logic: &Logic, values: &Values<'_>, body: Bytes) -> Response<Body> {
    let id = [values.text("type"), b"://", values.text("room")].concat();
    let Ok(id) = String::from_utf8(id) else {
        return reply::failure(reply::SERVER_ERROR, NOT_UTF8);
    };
    match delivery(values, true) {
        Ok(Delivery::Transient) => {
            pushed_reply(logic.push_room(operation(values), RoomId::from(id), body).await)
        }
        Ok(Delivery::Stored { .. }) if id.starts_with("mid://") => {
            reply::bad_parameter("type: `mid` is the type of inboxes: push to the member")
        }
        Ok(Delivery::Stored { idempotency_key }) => {
            store(logic, values, StoredTo::Room(id.into()), idempotency_key, body).await
        }
        Err(response) => response,
    }
}

async fn push_all(logic: &Logic, values: &Values<'_>, body: Bytes) -> Response<Body> {
    if let Err(response) = delivery(values, false) {
        return response;
    }
    let speed = u32::try_from(values.number32("speed")).ok().and_then(NonZeroU32::new);
    pushed_reply(logic.push_all(operation(values), speed, body).await)
}

async fn push_batch(logic: &Logic, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let Some(form) = Form::of(content_type) else {
        return reply::refusal(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type must be application/json or application/x-ndjson",
        );
    };
    let messages = match form.read(body) {
        Ok(messages) => messages,
        Err(wrong) => return reply::refusal(StatusCode::BAD_REQUEST, &wrong),
    };
    match stored_of(&messages) {
        Ok(None) => {}
        Ok(Some(pushes)) => {
            return match logic.push_stored(pushes).await {
                Ok(placed) => timelines::placed(&placed),
                Err((index, TimelinesError::TooLarge { size, limit })) => {
                    let place = form.place(index, body);
                    let wrong = format!("{place}: body: makes a record of {size} bytes; {limit} is the most");
                    reply::refusal(StatusCode::BAD_REQUEST, &wrong)
                }
                Err((_, TimelinesError::Store(TimelineError::Unknown(_)))) => reply::unknown(None),
                Err((_, error)) => timelines::refused(&error),
            };
        }
        Err((index, wrong)) => {
            let wrong = format!("{}: {wrong}", form.place(index, body));
            return reply::refusal(StatusCode::BAD_REQUEST, &wrong);
        }
    }
    let BatchError { accepted, index, error } = match logic.push_batch(messages).await {
        Ok(accepted) => return reply::accepted(accepted),
        Err(error) => error,
    };
    match &error {
        PushError::Append(AppendError::Full) => reply::too_many_but(accepted, &error.to_string(), FULL_WAIT),
        PushError::Append(AppendError::TooLarge { size, limit }) => {
            let place = form.place(index, body);
            let wrong = format!("{place}: body: makes a record of {size} bytes; {limit} is the most");
            reply::refusal(StatusCode::BAD_REQUEST, &wrong)
        }
        PushError::NoKeys => {
            let wrong = format!("{}: to: keys: {error}", form.place(index, body));
            reply::refusal(StatusCode::BAD_REQUEST, &wrong)
        }
        PushError::Directory(_) | PushError::Append(AppendError::Unavailable(_)) => {
            reply::refusal_but(StatusCode::SERVICE_UNAVAILABLE, accepted, &error.to_string())
        }
        PushError::Append(AppendError::Unknown(_)) => reply::unknown(Some(accepted)),
    }
}

/// The messages as ones to be kept; `None` when none is. A part of them would leave open what an error is about.
fn stored_of(messages: &[BatchMessage]) -> Result<Option<Vec<StoredPush>>, (usize, &'static str)> {
    let is_stored = |message: &BatchMessage| matches!(message.delivery, Delivery::Stored { .. });
    if !messages.iter().any(is_stored) {
        return Ok(None);
    }
    let accepted_at = AcceptedAt::now();
    let stored = messages.iter().enumerate().map(|(index, message)| {
        let Delivery::Stored { idempotency_key } = &message.delivery else {
            return Err((index, "delivery: all messages of a request must be stored, or none"));
        };
        let to = match &message.to {
            Receivers::Mids(mids) => StoredTo::Mids(mids.clone()),
            Receivers::Room(room) if room.as_str().starts_with("mid://") => {
                return Err((index, "to: room: `mid` is the type of inboxes: push to the member"));
            }
            Receivers::Room(room) => StoredTo::Room(room.clone()),
            Receivers::Keys(_) | Receivers::All(_) => {
                return Err((index, "delivery: only messages to mids and to a room can be stored"));
            }
        };
        let BatchMessage { operation, bodies, .. } = message.clone();
        let message = NewMessage { sender: Mid::default(), operation, bodies, accepted_at };
        Ok(StoredPush { to, message, idempotency_key: idempotency_key.clone() })
    });
    stored.collect::<Result<_, _>>().map(Some)
}

async fn end_sessions(logic: &Logic, body: &[u8]) -> Response<Body> {
    let EndRequest { of, reason } = match EndRequest::read(body) {
        Ok(request) => request,
        Err(wrong) => return reply::refusal(StatusCode::BAD_REQUEST, &wrong),
    };
    match logic.end_sessions(of, reason).await {
        Ok(()) => reply::ok(),
        Err(error) if is_full(&error) => reply::too_many(&error.to_string(), FULL_WAIT),
        Err(error) if is_unknown(&error) => reply::unknown(None),
        Err(error) => reply::refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// Most sessions of a room in one answer.
const MEMBERS_MAX: i64 = 10_000;

async fn room_members(logic: &Logic, values: &Values<'_>) -> Response<Body> {
    let limit = values.number("limit");
    if !(1..=MEMBERS_MAX).contains(&limit) {
        return reply::bad_parameter(&format!("limit must be from 1 to {MEMBERS_MAX}: {limit}"));
    }
    let id = [values.text("type"), b"://", values.text("room")].concat();
    let Ok(id) = String::from_utf8(id) else {
        return reply::failure(reply::SERVER_ERROR, NOT_UTF8);
    };
    let (members, count) =
        logic.room_members(&RoomId::from(id), usize::try_from(limit).unwrap_or_default()).await;
    reply::data(|out| {
        let mut object = json::Object::open(out);
        json::number(object.member(b"count"), count);
        json::array(object.member(b"members"), members, |out, (server, member)| {
            let mut object = json::Object::open(out);
            object.number("mid", member.mid.0);
            object.text("key", member.key.as_str());
            object.text("server", server.as_str());
            object.close();
        });
        object.close();
    })
}

fn operation(values: &Values<'_>) -> Operation {
    Operation(values.number32("operation"))
}

fn is_full(error: &PushError) -> bool {
    matches!(error, PushError::Append(AppendError::Full))
}

fn is_unknown(error: &PushError) -> bool {
    matches!(error, PushError::Append(AppendError::Unknown(_)))
}

fn pushed_reply(pushed: Result<(), PushError>) -> Response<Body> {
    match pushed {
        Ok(()) => reply::ok(),
        Err(error) if is_full(&error) => reply::too_many(&error.to_string(), FULL_WAIT),
        Err(error) if is_unknown(&error) => reply::unknown_as_goim(),
        Err(error) => reply::failure(reply::SERVER_ERROR, &error.to_string()),
    }
}

async fn online_top(logic: &Logic, values: &Values<'_>) -> Response<Body> {
    let limit = values.number("limit");
    if limit < 0 {
        return reply::bad_parameter(&format!("limit must not be negative: {limit}"));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let rooms = match std::str::from_utf8(values.text("type")) {
        Ok(kind) => logic.online_top(kind, limit).await,
        Err(_) => Vec::new(),
    };
    reply::data(|out| {
        json::array(out, rooms, |out, room| {
            let mut object = json::Object::open(out);
            object.text("room_id", &room.room);
            object.number("count", room.count);
            object.close();
        });
    })
}

async fn online_room(logic: &Logic, values: &Values<'_>) -> Response<Body> {
    let counts = logic.room_counts().await;
    let kind = values.text("type");
    let count_of = |room: &[u8]| {
        let id = String::from_utf8([kind, b"://", room].concat()).ok()?;
        counts.get(id.as_str()).copied()
    };
    let rooms: BTreeMap<&Cow<'_, [u8]>, u32> =
        values.texts("rooms").iter().map(|room| (room, count_of(room).unwrap_or(0))).collect();
    reply::data(|out| {
        let mut object = json::Object::open(out);
        for (room, count) in rooms {
            json::number(object.member(room), count);
        }
        object.close();
    })
}

fn online_total(logic: &Logic) -> Response<Body> {
    let total = logic.online_total();
    reply::data(|out| {
        let mut object = json::Object::open(out);
        object.number("conn_count", total.connections);
        object.number("ip_count", total.addresses);
        object.close();
    })
}

fn nodes_weighted(logic: &Logic, values: &Values<'_>) -> Response<Body> {
    let platform = String::from_utf8_lossy(values.text("platform"));
    let nodes = logic.weighted_nodes(&platform);
    reply::data(|out| write_nodes(out, &nodes))
}

fn write_nodes(out: &mut Vec<u8>, nodes: &NodesReply) {
    let mut object = json::Object::open(out);
    object.some_text("domain", &nodes.domain);
    object.some_number("tcp_port", nodes.tcp_port.into());
    object.some_number("ws_port", nodes.ws_port.into());
    object.some_number("wss_port", nodes.wss_port.into());
    object.some_number("heartbeat", nodes.heartbeat);
    json::array(object.member(b"nodes"), &nodes.nodes, |out, node| json::string(out, node.as_bytes()));
    let mut backoff = json::Object::open(object.member(b"backoff"));
    backoff.some_number("max_delay", nodes.backoff.max_delay);
    backoff.some_number("base_delay", nodes.backoff.base_delay);
    backoff.some_float("factor", nodes.backoff.factor);
    backoff.some_float("jitter", nodes.backoff.jitter);
    backoff.close();
    object.some_number("heartbeat_max", nodes.heartbeat_max);
    object.close();
}

fn protocol(logic: &Logic) -> Response<Body> {
    let table = &logic.config.versions;
    let row = |row: &goim_ports::VersionRow| {
        serde_json::json!({
            "version": row.version.0, "schema": row.schema.0, "encoding": row.encoding.name(),
        })
    };
    let rows: Vec<_> = table.rows().iter().map(row).collect();
    reply::data(|out| {
        let data = serde_json::json!({ "protover": table.highest().0, "versions": rows });
        out.extend_from_slice(data.to_string().as_bytes());
    })
}

fn nodes_instances(logic: &Logic) -> Response<Body> {
    let comets = logic.instances();
    reply::data(|out| {
        if comets.is_empty() {
            out.extend_from_slice(b"null");
        } else {
            json::array(out, &comets, write_instance);
        }
    })
}

/// An instance as bilibili/discovery has it, its metadata sorted.
fn write_instance(out: &mut Vec<u8>, comet: &CometNode) {
    let mut object = json::Object::open(out);
    object.text("region", &comet.region);
    object.text("zone", &comet.zone);
    object.text("env", &comet.env);
    object.text("appid", "goim.comet");
    object.text("hostname", comet.server.as_str());
    json::array(object.member(b"addrs"), &comet.rpc_addrs, |out, addr| json::string(out, addr.as_bytes()));
    object.text("version", "");
    object.number("latest_timestamp", comet.latest_timestamp);
    let mut metadata = json::Object::open(object.member(b"metadata"));
    metadata.text("addrs", &comet.public_addrs.join(","));
    metadata.text("conn_count", &comet.connections.to_string());
    metadata.text("ip_count", &comet.addresses.to_string());
    metadata.text("offline", if comet.offline { "true" } else { "false" });
    metadata.text("weight", &comet.weight.to_string());
    metadata.close();
    object.close();
}
