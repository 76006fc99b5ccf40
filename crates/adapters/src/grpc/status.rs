//! Errors of the ports as statuses, and back.
//!
//! goim has a single status, UNKNOWN, and its texts are part of the contract. Our header [`KIND`]
//! has the kind of the error; a status without it is from a Go process.

use std::error::Error;
use std::time::Duration;

use goim_ports::{AuthFailure, CometError, ConnectError, LogicError};
use tonic::metadata::{AsciiMetadataValue, MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Header with the kind of an error.
const KIND: &str = "goim-error";
/// Header with the limit that a [`BUSY`] comet has reached.
const LIMIT: &str = "goim-limit";

/// Header of a refusal: the client is negotiated and can receive the reason.
const EXTENDED: &str = "goim-negotiated";

const UNAVAILABLE: &str = "unavailable";
const TIMEOUT: &str = "timeout";
const BUSY: &str = "busy";
const LIMITED: &str = "limited";
/// Header with the time after which a [`LIMITED`] request may be sent again, in milliseconds.
const RETRY_AFTER_MS: &str = "goim-retry-after-ms";

/// goim's texts for invalid requests. The third has two spaces.
pub(super) const PUSH_ARGUMENTS: &str = "rpc pushmsg arg error";
pub(super) const BROADCAST_ARGUMENTS: &str = "rpc broadcast arg error";
pub(super) const ROOM_ARGUMENTS: &str = "rpc broadcast  room arg error";
/// The text of a Go comet when a session was too slow: it has dropped the message for it and for
/// the keys after it.
const SESSION_FULL: &str = "signal channel full, msg dropped";

fn of_kind(kind: &'static str, text: String) -> Status {
    let mut headers = MetadataMap::new();
    headers.insert(KIND, MetadataValue::from_static(kind));
    Status::with_metadata(Code::Unknown, text, headers)
}

fn kind_of(status: &Status) -> Option<&str> {
    status.metadata().get(KIND)?.to_str().ok()
}

/// Returns true if the peer has replied, false if the connection failed.
fn is_answer(status: &Status) -> bool {
    status.code() == Code::Unknown && status.source().is_none()
}

pub(super) fn from_comet(error: &CometError) -> Status {
    let text = error.to_string();
    match error {
        CometError::Unsupported => Status::unimplemented(text),
        CometError::Invalid(text) => Status::unknown(*text),
        CometError::Unavailable(_) => of_kind(UNAVAILABLE, text),
        CometError::Timeout => of_kind(TIMEOUT, text),
        CometError::Busy { limit } => {
            let mut status = of_kind(BUSY, text);
            if let Ok(limit) = AsciiMetadataValue::try_from(limit.to_string()) {
                status.metadata_mut().insert(LIMIT, limit);
            }
            status
        }
    }
}

pub(super) fn to_comet(status: &Status) -> CometError {
    match status.code() {
        Code::Unknown if is_answer(status) => comet_answer(status),
        Code::DeadlineExceeded => CometError::Timeout,
        Code::Unimplemented => CometError::Unsupported,
        Code::ResourceExhausted => CometError::Invalid("the message is larger than the comet takes"),
        _ => CometError::Unavailable(text_of(status)),
    }
}

fn comet_answer(status: &Status) -> CometError {
    match kind_of(status) {
        Some(UNAVAILABLE) => CometError::Unavailable(status.message().to_owned()),
        Some(TIMEOUT) => CometError::Timeout,
        Some(BUSY) => {
            let limit = status.metadata().get(LIMIT).and_then(|limit| limit.to_str().ok()?.parse().ok());
            CometError::Busy { limit: limit.unwrap_or_default() }
        }
        _ => {
            let known = [PUSH_ARGUMENTS, BROADCAST_ARGUMENTS, ROOM_ARGUMENTS, SESSION_FULL];
            let text = known.into_iter().find(|text| *text == status.message());
            CometError::Invalid(text.unwrap_or("the comet has refused the call"))
        }
    }
}

pub(super) fn from_connect(error: ConnectError) -> Status {
    let ConnectError { reason, detail, negotiated } = error;
    // goim's refusal has no kind.
    let mut status = match reason {
        AuthFailure::AuthRefused => Status::unknown(detail),
        reason => of_kind(reason.label(), detail),
    };
    if negotiated {
        status.metadata_mut().insert(EXTENDED, MetadataValue::from_static("1"));
    }
    status
}

pub(super) fn to_connect(status: &Status) -> ConnectError {
    let negotiated = status.metadata().contains_key(EXTENDED);
    if !is_answer(status) {
        return ConnectError { negotiated, ..ConnectError::unavailable(text_of(status)) };
    }
    let kind = kind_of(status);
    let reason = AuthFailure::ALL.into_iter().find(|reason| Some(reason.label()) == kind);
    let detail = status.message().to_owned();
    ConnectError { negotiated, ..ConnectError::because(reason.unwrap_or(AuthFailure::AuthRefused), detail) }
}

/// The same for a call that only our own logics have.
pub(super) fn to_refresh(status: &Status) -> ConnectError {
    match status.code() {
        Code::Unimplemented => ConnectError::unavailable("the logic refreshes no tokens"),
        _ => to_connect(status),
    }
}

pub(super) fn from_logic(error: LogicError) -> Status {
    match error {
        LogicError::Failed(text) => Status::unknown(text),
        LogicError::Unavailable(text) => of_kind(UNAVAILABLE, text),
        LogicError::Busy(text) => of_kind(BUSY, text),
        LogicError::Late(text) => of_kind(TIMEOUT, text),
        LogicError::Limited { retry_after } => {
            let mut status = of_kind(LIMITED, error.to_string());
            if let Ok(wait) = AsciiMetadataValue::try_from(retry_after.as_millis().to_string()) {
                status.metadata_mut().insert(RETRY_AFTER_MS, wait);
            }
            status
        }
    }
}

pub(super) fn to_logic(status: &Status) -> LogicError {
    if !is_answer(status) {
        return LogicError::Unavailable(text_of(status));
    }
    let text = status.message().to_owned();
    match kind_of(status) {
        Some(UNAVAILABLE) => LogicError::Unavailable(text),
        Some(BUSY) => LogicError::Busy(text),
        Some(TIMEOUT) => LogicError::Late(text),
        Some(LIMITED) => {
            let wait =
                status.metadata().get(RETRY_AFTER_MS).and_then(|wait| wait.to_str().ok()?.parse().ok());
            LogicError::Limited { retry_after: Duration::from_millis(wait.unwrap_or(1000)) }
        }
        _ => LogicError::Failed(text),
    }
}

/// Returns the text of a reply; for a failed connection with its cause, for the operator.
fn text_of(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
