//! The counters of a client.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one client since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Authenticated connections.
    pub connected: u64,
    /// Attempts in which every endpoint failed.
    pub connects_failed: u64,
    /// Pushes received.
    pub pushes: u64,
    /// How often reading stopped because the event queue was full.
    pub pauses: u64,
    /// Events discarded because the application dropped [`crate::Events`].
    pub events_discarded: u64,
    /// Replies whose caller no longer waited.
    pub replies_late: u64,
    /// Requests without a reply when their connection ended.
    pub requests_cut: u64,
    /// Requests that waited because the maximum number was in flight, or the output buffer was
    /// full.
    pub requests_delayed: u64,
}

/// The same counters as atomics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connected: Counter,
    pub(crate) connects_failed: Counter,
    pub(crate) pushes: Counter,
    pub(crate) pauses: Counter,
    pub(crate) events_discarded: Counter,
    pub(crate) replies_late: Counter,
    pub(crate) requests_cut: Counter,
    pub(crate) requests_delayed: Counter,
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
            requests_delayed: self.requests_delayed.get(),
        }
    }
}
