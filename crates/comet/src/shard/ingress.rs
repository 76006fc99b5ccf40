//! What a shard receives: the read buffers, and the connections whose input continues in the next
//! turn.

use crate::connection::Connection;
use crate::transport::Scratch;

/// The receiving side of a shard.
pub(super) struct Ingress {
    /// Buffers for one read, shared by all connections.
    scratch: Scratch,
    /// Connections with input left over from this turn.
    resumed: Vec<u32>,
}

impl Ingress {
    pub(super) fn new() -> Self {
        Self { scratch: Scratch::new(), resumed: Vec::new() }
    }

    /// Takes the read buffers, for the time of a read and of handling what it returned.
    #[inline]
    pub(super) fn take_scratch(&mut self) -> Scratch {
        std::mem::take(&mut self.scratch)
    }

    /// Takes the read buffers back.
    #[inline]
    pub(super) fn recycle_scratch(&mut self, scratch: Scratch) {
        self.scratch = scratch;
    }

    /// Has the connection's input continue in the next turn.
    pub(super) fn resume(&mut self, slot: u32, connection: &mut Connection) {
        if !connection.resumed {
            connection.resumed = true;
            self.resumed.push(slot);
        }
    }

    /// Takes the connections whose input continues now.
    pub(super) fn take_resumed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.resumed)
    }

    /// True when some input continues in the next turn.
    pub(super) fn has_resumed(&self) -> bool {
        !self.resumed.is_empty()
    }

    /// Frees memory that is not needed without traffic.
    pub(super) fn release_memory(&mut self) {
        self.resumed.shrink_to_fit();
    }
}
