//! Handlers of the push routes: goim v2's four, batches, and the end of sessions.

use std::num::NonZeroU32;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use goim_ports::{
    AcceptedAt, AppendError, Bodies, IdempotencyKey, Mid, NewMessage, Operation, RoomId, SessionKey,
    TimelineError,
};

use super::error::{ApiError, Reply};
use super::messages::{BodyFormat, EndRequest};
use super::query::QueryValues;
use super::reply;
use super::timelines;
use crate::batch::{BatchError, BatchMessage, Delivery, Receivers};
use crate::logic::Logic;
use crate::push_writer::PushError;
use crate::timelines::TimelineRequestError;
use crate::timelines::push::{StoredPush, StoredTo};

/// The message of Go's protobuf library for a room that is not UTF-8.
const NOT_UTF8: &str = "string field contains invalid UTF-8";

/// Why a message to a room named like an inbox is not stored.
const ROOM_IS_INBOX: &str = "`mid` is the type of inboxes: push to the member";

/// Reads `delivery` and `idempotency_key` of goim v2's routes.
///
/// # Errors
/// A wrong value, or `stored` on a route that cannot store (`can_store` is false).
fn delivery(values: &QueryValues<'_>, can_store: bool) -> Result<Delivery, ApiError> {
    match values.text("delivery") {
        b"" | b"transient" => Ok(Delivery::Transient),
        b"stored" if !can_store => {
            Err(ApiError::bad_parameter("delivery: only messages to members and to rooms can be stored"))
        }
        b"stored" => {
            let idempotency_key =
                match values.text("idempotency_key") {
                    b"" => None,
                    key => Some(IdempotencyKey::new(Bytes::copy_from_slice(key)).ok_or_else(|| {
                        ApiError::bad_parameter("idempotency_key: must have 1 to 128 bytes")
                    })?),
                };
            Ok(Delivery::Stored { idempotency_key })
        }
        _ => Err(ApiError::bad_parameter("delivery: must be transient or stored")),
    }
}

/// Stores one message of goim v2's routes.
async fn store(
    logic: &Logic,
    values: &QueryValues<'_>,
    to: StoredTo,
    idempotency_key: Option<IdempotencyKey>,
    body: Bytes,
) -> Reply {
    let message = NewMessage {
        sender: Mid::default(),
        operation: operation(values),
        bodies: Bodies::plain(body),
        accepted_at: AcceptedAt::now(),
    };
    let stored = logic.push_stored(vec![StoredPush { to, message, idempotency_key }]).await;
    let stored = stored.map_err(|(_, error)| ApiError::goim_store(&error))?;
    Ok(timelines::stored_one(stored.first().map_or(&[][..], Vec::as_slice)))
}

pub(super) async fn keys(logic: &Logic, values: &QueryValues<'_>, body: Bytes) -> Reply {
    delivery(values, false)?;
    let given = values.texts("keys");
    // No session has an empty key or one that is not UTF-8, but a push that names only such keys is
    // valid.
    let keys: Vec<SessionKey> = given
        .iter()
        .filter(|key| !key.is_empty())
        .filter_map(|key| std::str::from_utf8(key).ok().map(SessionKey::from))
        .collect();
    if keys.is_empty() && !given.is_empty() {
        return Ok(reply::ok());
    }
    let pushed = logic.push_keys(operation(values), keys, body).await;
    pushed.map_err(|error| ApiError::goim_push_keys(&error))?;
    Ok(reply::ok())
}

pub(super) async fn mids(logic: &Logic, values: &QueryValues<'_>, body: Bytes) -> Reply {
    let mids = values.numbers("mids").iter().copied().map(Mid);
    match delivery(values, true)? {
        Delivery::Transient => goim_pushed(logic.push_mids(operation(values), mids.collect(), body).await),
        Delivery::Stored { idempotency_key } => {
            let to = StoredTo::Mids(mids.filter(|mid| !mid.is_anonymous()).collect());
            store(logic, values, to, idempotency_key, body).await
        }
    }
}

pub(super) async fn room(logic: &Logic, values: &QueryValues<'_>, body: Bytes) -> Reply {
    let room = room_of(values)?;
    match delivery(values, true)? {
        Delivery::Transient => goim_pushed(logic.push_room(operation(values), room, body).await),
        Delivery::Stored { .. } if room.as_str().starts_with("mid://") => {
            Err(ApiError::bad_parameter(format!("type: {ROOM_IS_INBOX}")))
        }
        Delivery::Stored { idempotency_key } => {
            store(logic, values, StoredTo::Room(room), idempotency_key, body).await
        }
    }
}

pub(super) async fn all(logic: &Logic, values: &QueryValues<'_>, body: Bytes) -> Reply {
    delivery(values, false)?;
    let speed = u32::try_from(values.number32("speed")).ok().and_then(NonZeroU32::new);
    goim_pushed(logic.push_all(operation(values), speed, body).await)
}

pub(super) async fn batch(logic: &Logic, headers: &HeaderMap, body: &[u8]) -> Reply {
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let format = BodyFormat::of(content_type).ok_or_else(|| {
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the content type must be application/json or application/x-ndjson",
        )
    })?;
    let messages = format.read(body).map_err(ApiError::bad_request)?;
    let bad_message =
        |index, reason: &str| ApiError::bad_request(format!("{}: {reason}", format.path_of(index, body)));
    match stored_pushes(&messages).map_err(|(index, reason)| bad_message(index, reason))? {
        Some(pushes) => {
            let stored = logic.push_stored(pushes).await;
            stored.map(|stored| timelines::stored(&stored)).map_err(|(index, error)| match error {
                TimelineRequestError::TooLarge { size, limit } => bad_message(index, &too_large(size, limit)),
                TimelineRequestError::Store(TimelineError::Unknown(_)) => ApiError::unknown_outcome(),
                error => error.into(),
            })
        }
        None => {
            let pushed = logic.push_batch(messages).await;
            pushed.map(reply::accepted).map_err(|BatchError { accepted, index, error }| match &error {
                PushError::Append(AppendError::TooLarge { size, limit }) => {
                    bad_message(index, &too_large(*size, *limit))
                }
                PushError::NoKeys => bad_message(index, &format!("to: keys: {error}")),
                PushError::Directory(_) | PushError::Append(_) => ApiError::from(&error).accepted(accepted),
            })
        }
    }
}

fn too_large(size: usize, limit: usize) -> String {
    format!("body: makes a record of {size} bytes; {limit} is the most")
}

/// Converts the messages of a batch to pushes to be stored. Returns `None` when all are transient.
///
/// # Errors
/// The index of the first message that cannot be stored, and why. A batch that mixes stored and
/// transient messages is refused, because its errors could not name the part that was done.
fn stored_pushes(messages: &[BatchMessage]) -> Result<Option<Vec<StoredPush>>, (usize, &'static str)> {
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

pub(super) async fn end_sessions(logic: &Logic, body: &[u8]) -> Reply {
    let EndRequest { of, reason } = EndRequest::read(body).map_err(ApiError::bad_request)?;
    logic.end_sessions(of, reason).await.map_err(|error| ApiError::from(&error))?;
    Ok(reply::ok())
}

/// Returns the id of the room that the parameters `type` and `room` name.
///
/// # Errors
/// goim v2's error when the id is not UTF-8.
pub(super) fn room_of(values: &QueryValues<'_>) -> Result<RoomId, ApiError> {
    let id = [values.text("type"), b"://", values.text("room")].concat();
    let id = String::from_utf8(id).map_err(|_| ApiError::goim_server_error(NOT_UTF8))?;
    Ok(RoomId::from(id))
}

fn operation(values: &QueryValues<'_>) -> Operation {
    Operation(values.number32("operation"))
}

fn goim_pushed(pushed: Result<(), PushError>) -> Reply {
    pushed.map_err(|error| ApiError::goim_push(&error))?;
    Ok(reply::ok())
}
