//! Limits how often one log line is written.
//!
//! A dependency that is down would otherwise log a line for every request. Metrics count every
//! failure.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// A log line that is written at most once a second.
///
/// Each line that should be limited has its own value.
#[derive(Debug, Default)]
pub struct RateLimitedLog(Mutex<LogWindow>);

#[derive(Debug, Default)]
struct LogWindow {
    logged_at: Option<Instant>,
    suppressed: u64,
}

impl RateLimitedLog {
    /// Returns the number of lines suppressed since the last one when the line may be written at
    /// `now`, otherwise counts it as suppressed and returns `None`.
    pub fn try_log(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock();
        if window.logged_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            window.suppressed += 1;
            return None;
        }
        window.logged_at = Some(now);
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_with_the_number_of_suppressed_ones() {
        let log = RateLimitedLog::default();
        let start = Instant::now();
        let lines: Vec<_> =
            [0, 1, 999, 1000, 1001, 5000].map(|ms| log.try_log(start + Duration::from_millis(ms))).into();
        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
