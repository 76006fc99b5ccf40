//! When the connections of a shard were accepted, within a quarter of a second and for the last
//! minutes.

use std::collections::VecDeque;
use std::time::Duration;

use goim_session::Millis;

/// Precision with which the time of an accept is known.
const PRECISION: Duration = Duration::from_millis(250);
/// Entries stored: at least the last four minutes in which connections were accepted. 16 KiB.
const ENTRIES_MAX: usize = 1024;

/// For some moments, the newest connection that was accepted before.
#[derive(Debug, Default)]
pub(super) struct AcceptHistory(VecDeque<(Millis, u32)>);

impl AcceptHistory {
    /// Notes that a connection is accepted at `now`; `newest` is the one before it.
    pub(super) fn note(&mut self, now: Millis, newest: u32) {
        if self.0.back().is_some_and(|(last, _)| now < last.after(PRECISION)) {
            return;
        }
        if self.0.len() == ENTRIES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, newest));
    }

    /// Returns the newest connection that was accepted at `at` or shortly after. `newest` is the
    /// newest of all.
    pub(super) fn newest_at(&self, at: Millis, newest: u32) -> u32 {
        let later = self.0.partition_point(|(moment, _)| *moment <= at);
        self.0.get(later).map_or(newest, |(_, before)| *before)
    }
}

/// True for a connection that is not newer than `newest`. Generations wrap; their difference has
/// the sign.
pub(super) fn is_up_to(generation: u32, newest: u32) -> bool {
    (generation.wrapping_sub(newest) as i32) <= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_connection_at_a_moment() {
        let mut history = AcceptHistory::default();
        let at = |ms| Millis(ms);
        assert_eq!(history.newest_at(at(0), 0), 0);
        // Connections 1 and 2 at 1000, 3 at 1100, 4 at 2000.
        for (ms, before) in [(1000, 0), (1000, 1), (1100, 2), (2000, 3)] {
            history.note(at(ms), before);
        }
        for (ms, expected) in [(0, 0), (999, 0), (1000, 3), (1999, 3), (2000, 4), (9000, 4)] {
            assert_eq!(history.newest_at(at(ms), 4), expected, "{ms}");
        }
        for ms in 0..10_000 {
            history.note(at(3000 + ms * 1000), 4);
        }
        assert_eq!(history.0.len(), ENTRIES_MAX);
    }

    #[test]
    fn generations_wrap() {
        assert!(is_up_to(u32::MAX, 2) && is_up_to(2, 2) && !is_up_to(3, 2) && !is_up_to(2, u32::MAX));
    }
}
