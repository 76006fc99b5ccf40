//! Writing what waits for sessions: first what is urgent, then a part of the flush queue.

use goim_session::CloseReason;

use super::Shard;
use crate::prefetch::BLOCK;

/// Sessions of the flush queue that are flushed in one turn: about two milliseconds of work, after
/// which sockets and inbox are served again.
const FLUSHES_PER_TURN: usize = 256;

impl Shard {
    /// Has the session flushed at the end of the turn.
    pub(super) fn stage(&mut self, slot: u32) {
        self.egress.flush_urgently(slot, &mut self.connections[slot]);
    }

    pub(super) fn flush_urgent(&mut self) {
        // A flush can make room for replies, so that more input is read and the session staged
        // again: in the next turn.
        let mut urgent = self.egress.take_urgent();
        for slot in urgent.drain(..) {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.urgent = false;
                self.flush(slot);
            }
        }
        self.egress.recycle_urgent(urgent);
    }

    pub(super) fn flush_in_order(&mut self) {
        for nth in 0..FLUSHES_PER_TURN {
            if nth % BLOCK == 0 {
                self.prefetch_flushes();
            }
            let Some(slot) = self.egress.next_in_order() else { return };
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.in_flush_queue = false;
                self.flush(slot);
            }
        }
    }

    /// Writes what waits for a connection, as much as its socket takes.
    pub(super) fn flush(&mut self, slot: u32) {
        while let Some(connection) = self.connections.get_mut(slot) {
            if !connection.writable {
                return;
            }
            if connection.session.outbox().is_empty() && !connection.socket.holds_output() {
                self.flushed(slot);
                return;
            }
            self.stats.writes.add(1);
            match self.egress.write(connection, self.now) {
                Ok(is_full) => {
                    if is_full {
                        connection.writable = false;
                        self.stats.blocked.up();
                    }
                }
                Err(error) => {
                    tracing::debug!(remote = %connection.remote(), %error, "a write failed");
                    if connection.is_closing() {
                        self.remove(slot);
                    } else {
                        self.close(slot, CloseReason::ConnectionLost);
                    }
                    return;
                }
            }
        }
    }

    /// Everything is written: a closing connection ends; an open one may have room for replies, and
    /// so for input.
    fn flushed(&mut self, slot: u32) {
        let connection = &self.connections[slot];
        if connection.is_closing() {
            self.end_stream(slot);
            return;
        }
        if connection.is_syncing() {
            self.send_held_notifications(slot);
            self.resume_positions(slot);
        }
        let connection = &self.connections[slot];
        let input_waits = connection.readable || connection.has_unread();
        if input_waits
            && connection.throttled_until().is_none()
            && connection.session.wants_input(self.listeners.rules())
        {
            self.resume(slot);
        }
    }
}
