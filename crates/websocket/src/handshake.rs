//! The HTTP/1.1 upgrade before the frames, for both sides.
//!
//! The server reads a request with [`read_request`] and answers with [`response`] or [`refusal`];
//! the client sends [`request`] and reads the response with [`read_response`]. Neither checks Host,
//! Origin or subprotocols. The server can negotiate permessage-deflate; the client never requests
//! an extension.

mod client;
mod server;

use alloc::string::String;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub use client::{key_from, read_response, request};
pub use server::{Upgrade, read_request, refusal, response, response_deflating};

/// Maximum number of header lines in a request or response.
pub const HEADERS_MAX: usize = 100;

/// Why there is no upgrade. On the server's side, [`refusal`] returns the response for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The head exceeds the size limit, or has more than [`HEADERS_MAX`] header lines.
    #[error("head exceeds {0} bytes or {HEADERS_MAX} header lines")]
    HeadTooLong(usize),
    /// Not HTTP/1.
    #[error("not HTTP/1: {0}")]
    NotHttp(&'static str),
    /// The request target is not the WebSocket path.
    #[error("the WebSocket is at {expected}")]
    WrongPath {
        /// The expected path.
        expected: String,
    },
    /// The request's method is not GET.
    #[error("the method must be GET")]
    NotGet,
    /// `Sec-WebSocket-Version` is not 13.
    #[error("Sec-WebSocket-Version must be 13")]
    WrongVersion,
    /// `Upgrade` is not `websocket`.
    #[error("Upgrade must be websocket")]
    NoUpgrade,
    /// `Connection` does not name `upgrade`.
    #[error("Connection must contain upgrade")]
    NoConnectionUpgrade,
    /// `Sec-WebSocket-Key` is missing, empty or not text.
    #[error("Sec-WebSocket-Key must not be empty")]
    NoKey,
    /// The server answered with a status other than 101.
    #[error("the server answered with status {0} instead of 101")]
    Status(u16),
    /// `Sec-WebSocket-Accept` does not match the key: the server did not read the request.
    #[error("Sec-WebSocket-Accept does not belong to the key that was sent")]
    WrongAccept,
    /// The server uses an extension that was not requested.
    #[error("the server uses an extension that was not asked for")]
    UnaskedExtension,
}

/// Returns the value of `Sec-WebSocket-Accept` for `key`: RFC 6455, section 4.2.2.
fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// Returns the value of the first header with this name; later ones are ignored, as in goim.
fn first_header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// Returns true if the `Connection` value contains `upgrade` in any case.
fn has_upgrade(connection: &[u8]) -> bool {
    connection.windows(7).any(|window| window.eq_ignore_ascii_case(b"upgrade"))
}

/// Returns the part of `bytes` that can contain the head.
fn bounded(bytes: &[u8], head_bytes_max: usize) -> &[u8] {
    bytes.get(..head_bytes_max).unwrap_or(bytes)
}

/// Returns the error of a head that did not parse: too long, or not HTTP.
fn malformed(error: httparse::Error, head_bytes_max: usize) -> HandshakeError {
    match error {
        httparse::Error::TooManyHeaders => HandshakeError::HeadTooLong(head_bytes_max),
        httparse::Error::HeaderName => HandshakeError::NotHttp("bad header name"),
        httparse::Error::HeaderValue => HandshakeError::NotHttp("bad header value"),
        httparse::Error::NewLine => HandshakeError::NotHttp("bad end of line"),
        httparse::Error::Status => HandshakeError::NotHttp("bad status"),
        httparse::Error::Token => HandshakeError::NotHttp("bad first line"),
        httparse::Error::Version => HandshakeError::NotHttp("bad version"),
    }
}
