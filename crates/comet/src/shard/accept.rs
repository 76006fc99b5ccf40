//! Accepting connections. No error of accept ends the loop.

use std::net::{IpAddr, SocketAddr};

use goim_session::{CloseReason, ServerSession};
use mio::{Interest, Token};

use super::Shard;
use super::listeners::Accept;
use crate::connection::{Connection, ConnectionId};
use crate::stats::ShardStats;
use crate::transport::{Socket, Stream};

/// Connections accepted from one listener in one turn, so that open ones are served in between.
const ACCEPTS_PER_TURN: usize = 256;

impl Shard {
    pub(super) fn accept_all(&mut self) {
        if !self.listeners.can_accept(self.now) {
            return;
        }
        self.listeners.begin(self.now);
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.accept_one(index) {
                    break;
                }
            }
        }
    }

    /// Accepts once. False when this listener has nothing more for this turn.
    fn accept_one(&mut self, index: usize) -> bool {
        let shard = self.peers.own_index();
        match self.listeners.accept(index, self.now) {
            Accept::Connection(stream, from) => {
                self.admit(index as u8, Stream::Tcp(stream), from);
                true
            }
            Accept::Nothing => false,
            Accept::Lost(error) => {
                self.stats.accept_errors.add(1);
                tracing::debug!(shard, %error, "a connection was lost before it was accepted");
                true
            }
            Accept::Paused { error, log } => {
                self.stats.accept_errors.add(1);
                if let Some(suppressed) = log {
                    tracing::warn!(shard, %error, suppressed, "cannot accept connections; retrying");
                }
                false
            }
        }
    }

    /// Checks the limits for a connection accepted from `listener`, and opens it.
    pub(super) fn admit(&mut self, listener: u8, stream: Stream, from: SocketAddr) {
        let kind = self.listeners.kind(listener);
        self.stats.accepted[ShardStats::kind_index(kind)].add(1);
        let remote = from.ip().to_canonical();
        if let Err(reason) = self.shared.addresses.enter(remote) {
            self.stats.closed(reason);
            return;
        }
        let tls =
            self.shared.certificates.as_ref().filter(|_| kind.is_tls()).map(|store| store.server_config());
        match Socket::new(stream, tls.as_ref()) {
            Ok(socket) => self.open_connection(listener, socket, remote),
            Err(error) => {
                self.shared.addresses.leave(remote);
                self.log_setup_failure(&error);
            }
        }
    }

    fn log_setup_failure(&self, error: &str) {
        self.stats.accept_errors.add(1);
        tracing::warn!(shard = self.peers.own_index(), error, "an accepted connection could not be set up");
    }

    fn open_connection(&mut self, listener: u8, socket: Socket, remote: IpAddr) {
        let kind = self.listeners.kind(listener);
        self.scans.accept_history.note(self.now, self.connections.newest());
        let generation = self.connections.next_generation();
        let session = ServerSession::new(kind.transport(), self.listeners.rules(), self.now);
        let slot = self.connections.insert(Connection::new(socket, session, generation, listener, remote));
        self.stats.connections[ShardStats::kind_index(kind)].up();
        self.idle.note_connections(self.connections.len());
        self.arm(slot);
        // A client that waited to be accepted has usually sent its token already. Read now, before
        // the socket is registered in the poll, it costs no event.
        self.connections[slot].readable = true;
        self.take_input(slot);
        if self.connections.find(ConnectionId { slot, generation }).is_some() {
            self.register(slot);
        }
    }

    /// Registers a connection's socket in the poll.
    fn register(&mut self, slot: u32) {
        let token = Token(slot as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(stream) = self.connections[slot].socket.source() else { return };
        if let Err(error) = self.poll.registry().register(stream, token, interest) {
            self.log_setup_failure(&error.to_string());
            self.close(slot, CloseReason::ConnectionLost);
        }
    }

    /// Closes the listeners. Connections that wait in them are accepted first: they would be reset
    /// otherwise.
    pub(super) fn stop_listening(&mut self) {
        self.accept_all();
        self.listeners.close();
    }
}
