//! One TLS session: ciphertext in, plaintext and answers out.
//!
//! Uses the unbuffered state machine of rustls. It decrypts in the caller's buffer, so that
//! thousands of idle sessions share the buffer of their shard; rustls's usual connection has at
//! least 4 KiB each. The price: a record that was received in part must be passed again from its
//! first byte. [`TlsSession`] stores these bytes, and no others.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

/// Bytes that may wait for the rest of a record: one record of the largest kind that TLS allows,
/// header included.
///
/// This is also the largest ClientHello, however it is fragmented. Real ones are below 3 KB.
pub(crate) const WAITING_BYTES_MAX: usize = 5 + (16 * 1024) + 2048;

/// Plaintext bytes in one record. rustls fragments there; here it only estimates the size of the
/// output.
const RECORD_PLAIN_BYTES_MAX: usize = 16 * 1024;

/// What a record adds to its plaintext at most: header 5, explicit nonce 8, tag 16, content type 1.
const RECORD_EXTRA_BYTES: usize = 30;

/// First byte of every TLS connection: the type of a handshake record.
const HANDSHAKE_RECORD: u8 = 22;

/// What a browser or curl shows when it sends plain HTTP to a TLS port.
const ANSWER_TO_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 46\r\n\
    Connection: close\r\n\
    \r\n\
    this port speaks TLS: use https:// or wss://.\n";

/// Why a TLS session has ended. All but [`TlsError::Ended`] and [`TlsError::NotEstablished`] are
/// the peer's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The first byte cannot begin a TLS connection.
    #[error("not TLS: {0}")]
    NotTls(Mistaken),
    /// Error of rustls: a violated rule, a failed check, or an alert of the peer.
    #[error("TLS: {0}")]
    Protocol(#[from] rustls::Error),
    /// A handshake message has more records than this side stores.
    #[error("TLS handshake message of more than {WAITING_BYTES_MAX} bytes")]
    HandshakeTooLarge,
    /// The keys have encrypted as many records as they may, and TLS 1.2 cannot renew them.
    #[error("TLS 1.2 keys are used up")]
    KeysUsedUp,
    /// The handshake is not complete: nothing can be encrypted yet.
    #[error("TLS handshake is not over")]
    NotEstablished,
    /// The session was closed, or has failed before.
    #[error("TLS session has ended")]
    Ended,
    /// rustls did what its documentation excludes.
    #[error("TLS library in an unexpected state: {0}")]
    Unexpected(&'static str),
}

/// What a peer that does not speak TLS seems to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistaken {
    /// The first byte is a letter, as in `GET`.
    Http,
    /// The first byte is zero, as in the length of every packet.
    Packet,
    /// Anything else, with the first byte.
    Other(u8),
}

impl Mistaken {
    fn of(first: u8) -> Self {
        match first {
            b'A'..=b'Z' => Self::Http,
            0 => Self::Packet,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for Mistaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http => f.write_str("looks like a plain HTTP request on a TLS port"),
            Self::Packet => f.write_str("looks like a plain packet on a TLS port"),
            Self::Other(byte) => write!(f, "first byte is 0x{byte:02x}, a TLS client sends 0x16"),
        }
    }
}

/// The state of a session after a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TlsProgress {
    /// Application data may be written. Never becomes false again.
    pub(crate) handshake_done: bool,
    /// The peer has sent `close_notify`. Never becomes false again. A connection that ends without
    /// it was truncated.
    pub(crate) peer_closed: bool,
}

/// The TLS session of one client. As large as a pointer.
pub(crate) struct TlsSession(Box<Inner>);

struct Inner {
    rustls: UnbufferedServerConnection,
    /// Start of a record or of a handshake message that is not complete. Not allocated otherwise.
    waiting: Vec<u8>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was received yet.
    Fresh,
    /// Handshake or traffic.
    Running,
    /// The peer has closed its side; this side may still send.
    PeerClosed,
    /// This side has sent `close_notify`. What the peer still sends is ignored.
    Closed,
    /// An error was reported.
    Failed,
}

impl TlsSession {
    /// Creates a session that waits for its client's first byte. It keeps `config`, and so the
    /// certificate, until it ends.
    ///
    /// # Errors
    /// [`TlsError::Protocol`] if `config` is impossible.
    pub(crate) fn new(config: &Arc<ServerConfig>) -> Result<Self, TlsError> {
        let rustls = UnbufferedServerConnection::new(Arc::clone(config))?;
        Ok(Self(Box::new(Inner { rustls, waiting: Vec::new(), phase: Phase::Fresh })))
    }

    /// Decrypts what was received. Appends plaintext to `plain`, and to `out` what is to be sent.
    ///
    /// Uses up all of `cipher` and overwrites it. What follows the peer's close is ignored.
    ///
    /// # Errors
    /// The session has ended. `out` may contain an alert with the reason for the peer: send it,
    /// then close. Plaintext that was received before the error is in `plain`.
    pub(crate) fn read(
        &mut self,
        cipher: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<TlsProgress, TlsError> {
        let inner = &mut *self.0;
        match inner.phase {
            Phase::Fresh => inner.check_first_byte(cipher, out)?,
            Phase::Running => {}
            Phase::PeerClosed | Phase::Closed => return Ok(inner.progress()),
            Phase::Failed => return Err(TlsError::Ended),
        }
        match inner.take(cipher, plain, out) {
            Ok(()) => Ok(inner.progress()),
            Err(error) => Err(inner.fail(error)),
        }
    }

    /// Encrypts all of `plain` and appends the records to `out`. Nothing is appended for no bytes.
    ///
    /// # Errors
    /// [`TlsError::NotEstablished`] before the end of the handshake; the session continues. All
    /// others end it.
    pub(crate) fn write(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let inner = &mut *self.0;
        match inner.phase {
            Phase::Closed | Phase::Failed => return Err(TlsError::Ended),
            Phase::Fresh | Phase::Running | Phase::PeerClosed => {}
        }
        if inner.rustls.is_handshaking() {
            return Err(TlsError::NotEstablished);
        }
        if plain.is_empty() {
            return Ok(());
        }
        let records = plain.len().div_ceil(RECORD_PLAIN_BYTES_MAX);
        let guess = plain.len() + records * RECORD_EXTRA_BYTES;
        let written = inner.with_write_traffic(out, |traffic, out| {
            append(out, guess, |room| traffic.encrypt(plain, room).map_err(Refusal::from))
        });
        written.map_err(|error| {
            send_queued(&mut inner.rustls, &mut inner.waiting, out);
            inner.fail(error)
        })
    }

    /// Closes this side: appends `close_notify` to `out`. Nothing is appended before the end of the
    /// handshake, after an error, or the second time. What is read afterwards is ignored.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        let inner = &mut *self.0;
        if matches!(inner.phase, Phase::Closed | Phase::Failed) {
            return;
        }
        if !inner.rustls.is_handshaking() {
            // After an error nothing is sent, and the connection ends in any case.
            let _ = inner.with_write_traffic(out, |traffic, out| {
                append(out, 64, |room| traffic.queue_close_notify(room).map_err(Refusal::from))
            });
        }
        inner.phase = Phase::Closed;
        inner.waiting = Vec::new();
    }

    /// True when the handshake is complete.
    pub(crate) fn is_established(&self) -> bool {
        !self.0.rustls.is_handshaking()
    }
}

impl Inner {
    fn progress(&self) -> TlsProgress {
        TlsProgress {
            handshake_done: !self.rustls.is_handshaking(),
            peer_closed: self.phase == Phase::PeerClosed,
        }
    }

    fn fail(&mut self, error: TlsError) -> TlsError {
        self.phase = Phase::Failed;
        self.waiting = Vec::new();
        error
    }

    // rustls would wait for five bytes and report an invalid content type. One byte is enough, and
    // the error is clearer.
    fn check_first_byte(&mut self, cipher: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let Some(&first) = cipher.first() else { return Ok(()) };
        self.phase = Phase::Running;
        if first == HANDSHAKE_RECORD {
            return Ok(());
        }
        let mistaken = Mistaken::of(first);
        if mistaken == Mistaken::Http {
            out.extend_from_slice(ANSWER_TO_HTTP);
        }
        Err(self.fail(TlsError::NotTls(mistaken)))
    }

    /// Passes stored and new bytes to rustls, and stores what it could not use yet.
    fn take(&mut self, cipher: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        let peer_closed = if self.waiting.is_empty() {
            let pass = process(&mut self.rustls, cipher, plain, out)?;
            let rest = cipher.get(pass.used..).unwrap_or_default();
            if !rest.is_empty() {
                self.waiting = rest.to_vec();
            }
            pass.peer_closed
        } else {
            // At most one read of the shard more than the bound, and only until this call returns.
            self.waiting.reserve_exact(cipher.len());
            self.waiting.extend_from_slice(cipher);
            let pass = process(&mut self.rustls, &mut self.waiting, plain, out)?;
            self.waiting.drain(..pass.used);
            self.waiting.shrink_to_fit();
            pass.peer_closed
        };
        if peer_closed {
            self.phase = Phase::PeerClosed;
            self.waiting = Vec::new();
        }
        if self.waiting.len() > WAITING_BYTES_MAX { Err(TlsError::HandshakeTooLarge) } else { Ok(()) }
    }

    /// Brings rustls to the state in which it encrypts. What it has to send before is appended
    /// first.
    fn with_write_traffic(
        &mut self,
        out: &mut Vec<u8>,
        use_it: impl FnOnce(
            &mut WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut Vec<u8>,
        ) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        loop {
            // rustls has seen the stored bytes before and found them incomplete, so it uses up none
            // of them here.
            let UnbufferedStatus { state, .. } = self.rustls.process_tls_records(&mut self.waiting);
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => return use_it(&mut traffic, out),
                ConnectionState::EncodeTlsData(mut data) => {
                    append(out, 0, |room| data.encode(room).map_err(Refusal::from))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                // Reported once; then rustls lets this side write.
                ConnectionState::PeerClosed => {}
                ConnectionState::Closed => return Err(TlsError::Ended),
                ConnectionState::BlockedHandshake => return Err(TlsError::NotEstablished),
                _ => return Err(TlsError::Unexpected("data to read while writing")),
            }
        }
    }
}

/// The result of one pass over a buffer.
struct Pass {
    /// Bytes at the front that are not needed any more.
    used: usize,
    peer_closed: bool,
}

enum Step {
    Again,
    NeedsInput,
    PeerClosed,
}

/// Runs rustls over `buffer` until it needs more input.
fn process(
    rustls: &mut UnbufferedServerConnection,
    buffer: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Pass, TlsError> {
    let mut used = 0;
    loop {
        // rustls counts positions from the start of the slice: bytes that it does not discard must
        // be passed again in the same place, as it left them.
        let UnbufferedStatus { discard, state } = rustls.process_tls_records(&mut buffer[used..]);
        let mut discard = discard;
        let step = match state {
            Ok(state) => advance(state, &mut discard, plain, out),
            Err(error) => Err(TlsError::Protocol(error)),
        };
        used = buffer.len().min(used + discard);
        match step {
            Ok(Step::Again) => {}
            Ok(Step::NeedsInput) => return Ok(Pass { used, peer_closed: false }),
            Ok(Step::PeerClosed) => return Ok(Pass { used, peer_closed: true }),
            Err(error) => {
                send_queued(rustls, &mut buffer[used..], out);
                return Err(error);
            }
        }
    }
}

/// Does what one state requires. Adds to `discard` what the state has used up.
fn advance(
    state: ConnectionState<'_, '_, rustls::server::ServerConnectionData>,
    discard: &mut usize,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Step, TlsError> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                *discard += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            append(out, 0, |room| data.encode(room).map_err(Refusal::from))?;
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Step::NeedsInput),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::PeerClosed),
        _ => Err(TlsError::Unexpected("early data, which is not offered")),
    }
}

/// Appends the alert that rustls has ready after an error.
///
/// rustls returns what is queued before it reads `buffer`. It must not read: it would find the same
/// error again, and try to send a second alert.
fn send_queued(rustls: &mut UnbufferedServerConnection, buffer: &mut [u8], out: &mut Vec<u8>) {
    while rustls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = rustls.process_tls_records(buffer).state else {
            return;
        };
        if append(out, 0, |room| data.encode(room).map_err(Refusal::from)).is_err() {
            return;
        }
    }
}

/// Why rustls wrote nothing into the space that it was given.
enum Refusal {
    Needs(usize),
    Never(TlsError),
}

impl From<EncodeError> for Refusal {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Self::Needs(size.required_size),
            EncodeError::AlreadyEncoded => Self::Never(TlsError::Unexpected("record encoded twice")),
        }
    }
}

impl From<EncryptError> for Refusal {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Self::Needs(size.required_size),
            EncryptError::EncryptExhausted => Self::Never(TlsError::KeysUsedUp),
        }
    }
}

/// Appends to `out` what `encode` writes. First `guess` bytes of space are tried, then as many as
/// it asks for. With a guess of 0 it is asked first, which is cheap and exact.
fn append(
    out: &mut Vec<u8>,
    guess: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, Refusal>,
) -> Result<(), TlsError> {
    let start = out.len();
    let mut room = guess;
    let result = loop {
        out.resize(start + room, 0);
        match encode(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(Refusal::Needs(bytes)) if bytes > room => room = bytes,
            Err(Refusal::Needs(_)) => break Err(TlsError::Unexpected("room refused that it asked for")),
            Err(Refusal::Never(error)) => break Err(error),
        }
    };
    out.truncate(start);
    result
}
