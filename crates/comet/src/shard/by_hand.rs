//! A shard that is turned by hand, for the harness: no listeners, no poll, a clock that stands until it is moved.
//!
//! Only what a kernel would do is here; everything that a shard does is in the files beside, as it is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll};

use super::{Shard, Shared};
use crate::connection::ConnectionId;
use crate::inbox::{Inbox, ShardHandle};
use crate::stats::ShardStats;
use crate::transport::Stream;

impl Shard {
    /// The only shard of a comet, with one imagined listener for plain packets.
    pub(crate) fn by_hand(
        shared: Arc<Shared>,
        handle: ShardHandle,
        stats: Arc<ShardStats>,
        poll: Poll,
        inbox: Inbox,
    ) -> io::Result<Self> {
        let rules = vec![Arc::new(crate::rules(&shared.config))];
        let mut shard = Self::new(0, shared, vec![handle], stats, poll, inbox, Vec::new(), rules)?;
        shard.kinds = vec![crate::listener::ListenerKind::Tcp];
        Ok(shard)
    }

    /// Takes in a connection whose first input lies ready, as accept does. `None` when it did not stay.
    pub(crate) fn admit_by_hand(&mut self, from: SocketAddr) -> Option<ConnectionId> {
        let slot = self.connections.vacant();
        self.admit(0, Stream::Sink, from);
        let generation = self.generation;
        self.find(ConnectionId { slot, generation })?;
        Some(ConnectionId { slot, generation })
    }

    /// Does what a readable event of the poll does. False when the connection is gone.
    pub(crate) fn readable_by_hand(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.connections.get_mut(id.slot) else { return false };
        if connection.generation != id.generation {
            return false;
        }
        connection.readable = true;
        self.take_input(id.slot);
        true
    }

    /// Looks at the connections of some readable events, as a turn does before it deals with them.
    pub(crate) fn foresee_by_hand(&self, ids: impl Iterator<Item = ConnectionId> + Clone) {
        self.foresee_input(ids.map(|id| id.slot));
    }

    /// Does what a read of the peer's end does. False when the connection is gone.
    pub(crate) fn end_by_hand(&mut self, id: ConnectionId) -> bool {
        let Some(slot) = self.find(id) else { return false };
        self.connections[slot].half_closed = true;
        self.close(slot, goim_session::CloseReason::PeerClosed);
        true
    }

    /// Moves the shard's clock.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// One turn of the loop, with no readiness of sockets. True when another should follow at once.
    pub(crate) fn turn_by_hand(&mut self, nothing: &Events) -> bool {
        self.inbox.wake_up();
        self.turn(nothing);
        let pending = self.sleep_time().is_zero();
        !self.inbox.fall_asleep(pending)
    }
}
