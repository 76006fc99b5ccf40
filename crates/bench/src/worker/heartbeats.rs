//! The schedule of heartbeats: evenly spread over the clients of a worker, or in windows.
//!
//! All clients have the same interval, so no queue is needed: the next client follows from the
//! time. A worker that was busy catches up, and no heartbeat is skipped.

use std::time::Duration;

/// Evenly spread heartbeats of one worker's clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    began_ns: u64,
    interval_ns: u64,
    clients: u64,
    /// Heartbeats scheduled since the start.
    scheduled: u64,
}

impl Schedule {
    /// Creates a schedule in which each client sends once per interval. Both are at least 1.
    pub(super) fn new(now_ns: u64, interval: Duration, clients: usize) -> Self {
        let interval_ns = crate::clock::nanos(interval).max(1);
        Self {
            began_ns: now_ns,
            interval_ns,
            clients: u64::try_from(clients).unwrap_or(u64::MAX).max(1),
            scheduled: 0,
        }
    }

    /// Returns the next client whose heartbeat is due, and when it was due. `None` when no more are
    /// due.
    pub(super) fn next_due(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let due_ns = self.due_ns();
        if due_ns > now_ns {
            return None;
        }
        let client = usize::try_from(self.scheduled % self.clients).ok()?;
        self.scheduled = self.scheduled.saturating_add(1);
        Some((client, due_ns))
    }

    /// Returns the time until the next heartbeat is due.
    pub(super) fn next_in(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.due_ns().saturating_sub(now_ns))
    }

    fn due_ns(&self) -> u64 {
        let since = u128::from(self.scheduled) * u128::from(self.interval_ns) / u128::from(self.clients);
        self.began_ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// Heartbeats in windows: a number of clients together, the next ones when all of them are
/// answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    window: usize,
    next: usize,
}

impl Windows {
    /// Creates windows of this many heartbeats, at least 1.
    pub(super) fn new(window: usize) -> Self {
        Self { window: window.max(1), next: 0 }
    }

    /// Returns the next window as an ever growing range; empty while a heartbeat is unanswered.
    pub(super) fn next(&mut self, sent: u64, answered: u64) -> std::ops::Range<usize> {
        if answered < sent {
            return 0..0;
        }
        let first = self.next;
        self.next = first.wrapping_add(self.window);
        first..self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_waits_for_the_previous_one() {
        let mut windows = Windows::new(3);
        assert_eq!(windows.next(0, 0), 0..3);
        assert_eq!(windows.next(3, 2), 0..0);
        assert_eq!(windows.next(3, 3), 3..6);
        assert_eq!(Windows::new(0).next(0, 0), 0..1);
    }

    fn due(schedule: &mut Schedule, now_ns: u64) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| schedule.next_due(now_ns)).collect()
    }

    #[test]
    fn clients_take_turns_evenly() {
        let mut schedule = Schedule::new(1_000, Duration::from_nanos(90), 3);
        assert_eq!(due(&mut schedule, 999), []);
        assert_eq!(due(&mut schedule, 1_000), [(0, 1_000)]);
        assert_eq!(schedule.next_in(1_000), Duration::from_nanos(30));
        assert_eq!(due(&mut schedule, 1_029), []);
        // Late by more than an interval: no client is skipped, and the due times do not change.
        let late = [(1, 1_030), (2, 1_060), (0, 1_090), (1, 1_120)];
        assert_eq!(due(&mut schedule, 1_125), late);
        assert_eq!(schedule.next_in(2_000), Duration::ZERO);
    }

    #[test]
    fn the_rate_does_not_drift() {
        let interval = Duration::from_secs(30);
        let mut schedule = Schedule::new(0, interval, 9_000);
        let day = 86_400_000_000_000;
        assert_eq!(due(&mut schedule, day - 1).len(), 86_400 * 300);
    }
}
