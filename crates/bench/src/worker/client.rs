//! One client: a socket, the protocol's state machine, and what it has received.

use std::io::{self, Read, Write};

use goim_compression::inflate;
use goim_session::{ClientSession, ClientStep, Moment, Opening};
use goim_wire::{Operation, Sequence, Version, VersionTable, control};
use mio::{Interest, Registry, Token};

use super::connecting::{Beginning, connect};
use super::crowd::Accounts;
use super::wire::Wire;
use crate::clock::now_ns;
use crate::tracker::Tracker;

/// What a compressed run may grow to: as many messages as a server may send together, of the largest size.
const RUN_BYTES_MAX: usize = 64 << 20;

/// One client, from its first step of connecting to its end.
pub(super) struct Client {
    wire: Wire,
    session: ClientSession,
    pub(super) trackers: Box<[Tracker]>,
    pub(super) phase: Phase,
    began_ns: u64,
    beat: Option<Beat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The system is connecting.
    Connecting,
    /// Upgrade or token is outstanding.
    Opening,
    Open,
}

/// A heartbeat that is not answered yet.
struct Beat {
    request: Sequence,
    due_ns: u64,
}

impl Client {
    /// Begins to connect.
    pub(super) fn begin(beginning: Beginning<'_>, registry: &Registry, token: Token) -> io::Result<Self> {
        let Beginning { target, source, receive_bytes, rules, tls, token: body, trackers, number, now } =
            beginning;
        let mut stream = connect(target.addr, source, receive_bytes)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let opening = if target.carrier.is_websocket() {
            Opening::WebSocket { host: &target.host, path: &target.path, headers: &[] }
        } else {
            Opening::Stream
        };
        let session = ClientSession::new(rules, opening, body, masks(number), now);
        let (phase, began_ns) = (Phase::Connecting, now_ns());
        let wire = Wire::new(stream, tls.filter(|_| target.carrier.is_tls()))?;
        Ok(Self { wire, session, trackers, phase, began_ns, beat: None })
    }

    /// The socket can be written: connected, or room again.
    pub(super) fn writable(&mut self) -> Result<(), String> {
        if self.phase == Phase::Connecting {
            if let Some(error) = self.wire.stream.take_error().map_err(said)? {
                return Err(said(error));
            }
            match self.wire.stream.peer_addr() {
                Ok(_) => self.phase = Phase::Opening,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(said(error)),
            }
        }
        self.flush()
    }

    /// Reads all there is. `to_the_end` when the other side has closed and the last bytes are to be taken.
    pub(super) fn readable(
        &mut self,
        accounts: &mut Accounts,
        buffer: &mut [u8],
        to_the_end: bool,
    ) -> Result<(), String> {
        loop {
            let len = match self.wire.read(buffer) {
                Ok(0) => return Err("closed by the server".into()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(said(error)),
            };
            accounts.received_bytes = accounts.received_bytes.saturating_add(len as u64);
            let full = len == buffer.len() || self.wire.is_tls();
            self.take(accounts, buffer.get_mut(..len).unwrap_or_default())?;
            if !self.session.output().is_empty() {
                self.flush()?;
            }
            // A short read has emptied the socket; what comes later is a new event.
            if !full && !to_the_end {
                return Ok(());
            }
        }
    }

    fn take(&mut self, accounts: &mut Accounts, input: &mut [u8]) -> Result<(), String> {
        let now_ns = now_ns();
        let now = accounts.moment(now_ns);
        let mut at = 0;
        loop {
            match self.session.step(now, input, &mut at).map_err(|ended| ended.to_string())? {
                ClientStep::Idle => return Ok(()),
                ClientStep::Handled => {}
                ClientStep::Push(packet) => accounts.ledger.enter(&mut self.trackers, packet, now_ns),
                ClientStep::Authenticated { .. } => {
                    self.phase = Phase::Open;
                    accounts.opened(self.began_ns, now_ns);
                }
                ClientStep::Reply { request, packet } => {
                    if let Some(beat) = self.beat.take_if(|beat| beat.request == request) {
                        accounts.beat_answered(beat.due_ns, now_ns, control::parse_online_count(packet.body));
                    }
                }
                ClientStep::Disconnect { body, .. } => {
                    return Err(format!("told to go: {}", String::from_utf8_lossy(body)));
                }
                ClientStep::Compressed { version, body } => {
                    let run = inflated(version, body)?;
                    self.session.take_run(run);
                }
                // What nobody here has asked for.
                ClientStep::Failed { .. } | ClientStep::Online { .. } | ClientStep::Unmatched(_) => {
                    accounts.unasked();
                }
            }
        }
    }

    /// Sends the heartbeat that was due. False when the last one is still unanswered: then none is sent.
    pub(super) fn beat(&mut self, due_ns: u64) -> Result<bool, String> {
        if self.beat.is_some() {
            return Ok(false);
        }
        let request = self.session.request(Version::GOIM, Operation::HEARTBEAT, &[]);
        let request = request.map_err(|error| format!("cannot send a heartbeat: {error}"))?;
        self.beat = Some(Beat { request, due_ns });
        self.flush()?;
        Ok(true)
    }

    /// Gives up when the server is too slow with the upgrade or the answer to the token.
    pub(super) fn check_time(&mut self, now: Moment) -> Result<(), String> {
        self.session.handle_timeout(now).map_err(|ended| ended.to_string())
    }

    /// Says good-bye, as far as that goes without waiting.
    pub(super) fn close(&mut self) {
        self.session.close();
        // The connection is closed either way.
        let _ = self.flush();
    }

    fn flush(&mut self) -> Result<(), String> {
        while self.phase != Phase::Connecting && !self.session.output().is_empty() {
            match self.wire.write(self.session.output()) {
                Ok(len) => self.session.written(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(said(error)),
            }
        }
        if self.phase == Phase::Connecting { Ok(()) } else { self.wire.flush().map_err(said) }
    }
}

/// A run of packets by the table that every server begins with.
fn inflated(version: Version, body: &[u8]) -> Result<Vec<u8>, String> {
    let row = VersionTable::default().row(version);
    let row = row.ok_or_else(|| format!("a body of version {}, which is not in the table", version.0))?;
    inflate(row.encoding, body, RUN_BYTES_MAX)
        .map_err(|error| format!("a body of version {}: {error}", version.0))
}

fn said(error: io::Error) -> String {
    error.to_string()
}

/// Masks that differ from client to client. Nobody here has to be kept from foreseeing them.
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
