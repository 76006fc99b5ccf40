//! What a client counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one client since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that were authenticated.
    pub connected: u64,
    /// Rounds of attempts in which no endpoint could be connected to.
    pub connects_failed: u64,
    /// Pushes received.
    pub pushes: u64,
    /// Times that reading was stopped because the application had not taken its events.
    pub pauses: u64,
    /// Events thrown away because the application has dropped [`crate::Events`].
    pub events_discarded: u64,
    /// Replies that nobody waited for any more.
    pub replies_late: u64,
    /// Requests that ended with the connection.
    pub requests_cut: u64,
}

/// The same, while they grow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connected: Counter,
    pub(crate) connects_failed: Counter,
    pub(crate) pushes: Counter,
    pub(crate) pauses: Counter,
    pub(crate) events_discarded: Counter,
    pub(crate) replies_late: Counter,
    pub(crate) requests_cut: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            connected: self.connected.get(),
            connects_failed: self.connects_failed.get(),
            pushes: self.pushes.get(),
            pauses: self.pauses.get(),
            events_discarded: self.events_discarded.get(),
            replies_late: self.replies_late.get(),
            requests_cut: self.requests_cut.get(),
        }
    }
}
