//! What an operator can set of timelines in a folder, with the reasons for the defaults.

use std::path::PathBuf;
use std::time::Duration;

use goim_ports::RetentionRules;

/// Settings of timelines in a folder.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The folder, made when it is not there. One process at a time has it.
    pub folder: PathBuf,
    /// How long messages are kept.
    pub rules: RetentionRules,
    /// How long a name stands for its message, at least; twice as long at most.
    pub duplicate_window: Duration,
    /// Messages that may wait to be written; more are refused. Default 100,000.
    pub pending_messages_max: usize,
    /// Bytes of them. Default 64 MiB.
    pub pending_bytes_max: usize,
    /// Messages of one durable commit. More make fewer and longer ones; what waits goes together anyway. Default 4,096.
    pub group_messages_max: usize,
    /// Reads that may be under way; more wait. Default 64: a disk has nothing of more.
    pub reads_max: usize,
    /// Memory for what is read from the disk again and again. Default 64 MiB.
    pub cache_bytes: u64,
    /// Timelines of which the end is known without a look at the disk: at least so many of those asked for lately, up to twice as many,
    /// about 100 bytes each. Default 1,000,000: a look takes some 30 microseconds of the one thread that writes.
    pub head_cache_entries: usize,
    /// Time between two passes over all timelines that remove what is not to be kept any longer. Default 60 s. A pass takes a tenth of a
    /// processor at most, however many timelines there are.
    pub retention_interval: Duration,
}

impl EmbeddedConfig {
    /// The defaults, in a folder.
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
