//! Broadcasts with a speed: a part is due in each turn.

use std::time::Duration;

use goim_ports::{AcceptedAt, Operation};

use super::Shard;
use super::accept_history::is_up_to;
use super::egress::Stage;
use super::fanout::queue_limit;
use super::scan::{PacedBroadcast, Scan};
use crate::inbox::Pace;
use crate::message::Outgoing;
use crate::token_bucket::{Rate, TokenBucket};

/// What a shard makes up for after a delay: an even speed matters more than an exact one.
const BURST: Duration = Duration::from_millis(200);

impl Shard {
    pub(super) fn begin_paced_broadcast(
        &mut self,
        operation: Operation,
        push: Outgoing,
        pace: Pace,
        accepted_at: Option<AcceptedAt>,
    ) {
        let rate = Rate::with_burst_time(pace.speed, BURST);
        let scan = Scan::new(rate, TokenBucket::with_one(self.now));
        let newest = self.connections.newest();
        self.scans.paced.push(PacedBroadcast { operation, push, _pace: pace, accepted_at, scan, newest });
        self.stats.paced_broadcasts.set(self.scans.paced.len());
    }

    /// Sends the part of each paced broadcast that is due.
    pub(super) fn continue_paced_broadcasts(&mut self) {
        if self.scans.paced.is_empty() {
            return;
        }
        let mut paced = std::mem::take(&mut self.scans.paced);
        paced.retain_mut(|broadcast| !self.continue_paced_broadcast(broadcast));
        paced.append(&mut self.scans.paced);
        self.scans.paced = paced;
        self.stats.paced_broadcasts.set(self.scans.paced.len());
    }

    /// Sends the part that is due. True when the broadcast is complete.
    fn continue_paced_broadcast(&mut self, broadcast: &mut PacedBroadcast) -> bool {
        broadcast.scan.refill(self.now);
        let limit = queue_limit(&self.shared.config, broadcast.operation);
        while broadcast.scan.has_token() {
            let Some(slot) = self.next_receiver(broadcast) else {
                if let Some(accepted_at) = broadcast.accepted_at {
                    self.stats.push_latency.observe(accepted_at.until(AcceptedAt::now()));
                }
                return true;
            };
            broadcast.scan.spend();
            if let Some(bytes) = self.deliver(slot, &broadcast.push, limit, Stage::Urgent) {
                self.stats.packets_out(broadcast.operation, 1, bytes);
            }
        }
        false
    }

    fn next_receiver(&self, broadcast: &mut PacedBroadcast) -> Option<u32> {
        while let Some(slot) = broadcast.scan.next_slot(self.connections.end()) {
            let Some(connection) = self.connections.get(slot) else { continue };
            if is_up_to(connection.generation, broadcast.newest)
                && self.is_subscribed(connection, broadcast.operation)
            {
                return Some(slot);
            }
        }
        None
    }
}
