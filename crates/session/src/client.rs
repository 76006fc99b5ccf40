//! The client's end of a connection.
//!
//! The driver feeds bytes ([`ClientSession::step`]) and time ([`ClientSession::handle_timeout`] when
//! [`ClientSession::deadline`] has come), and writes what [`ClientSession::output`] holds. The session makes the
//! upgrade to WebSocket, presents the token, sends heartbeats and notices when nobody answers them, numbers requests
//! and finds the request that a reply belongs to, and takes batches apart. It does not connect, knows no room and no
//! subscription, and never retries: that is for whoever drives it.
//!
//! What comes in and belongs to nothing (a reply to no request, an operation that nobody knows) is a step like any
//! other, not an error: servers of other versions, and replies that come late, must not end a connection.

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

/// Where the keys for masking come from: each call gives four bytes that an onlooker cannot foresee (RFC 6455,
/// section 5.3). There is no randomness in here, so the driver brings it; tests bring a seed.
pub type Masks = alloc::boxed::Box<dyn FnMut() -> [u8; 4] + Send>;

/// What all sessions of a client have in common. Begin with [`ClientRules::new`].
#[derive(Debug, Clone)]
pub struct ClientRules {
    framing: FramingRules,
    /// From the first moment to the auth reply. Default 10 s: twice what goim's server allows itself.
    pub handshake_timeout: Duration,
    /// Time between two heartbeats. Default 4 min, as goim's node list tells clients.
    pub heartbeat_interval: Duration,
    /// With a heartbeat unanswered, and nothing else coming in for this long, the connection is dead. Default 15 s.
    pub heartbeat_timeout: Duration,
    /// Requests that may wait for their replies. Default 64.
    pub requests_max: usize,
    /// Largest body of a request, in bytes. Default 4096: goim's server ends the connection over a larger one.
    pub request_body_bytes_max: usize,
    /// Bytes that may wait to be written before requests are refused. Default 256 KiB. An empty output takes one
    /// request of any size.
    pub output_bytes_max: usize,
}

impl ClientRules {
    /// Default for the largest inbound body: 64 MiB.
    ///
    /// The protocol does not limit what a server sends, and a batch holds many pushes: 64 of them at Kafka's own
    /// limit of 1 MiB. The bound is there for a stream that is out of step, where any number may stand in place of a
    /// length. Memory grows with what has arrived, not with what is announced, so a high bound costs nothing.
    pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

    /// Rules with defaults, and this largest inbound body in bytes.
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

/// How the connection begins.
#[derive(Debug, Clone, Copy)]
pub enum Opening<'a> {
    /// Packets at once.
    Stream,
    /// The upgrade to WebSocket first.
    WebSocket {
        /// The authority that was dialled: `host:port`.
        host: &'a str,
        /// The request target, for example `/sub`.
        path: &'a str,
        /// Further header lines, for example a cookie.
        headers: &'a [(&'a str, &'a str)],
    },
}

/// What has happened.
#[derive(Debug)]
pub enum ClientStep<'a> {
    /// The input is used up.
    Idle,
    /// Something was dealt with inside; call again.
    Handled,
    /// The token was accepted: requests may be made. The body is empty from goim, JSON for negotiated clients.
    Authenticated {
        /// Body of the auth reply.
        reply: &'a [u8],
    },
    /// The reply to a request.
    Reply {
        /// What [`ClientSession::request`] gave for it.
        request: Sequence,
        /// The reply.
        packet: Packet<'a>,
    },
    /// The server says that a request failed. The body is JSON: `code`, `message`, `retry_after_ms`.
    Failed {
        /// What [`ClientSession::request`] gave for it.
        request: Sequence,
        /// Body of the error packet.
        error: &'a [u8],
    },
    /// A run of packets that is compressed as this version says: inflate it and hand it back with [`ClientSession::take_run`].
    Compressed {
        /// How the run is written.
        version: Version,
        /// The run.
        body: &'a [u8],
    },
    /// The reply to a heartbeat that the session has sent by itself: how many are online in the room.
    Online {
        /// The count; zero in no room.
        count: i32,
    },
    /// Somebody has pushed this. What came in a batch comes one by one.
    Push(Packet<'a>),
    /// A reply or an error that belongs to no request.
    Unmatched(Packet<'a>),
    /// The server is about to close, and says why.
    Disconnect {
        /// The reason's number, when there is one in the body.
        code: Option<u16>,
        /// What to do next; [`ReconnectPolicy::Backoff`] without a code.
        reconnect: ReconnectPolicy,
        /// Body of the packet, JSON: `code`, `reason`, `reconnect`, `delay_ms`, `node`.
        body: &'a [u8],
    },
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// What came in cannot be understood.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The server has sent a close frame.
    #[error("the server closed the WebSocket")]
    Closed,
    /// No auth reply came in time.
    #[error("no reply to the token in time")]
    HandshakeTimeout,
    /// Nothing came in although a heartbeat was sent: the connection is dead.
    #[error("no reply to a heartbeat in time")]
    HeartbeatLost,
}

impl From<DecodeError> for Ended {
    fn from(error: DecodeError) -> Self {
        Self::Framing(FramingError::Packet(error))
    }
}

/// Why a request was not taken. Nothing of it was or will be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The token is not accepted yet, or the session is over.
    #[error("the session is not open")]
    NotOpen,
    /// As many requests as allowed wait for their replies.
    #[error("{limit} requests wait for their replies already")]
    TooMany {
        /// See [`ClientRules::requests_max`].
        limit: usize,
    },
    /// The server would end the connection over it.
    #[error("body of {len} bytes exceeds the limit of {limit}")]
    BodyTooLong {
        /// Bytes in the body.
        len: usize,
        /// See [`ClientRules::request_body_bytes_max`].
        limit: usize,
    },
    /// The server does not take what is sent to it.
    #[error("{waiting} bytes wait to be written already")]
    OutputFull {
        /// Bytes that wait.
        waiting: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The upgrade or the auth reply is outstanding.
    Opening,
    Open,
    /// Nothing is read any more; what waits may still be written.
    Closed,
}

/// When the next heartbeat is due, and since when one is unanswered.
#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    interval: Duration,
    next: Millis,
    unanswered_since: Option<Millis>,
    /// The last sign of life, or when the driver began to read again.
    heard: Millis,
}

/// One connection, seen from the client.
pub struct ClientSession {
    rules: Arc<ClientRules>,
    framing: Framing,
    phase: Phase,
    /// Sent as soon as the upgrade is made; empty after that.
    token: Vec<u8>,
    output: Output,
    requests: Requests,
    batch: Batch,
    heartbeat: Heartbeat,
    handshake_deadline: Millis,
    reading: bool,
}

impl ClientSession {
    /// A connection that has just been made. `token` is the body of the auth packet.
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

    /// How packets are carried.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.framing.transport()
    }

    /// True between the auth reply and the end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Requests that wait for their replies.
    #[must_use]
    pub fn requests_len(&self) -> usize {
        self.requests.len()
    }

    /// True when [`ClientSession::request`] would take a request with a small body.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.is_open()
            && self.requests.len() < self.rules.requests_max
            && self.output.as_slice().len() < self.rules.output_bytes_max
    }

    /// When [`ClientSession::handle_timeout`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        match self.phase {
            Phase::Opening => self.handshake_deadline,
            Phase::Open => self.heartbeat.next.min(self.dead_at()),
            Phase::Closed => Millis::NEVER,
        }
    }

    /// What is to be written, in order. The token is in there at the beginning: not for logs.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    // --- time

    /// Sends the heartbeat that is due, or finds that the server is silent. Does nothing before the deadline.
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
        // Behind a full output one more heartbeat changes nothing.
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

    /// Changes the time between two heartbeats: the server may want them more often than the rules say. The next one
    /// comes no later than this much after `now`.
    pub fn set_heartbeat_interval(&mut self, interval: Duration, now: Millis) {
        self.heartbeat.interval = interval;
        if self.phase == Phase::Open {
            self.heartbeat.next = self.heartbeat.next.min(now.after(interval));
        }
    }

    /// Tells whether the driver reads. While it does not, silence says nothing about the server, and the session is
    /// not ended over it; heartbeats are sent all the same.
    pub fn set_reading(&mut self, reading: bool, now: Millis) {
        if reading && !self.reading {
            self.heartbeat.heard = now;
        }
        self.reading = reading;
    }

    /// When the silence has lasted too long.
    fn dead_at(&self) -> Millis {
        match self.heartbeat.unanswered_since {
            Some(since) if self.reading => {
                since.max(self.heartbeat.heard).after(self.rules.heartbeat_timeout)
            }
            _ => Millis::NEVER,
        }
    }

    // --- input

    /// Takes the next thing off `input` from `*at` on and says what has happened. Call again until
    /// [`ClientStep::Idle`]. A driver that cannot deal with more may stop before that; it keeps what is left of the
    /// input and offers it again.
    ///
    /// # Errors
    /// Why the session is over. What waits in the output (the answer to a close frame) may be written before closing.
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
            // The client asks for no extension, so that nothing comes deflated.
            Some(Incoming::Nothing | Incoming::Deflated(_)) => Ok(ClientStep::Handled),
            Some(Incoming::Upgraded { .. }) => {
                present(&mut self.token, &mut self.output);
                Ok(ClientStep::Handled)
            }
            Some(Incoming::Ping(payload)) => {
                // Pings that come faster than pongs leave are not answered: they must not fill the memory.
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

    /// Takes the packets of a run that was compressed: they come with the next steps.
    pub fn take_run(&mut self, packets: Vec<u8>) {
        self.batch = Batch::new(packets);
    }

    // --- requests

    /// Queues a request and gives the mark by which its reply will be known.
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

    /// Takes `len` bytes off the front of the output: they are written.
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
    /// Leaves out the token, and the output that may hold it.
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

/// Finds out what a packet is to this session.
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

/// Below the backend's range nobody pushes with a mark: such a packet answers a request that is gone.
fn is_late_echo(packet: &Packet<'_>) -> bool {
    packet.operation < Operation::BACKEND_MIN && packet.sequence != Sequence::NONE
}
