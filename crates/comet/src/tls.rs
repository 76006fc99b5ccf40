//! TLS on the side of the server: one session's state machine and the certificate that new sessions
//! get.
//!
//! Owns no socket, no timer, no thread: bytes in, bytes out, in buffers of the caller. Knows
//! nothing of packets or WebSocket. An idle session holds what rustls holds, and nothing else:
//! there is no buffer per connection.

mod certificate;
mod session;
#[cfg(test)]
mod tests;
mod validity;

pub(crate) use certificate::CertificateStore;
pub(crate) use session::TlsSession;
