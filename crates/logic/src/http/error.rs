//! Errors of the HTTP API and how they are rendered.
//!
//! Handlers return [`ApiError`] and use `?`; [`ApiError::into_response`] is the only place that
//! renders one. Errors that goim v2 reports keep its three formats byte for byte. All others are an
//! envelope under `application/json` whose code is the negated status.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use goim_ports::{AppendError, AuthFailure, ConnectError, TimelineError};

use super::reply::{self, Envelope};
use crate::push_writer::PushError;
use crate::timelines::{LongPollError, TimelineRequestError};

/// What a handler returns.
pub(super) type Reply = Result<Response<Body>, ApiError>;

/// Envelope code: the request is wrong.
const BAD_REQUEST: i32 = -400;
/// Envelope code: the request is right but could not be done.
const SERVER_ERROR: i32 = -500;
/// Envelope code: the push may or may not be in the log. With every other code except 0 it is not.
const UNKNOWN: i32 = -504;
/// The message of [`UNKNOWN`].
const UNKNOWN_TEXT: &str = "the push may or may not be in the log";

/// `Retry-After` when the push log is full or the timeline store is overloaded.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);
/// `Retry-After` when the limit of long polls is reached. Long polls last long.
const LONG_POLL_RETRY: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// The envelope's code.
    code: i32,
    message: Cow<'static, str>,
    /// Messages of a batch, from the front, that are in the push log.
    accepted: Option<usize>,
    retry_after: Option<Duration>,
    format: ErrorFormat,
}

/// How the body of an error is written.
#[derive(Debug, Clone, Copy)]
enum ErrorFormat {
    /// An envelope under `application/json`.
    Json,
    /// An envelope under `text/plain`, the type that Go sniffs when goim v2 has not set one.
    SniffedJson,
    /// The message under `text/plain`.
    Text,
    /// No body and no content type.
    Empty,
}

impl ApiError {
    /// An error that goim v2 does not have. Its code is the negated status.
    pub(super) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        let code = -i32::from(status.as_u16());
        let message = message.into();
        Self { status, code, message, accepted: None, retry_after: None, format: ErrorFormat::Json }
    }

    /// Status 400 in the format of errors that goim v2 does not have.
    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// goim v2's answer to a wrong parameter.
    pub(super) fn bad_parameter(message: impl Into<Cow<'static, str>>) -> Self {
        Self { format: ErrorFormat::SniffedJson, ..Self::bad_request(message) }
    }

    /// goim v2's answer to a request that is right but could not be done: status 200 with code
    /// -500.
    pub(super) fn goim_server_error(message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: SERVER_ERROR, ..Self::new(StatusCode::OK, message) }
    }

    /// goim v2's answer to a push to keys that failed: status 200 with code -400 and no message.
    fn goim_push_keys_failed() -> Self {
        Self { code: BAD_REQUEST, ..Self::new(StatusCode::OK, "") }
    }

    /// The outcome of a push is unknown, on goim v2's routes: status 200.
    pub(super) fn goim_unknown_outcome() -> Self {
        Self { code: UNKNOWN, ..Self::new(StatusCode::OK, UNKNOWN_TEXT) }
    }

    /// The outcome of a push is unknown, on routes that goim v2 does not have.
    pub(super) fn unknown_outcome() -> Self {
        Self { code: UNKNOWN, ..Self::new(StatusCode::GATEWAY_TIMEOUT, UNKNOWN_TEXT) }
    }

    /// Status 401, with the scheme that the route accepts.
    pub(super) fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// Status 429.
    pub(super) fn too_many_requests(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message).retry_after(retry_after)
    }

    /// Status 503.
    pub(super) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// No route has this path and method.
    pub(super) fn not_found() -> Self {
        Self { format: ErrorFormat::Text, ..Self::new(StatusCode::NOT_FOUND, "404 page not found") }
    }

    /// A bug. goim v2 answers with neither a body nor a content type.
    pub(super) fn internal() -> Self {
        Self { format: ErrorFormat::Empty, ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "") }
    }

    /// A failed push on goim v2's routes.
    pub(super) fn goim_push(error: &PushError) -> Self {
        match error {
            PushError::Append(AppendError::Full) => {
                Self::too_many_requests(error.to_string(), OVERLOAD_RETRY)
            }
            PushError::Append(AppendError::Unknown(_)) => Self::goim_unknown_outcome(),
            PushError::NoKeys | PushError::Directory(_) | PushError::Append(_) => {
                Self::goim_server_error(error.to_string())
            }
        }
    }

    /// A failed push on goim v2's route for keys, which reports no reason.
    pub(super) fn goim_push_keys(error: &PushError) -> Self {
        match error {
            PushError::Append(AppendError::Full | AppendError::Unknown(_)) => Self::goim_push(error),
            PushError::NoKeys | PushError::Directory(_) | PushError::Append(_) => {
                Self::goim_push_keys_failed()
            }
        }
    }

    /// A message that could not be stored, on goim v2's routes.
    pub(super) fn goim_store(error: &TimelineRequestError) -> Self {
        match error {
            TimelineRequestError::Store(TimelineError::Unknown(_)) => Self::goim_unknown_outcome(),
            error => error.into(),
        }
    }

    /// Adds how many messages of a batch, from the front, are in the push log.
    pub(super) fn accepted(self, count: usize) -> Self {
        Self { accepted: Some(count), ..self }
    }

    /// Adds the time after which the client should retry.
    fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// Renders the error.
    pub(super) fn into_response(self) -> Response<Body> {
        let Self { status, code, message, accepted, retry_after, format } = self;
        let envelope = || Envelope { code, message: &message, accepted }.to_json();
        let mut response = match format {
            ErrorFormat::Json => reply::with_body(reply::JSON, envelope()),
            ErrorFormat::SniffedJson => reply::with_body("text/plain; charset=utf-8", envelope()),
            ErrorFormat::Text => reply::with_body("text/plain", Bytes::copy_from_slice(message.as_bytes())),
            ErrorFormat::Empty => Response::new(Body::empty()),
        };
        *response.status_mut() = status;
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        response
    }
}

/// Rounds up to whole seconds, at least one, as `Retry-After` has them.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// On routes that goim v2 does not have.
impl From<&PushError> for ApiError {
    fn from(error: &PushError) -> Self {
        match error {
            PushError::Append(AppendError::Full) => {
                Self::too_many_requests(error.to_string(), OVERLOAD_RETRY)
            }
            PushError::Append(AppendError::Unknown(_)) => Self::unknown_outcome(),
            PushError::NoKeys | PushError::Directory(_) | PushError::Append(_) => {
                Self::unavailable(error.to_string())
            }
        }
    }
}

impl From<&TimelineRequestError> for ApiError {
    fn from(error: &TimelineRequestError) -> Self {
        let message = error.public();
        match error {
            TimelineRequestError::Store(TimelineError::Busy(_)) => {
                Self::too_many_requests(message, OVERLOAD_RETRY)
            }
            TimelineRequestError::LongPoll(LongPollError::Member | LongPollError::Address) => {
                Self::too_many_requests(message, LONG_POLL_RETRY)
            }
            TimelineRequestError::LongPoll(LongPollError::Full | LongPollError::Draining) => {
                Self::unavailable(message).retry_after(LONG_POLL_RETRY)
            }
            TimelineRequestError::Invalid(_)
            | TimelineRequestError::TooLarge { .. }
            | TimelineRequestError::Store(TimelineError::Invalid(_)) => Self::bad_request(message),
            TimelineRequestError::Limited { retry_after, .. } => {
                Self::too_many_requests(message, *retry_after)
            }
            TimelineRequestError::Forbidden(_) | TimelineRequestError::Reserved(_) => {
                Self::new(StatusCode::FORBIDDEN, message)
            }
            TimelineRequestError::None => Self::new(StatusCode::NOT_IMPLEMENTED, message),
            TimelineRequestError::Store(_) | TimelineRequestError::Undecided(_) => Self::unavailable(message),
        }
    }
}

impl From<TimelineRequestError> for ApiError {
    fn from(error: TimelineRequestError) -> Self {
        (&error).into()
    }
}

impl From<ConnectError> for ApiError {
    fn from(error: ConnectError) -> Self {
        let label = error.reason.label();
        match error.reason {
            AuthFailure::AuthUnavailable => {
                Self::unavailable("the requester cannot be identified; try again later")
            }
            AuthFailure::AuthDenied | AuthFailure::RoomNotAllowed | AuthFailure::TokenMismatch => {
                Self::new(StatusCode::FORBIDDEN, label)
            }
            _ => Self::unauthorized(format!(
                "{label}: needs the member's token in the header Authorization (Bearer TOKEN)"
            )),
        }
    }
}
