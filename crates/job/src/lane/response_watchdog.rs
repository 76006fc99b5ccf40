//! The time for which a comet with open calls has not answered any of them.
//!
//! It separates a comet that hangs from a busy one: a busy comet answers one call or another all
//! the time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// From here on a comet is slow: the reader of the log no longer waits for its batches.
///
/// Well above what a busy comet takes for one of many concurrent calls.
const SLOW_AFTER: Duration = Duration::from_millis(250);

/// From here on a comet hangs: it is marked down as soon as its queue would stop the reader.
const HUNG_AFTER: Duration = Duration::from_secs(1);

/// Watches the calls to one comet.
#[derive(Debug)]
pub(super) struct ResponseWatchdog {
    start: Instant,
    open: AtomicUsize,
    /// When the first of the open calls began or the last answer arrived, in milliseconds since
    /// `start`.
    since: AtomicU64,
    /// The last call ended without an answer.
    is_unanswered: AtomicBool,
}

impl ResponseWatchdog {
    pub(super) fn new() -> Self {
        let (open, since, is_unanswered) = Default::default();
        Self { start: Instant::now(), open, since, is_unanswered }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Records the start of a call.
    pub(super) fn call_started(&self) {
        let is_first = self.open.fetch_add(1, Ordering::Relaxed) == 0;
        // A retry after a call without an answer does not restart the clock.
        if is_first && !self.is_unanswered.load(Ordering::Relaxed) {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Records the end of a call: with an answer, or by its deadline.
    pub(super) fn call_ended(&self, is_answered: bool) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.is_unanswered.store(!is_answered, Ordering::Relaxed);
        if is_answered {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn silent_for(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.now().saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// Returns whether other comets should not wait for this one.
    pub(super) fn is_slow(&self) -> bool {
        self.silent_for() >= SLOW_AFTER
    }

    /// Returns whether the comet may be marked down.
    pub(super) fn is_hung(&self) -> bool {
        self.silent_for() >= HUNG_AFTER
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_starts_with_a_call_and_stops_with_an_answer() {
        let watchdog = ResponseWatchdog::new();
        let pass = |ms| advance(Duration::from_millis(ms));
        pass(2000).await;
        assert!(!watchdog.is_slow(), "no call is open");
        watchdog.call_started();
        pass(240).await;
        watchdog.call_started();
        assert!(!watchdog.is_slow());
        pass(20).await;
        assert!(watchdog.is_slow() && !watchdog.is_hung());
        watchdog.call_ended(true);
        assert!(!watchdog.is_slow(), "one of two calls is answered");
        pass(1000).await;
        assert!(watchdog.is_hung());
        watchdog.call_ended(false);
        watchdog.call_started();
        assert!(watchdog.is_hung(), "another call is no answer");
        watchdog.call_ended(true);
        watchdog.call_started();
        assert!(!watchdog.is_slow());
    }
}
