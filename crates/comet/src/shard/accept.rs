//! Letting connections in. Whatever accept says, the loop goes on.

use std::io;
use std::net::SocketAddr;

use goim_session::{CloseReason, ServerSession};
use mio::net::TcpListener;
use mio::{Interest, Poll, Token};

use super::{Shard, WAKE};
use crate::connection::{Connection, ConnectionId};
use crate::listener::ListenerKind;
use crate::stats::ShardStats;
use crate::transport::{Socket, Stream};

/// Connections accepted from one listener in one turn, so that those held are not forgotten.
const ACCEPTS_PER_TURN: usize = 256;
/// Pause after an error that will not go away at once (no descriptors, no memory), unless a connection leaves before.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// How often a lasting error is worth a line in the log; the counter has each.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A listener of this shard.
pub(super) struct Listener {
    socket: TcpListener,
    /// Connections may wait.
    ready: bool,
}

/// Puts the listeners into the poll.
pub(super) fn register(
    poll: &Poll,
    listeners: Vec<(TcpListener, ListenerKind)>,
) -> io::Result<Vec<Listener>> {
    let mut registered = Vec::new();
    for (index, (mut socket, _)) in listeners.into_iter().enumerate() {
        poll.registry().register(&mut socket, token_of(index), Interest::READABLE)?;
        registered.push(Listener { socket, ready: false });
    }
    Ok(registered)
}

fn token_of(index: usize) -> Token {
    Token(WAKE.0 - 1 - index)
}

impl Shard {
    pub(super) fn is_listener(&self, token: Token) -> bool {
        token.0 < WAKE.0 && WAKE.0 - 1 - token.0 < self.listeners.len()
    }

    /// True when the token is neither a listener's nor the inbox's.
    pub(super) fn is_connection(&self, token: Token) -> bool {
        token != WAKE && !self.is_listener(token)
    }

    pub(super) fn listener_ready(&mut self, token: Token) {
        self.listeners[WAKE.0 - 1 - token.0].ready = true;
    }

    /// True when connections may wait and nothing keeps the shard from taking them.
    pub(super) fn accepting_goes_on(&self) -> bool {
        self.accept_paused_until.is_none_or(|until| until <= self.now)
            && self.listeners.iter().any(|listener| listener.ready)
    }

    pub(super) fn accept_all(&mut self) {
        if !self.accepting_goes_on() {
            return;
        }
        self.accept_paused_until = None;
        self.earn_accept_credit();
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.listeners[index].ready || !self.accept_one(index) {
                    break;
                }
            }
        }
    }

    /// Accepts once. False when the shard should not go on at this moment.
    fn accept_one(&mut self, index: usize) -> bool {
        if !self.has_accept_credit() {
            return false;
        }
        match self.listeners[index].socket.accept() {
            Ok((stream, from)) => {
                self.admit(index, Stream::Tcp(stream), from);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.listeners[index].ready = false;
                false
            }
            Err(error) => {
                self.stats.accept_errors.add(1);
                let lasting = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
                if error.raw_os_error().is_some_and(|code| lasting.contains(&code)) {
                    if self.now >= self.accept_silent_until {
                        self.accept_silent_until = self.now.after(SILENCE);
                        tracing::warn!(shard = self.index, %error, "cannot accept; it goes on trying");
                    }
                    self.accept_paused_until = Some(self.now.after(PAUSE));
                    return false;
                }
                // The connection that was waiting has gone; the next one may be good.
                tracing::debug!(shard = self.index, %error, "a connection was lost before it was accepted");
                true
            }
        }
    }

    /// Takes in what listener `index` has accepted.
    pub(super) fn admit(&mut self, index: usize, stream: Stream, from: SocketAddr) {
        let kind = self.kinds[index];
        self.stats.accepted[ShardStats::kind_index(kind)].add(1);
        let remote = from.ip().to_canonical();
        if let Err(reason) = self.shared.addresses.enter(remote) {
            self.stats.closed(reason);
            return;
        }
        let tls =
            self.shared.certificates.as_ref().filter(|_| kind.is_tls()).map(|store| store.server_config());
        match Socket::new(stream, tls.as_ref()) {
            Ok(socket) => self.hold(index, socket, remote),
            Err(error) => {
                self.shared.addresses.leave(remote);
                self.not_set_up(&error);
            }
        }
    }

    fn not_set_up(&self, error: &str) {
        self.stats.accept_errors.add(1);
        tracing::warn!(shard = self.index, error, "an accepted connection could not be set up");
    }

    fn hold(&mut self, index: usize, socket: Socket, remote: std::net::IpAddr) {
        let kind = self.kinds[index];
        self.accepted.note(self.now, self.generation);
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let session = ServerSession::new(kind.transport(), &self.rules[index], self.now);
        let slot = self.connections.insert(Connection::new(socket, session, generation, index as u8, remote));
        self.stats.connections[ShardStats::kind_index(kind)].up();
        self.connections_peak = self.connections_peak.max(self.connections.len());
        self.arm(slot);
        // Whoever waited to be accepted has mostly sent its token already. Taken now, before the poll knows the socket, it
        // costs no event of its own.
        self.connections[slot].readable = true;
        self.take_input(slot);
        if self.find(ConnectionId { slot, generation }).is_some() {
            self.watch(slot);
        }
    }

    /// Has the poll tell what happens to a connection from now on.
    fn watch(&mut self, slot: u32) {
        let token = Token(slot as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(stream) = self.connections[slot].socket.source() else { return };
        if let Err(error) = self.poll.registry().register(stream, token, interest) {
            self.not_set_up(&error.to_string());
            self.close(slot, CloseReason::ConnectionLost);
        }
    }

    /// The kind of listener that a connection came through.
    pub(super) fn kind_of(&self, listener: u8) -> ListenerKind {
        self.kinds[usize::from(listener)]
    }

    /// Closes the listeners. Connections that wait in them are accepted first: they would be reset otherwise.
    pub(super) fn stop_listening(&mut self) {
        self.accept_all();
        self.listeners.clear();
    }

    fn earn_accept_credit(&mut self) {
        let Some(rate) = self.shared.config.limits.accepts_per_second_max else { return };
        let rate = f64::from(rate.get());
        let passed = self.accept_seen.until(self.now).as_secs_f64();
        self.accept_seen = self.now;
        // A tenth of a second's worth may come at once.
        self.accept_credit = (self.accept_credit + passed * rate).min((rate / 10.0).max(1.0));
    }

    fn has_accept_credit(&mut self) -> bool {
        let Some(rate) = self.shared.config.limits.accepts_per_second_max else { return true };
        if self.accept_credit < 1.0 {
            let wait = (1.0 - self.accept_credit) / f64::from(rate.get());
            self.accept_paused_until =
                Some(self.now.after(std::time::Duration::from_secs_f64(wait.max(0.001))));
            return false;
        }
        self.accept_credit -= 1.0;
        true
    }
}
