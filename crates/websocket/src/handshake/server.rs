//! The server's side: the parser of the request and the response. The headers are goim's, with a
//! size limit, and with a response where goim closes silently.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{HEADERS_MAX, HandshakeError, accept, bounded, first_header, has_upgrade, malformed};

/// The parts of an upgrade request that are used later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// `Sec-WebSocket-Key`, for [`response`]. Its length and encoding are not checked.
    pub key: String,
    /// The first `Cookie` header, or empty. Bytes that are not UTF-8 are replaced.
    pub cookie: String,
    /// The first `User-Agent` header, or empty. Bytes that are not UTF-8 are replaced.
    pub user_agent: String,
    /// Whether the client offers permessage-deflate (RFC 7692) in a form that
    /// [`response_deflating`] accepts.
    pub deflate: bool,
}

/// Parses the request at the start of `bytes`.
///
/// `None` if it is incomplete: call again with more bytes. Otherwise returns the request and its
/// size; the bytes after it are frames. `path` must equal the request's target byte for byte: no
/// query, no absolute form. `head_bytes_max` limits the size of the request in bytes.
///
/// # Errors
/// The first [`HandshakeError`] that applies, in this order: size and syntax, path, method,
/// version, upgrade, connection, key.
pub fn read_request(
    bytes: &[u8],
    path: &str,
    head_bytes_max: usize,
) -> Result<Option<(Upgrade, usize)>, HandshakeError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(bounded(bytes, head_bytes_max));
    let used = match status.map_err(|error| malformed(error, head_bytes_max))? {
        httparse::Status::Complete(used) => used,
        httparse::Status::Partial if bytes.len() >= head_bytes_max => {
            return Err(HandshakeError::HeadTooLong(head_bytes_max));
        }
        httparse::Status::Partial => return Ok(None),
    };
    if request.path != Some(path) {
        return Err(HandshakeError::WrongPath { expected: path.to_string() });
    }
    if request.method != Some("GET") {
        return Err(HandshakeError::NotGet);
    }
    upgrade_of(request.headers).map(|upgrade| Some((upgrade, used)))
}

fn upgrade_of(headers: &[httparse::Header<'_>]) -> Result<Upgrade, HandshakeError> {
    let value = |name| first_header(headers, name).unwrap_or_default();
    if value("Sec-WebSocket-Version") != b"13" {
        return Err(HandshakeError::WrongVersion);
    }
    if !value("Upgrade").eq_ignore_ascii_case(b"websocket") {
        return Err(HandshakeError::NoUpgrade);
    }
    if !has_upgrade(value("Connection")) {
        return Err(HandshakeError::NoConnectionUpgrade);
    }
    let key = core::str::from_utf8(value("Sec-WebSocket-Key")).unwrap_or_default();
    if key.is_empty() {
        return Err(HandshakeError::NoKey);
    }
    Ok(Upgrade {
        key: key.to_string(),
        cookie: String::from_utf8_lossy(value("Cookie")).into_owned(),
        user_agent: String::from_utf8_lossy(value("User-Agent")).into_owned(),
        deflate: offers_deflate(headers),
    })
}

/// Returns true if one of the offers is acceptable. An offer that limits the server's window is
/// not: the window is always 32 KiB.
fn offers_deflate(headers: &[httparse::Header<'_>]) -> bool {
    let named = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("Sec-WebSocket-Extensions"));
    let values = named.filter_map(|header| core::str::from_utf8(header.value).ok());
    values.flat_map(|value| value.split(',')).any(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        parts.next() == Some("permessage-deflate") && parts.all(is_harmless)
    })
}

/// Parameters that require what is done anyway, or permit what is not used.
fn is_harmless(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default().trim_end();
    matches!(name, "client_no_context_takeover" | "server_no_context_takeover" | "client_max_window_bits")
}

/// Returns the response that completes the upgrade: goim's four lines in goim's order.
#[must_use]
pub fn response(key: &str) -> Vec<u8> {
    response_with(key, "")
}

/// Returns the same response with permessage-deflate accepted: neither side keeps context between
/// messages.
#[must_use]
pub fn response_deflating(key: &str) -> Vec<u8> {
    response_with(
        key,
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n",
    )
}

fn response_with(key: &str, more: &str) -> Vec<u8> {
    let accept = accept(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
    .into_bytes()
}

/// Returns a complete response that names the error in a request and the expected value; send it
/// before closing the connection.
#[must_use]
pub fn refusal(error: &HandshakeError) -> Vec<u8> {
    let (status, extra) = match error {
        HandshakeError::HeadTooLong(_) => ("431 Request Header Fields Too Large", ""),
        HandshakeError::WrongPath { .. } => ("404 Not Found", ""),
        HandshakeError::NotGet => ("405 Method Not Allowed", "Allow: GET\r\n"),
        HandshakeError::WrongVersion => {
            ("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
        }
        HandshakeError::NotHttp(_)
        | HandshakeError::NoUpgrade
        | HandshakeError::NoConnectionUpgrade
        | HandshakeError::NoKey
        | HandshakeError::Status(_)
        | HandshakeError::WrongAccept
        | HandshakeError::UnaskedExtension => ("400 Bad Request", ""),
    };
    // RFC 9110 requires the upgrade option in Connection if Upgrade is sent.
    let connection = if matches!(error, HandshakeError::WrongVersion) { "close, Upgrade" } else { "close" };
    let body = format!("{error}\n");
    format!(
        "HTTP/1.1 {status}\r\n{extra}Connection: {connection}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
