//! Counters of all clients of one worker.

use std::collections::BTreeMap;

use goim_session::Millis;

use crate::clock::now_ns;
use crate::control::HeartbeatReport;
use crate::latency::Latency;
use crate::ledger::Ledger;

/// Counters of all clients of a worker.
pub(super) struct Counters {
    pub(super) ledger: Ledger,
    pub(super) began_ns: u64,
    pub(super) connect: Latency,
    pub(super) open: u32,
    pub(super) opening: u32,
    pub(super) ended: u32,
    pub(super) last_opened_ns: u64,
    pub(super) heartbeats: HeartbeatReport,
    pub(super) heartbeat_latency: Latency,
    pub(super) online: Option<i32>,
    /// Replies without a request.
    pub(super) unexpected_replies: u64,
    pub(super) received_bytes: u64,
    /// How often all clients have reconnected.
    pub(super) reconnects: u32,
    pub(super) reasons: BTreeMap<String, u32>,
}

/// The phase of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// TCP is connecting.
    Connecting,
    /// The response to the upgrade or to the token is outstanding.
    Opening,
    Open,
}

impl Counters {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            began_ns: now_ns(),
            connect: Latency::default(),
            open: 0,
            opening: 0,
            ended: 0,
            last_opened_ns: 0,
            heartbeats: HeartbeatReport::default(),
            heartbeat_latency: Latency::default(),
            online: None,
            unexpected_replies: 0,
            received_bytes: 0,
            reconnects: 0,
            reasons: BTreeMap::new(),
        }
    }

    /// Returns the time of the sessions' clock.
    pub(super) fn session_time(&self, now_ns: u64) -> Millis {
        Millis(now_ns.saturating_sub(self.began_ns) / 1_000_000)
    }

    /// Counts a client that was authenticated.
    pub(super) fn record_opened(&mut self, began_ns: u64, now_ns: u64) {
        self.connect.record(began_ns, now_ns);
        self.opening = self.opening.saturating_sub(1);
        self.open = self.open.saturating_add(1);
        self.last_opened_ns = now_ns;
    }

    /// Counts a client that ended in this phase.
    pub(super) fn record_ended(&mut self, phase: Phase, reason: String) {
        let (count, when) = match phase {
            Phase::Connecting => (&mut self.opening, "connecting"),
            Phase::Opening => (&mut self.opening, "authenticating"),
            Phase::Open => (&mut self.open, "open"),
        };
        *count = count.saturating_sub(1);
        self.ended = self.ended.saturating_add(1);
        *self.reasons.entry(format!("while {when}: {reason}")).or_default() += 1;
    }

    /// Counts a heartbeat reply.
    pub(super) fn record_heartbeat(&mut self, due_ns: u64, now_ns: u64, count: Option<i32>) {
        self.heartbeats.answered += 1;
        self.heartbeat_latency.record(due_ns, now_ns);
        if self.online.is_some() && self.online != count {
            self.heartbeats.wrong_count += 1;
        }
    }
}
