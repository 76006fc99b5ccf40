//! Work that visits all connections of a shard at a bounded pace, a part in each turn.
//!
//! Owns the progress and the pace of each. What is done to a connection is in the files
//! that have the names of the work: `paced`, `presence`, `recovery`, `drain`.

use std::time::Duration;

use goim_ports::{AcceptedAt, Operation};
use goim_session::Millis;

use super::accept_history::AcceptHistory;
use crate::inbox::Pace;
use crate::message::Outgoing;
use crate::token_bucket::{Rate, TokenBucket};

/// How often a scan continues.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(20);

/// A visit of all slots, lowest first; what it does to each is paid for with a token.
#[derive(Debug)]
pub(super) struct Scan {
    next_slot: u32,
    bucket: TokenBucket,
    rate: Rate,
}

impl Scan {
    /// Starts at the first slot.
    pub(super) fn new(rate: Rate, bucket: TokenBucket) -> Self {
        Self { next_slot: 0, bucket, rate }
    }

    /// Starts over, with the tokens that are left.
    pub(super) fn restart(&mut self) {
        self.next_slot = 0;
    }

    /// Adds the tokens that have accrued.
    pub(super) fn refill(&mut self, now: Millis) {
        self.bucket.refill(now, &self.rate);
    }

    /// True when a token is left for the next connection.
    pub(super) fn has_token(&self) -> bool {
        self.bucket.has_token()
    }

    /// Pays for a connection.
    pub(super) fn spend(&mut self) {
        self.bucket.spend();
    }

    /// Returns the next slot below `end`, or `None` when all have been visited.
    pub(super) fn next_slot(&mut self, end: u32) -> Option<u32> {
        let slot = self.next_slot;
        if slot >= end {
            return None;
        }
        self.next_slot += 1;
        Some(slot)
    }
}

/// The scans of a shard.
#[derive(Default)]
pub(super) struct Scans {
    /// Broadcasts with a speed.
    pub(super) paced: Vec<PacedBroadcast>,
    /// Registers all sessions with logic again.
    pub(super) reregistration: Option<Scan>,
    /// Finds the sessions that have missed messages.
    pub(super) recovery: Option<Recovery>,
    /// Closes all connections.
    pub(super) drain: Option<Drain>,
    /// When connections were accepted, for `recovery`.
    pub(super) accept_history: AcceptHistory,
}

impl Scans {
    /// True when a scan must go on within [`SCAN_INTERVAL`].
    pub(super) fn are_active(&self) -> bool {
        !self.paced.is_empty()
            || self.reregistration.is_some()
            || self.recovery.is_some()
            || self.drain.is_some()
    }
}

/// A broadcast that is sent at a speed. Sessions that are opened meanwhile do not get it.
pub(super) struct PacedBroadcast {
    pub(super) operation: Operation,
    pub(super) push: Outgoing,
    /// Held while the broadcast runs.
    pub(super) _pace: Pace,
    pub(super) accepted_at: Option<AcceptedAt>,
    pub(super) scan: Scan,
    /// The newest connection at the start.
    pub(super) newest: u32,
}

/// A search for sessions that have missed messages.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The newest connection that may have missed some.
    pub(super) newest: u32,
    /// Sessions must be registered with logic again before they sync.
    pub(super) register: bool,
    pub(super) scan: Scan,
    /// Another search, asked for while this one runs.
    pub(super) next: Option<(u32, bool)>,
}

/// A drain in progress.
#[derive(Debug)]
pub(super) struct Drain {
    pub(super) scan: Scan,
    /// When all connections that are left are closed.
    pub(super) deadline: Millis,
    /// Clients are to reconnect after a random delay up to this.
    pub(super) delay_max: Duration,
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn every_slot_is_visited_once_until_a_restart() {
        let rate = Rate::unbounded(NonZeroU32::new(1000).unwrap());
        let mut scan = Scan::new(rate, TokenBucket::empty(Millis(0)));
        let visited = |scan: &mut Scan, end| std::iter::from_fn(|| scan.next_slot(end)).collect::<Vec<_>>();
        assert_eq!(visited(&mut scan, 3), [0, 1, 2]);
        assert_eq!(visited(&mut scan, 5), [3, 4]);
        assert_eq!(scan.next_slot(4), None);
        scan.restart();
        assert_eq!(visited(&mut scan, 2), [0, 1]);
        assert!(!scan.has_token());
        scan.refill(Millis(1));
        assert!(scan.has_token());
        scan.spend();
        assert!(!scan.has_token());
    }
}
