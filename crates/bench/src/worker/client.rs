//! One client: a socket, the state machine of the protocol, and the messages received.

use std::io::{self, Read, Write};

use goim_compression::inflate;
use goim_session::{ClientSession, ClientStep, Millis, Opening};
use goim_wire::{Operation, Sequence, Version, VersionTable, control};
use mio::{Interest, Registry, Token};

use super::connecting::{Setup, connect};
use super::counters::{Counters, Phase};
use super::socket::ClientSocket;
use crate::clock::now_ns;
use crate::tracker::Tracker;

/// The maximum decompressed size of a run: as many messages as a server may send together, of the
/// maximum size.
const RUN_BYTES_MAX: usize = 64 << 20;

/// One client, from connecting to its end.
pub(super) struct Client {
    socket: ClientSocket,
    session: ClientSession,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) phase: Phase,
    began_ns: u64,
    heartbeat: Option<Heartbeat>,
}

/// An unanswered heartbeat.
struct Heartbeat {
    request: Sequence,
    due_ns: u64,
}

impl Client {
    /// Starts to connect.
    pub(super) fn connect(setup: Setup<'_>, registry: &Registry, token: Token) -> io::Result<Self> {
        let Setup { target, source, receive_bytes, rules, tls, token: body, trackers, number, now } = setup;
        let mut stream = connect(target.addr, source, receive_bytes)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let opening = if target.transport.is_websocket() {
            Opening::WebSocket { host: &target.host, path: &target.path, headers: &[] }
        } else {
            Opening::Stream
        };
        let session = ClientSession::new(rules, opening, body, masks(number), now);
        let (phase, began_ns) = (Phase::Connecting, now_ns());
        let socket = ClientSocket::new(stream, tls.filter(|_| target.transport.is_tls()))?;
        Ok(Self { socket, session, trackers, phase, began_ns, heartbeat: None })
    }

    /// Handles a writable socket: it is connected, or no longer full.
    pub(super) fn writable(&mut self) -> Result<(), String> {
        if self.phase == Phase::Connecting {
            if let Some(error) = self.socket.stream.take_error().map_err(text)? {
                return Err(text(error));
            }
            match self.socket.stream.peer_addr() {
                Ok(_) => self.phase = Phase::Opening,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(text(error)),
            }
        }
        self.flush()
    }

    /// Reads all input. `to_the_end`: the server has closed the connection, and the last bytes must
    /// be read.
    pub(super) fn readable(
        &mut self,
        counters: &mut Counters,
        buffer: &mut [u8],
        to_the_end: bool,
    ) -> Result<(), String> {
        loop {
            let len = match self.socket.read(buffer) {
                Ok(0) => return Err("closed by the server".into()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(text(error)),
            };
            counters.received_bytes = counters.received_bytes.saturating_add(len as u64);
            let full = len == buffer.len() || self.socket.is_tls();
            self.process(counters, buffer.get_mut(..len).unwrap_or_default())?;
            if !self.session.output().is_empty() {
                self.flush()?;
            }
            // A short read has emptied the socket. Later input is a new event.
            if !full && !to_the_end {
                return Ok(());
            }
        }
    }

    fn process(&mut self, counters: &mut Counters, input: &mut [u8]) -> Result<(), String> {
        let now_ns = now_ns();
        let now = counters.session_time(now_ns);
        let mut at = 0;
        loop {
            match self.session.step(now, input, &mut at).map_err(|ended| ended.to_string())? {
                ClientStep::Idle => return Ok(()),
                ClientStep::Handled => {}
                ClientStep::Push(packet) => counters.ledger.record(&mut self.trackers, packet, now_ns),
                ClientStep::Authenticated { .. } => {
                    self.phase = Phase::Open;
                    counters.record_opened(self.began_ns, now_ns);
                }
                ClientStep::Reply { request, packet } => {
                    if let Some(heartbeat) = self.heartbeat.take_if(|heartbeat| heartbeat.request == request)
                    {
                        let online = control::parse_online_count(packet.body);
                        counters.record_heartbeat(heartbeat.due_ns, now_ns, online);
                    }
                }
                ClientStep::Disconnect { body, .. } => {
                    return Err(format!("disconnected by the server: {}", String::from_utf8_lossy(body)));
                }
                ClientStep::Compressed { version, body } => {
                    let run = decompress(version, body)?;
                    self.session.take_run(run);
                }
                // No client here sends such requests.
                ClientStep::Failed { .. } | ClientStep::Online { .. } | ClientStep::Unmatched(_) => {
                    counters.unexpected_replies += 1;
                }
            }
        }
    }

    /// Sends a heartbeat. Returns false, and sends none, when the previous one is unanswered.
    pub(super) fn send_heartbeat(&mut self, due_ns: u64) -> Result<bool, String> {
        if self.heartbeat.is_some() {
            return Ok(false);
        }
        let request = self.session.request(Version::GOIM, Operation::HEARTBEAT, &[]);
        let request = request.map_err(|error| format!("cannot send a heartbeat: {error}"))?;
        self.heartbeat = Some(Heartbeat { request, due_ns });
        self.flush()?;
        Ok(true)
    }

    /// Fails when the server is late with the response to the upgrade or to the token.
    pub(super) fn check_time(&mut self, now: Millis) -> Result<(), String> {
        self.session.handle_timeout(now).map_err(|ended| ended.to_string())
    }

    /// Sends the closing packets of the protocol, without waiting.
    pub(super) fn close(&mut self) {
        self.session.close();
        // The socket is closed in any case.
        let _ = self.flush();
    }

    fn flush(&mut self) -> Result<(), String> {
        while self.phase != Phase::Connecting && !self.session.output().is_empty() {
            match self.socket.write(self.session.output()) {
                Ok(len) => self.session.written(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(text(error)),
            }
        }
        if self.phase == Phase::Connecting { Ok(()) } else { self.socket.flush().map_err(text) }
    }
}

/// Decompresses a run of packets, with the default version table.
fn decompress(version: Version, body: &[u8]) -> Result<Vec<u8>, String> {
    let row = VersionTable::default().row(version);
    let row = row.ok_or_else(|| format!("a body of version {}, which is unknown", version.0))?;
    inflate(row.encoding, body, RUN_BYTES_MAX)
        .map_err(|error| format!("a body of version {}: {error}", version.0))
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Returns WebSocket masks that differ between clients. Benchmarks do not need unpredictable ones.
fn masks(number: u32) -> Box<dyn FnMut() -> [u8; 4] + Send> {
    let mut state = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Box::new(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [a, b, c, d, ..] = state.to_be_bytes();
        [a, b, c, d]
    })
}
