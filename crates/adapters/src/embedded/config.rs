//! The settings of timelines in a directory, with the reasons for the defaults.

use std::path::PathBuf;
use std::time::Duration;

use goim_ports::RetentionRules;

/// Settings of timelines in a directory.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The directory; it is created if necessary. It belongs to one process at a time.
    pub folder: PathBuf,
    /// How long messages are stored.
    pub rules: RetentionRules,
    /// The minimum time for which an idempotency key identifies its message; the maximum is twice
    /// that.
    pub duplicate_window: Duration,
    /// The maximum number of messages that wait to be written; further ones are rejected. Default
    /// 100,000.
    pub pending_messages_max: usize,
    /// The maximum size of these messages. Default 64 MiB.
    pub pending_bytes_max: usize,
    /// The maximum number of messages of one durable commit. Default 4,096. A higher value makes
    /// fewer and longer commits; messages that wait are committed together anyway.
    pub group_messages_max: usize,
    /// The maximum number of concurrent reads; further ones wait. Default 64: more do not make a
    /// disk faster.
    pub reads_max: usize,
    /// The size of the cache of data that is read repeatedly. Default 64 MiB.
    pub cache_bytes: u64,
    /// The number of entries in the cache of latest sequence numbers, up to twice as many, about
    /// 100 bytes each. Default 1,000,000: a miss takes about 30 microseconds of the one thread that
    /// writes.
    pub head_cache_entries: usize,
    /// The time between two passes that remove expired messages. Default 60 s. A pass takes a tenth
    /// of a core at most, for any number of timelines.
    pub retention_interval: Duration,
}

impl EmbeddedConfig {
    /// The defaults, in a directory.
    #[must_use]
    pub fn new(folder: PathBuf, rules: RetentionRules, duplicate_window: Duration) -> Self {
        Self {
            folder,
            rules,
            duplicate_window,
            pending_messages_max: 100_000,
            pending_bytes_max: 64 << 20,
            group_messages_max: 4_096,
            reads_max: 64,
            cache_bytes: 64 << 20,
            head_cache_entries: 1_000_000,
            retention_interval: Duration::from_secs(60),
        }
    }
}
