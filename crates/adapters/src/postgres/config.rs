//! The settings of timelines on PostgreSQL, with the reasons for the defaults.

use std::time::Duration;

use goim_ports::RetentionRules;

/// Settings of timelines on PostgreSQL.
#[derive(Clone)]
pub struct PostgresConfig {
    /// The database: `postgres://user:password@host:port/database`. The tables are created if
    /// necessary.
    pub url: String,
    /// How long messages are stored.
    pub rules: RetentionRules,
    /// The minimum time for which an idempotency key identifies its message.
    pub duplicate_window: Duration,
    /// The maximum duration of connecting, and of a statement. Default 5 s.
    pub deadline: Duration,
    /// The maximum number of messages that wait to be written; further ones are rejected. Default
    /// 100,000.
    pub pending_messages_max: usize,
    /// The maximum size of these messages. Default 64 MiB.
    pub pending_bytes_max: usize,
    /// The maximum number of messages of one transaction. Default 2,048.
    pub group_messages_max: usize,
    /// The number of concurrent transactions of this process, each on its own connection. All
    /// messages of one timeline use the same one. Default 4.
    pub writers: usize,
    /// The number of connections for reads, which are pipelined. Default 2.
    pub readers: usize,
    /// The time between two passes that remove expired messages; one process of all runs it.
    /// Default 60 s.
    pub retention_interval: Duration,
}

impl PostgresConfig {
    /// The defaults, for a database.
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
    /// Omits the URL, which may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig").field("writers", &self.writers).finish_non_exhaustive()
    }
}
