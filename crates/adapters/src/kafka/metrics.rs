//! Figures of the push log on Kafka.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of the writing end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KafkaWriteStats {
    /// Records that wait for their acknowledgement.
    pub records: usize,
    /// Bytes of those.
    pub bytes: usize,
    /// Appends that wait for room.
    pub waiting: usize,
    /// Records ever acknowledged.
    pub appended: u64,
    /// Appends ever refused because there was no room.
    pub rejected_full: u64,
    /// Appends ever refused because the record was too large.
    pub rejected_too_large: u64,
    /// Records of which it is not known whether they are in the log.
    pub failed: u64,
}

/// Figures of the reading end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KafkaReadStats {
    /// Partitions that are read here.
    pub partitions: u64,
    /// Records ever read.
    pub read: u64,
    /// Records ever put aside because they are no pushes.
    pub poison: u64,
    /// How often partitions came or went.
    pub rebalances: u64,
    /// Errors of brokers and connections, which librdkafka gets over by itself.
    pub errors: u64,
}

/// A number that one side raises and the other shows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
