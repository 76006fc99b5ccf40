//! What an operator can set of timelines on PostgreSQL, with the reasons for the defaults.

use std::time::Duration;

use goim_ports::RetentionRules;

/// Settings of timelines on PostgreSQL.
#[derive(Clone)]
pub struct PostgresConfig {
    /// Where it is: `postgres://user:password@host:port/database`. The tables are made when they are not there.
    pub url: String,
    /// How long messages are kept.
    pub rules: RetentionRules,
    /// How long a name stands for its message, at least.
    pub duplicate_window: Duration,
    /// How long connecting, and a statement, may take. Default 5 s.
    pub deadline: Duration,
    /// Messages that may wait to be written; more are refused. Default 100,000.
    pub pending_messages_max: usize,
    /// Bytes of them. Default 64 MiB.
    pub pending_bytes_max: usize,
    /// Messages of one transaction. Default 2,048.
    pub group_messages_max: usize,
    /// Transactions of this process at once, each on a connection of its own; a timeline's messages are always in the same one. Default 4.
    pub writers: usize,
    /// Connections for reads, over each of which many are under way. Default 2.
    pub readers: usize,
    /// Time between two passes that remove what is not to be kept any longer; one process of all does it. Default 60 s.
    pub retention_interval: Duration,
}

impl PostgresConfig {
    /// The defaults, at an address.
    #[must_use]
    pub fn new(url: String, rules: RetentionRules, duplicate_window: Duration) -> Self {
        Self {
            url,
            rules,
            duplicate_window,
            deadline: Duration::from_secs(5),
            pending_messages_max: 100_000,
            pending_bytes_max: 64 << 20,
            group_messages_max: 2_048,
            writers: 4,
            readers: 2,
            retention_interval: Duration::from_secs(60),
        }
    }
}

impl std::fmt::Debug for PostgresConfig {
    /// Leaves out the address: a password may be in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig").field("writers", &self.writers).finish_non_exhaustive()
    }
}
