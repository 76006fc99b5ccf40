//! Timelines as JSON: sync replies, messages, and why a stream ends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use goim_ports::CloseReason;
use goim_wire::{ReconnectPolicy, sync};
use serde_json::{Value, json};

use crate::timelines::LongPollEnd;

/// Why a long poll or a stream ends, as in operation 6 for sessions.
pub(super) struct EndNotice {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) may_reconnect: bool,
}

impl EndNotice {
    pub(super) fn of(end: LongPollEnd) -> Self {
        let reason = match end {
            LongPollEnd::Expired => CloseReason::TokenExpired,
            LongPollEnd::Draining => CloseReason::Draining,
            LongPollEnd::Ordered(reason) => reason,
        };
        let may_reconnect = reason.reconnect() != ReconnectPolicy::Never;
        Self { code: reason.code(), reason: reason.label(), may_reconnect }
    }
}

pub(super) fn reply_json(reply: &sync::SyncReply) -> Value {
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

/// A body that is UTF-8 is written as text, any other in base64.
pub(super) fn message_json(message: &sync::Message) -> Value {
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
