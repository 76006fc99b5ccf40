//! When which client sends its next heartbeat: evenly spread, by a pointer that goes round all of them.
//!
//! With one interval for all there is nothing to sort: the pointer's place follows from the time alone, so that a
//! worker that was busy catches up, and no heartbeat is skipped.

use std::time::Duration;

/// The rhythm of one worker's clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beats {
    began_ns: u64,
    interval_ns: u64,
    clients: u64,
    /// Heartbeats given out since the beginning.
    given: u64,
}

impl Beats {
    /// `clients` of them, each once in `interval`; both at least 1.
    pub(super) fn new(now_ns: u64, interval: Duration, clients: usize) -> Self {
        let interval_ns = crate::clock::nanos(interval).max(1);
        Self {
            began_ns: now_ns,
            interval_ns,
            clients: u64::try_from(clients).unwrap_or(u64::MAX).max(1),
            given: 0,
        }
    }

    /// The next client whose heartbeat is due, and the moment at which it was; `None` when all that were are given out.
    pub(super) fn next_due(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let due_ns = self.due_ns();
        if due_ns > now_ns {
            return None;
        }
        let client = usize::try_from(self.given % self.clients).ok()?;
        self.given = self.given.saturating_add(1);
        Some((client, due_ns))
    }

    /// How long until the next is due.
    pub(super) fn next_in(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.due_ns().saturating_sub(now_ns))
    }

    fn due_ns(&self) -> u64 {
        let since = u128::from(self.given) * u128::from(self.interval_ns) / u128::from(self.clients);
        self.began_ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// Heartbeats in windows: so many clients at once, the next as many when all of them are answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    window: usize,
    next: usize,
}

impl Windows {
    /// `window` at once, at least one.
    pub(super) fn new(window: usize) -> Self {
        Self { window: window.max(1), next: 0 }
    }

    /// The places of the next window, counted without end; none while a heartbeat is unanswered.
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
    fn a_window_waits_for_the_one_before() {
        let mut windows = Windows::new(3);
        assert_eq!(windows.next(0, 0), 0..3);
        assert_eq!(windows.next(3, 2), 0..0);
        assert_eq!(windows.next(3, 3), 3..6);
        assert_eq!(Windows::new(0).next(0, 0), 0..1);
    }

    fn due(beats: &mut Beats, now_ns: u64) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| beats.next_due(now_ns)).collect()
    }

    #[test]
    fn everybody_in_turn_and_evenly() {
        let mut beats = Beats::new(1_000, Duration::from_nanos(90), 3);
        assert_eq!(due(&mut beats, 999), []);
        assert_eq!(due(&mut beats, 1_000), [(0, 1_000)]);
        assert_eq!(beats.next_in(1_000), Duration::from_nanos(30));
        assert_eq!(due(&mut beats, 1_029), []);
        // Late by more than a round: nobody is skipped, and each is due when it was.
        let late = [(1, 1_030), (2, 1_060), (0, 1_090), (1, 1_120)];
        assert_eq!(due(&mut beats, 1_125), late);
        assert_eq!(beats.next_in(2_000), Duration::ZERO);
    }

    #[test]
    fn the_rate_is_kept_over_a_long_time() {
        let interval = Duration::from_secs(30);
        let mut beats = Beats::new(0, interval, 9_000);
        let day = 86_400_000_000_000;
        assert_eq!(due(&mut beats, day - 1).len(), 86_400 * 300);
    }
}
