//! The counters of a shard. Only the shard writes them, metrics read them: relaxed loads and
//! stores, so that counting costs one addition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use goim_ports::Operation;
use goim_session::CloseReason;

use crate::listener::ListenerKind;

/// Ranges of operations that are counted separately.
pub(crate) const RANGES: [&str; 4] = ["control", "message", "backend", "other"];

/// Returns the range of an operation.
pub(crate) fn range_of(operation: Operation) -> usize {
    match operation.0 {
        4 | 5 | 32 => 1,
        0..=31 => 0,
        1000.. => 2,
        _ => 3,
    }
}

/// Why a push was not sent to a session that it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// Its queue was full, and the new push was dropped.
    Newest,
    /// Its queue was full, and an older push was dropped.
    Oldest,
    /// Its queue was full, and the session was closed.
    Closed,
    /// The session had ended.
    Gone,
    /// The session reads none of the schemas that the message has.
    Unreadable,
}

/// The labels of [`Drop`], in its order.
pub(crate) const DROPS: [&str; 5] =
    ["slow_consumer_newest", "slow_consumer_oldest", "slow_consumer_closed", "gone", "unreadable"];

/// Upper bounds of the buckets of a histogram of times, in microseconds.
pub(crate) const BOUNDS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// A histogram of times.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let index = BOUNDS_US.partition_point(|bound| *bound < us);
        raise(&self.buckets[index], 1);
        raise(&self.sum_us, us);
    }

    /// Returns the counts by bucket, the last one unbounded, and the sum in microseconds.
    pub(crate) fn read(&self) -> (Vec<u64>, u64) {
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        (counts, self.sum_us.load(Ordering::Relaxed))
    }
}

/// A counter that any thread may increase.
#[derive(Debug, Default)]
pub(crate) struct SharedCounter(AtomicU64);

impl SharedCounter {
    pub(crate) fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that only its shard increases: a load and a store, where an atomic addition would cost
/// a locked instruction per packet.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: usize) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(amount as u64);
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only its shard changes.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(crate) fn up(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.0.store(self.get().wrapping_sub(1), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn raise(number: &AtomicU64, amount: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// All counters of one shard.
#[derive(Debug, Default)]
pub(crate) struct ShardStats {
    /// Open connections, by [`ListenerKind::ALL`].
    pub(crate) connections: [Gauge; ListenerKind::ALL.len()],
    /// Authenticated ones among them.
    pub(crate) sessions: Gauge,
    /// Connections accepted, by [`ListenerKind::ALL`].
    pub(crate) accepted: [Counter; ListenerKind::ALL.len()],
    /// Errors of accept.
    pub(crate) accept_errors: Counter,
    /// Packets in, by [`RANGES`].
    pub(crate) packets_in: [Counter; RANGES.len()],
    /// Bodies of packets in, by [`RANGES`].
    pub(crate) bytes_in: [Counter; RANGES.len()],
    /// Packets out, by [`RANGES`]; a batch counts once.
    pub(crate) packets_out: [Counter; RANGES.len()],
    /// Bytes of packets out, with framing, by [`RANGES`].
    pub(crate) bytes_out: [Counter; RANGES.len()],
    /// System calls that wrote to sockets.
    pub(crate) writes: Counter,
    /// Pushes that were not sent, by [`DROPS`].
    pub(crate) drops: [Counter; DROPS.len()],
    /// Closed connections, by [`CloseReason::ALL`].
    pub(crate) closes: [Counter; CloseReason::ALL.len()],
    /// Packets that the backend answered with an error.
    pub(crate) upstream_errors: Counter,
    /// Rooms that a token did not allow.
    pub(crate) rooms_refused: Counter,
    /// Notifications of stored messages that were merged while a socket was full.
    pub(crate) notifications_coalesced: Counter,
    /// Sessions asked to sync since messages were dropped.
    pub(crate) resyncs: Counter,
    /// Queued commands.
    pub(crate) inbox_depth: Arc<AtomicUsize>,
    /// Sessions whose socket is full.
    pub(crate) blocked: Gauge,
    /// Broadcasts with a speed that run.
    pub(crate) paced_broadcasts: Gauge,
    /// From acceptance by logic to the socket, per message and shard.
    pub(crate) push_latency: Histogram,
    /// Duration of one turn of the loop.
    pub(crate) turn: Histogram,
}

impl ShardStats {
    pub(crate) fn dropped(&self, drop: Drop, amount: usize) {
        self.drops[drop as usize].add(amount);
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        let index = CloseReason::ALL.iter().position(|other| *other == reason);
        if let Some(counter) = index.and_then(|index| self.closes.get(index)) {
            counter.add(1);
        }
    }

    pub(crate) fn packet_in(&self, operation: Operation, body_len: usize) {
        let range = range_of(operation);
        self.packets_in[range].add(1);
        self.bytes_in[range].add(body_len);
    }

    pub(crate) fn packets_out(&self, operation: Operation, packets: usize, bytes: usize) {
        let range = range_of(operation);
        self.packets_out[range].add(packets);
        self.bytes_out[range].add(bytes);
    }

    pub(crate) fn kind_index(kind: ListenerKind) -> usize {
        kind as usize
    }
}
