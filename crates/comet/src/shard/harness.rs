//! A shard without listeners and poll, whose clock the harness advances.
//!
//! Only what a kernel would do is replaced here; everything that a shard does is the code of the
//! other files.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use goim_session::CloseReason;
use mio::{Events, Poll};

use super::{Parts, Shard};
use crate::connection::ConnectionId;
use crate::inbox::{Inbox, ShardHandle};
use crate::listener::ListenerKind;
use crate::shared::{Shared, session_rules};
use crate::stats::ShardStats;
use crate::transport::Stream;

impl Shard {
    /// Creates the only shard of a comet, with one simulated listener for plain TCP.
    ///
    /// # Errors
    /// None in practice: there is no listener for the poll to refuse.
    pub(crate) fn simulated(
        shared: Arc<Shared>,
        handle: ShardHandle,
        stats: Arc<ShardStats>,
        poll: Poll,
        inbox: Inbox,
    ) -> io::Result<Self> {
        let rules = session_rules(&shared.config);
        let parts = Parts { stats, poll, inbox, listeners: Vec::new(), rules };
        let mut shard = Self::new(0, Arc::from([handle]), shared, parts)?;
        shard.listeners.set_kinds(vec![ListenerKind::Tcp]);
        Ok(shard)
    }

    /// Opens a connection whose first input is ready, as accept does. `None` when it was closed
    /// again.
    pub(crate) fn simulate_accept(&mut self, from: SocketAddr) -> Option<ConnectionId> {
        let slot = self.connections.vacant();
        self.admit(0, Stream::Sink, from);
        let id = ConnectionId { slot, generation: self.connections.newest() };
        self.connections.find(id)?;
        Some(id)
    }

    /// Does what a readable event of the poll does. False when the connection does not exist any
    /// more.
    pub(crate) fn simulate_readable(&mut self, id: ConnectionId) -> bool {
        let Some(slot) = self.connections.find(id) else { return false };
        self.connections[slot].readable = true;
        self.take_input(slot);
        true
    }

    /// Prefetches the connections of some readable events, as a turn does before it handles them.
    pub(crate) fn prefetch_readable(&self, ids: impl Iterator<Item = ConnectionId> + Clone) {
        self.prefetch_input(ids.map(|id| id.slot));
    }

    /// Does what reading the end of the peer's stream does. False when the connection does not
    /// exist any more.
    pub(crate) fn simulate_end(&mut self, id: ConnectionId) -> bool {
        let Some(slot) = self.connections.find(id) else { return false };
        self.connections[slot].half_closed = true;
        self.close(slot, CloseReason::PeerClosed);
        true
    }

    /// Advances the shard's clock.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// Runs one turn of the loop without events of sockets. True when another should follow
    /// immediately.
    pub(crate) fn simulate_turn(&mut self, no_events: &Events) -> bool {
        self.inbox.wake_up();
        self.turn(no_events);
        let pending = self.sleep_time().is_zero();
        !self.inbox.fall_asleep(pending)
    }
}
