//! Answers, as goim writes them and as it would have written those that it does not have.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};

use super::json;

const JSON: &str = "application/json; charset=utf-8";
/// What Go makes of JSON whose content type was not set before the status was sent.
const SNIFFED: &str = "text/plain; charset=utf-8";

/// Code of an envelope: success.
const OK: i32 = 0;
/// Code of an envelope: the request is wrong.
pub(super) const BAD_REQUEST: i32 = -400;
/// Code of an envelope: the request is right and could not be done.
pub(super) const SERVER_ERROR: i32 = -500;
/// Code of an envelope: the push may or may not be in the log. Every other code but 0 says that it
/// is not.
const UNKNOWN: i32 = -504;
/// The text to it.
const UNKNOWN_TEXT: &str = "the push may or may not be in the log";

/// Success without data.
pub(super) fn ok() -> Response<Body> {
    respond(StatusCode::OK, JSON, Bytes::from_static(br#"{"code":0,"message":""}"#))
}

/// Success with data, which `write` appends as JSON.
pub(super) fn data(write: impl FnOnce(&mut Vec<u8>)) -> Response<Body> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(br#"{"code":0,"message":"","data":"#);
    write(&mut out);
    out.push(b'}');
    respond(StatusCode::OK, JSON, out.into())
}

/// Bytes of another kind.
pub(super) fn bytes(content_type: &'static str, bytes: Bytes) -> Response<Body> {
    respond(StatusCode::OK, content_type, bytes)
}

/// A document that is JSON without an envelope.
pub(super) fn document(json: Bytes) -> Response<Body> {
    respond(StatusCode::OK, JSON, json)
}

/// A failure that goim reports under status 200.
pub(super) fn failure(code: i32, message: &str) -> Response<Body> {
    respond(StatusCode::OK, JSON, envelope(code, message))
}

/// A wrong parameter: status 400, and JSON under the content type that Go sniffs.
pub(super) fn bad_parameter(message: &str) -> Response<Body> {
    respond(StatusCode::BAD_REQUEST, SNIFFED, envelope(BAD_REQUEST, message))
}

/// A refusal that goim does not know: the code is the status, negated.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    respond(status, JSON, envelope(-i32::from(status.as_u16()), message))
}

/// The messages of a batch are accepted.
pub(super) fn accepted(count: usize) -> Response<Body> {
    respond(StatusCode::OK, JSON, envelope_with(OK, "", Some(count)))
}

/// A refusal of what is left of a batch when `accepted` messages in front are accepted.
pub(super) fn refusal_but(status: StatusCode, accepted: usize, message: &str) -> Response<Body> {
    respond(status, JSON, envelope_with(-i32::from(status.as_u16()), message, Some(accepted)))
}

/// Whether a push is in the log is not known: as goim reports failures, under status 200.
pub(super) fn unknown_as_goim() -> Response<Body> {
    failure(UNKNOWN, UNKNOWN_TEXT)
}

/// The same on routes that goim does not have; `accepted` messages in front are surely in the log.
pub(super) fn unknown(accepted: Option<usize>) -> Response<Body> {
    respond(StatusCode::GATEWAY_TIMEOUT, JSON, envelope_with(UNKNOWN, UNKNOWN_TEXT, accepted))
}

/// 401, with the scheme that would be right.
pub(super) fn unauthorized(message: &str) -> Response<Body> {
    let mut response = refusal(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// 429, with the time to wait in whole seconds, at least one.
pub(super) fn too_many(message: &str, wait: Duration) -> Response<Body> {
    retry_after(refusal(StatusCode::TOO_MANY_REQUESTS, message), wait)
}

/// 503, with the time to wait.
pub(super) fn unavailable(message: &str, wait: Duration) -> Response<Body> {
    retry_after(refusal(StatusCode::SERVICE_UNAVAILABLE, message), wait)
}

/// 429 for what is left of a batch.
pub(super) fn too_many_but(accepted: usize, message: &str, wait: Duration) -> Response<Body> {
    retry_after(refusal_but(StatusCode::TOO_MANY_REQUESTS, accepted, message), wait)
}

fn retry_after(mut response: Response<Body>, wait: Duration) -> Response<Body> {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// There is nothing under this path and method.
pub(super) fn not_found() -> Response<Body> {
    respond(StatusCode::NOT_FOUND, "text/plain", Bytes::from_static(b"404 page not found"))
}

/// Something broke that should not: goim's answer has neither a body nor a type.
pub(super) fn broken() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// The path with a trailing slash: a GET learns of the right one in HTML, everything else by the header alone.
pub(super) fn redirect(get: bool, location: &str) -> Response<Body> {
    let Ok(header) = HeaderValue::from_str(&escape_non_ascii(location)) else { return not_found() };
    let mut response = if get {
        let body = format!("<a href=\"{}\">Moved Permanently</a>.\n\n", escape_html(location));
        respond(StatusCode::MOVED_PERMANENTLY, "text/html; charset=utf-8", body.into())
    } else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response
    };
    response.headers_mut().insert(LOCATION, header);
    response
}

fn envelope(code: i32, message: &str) -> Bytes {
    debug_assert_ne!(code, OK);
    envelope_with(code, message, None)
}

fn envelope_with(code: i32, message: &str, accepted: Option<usize>) -> Bytes {
    let mut out = Vec::with_capacity(64 + message.len());
    let mut object = json::Object::open(&mut out);
    object.number("code", code);
    object.text("message", message);
    if let Some(accepted) = accepted {
        object.number("accepted", accepted);
    }
    object.close();
    out.into()
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// As Go does it: a header holds ASCII only.
fn escape_non_ascii(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii() {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:x}");
        }
    }
    escaped
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
