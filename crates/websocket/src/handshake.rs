//! The HTTP/1.1 upgrade in front of the frames, for both sides.
//!
//! The server reads a request with [`read_request`] and answers with [`response`] or [`refusal`]; the client sends
//! [`request`] and reads the answer with [`read_response`]. Neither looks at Host, Origin or subprotocols. The server can take
//! permessage-deflate; the client never asks for an extension.

mod client;
mod server;

use alloc::string::String;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

pub use client::{key_from, read_response, request};
pub use server::{Upgrade, read_request, refusal, response, response_deflating};

/// Header lines that a request or a response may have at most.
pub const HEADERS_MAX: usize = 100;

/// Why there is no upgrade. On the server's side [`refusal`] has the answer for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The head is longer than allowed, or has more than [`HEADERS_MAX`] header lines.
    #[error("head exceeds {0} bytes or {HEADERS_MAX} header lines")]
    HeadTooLong(usize),
    /// Not HTTP/1.
    #[error("not HTTP/1: {0}")]
    NotHttp(&'static str),
    /// The request target is not the WebSocket path.
    #[error("the WebSocket is at {expected}")]
    WrongPath {
        /// The path that would be right.
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
    /// The server answered with another status than 101.
    #[error("the server answered with status {0} instead of 101")]
    Status(u16),
    /// `Sec-WebSocket-Accept` does not belong to the key: whoever answered did not read the request.
    #[error("Sec-WebSocket-Accept does not belong to the key that was sent")]
    WrongAccept,
    /// The server uses an extension that nobody asked for.
    #[error("the server uses an extension that was not asked for")]
    UnaskedExtension,
}

/// The value of `Sec-WebSocket-Accept` that answers `key`: RFC 6455, section 4.2.2.
fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// The value of the first header of that name; later ones do not count, as in goim.
fn first_header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// True when the `Connection` value contains `upgrade` in any case.
fn has_upgrade(connection: &[u8]) -> bool {
    connection.windows(7).any(|window| window.eq_ignore_ascii_case(b"upgrade"))
}

/// The part of `bytes` that may hold the head.
fn bounded(bytes: &[u8], head_bytes_max: usize) -> &[u8] {
    bytes.get(..head_bytes_max).unwrap_or(bytes)
}

/// What a head that did not parse means: too long, or no HTTP.
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
