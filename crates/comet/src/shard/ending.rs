//! Letting connections go: one by one with a reason, or all of them at a pace.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use goim_ports::{Call, EventKind, SessionRef};
use goim_session::{CloseReason, Millis, ReconnectPolicy};

use super::{Shard, share};
use crate::connection::{Closing, ConnectionId, Identity};
use crate::inbox::Notice;
use crate::key_index::Location;
use crate::stats::ShardStats;

/// How long a closed connection may take to see its end. What the kernel still holds is sent meanwhile; closing at once
/// would throw it away when the client has sent something that was not read.
const LINGER: Duration = Duration::from_secs(1);

/// A drain under way.
pub(super) struct Draining {
    sessions_per_second: f64,
    credit: f64,
    seen: Millis,
    until: Millis,
    delay_max: Duration,
    cursor: u32,
}

impl Shard {
    /// Ends a session. What waits is written as far as the socket takes it; then the stream ends.
    pub(super) fn close(&mut self, slot: u32, reason: CloseReason) {
        self.close_with_delay(slot, reason, Duration::ZERO);
    }

    fn close_with_delay(&mut self, slot: u32, reason: CloseReason, delay: Duration) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.is_closing() {
            return;
        }
        let until = self.now.after(LINGER);
        connection.take_unread();
        connection.unthrottle();
        connection.set_closing(Closing { until, ended: false });
        let farewell = farewell(reason, delay);
        connection.session.close(&mut self.pool, reason, &farewell);
        let id = ConnectionId { slot, generation: connection.generation };
        let identity = connection.identity.take();
        let class = connection.class;
        tracing::debug!(remote = %connection.remote(), %reason, key = identity.as_ref().map(|who| who.key.as_str()), "connection ends");
        self.stats.closed(reason);
        self.leave_rooms(slot);
        if let Some(identity) = identity {
            let events = &self.shared.events;
            events.note(EventKind::Disconnect, identity.mid, &identity.key, Vec::new(), reason.label());
            self.stats.sessions.down();
            self.shared.versions.went(class);
            self.forget(identity, id);
        }
        match reason {
            CloseReason::ConnectionLost | CloseReason::SlowConsumer => self.remove(slot),
            CloseReason::BadTls => self.end_stream(slot),
            _ => self.flush(slot),
        }
        self.arm(slot);
    }

    /// Takes a session out of the index and says farewell to logic, unless another has its key.
    fn forget(&mut self, identity: Identity, connection: ConnectionId) {
        let location = Location { shard: self.index as u16, connection };
        if self.shared.keys.depart(&identity.key, location) {
            self.say_farewell(identity, location);
        }
    }

    /// Tells logic that a session has ended.
    pub(super) fn say_farewell(&mut self, identity: Identity, location: Location) {
        let Identity { key, mid } = identity;
        let session = SessionRef { mid, key: key.clone(), server: self.shared.server.clone() };
        match self.shared.logic.disconnect(session) {
            Call::Ready(_) => confirm_successor(&self.shared.keys, &self.peers, &key, location),
            Call::Pending(answer) => {
                let (shared, peers) = (self.shared.clone(), self.peers.clone());
                shared.farewells.fetch_add(1, Ordering::SeqCst);
                shared.runtime.clone().spawn(async move {
                    if let Err(error) = answer.await {
                        tracing::debug!(%error, "a session's record was not removed; it will expire");
                    }
                    confirm_successor(&shared.keys, &peers, &key, location);
                    shared.farewells.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }

    /// Ends our side of the stream. The socket stays until the peer has ended its own, within [`LINGER`].
    pub(super) fn end_stream(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Some(closing) = connection.closing() else { return };
        if !closing.ended {
            connection.set_closing(Closing { ended: true, ..closing });
            connection.socket.end();
        }
        if connection.half_closed {
            self.remove(slot);
        } else if connection.readable {
            self.resume(slot);
        }
    }

    /// Closes the socket and frees the slot.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(mut connection) = self.connections.remove(slot) else { return };
        self.outbox_changed(connection.session.outbox().push_bytes(), 0);
        connection.session.discard(&mut self.pool);
        self.traffic_seen = Some(self.now);
        self.shared.addresses.leave(connection.remote());
        self.stats.connections[ShardStats::kind_index(self.kind_of(connection.listener))].down();
        if !connection.writable {
            self.stats.blocked.down();
        }
        // A descriptor is free again: whoever waits to be accepted need not wait longer.
        self.accept_paused_until = None;
    }

    pub(super) fn begin_drain(&mut self, per_second: NonZeroU32, deadline: Duration, delay_max: Duration) {
        if self.draining.is_some() {
            return;
        }
        self.stop_listening();
        self.paced.clear();
        self.recovering = None;
        self.draining = Some(Draining {
            sessions_per_second: f64::from(share(per_second, self.peers.len()).get()),
            credit: 0.0,
            seen: self.now,
            until: self.now.after(deadline),
            delay_max,
            cursor: 0,
        });
    }

    /// True when a drain has come to its end.
    pub(super) fn is_drained(&self) -> bool {
        self.draining.is_some() && self.connections.is_empty()
    }

    /// Tells the next sessions to go, as many as the pace allows; after the deadline all that are left.
    pub(super) fn drain_some(&mut self) {
        let Some(mut draining) = self.draining.take() else { return };
        let passed = draining.seen.until(self.now).as_secs_f64();
        draining.seen = self.now;
        draining.credit += passed * draining.sessions_per_second;
        let overdue = self.now >= draining.until;
        while (overdue || draining.credit >= 1.0) && draining.cursor < self.connections.end() {
            let slot = draining.cursor;
            draining.cursor += 1;
            if self.connections.get(slot).is_some_and(|connection| !connection.is_closing()) {
                draining.credit -= 1.0;
                let delay = Duration::from_millis(self.random(draining.delay_max.as_millis() as u64 + 1));
                self.close_with_delay(slot, CloseReason::Draining, delay);
            }
        }
        if self.now >= draining.until.after(LINGER) {
            for slot in 0..self.connections.end() {
                self.close(slot, CloseReason::Shutdown);
                self.remove(slot);
            }
        }
        self.draining = Some(draining);
    }
}

/// Tells the session that has taken over a key, if there is one, to make itself known again.
fn confirm_successor(
    keys: &crate::key_index::KeyIndex,
    peers: &[crate::inbox::ShardHandle],
    key: &goim_ports::SessionKey,
    location: Location,
) {
    if let Some(successor) = keys.departed(key, location) {
        peers[usize::from(successor.shard)].notice(Notice::Confirm(successor.connection));
    }
}

/// The body of operation 6: why, and what to do next.
fn farewell(reason: CloseReason, delay: Duration) -> Vec<u8> {
    serde_json::json!({
        "code": reason.code(),
        "reason": reason.label(),
        "reconnect": reason.reconnect() != ReconnectPolicy::Never,
        "delay_ms": u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        "node": null,
    })
    .to_string()
    .into_bytes()
}
