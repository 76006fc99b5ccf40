//! The client's side: the request and the parser of the response.

use alloc::string::String;
use alloc::vec::Vec;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{HEADERS_MAX, HandshakeError, accept, bounded, first_header, has_upgrade, malformed};

/// Returns the request for an upgrade.
///
/// `host` is the authority of the server, `key` is from [`key_from`], and `headers` follow the
/// headers of the handshake. Control characters are removed, so that no value can add a header
/// line.
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

/// Returns the key for [`request`]. Generate a new `nonce` for each connection.
#[must_use]
pub fn key_from(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// Parses the response at the start of `bytes` to a request with `key`.
///
/// `None` if it is incomplete: call again with more bytes. Otherwise returns its size; the bytes
/// after it are frames. `head_bytes_max` limits the size of the response's head in bytes.
///
/// # Errors
/// [`HandshakeError::HeadTooLong`] and [`HandshakeError::NotHttp`] for an invalid response,
/// [`HandshakeError::Status`] for a refusal (its body is not read), or the error in the upgrade.
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
