//! Figures of the push log on Kafka.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures of the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KafkaWriteStats {
    /// Records that wait for their acknowledgement.
    pub records: usize,
    /// Bytes of those.
    pub bytes: usize,
    /// Appends that wait for budget.
    pub waiting: usize,
    /// Records acknowledged since the start.
    pub appended: u64,
    /// Appends refused because the log was full.
    pub rejected_full: u64,
    /// Appends refused because the record was too large.
    pub rejected_too_large: u64,
    /// Records whose delivery failed or is unknown.
    pub failed: u64,
}

/// Figures of the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KafkaReadStats {
    /// Partitions assigned to this member.
    pub partitions: u64,
    /// Records read since the start.
    pub read: u64,
    /// Records skipped because they are no pushes.
    pub poison: u64,
    /// Rebalances.
    pub rebalances: u64,
    /// Errors of brokers and connections that librdkafka recovers from.
    pub errors: u64,
}

/// A counter or gauge that one thread writes and others read.
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
