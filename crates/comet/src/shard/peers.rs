//! The shards of a comet, as one of them sees them.

use std::sync::Arc;

use crate::connection::ConnectionId;
use crate::inbox::{Notice, ShardHandle};
use crate::key_index::Location;

/// Handles of all shards, and which of them is this one.
#[derive(Clone)]
pub(super) struct Peers {
    own: u16,
    handles: Arc<[ShardHandle]>,
}

impl Peers {
    /// # Panics
    /// When there is no shard `own` among the handles.
    pub(super) fn new(own: usize, handles: Arc<[ShardHandle]>) -> Self {
        assert!(own < handles.len(), "shard {own} of {}", handles.len());
        Self { own: own as u16, handles }
    }

    /// Index of this shard.
    pub(super) fn own_index(&self) -> usize {
        usize::from(self.own)
    }

    /// The handle of this shard.
    pub(super) fn own(&self) -> &ShardHandle {
        &self.handles[usize::from(self.own)]
    }

    /// How many shards there are.
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    /// The location of a connection of this shard.
    pub(super) fn locate(&self, connection: ConnectionId) -> Location {
        Location { shard: self.own, connection }
    }

    /// Leaves a notice with the shard of `location`.
    pub(super) fn notify(&self, location: Location, notice: impl FnOnce(ConnectionId) -> Notice) {
        self.handles[usize::from(location.shard)].notice(notice(location.connection));
    }
}
