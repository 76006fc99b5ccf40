//! Closing one connection: the session ends immediately, the socket lingers until the peer has seen
//! the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use goim_ports::{Call, EventKind, SessionKey, SessionRef};
use goim_session::{CloseReason, ReconnectPolicy};

use super::Shard;
use super::peers::Peers;
use crate::connection::{Closing, Identity};
use crate::inbox::Notice;
use crate::key_index::{KeyIndex, Location};
use crate::stats::ShardStats;

/// How long a closed connection may take to see its end. Meanwhile the kernel sends what it still
/// has; closing the socket immediately would discard that if the client has sent something that was
/// not read.
pub(super) const LINGER: Duration = Duration::from_secs(1);

impl Shard {
    /// Ends a session. What waits is written as far as the socket takes it; then the stream ends.
    pub(super) fn close(&mut self, slot: u32, reason: CloseReason) {
        self.close_with_delay(slot, reason, Duration::ZERO);
    }

    /// Ends a session whose client is to reconnect after `delay`.
    pub(super) fn close_with_delay(&mut self, slot: u32, reason: CloseReason, delay: Duration) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.is_closing() {
            return;
        }
        connection.take_unread();
        connection.unthrottle();
        connection.set_closing(Closing { until: self.now.after(LINGER), ended: false });
        let notice = disconnect_notice(reason, delay);
        connection.session.close(self.egress.pool(), reason, &notice);
        let identity = connection.identity.take();
        let profile = connection.profile;
        let key = identity.as_ref().map(|identity| identity.key.as_str());
        tracing::debug!(remote = %connection.remote(), %reason, key, "connection ends");
        self.stats.closed(reason);
        self.leave_rooms(slot);
        if let Some(identity) = identity {
            let events = &self.shared.events;
            events.note(EventKind::Disconnect, identity.mid, &identity.key, Vec::new(), reason.label());
            self.stats.sessions.down();
            self.shared.profiles.session_closed(profile);
            self.release_key(identity, self.peers.locate(self.connections.id(slot)));
        }
        match reason {
            CloseReason::ConnectionLost | CloseReason::SlowConsumer => self.remove(slot),
            CloseReason::BadTls => self.end_stream(slot),
            _ => self.flush(slot),
        }
        self.arm(slot);
    }

    /// Removes a session from the key index and from logic, unless another session has its key.
    fn release_key(&self, identity: Identity, location: Location) {
        if self.shared.keys.begin_disconnect(&identity.key, location) {
            self.disconnect(identity, location);
        }
    }

    /// Disconnects a session that has ended from logic.
    pub(super) fn disconnect(&self, identity: Identity, location: Location) {
        let Identity { key, mid } = identity;
        let session = SessionRef { mid, key: key.clone(), server: self.shared.server.clone() };
        match self.shared.logic.disconnect(session) {
            Call::Ready(_) => finish_disconnect(&self.shared.keys, &self.peers, &key, location),
            Call::Pending(answer) => {
                let (shared, peers) = (Arc::clone(&self.shared), self.peers.clone());
                shared.pending_disconnects.fetch_add(1, Ordering::SeqCst);
                self.shared.runtime.spawn(async move {
                    if let Err(error) = answer.await {
                        tracing::debug!(%error, "a session's record was not removed; it will expire");
                    }
                    finish_disconnect(&shared.keys, &peers, &key, location);
                    shared.pending_disconnects.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }
    }

    /// Ends our side of the stream. The socket stays open until the peer has ended its side, within
    /// [`LINGER`].
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
        self.egress.discard(&mut connection);
        self.idle.note_traffic(self.now);
        self.shared.addresses.leave(connection.remote());
        let kind = self.listeners.kind(connection.listener);
        self.stats.connections[ShardStats::kind_index(kind)].down();
        if !connection.writable {
            self.stats.blocked.down();
        }
        // A descriptor is free: accepting need not pause any longer.
        self.listeners.resume();
    }
}

/// Notes that logic has answered a disconnect. A session that took over the key meanwhile registers
/// itself again: the disconnect may have removed its record.
fn finish_disconnect(keys: &KeyIndex, peers: &Peers, key: &SessionKey, location: Location) {
    if let Some(successor) = keys.finish_disconnect(key, location) {
        peers.notify(successor, Notice::Register);
    }
}

/// The body of operation 6: why the session ends, and what the client is to do next.
fn disconnect_notice(reason: CloseReason, delay: Duration) -> Vec<u8> {
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
