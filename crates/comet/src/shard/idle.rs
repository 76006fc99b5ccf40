//! When a shard gives memory back to the system.
//!
//! Owns the decision, not the memory. An idle session must not cost more because messages have
//! passed; and the cache of freed memory that a thread has, some hundred pieces all over the heap
//! that keep their pages from the system, ends with the thread.

use std::time::Duration;

use goim_session::Millis;

/// A shard without traffic for this long frees the memory that traffic took.
const IDLE: Duration = Duration::from_secs(1);
/// Connections that a shard must have had for their departure to be worth a new thread.
const DEPARTURE_MIN: usize = 1000;

/// Watches traffic and the number of connections.
#[derive(Debug, Default)]
pub(super) struct IdleTracker {
    /// The last time at which something was queued or a connection ended; `None` once memory was
    /// freed since.
    last_traffic: Option<Millis>,
    /// The most connections that the current thread has had.
    connections_peak: usize,
    wants_new_thread: bool,
}

impl IdleTracker {
    /// Notes that something was queued or a connection ended.
    pub(super) fn note_traffic(&mut self, now: Millis) {
        self.last_traffic = Some(now);
    }

    /// Notes how many connections there are after an accept.
    pub(super) fn note_connections(&mut self, count: usize) {
        self.connections_peak = self.connections_peak.max(count);
    }

    /// Time until memory can be freed, unless there is traffic; `None` when nothing is to be freed.
    pub(super) fn wait(&self, now: Millis) -> Option<Duration> {
        self.last_traffic.map(|last| now.until(last.after(IDLE)))
    }

    /// True once for each pause in traffic: then the caller frees memory. `count` connections are
    /// left; when most were closed, the thread is to be replaced too.
    pub(super) fn take_idle(&mut self, now: Millis, count: usize) -> bool {
        let is_idle = self.last_traffic.take_if(|last| now >= last.after(IDLE)).is_some();
        if is_idle && self.connections_peak > DEPARTURE_MIN && count < self.connections_peak / 4 {
            self.connections_peak = count;
            self.wants_new_thread = true;
        }
        is_idle
    }

    /// True when the shard is to go on with a new thread.
    pub(super) fn wants_new_thread(&self) -> bool {
        self.wants_new_thread
    }

    /// Notes that a new thread has begun.
    pub(super) fn on_new_thread(&mut self) {
        self.wants_new_thread = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_freed_once_after_a_pause_in_traffic() {
        let mut idle = IdleTracker::default();
        assert_eq!(idle.wait(Millis(0)), None);
        assert!(!idle.take_idle(Millis(9_000), 0));
        idle.note_traffic(Millis(10_000));
        assert_eq!(idle.wait(Millis(10_200)), Some(Duration::from_millis(800)));
        assert!(!idle.take_idle(Millis(10_999), 0));
        idle.note_traffic(Millis(10_999));
        assert!(!idle.take_idle(Millis(11_500), 0));
        assert!(idle.take_idle(Millis(11_999), 0));
        assert!(!idle.take_idle(Millis(20_000), 0) && idle.wait(Millis(20_000)).is_none());
    }

    #[test]
    fn a_mass_departure_is_worth_a_new_thread() {
        for (peak, left, wanted) in [
            (DEPARTURE_MIN, 0, false),
            (4 * DEPARTURE_MIN, DEPARTURE_MIN, false),
            (4 * DEPARTURE_MIN, 999, true),
        ] {
            let mut idle = IdleTracker::default();
            idle.note_connections(peak);
            idle.note_connections(left);
            idle.note_traffic(Millis(0));
            assert!(idle.take_idle(Millis(1000), left));
            assert_eq!(idle.wants_new_thread(), wanted, "{left} of {peak}");
            idle.on_new_thread();
            assert!(!idle.wants_new_thread());
        }
    }
}
