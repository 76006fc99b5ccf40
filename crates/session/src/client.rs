//! The client's end of a connection.
//!
//! The driver passes in bytes ([`ClientSession::step`]) and time ([`ClientSession::handle_timeout`]
//! at [`ClientSession::deadline`]), and writes [`ClientSession::output`]. The session upgrades to
//! WebSocket, authenticates, sends heartbeats and detects a dead connection, numbers requests and
//! matches replies, and splits batches. It does not connect, knows no rooms or subscriptions, and
//! never retries.
//!
//! Unexpected packets (a reply without a request, an unknown operation) are steps, not errors:
//! servers of other versions and late replies must not end a connection.

mod notice;
mod output;
mod requests;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use goim_websocket::{self as websocket, Opcode, handshake};
use goim_wire::{DecodeError, HEADER_LEN, Operation, Packet, Sequence, Version, control};

use crate::framing::{Framing, FramingError, FramingRules, Incoming, Transport};
use crate::{Millis, ReconnectPolicy};
use output::{Batch, Output};
use requests::Requests;

pub use notice::disconnect_code;

/// Generates the keys for masking: each call returns four bytes that cannot be predicted (RFC 6455,
/// section 5.3). The driver brings the randomness; tests use a seed.
pub type Masks = alloc::boxed::Box<dyn FnMut() -> [u8; 4] + Send>;

/// Settings that all sessions of a client share. Start with [`ClientRules::new`].
#[derive(Debug, Clone)]
pub struct ClientRules {
    framing: FramingRules,
    /// Time from the start to the auth reply. Default 10 s: twice the server's limit in goim.
    pub handshake_timeout: Duration,
    /// Time between two heartbeats. Default 4 min, as in goim's node list.
    pub heartbeat_interval: Duration,
    /// A connection is dead if a heartbeat has no reply and nothing else is received for this time.
    /// Default 15 s.
    pub heartbeat_timeout: Duration,
    /// Maximum number of requests in flight. Default 64.
    pub requests_max: usize,
    /// Maximum body of a request, in bytes. Default 4096: goim's server closes the connection after
    /// a larger one.
    pub request_body_bytes_max: usize,
    /// Maximum number of bytes to be written before requests are refused. Default 256 KiB. An empty
    /// output accepts one request of any size.
    pub output_bytes_max: usize,
}

impl ClientRules {
    /// Default maximum of an inbound body: 64 MiB.
    ///
    /// The protocol has no limit, and a batch holds many pushes: 64 of them at Kafka's limit of 1
    /// MiB. The limit is for a stream that is out of sync, where a length can be any number. Memory
    /// grows with the bytes received, not with the announced length, so a high limit costs nothing.
    pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

    /// Creates rules with defaults and this maximum of an inbound body, in bytes.
    #[must_use]
    pub fn new(body_bytes_max: usize) -> Self {
        let message_bytes_max = body_bytes_max.saturating_add(HEADER_LEN);
        let websocket = websocket::Rules {
            role: websocket::Role::Client,
            lenient: false,
            frame_bytes_max: message_bytes_max,
            message_bytes_max,
        };
        let head_bytes_max = 16 * 1024;
        Self {
            framing: FramingRules {
                body_bytes_max,
                head_bytes_max,
                path: String::new(),
                deflate: false,
                websocket,
            },
            handshake_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(240),
            heartbeat_timeout: Duration::from_secs(15),
            requests_max: 64,
            request_body_bytes_max: 4096,
            output_bytes_max: 256 * 1024,
        }
    }
}

impl Default for ClientRules {
    fn default() -> Self {
        Self::new(Self::BODY_BYTES_MAX)
    }
}

/// How a connection starts.
#[derive(Debug, Clone, Copy)]
pub enum Opening<'a> {
    /// With packets.
    Stream,
    /// With the upgrade to WebSocket.
    WebSocket {
        /// The authority of the server: `host:port`.
        host: &'a str,
        /// The request target, for example `/sub`.
        path: &'a str,
        /// Further header lines, for example a cookie.
        headers: &'a [(&'a str, &'a str)],
    },
}

/// An event of a session.
#[derive(Debug)]
pub enum ClientStep<'a> {
    /// The input is consumed.
    Idle,
    /// Something was handled internally; call again.
    Handled,
    /// The token was accepted: requests can be sent. The body is empty from goim, JSON for
    /// negotiated clients.
    Authenticated {
        /// Body of the auth reply.
        reply: &'a [u8],
    },
    /// The reply to a request.
    Reply {
        /// The number that [`ClientSession::request`] returned.
        request: Sequence,
        /// The reply.
        packet: Packet<'a>,
    },
    /// A request failed. The body is JSON: `code`, `message`, `retry_after_ms`.
    Failed {
        /// The number that [`ClientSession::request`] returned.
        request: Sequence,
        /// Body of the error packet.
        error: &'a [u8],
    },
    /// A compressed run of packets: inflate it by its version and pass it to
    /// [`ClientSession::take_run`].
    Compressed {
        /// The version, which names the encoding.
        version: Version,
        /// The run.
        body: &'a [u8],
    },
    /// The reply to a heartbeat of the session: the number of sessions in the room.
    Online {
        /// The number; zero without a room.
        count: i32,
    },
    /// A push. Pushes of a batch are separate steps.
    Push(Packet<'a>),
    /// A reply or an error without a request.
    Unmatched(Packet<'a>),
    /// The server is about to close the connection.
    Disconnect {
        /// The code of the reason, if the body has one.
        code: Option<u16>,
        /// What to do next; [`ReconnectPolicy::Backoff`] without a code.
        reconnect: ReconnectPolicy,
        /// Body of the packet, JSON: `code`, `reason`, `reconnect`, `delay_ms`, `node`.
        body: &'a [u8],
    },
}

/// Why a session has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The input cannot be decoded.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The server has sent a close frame.
    #[error("the server closed the WebSocket")]
    Closed,
    /// The auth reply was not received in time.
    #[error("no reply to the token in time")]
    HandshakeTimeout,
    /// Nothing was received after a heartbeat: the connection is dead.
    #[error("no reply to a heartbeat in time")]
    HeartbeatLost,
}

impl From<DecodeError> for Ended {
    fn from(error: DecodeError) -> Self {
        Self::Framing(FramingError::Packet(error))
    }
}

/// Why a request was not queued. Nothing of it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The token is not accepted yet, or the session has ended.
    #[error("the session is not open")]
    NotOpen,
    /// The maximum number of requests is in flight.
    #[error("{limit} requests wait for their replies already")]
    TooMany {
        /// See [`ClientRules::requests_max`].
        limit: usize,
    },
    /// The server would close the connection.
    #[error("body of {len} bytes exceeds the limit of {limit}")]
    BodyTooLong {
        /// Size of the body in bytes.
        len: usize,
        /// See [`ClientRules::request_body_bytes_max`].
        limit: usize,
    },
    /// The server does not read.
    #[error("{waiting} bytes wait to be written already")]
    OutputFull {
        /// Size of the output in bytes.
        waiting: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for the upgrade or for the auth reply.
    Opening,
    Open,
    /// Nothing is read any more; the output may still be written.
    Closed,
}

/// When the next heartbeat is due, and since when one has no reply.
#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    interval: Duration,
    next: Millis,
    unanswered_since: Option<Millis>,
    /// When something was last received, or when the driver started to read again.
    heard: Millis,
}

/// A connection, seen from the client.
pub struct ClientSession {
    rules: Arc<ClientRules>,
    framing: Framing,
    phase: Phase,
    /// Sent after the upgrade; empty after that.
    token: Vec<u8>,
    output: Output,
    requests: Requests,
    batch: Batch,
    heartbeat: Heartbeat,
    handshake_deadline: Millis,
    reading: bool,
}

impl ClientSession {
    /// Creates the session of a new connection. `token` is the body of the auth packet.
    #[must_use]
    pub fn new(
        rules: Arc<ClientRules>,
        opening: Opening<'_>,
        token: Vec<u8>,
        mut masks: Masks,
        now: Millis,
    ) -> Self {
        let upgrade = match opening {
            Opening::Stream => None,
            Opening::WebSocket { host, path, headers } => {
                let key = handshake::key_from(nonce(&mut masks));
                Some((handshake::request(host, path, &key, headers), key))
            }
        };
        let (request, key) = upgrade.unzip();
        let framing = Framing::client(key);
        let output = Output::new(framing.transport(), request.unwrap_or_default(), masks);
        let heartbeat = Heartbeat {
            interval: rules.heartbeat_interval,
            next: Millis::NEVER,
            unanswered_since: None,
            heard: now,
        };
        let handshake_deadline = now.after(rules.handshake_timeout);
        let mut session = Self {
            requests: Requests::new(),
            batch: Batch::default(),
            phase: Phase::Opening,
            reading: true,
            rules,
            framing,
            token,
            output,
            heartbeat,
            handshake_deadline,
        };
        if session.transport() == Transport::Stream {
            present(&mut session.token, &mut session.output);
        }
        session
    }

    // --- getters

    /// Returns the transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// Returns true between the auth reply and the end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Returns the number of requests in flight.
    #[must_use]
    pub fn requests_len(&self) -> usize {
        self.requests.len()
    }

    /// Returns true if [`ClientSession::request`] would accept a request with a small body.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.is_open()
            && self.requests.len() < self.rules.requests_max
            && self.output.as_slice().len() < self.rules.output_bytes_max
    }

    /// Returns when [`ClientSession::handle_timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        match self.phase {
            Phase::Opening => self.handshake_deadline,
            Phase::Open => self.heartbeat.next.min(self.dead_at()),
            Phase::Closed => Millis::NEVER,
        }
    }

    /// Returns the bytes to write, in order. They contain the token at first: do not log them.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    // --- time

    /// Sends a due heartbeat, or detects that the server is silent. Does nothing before the
    /// deadline.
    ///
    /// # Errors
    /// [`Ended::HandshakeTimeout`], [`Ended::HeartbeatLost`].
    pub fn handle_timeout(&mut self, now: Millis) -> Result<(), Ended> {
        if now < self.deadline() {
            return Ok(());
        }
        if self.phase == Phase::Opening {
            return Err(self.end(Ended::HandshakeTimeout));
        }
        if now >= self.dead_at() {
            return Err(self.end(Ended::HeartbeatLost));
        }
        self.heartbeat.next = now.after(self.heartbeat.interval);
        self.heartbeat.unanswered_since.get_or_insert(now);
        // After a full output one more heartbeat changes nothing.
        if self.output.as_slice().len() <= self.rules.output_bytes_max {
            self.output.packet(Packet {
                version: Version::GOIM,
                operation: Operation::HEARTBEAT,
                sequence: Sequence::NONE,
                body: &[],
            });
        }
        Ok(())
    }

    /// Changes the time between heartbeats, for a server that wants another one. The next heartbeat
    /// is sent at most this long after `now`.
    pub fn set_heartbeat_interval(&mut self, interval: Duration, now: Millis) {
        self.heartbeat.interval = interval;
        if self.phase == Phase::Open {
            self.heartbeat.next = self.heartbeat.next.min(now.after(interval));
        }
    }

    /// Sets whether the driver reads. While it does not, the session is not ended because the
    /// server seems silent; heartbeats are still sent.
    pub fn set_reading(&mut self, reading: bool, now: Millis) {
        if reading && !self.reading {
            self.heartbeat.heard = now;
        }
        self.reading = reading;
    }

    /// Returns when the server has been silent for too long.
    fn dead_at(&self) -> Millis {
        match self.heartbeat.unanswered_since {
            Some(since) if self.reading => {
                since.max(self.heartbeat.heard).after(self.rules.heartbeat_timeout)
            }
            _ => Millis::NEVER,
        }
    }

    // --- input

    /// Handles the next part of `input` from `*at` on. Call again until [`ClientStep::Idle`]. A
    /// driver that cannot handle more may stop earlier; it then passes the rest of the input in
    /// again later.
    ///
    /// # Errors
    /// Why the session has ended. The output (a reply to a close frame) may be written before
    /// closing.
    pub fn step<'a>(
        &'a mut self,
        now: Millis,
        input: &'a mut [u8],
        at: &mut usize,
    ) -> Result<ClientStep<'a>, Ended> {
        if self.phase == Phase::Closed {
            return Ok(ClientStep::Idle);
        }
        if !self.batch.is_empty() {
            return match self.batch.next() {
                Ok(packet) => Ok(ClientStep::Push(packet)),
                Err(error) => {
                    self.phase = Phase::Closed;
                    Err(error.into())
                }
            };
        }
        if *at < input.len() {
            self.heartbeat.heard = now;
        }
        let incoming = match self.framing.next(&self.rules.framing, input, at) {
            Ok(incoming) => incoming,
            Err(error) => {
                if let FramingError::Frame(error) = &error {
                    self.output.frame(Opcode::Close, &websocket::close_payload(error.close_code(), ""));
                }
                self.phase = Phase::Closed;
                return Err(error.into());
            }
        };
        match incoming {
            None => Ok(ClientStep::Idle),
            // The client requests no extension, so that nothing is compressed by
            // permessage-deflate.
            Some(Incoming::Nothing | Incoming::Deflated(_)) => Ok(ClientStep::Handled),
            Some(Incoming::Upgraded { .. }) => {
                present(&mut self.token, &mut self.output);
                Ok(ClientStep::Handled)
            }
            Some(Incoming::Ping(payload)) => {
                // Pings that arrive faster than pongs are written get no reply: they must not fill
                // the memory.
                if self.output.as_slice().len() <= self.rules.output_bytes_max {
                    self.output.frame(Opcode::Pong, payload);
                }
                Ok(ClientStep::Handled)
            }
            Some(Incoming::Closed) => {
                self.output.frame(Opcode::Close, &websocket::close_payload(1000, ""));
                self.phase = Phase::Closed;
                Err(Ended::Closed)
            }
            Some(Incoming::Packet(packet)) => {
                let opening = self.phase == Phase::Opening && packet.operation == Operation::AUTH_REPLY;
                if opening {
                    self.phase = Phase::Open;
                    self.heartbeat.next = now.after(self.heartbeat.interval);
                    return Ok(ClientStep::Authenticated { reply: packet.body });
                }
                Ok(sort(packet, &mut self.requests, &mut self.heartbeat, &mut self.batch))
            }
        }
    }

    /// Takes the packets of a run that was compressed; they are the next steps.
    pub fn take_run(&mut self, packets: Vec<u8>) {
        self.batch = Batch::new(packets);
    }

    // --- requests

    /// Queues a request and returns its number, which the reply repeats.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(
        &mut self,
        version: Version,
        operation: Operation,
        body: &[u8],
    ) -> Result<Sequence, RequestError> {
        if !self.is_open() {
            return Err(RequestError::NotOpen);
        }
        let limit = self.rules.request_body_bytes_max;
        if body.len() > limit {
            return Err(RequestError::BodyTooLong { len: body.len(), limit });
        }
        let waiting = self.output.as_slice().len();
        if waiting > 0 && waiting.saturating_add(body.len()) > self.rules.output_bytes_max {
            return Err(RequestError::OutputFull { waiting });
        }
        let limit = self.rules.requests_max;
        let sequence = self.requests.begin(operation, limit).ok_or(RequestError::TooMany { limit })?;
        self.output.packet(Packet { version, operation, sequence, body });
        Ok(sequence)
    }

    // --- output and end

    /// Removes the first `len` bytes of the output: they are written.
    pub fn written(&mut self, len: usize) {
        self.output.advance(len);
    }

    /// Ends the session: nothing is read any more. Over WebSocket a close frame is queued.
    pub fn close(&mut self) {
        let established = matches!(self.framing, Framing::WebSocket(_));
        if established && self.phase != Phase::Closed {
            self.output.frame(Opcode::Close, &websocket::close_payload(1000, ""));
        }
        self.phase = Phase::Closed;
    }

    fn end(&mut self, why: Ended) -> Ended {
        self.phase = Phase::Closed;
        why
    }
}

impl fmt::Debug for ClientSession {
    /// Leaves out the token, and the output that may contain it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession")
            .field("transport", &self.transport())
            .field("phase", &self.phase)
            .field("requests", &self.requests.len())
            .field("output_len", &self.output.as_slice().len())
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

fn nonce(masks: &mut Masks) -> [u8; 16] {
    let mut nonce = [0; 16];
    for part in nonce.chunks_exact_mut(4) {
        part.copy_from_slice(&masks());
    }
    nonce
}

/// Queues the auth packet.
fn present(token: &mut Vec<u8>, output: &mut Output) {
    let body = core::mem::take(token);
    let (version, operation, sequence) = (Version::GOIM, Operation::AUTH, Sequence(1));
    output.packet(Packet { version, operation, sequence, body: &body });
}

/// Classifies a packet.
fn sort<'a>(
    packet: Packet<'a>,
    requests: &mut Requests,
    heartbeat: &mut Heartbeat,
    batch: &mut Batch,
) -> ClientStep<'a> {
    let Packet { operation, sequence, body, version } = packet;
    match operation {
        Operation::RAW if version > Version::GOIM => return ClientStep::Compressed { version, body },
        Operation::RAW => {
            batch.fill(body);
            return ClientStep::Handled;
        }
        Operation::DISCONNECT => {
            let code = disconnect_code(body);
            let reconnect = code.map_or(ReconnectPolicy::Backoff, ReconnectPolicy::for_code);
            return ClientStep::Disconnect { code, reconnect, body };
        }
        Operation::HEARTBEAT_REPLY => heartbeat.unanswered_since = None,
        _ => {}
    }
    if requests.finish(sequence, operation) {
        return match operation {
            Operation::ERROR => ClientStep::Failed { request: sequence, error: body },
            _ => ClientStep::Reply { request: sequence, packet },
        };
    }
    match operation {
        Operation::HEARTBEAT_REPLY => match control::parse_online_count(body) {
            Some(count) => ClientStep::Online { count },
            None => ClientStep::Unmatched(packet),
        },
        _ if requests::is_reply(operation) || is_late_echo(&packet) => ClientStep::Unmatched(packet),
        _ => ClientStep::Push(packet),
    }
}

/// Below the backend's range no push has a number: such a packet is a late reply.
fn is_late_echo(packet: &Packet<'_>) -> bool {
    packet.operation < Operation::BACKEND_MIN && packet.sequence != Sequence::NONE
}
