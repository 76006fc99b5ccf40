//! Saying a thing that happens all the time only so often: a log is for people, and a push log that is gone would
//! otherwise write a line for every push. Counting all of them is the metrics' business.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// One thing that is complained of.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said_at: Option<Instant>,
    unsaid: u64,
}

impl Complaint {
    /// Whether to say it at `now`, and how often it was not said since the last time.
    pub(crate) fn say(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said_at.is_some_and(|said_at| now.saturating_duration_since(said_at) < PAUSE) {
            state.unsaid += 1;
            return None;
        }
        state.said_at = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_second_with_the_number_of_times_between() {
        let complaint = Complaint::default();
        let start = Instant::now();
        let said: Vec<_> =
            [0, 1, 999, 1000, 1001, 5000].map(|ms| complaint.say(start + Duration::from_millis(ms))).into();
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
