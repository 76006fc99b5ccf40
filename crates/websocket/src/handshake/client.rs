//! The client's side: sends the request, reads the answer.

use alloc::string::String;
use alloc::vec::Vec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{HEADERS_MAX, HandshakeError, accept, bounded, first_header, has_upgrade, malformed};

/// The request for an upgrade.
///
/// `host` is the authority that was dialled, `key` comes from [`key_from`], `headers` are sent behind ours. Control
/// characters in any of them are left out, so that no value can bring a line of its own.
#[must_use]
pub fn request(host: &str, path: &str, key: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = String::new();
    let mut put = |parts: [&str; 3]| {
        for part in parts {
            out.extend(part.chars().filter(|c| !c.is_control()));
        }
        out.push_str("\r\n");
    };
    put(["GET ", path, " HTTP/1.1"]);
    put(["Host", ": ", host]);
    put(["Upgrade", ": ", "websocket"]);
    put(["Connection", ": ", "Upgrade"]);
    put(["Sec-WebSocket-Key", ": ", key]);
    put(["Sec-WebSocket-Version", ": ", "13"]);
    for (name, value) in headers {
        put([name, ": ", value]);
    }
    out.push_str("\r\n");
    out.into_bytes()
}

/// The key for [`request`]. `nonce` should be drawn anew for each connection.
#[must_use]
pub fn key_from(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// Reads the answer at the front of `bytes` to a request that was sent with `key`.
///
/// `None` when it is not there in whole: call again with more. Else how many bytes it takes; what lies behind belongs
/// to the frames. `head_bytes_max` bounds the answer's head in bytes.
///
/// # Errors
/// [`HandshakeError::HeadTooLong`] and [`HandshakeError::NotHttp`] for what is no answer,
/// [`HandshakeError::Status`] for a refusal (its body is not read), else what is wrong with the upgrade.
pub fn read_response(
    bytes: &[u8],
    key: &str,
    head_bytes_max: usize,
) -> Result<Option<usize>, HandshakeError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let status = response.parse(bounded(bytes, head_bytes_max));
    let used = match status.map_err(|error| malformed(error, head_bytes_max))? {
        httparse::Status::Complete(used) => used,
        httparse::Status::Partial if bytes.len() >= head_bytes_max => {
            return Err(HandshakeError::HeadTooLong(head_bytes_max));
        }
        httparse::Status::Partial => return Ok(None),
    };
    let code = response.code.unwrap_or_default();
    if code != 101 {
        return Err(HandshakeError::Status(code));
    }
    let value = |name| first_header(response.headers, name).unwrap_or_default();
    if !value("Upgrade").eq_ignore_ascii_case(b"websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    if !has_upgrade(value("Connection")) {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    if value("Sec-WebSocket-Accept") != accept(key).as_bytes() {
        return Err(HandshakeError::WrongAccept);
    }
    if !value("Sec-WebSocket-Extensions").is_empty() {
        return Err(HandshakeError::UnaskedExtension);
    }
    Ok(Some(used))
}
