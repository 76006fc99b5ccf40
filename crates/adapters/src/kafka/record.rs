//! A push as goim's Kafka record, and back: the value is `goim.logic.PushMsg`, the key selects the
//! partition.
//!
//! The time of acceptance is the record's timestamp, in milliseconds, so that key and value are the
//! same as goim's.

use std::num::NonZeroU32;

use goim_ports::{AcceptedAt, Operation, PushRecord, PushTarget};
use prost::Message;

use crate::grpc::convert::{extension_of, payload_of};
use crate::grpc::proto::logic::{PushMsg, push_msg::Type};

/// Encodes the value.
pub(super) fn value(record: &PushRecord) -> Vec<u8> {
    let mut message = PushMsg {
        operation: record.operation.0,
        msg: record.payload.primary().cloned().unwrap_or_default(),
        extension: extension_of(&record.payload),
        ..PushMsg::default()
    };
    match &record.target {
        PushTarget::Keys { server, keys } => {
            message.server = server.as_str().to_owned();
            message.keys = keys.iter().map(|key| key.as_str().to_owned()).collect();
        }
        PushTarget::Room(room) => {
            message.set_type(Type::Room);
            message.room = room.as_str().to_owned();
        }
        PushTarget::All { speed } => {
            message.set_type(Type::Broadcast);
            message.speed = speed.map_or(0, |speed| i32::try_from(speed.get()).unwrap_or(i32::MAX));
        }
    }
    message.encode_to_vec()
}

/// Returns the timestamp, in milliseconds since 1970.
pub(super) fn timestamp(record: &PushRecord) -> i64 {
    i64::try_from(record.accepted_at.0 / 1000).unwrap_or(i64::MAX)
}

/// Why a record is no push.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Poison {
    #[error("no goim.logic.PushMsg: {0}")]
    Undecodable(String),
    #[error("of type {0}, which is neither push nor room nor broadcast")]
    Type(i32),
    #[error("a push to keys that names none")]
    NoKeys,
    #[error("a message without a body in any schema")]
    NoBody,
}

/// Decodes a value. A record without a timestamp, like goim's own, counts as accepted now.
pub(super) fn read(value: &[u8], timestamp: Option<i64>) -> Result<PushRecord, Poison> {
    let message = PushMsg::decode(value).map_err(|error| Poison::Undecodable(error.to_string()))?;
    let target = match Type::try_from(message.r#type) {
        Ok(Type::Push) if message.keys.is_empty() => return Err(Poison::NoKeys),
        Ok(Type::Push) => PushTarget::Keys {
            server: message.server.into(),
            keys: message.keys.into_iter().map(Into::into).collect(),
        },
        Ok(Type::Room) => PushTarget::Room(message.room.into()),
        // Zero and negative speeds mean no limit.
        Ok(Type::Broadcast) => {
            PushTarget::All { speed: u32::try_from(message.speed).ok().and_then(NonZeroU32::new) }
        }
        Err(_) => return Err(Poison::Type(message.r#type)),
    };
    let accepted_at = timestamp
        .and_then(|millis| u64::try_from(millis).ok())
        .map_or_else(AcceptedAt::now, |millis| AcceptedAt(millis.saturating_mul(1000)));
    let payload = payload_of(message.msg, message.extension).ok_or(Poison::NoBody)?;
    Ok(PushRecord { target, operation: Operation(message.operation), payload, accepted_at })
}
