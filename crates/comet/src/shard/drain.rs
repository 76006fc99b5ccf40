//! A drain: no connection is accepted, those that are open are closed at a pace, and by a deadline.

use std::num::NonZeroU32;
use std::time::Duration;

use goim_session::CloseReason;

use super::Shard;
use super::close::LINGER;
use super::scan::{Drain, Scan};
use crate::token_bucket::{Rate, TokenBucket, per_shard};

impl Shard {
    pub(super) fn begin_drain(&mut self, per_second: NonZeroU32, deadline: Duration, delay_max: Duration) {
        if self.scans.drain.is_some() {
            return;
        }
        self.stop_listening();
        self.scans.paced.clear();
        self.scans.recovery = None;
        let rate = Rate::unbounded(per_shard(per_second, self.peers.len()));
        let scan = Scan::new(rate, TokenBucket::empty(self.now));
        self.scans.drain = Some(Drain { scan, deadline: self.now.after(deadline), delay_max });
    }

    /// True when a drain is complete.
    pub(super) fn is_drained(&self) -> bool {
        self.scans.drain.is_some() && self.connections.is_empty()
    }

    /// Closes the next connections, as many as the pace allows; after the deadline all that are
    /// left.
    pub(super) fn continue_drain(&mut self) {
        let Some(mut drain) = self.scans.drain.take() else { return };
        drain.scan.refill(self.now);
        let is_overdue = self.now >= drain.deadline;
        while is_overdue || drain.scan.has_token() {
            let Some(slot) = drain.scan.next_slot(self.connections.end()) else { break };
            if self.connections.get(slot).is_some_and(|connection| !connection.is_closing()) {
                drain.scan.spend();
                let delay = self.random.below(drain.delay_max.as_millis() as u64 + 1);
                self.close_with_delay(slot, CloseReason::Draining, Duration::from_millis(delay));
            }
        }
        if self.now >= drain.deadline.after(LINGER) {
            for slot in 0..self.connections.end() {
                self.close(slot, CloseReason::Shutdown);
                self.remove(slot);
            }
        }
        self.scans.drain = Some(drain);
    }
}
