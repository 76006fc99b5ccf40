//! Successful responses, byte for byte as goim v2 writes them.

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, Response, StatusCode};

use super::json;

/// The content type of envelopes.
pub(super) const JSON: &str = "application/json; charset=utf-8";

/// The JSON object around every answer without data.
pub(super) struct Envelope<'a> {
    /// 0 is success.
    pub(super) code: i32,
    pub(super) message: &'a str,
    /// Messages of a batch, from the front, that are in the push log.
    pub(super) accepted: Option<usize>,
}

impl Envelope<'_> {
    pub(super) fn to_json(&self) -> Bytes {
        let mut out = Vec::with_capacity(64 + self.message.len());
        let mut object = json::ObjectWriter::open(&mut out);
        object.number("code", self.code);
        object.text("message", self.message);
        if let Some(accepted) = self.accepted {
            object.number("accepted", accepted);
        }
        object.close();
        out.into()
    }
}

/// Success without data.
pub(super) fn ok() -> Response<Body> {
    with_body(JSON, Bytes::from_static(br#"{"code":0,"message":""}"#))
}

/// Success with data, which `write` appends as JSON.
pub(super) fn data(write: impl FnOnce(&mut Vec<u8>)) -> Response<Body> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(br#"{"code":0,"message":"","data":"#);
    write(&mut out);
    out.push(b'}');
    with_body(JSON, out.into())
}

/// All `count` messages of a batch are accepted.
pub(super) fn accepted(count: usize) -> Response<Body> {
    with_body(JSON, Envelope { code: 0, message: "", accepted: Some(count) }.to_json())
}

/// A JSON document without an envelope.
pub(super) fn document(json: Bytes) -> Response<Body> {
    with_body(JSON, json)
}

/// Status 200 with a body.
pub(super) fn with_body(content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Redirects from a path with a trailing slash, as goim v2's router does: a GET gets HTML, any
/// other method the header only.
pub(super) fn redirect(is_get: bool, location: &str) -> Option<Response<Body>> {
    let header = HeaderValue::from_str(&escape_non_ascii(location)).ok()?;
    let (status, mut response) = if is_get {
        let body = format!("<a href=\"{}\">Moved Permanently</a>.\n\n", escape_html(location));
        (StatusCode::MOVED_PERMANENTLY, with_body("text/html; charset=utf-8", body.into()))
    } else {
        (StatusCode::TEMPORARY_REDIRECT, Response::new(Body::empty()))
    };
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, header);
    Some(response)
}

/// Percent-encodes what is not ASCII, as Go does for headers.
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
