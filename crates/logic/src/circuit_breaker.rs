//! A circuit breaker: calls to a service that failed several times in a row fail immediately for a
//! while.
//!
//! Closed: every call is made. Open, after `failures_max` failures without a success between them:
//! calls fail at once, so that a dead service costs its callers nothing. After the pause one call
//! is made as a probe. Its success closes the breaker, its failure starts another pause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A circuit breaker of one service.
#[derive(Debug)]
pub(crate) struct CircuitBreaker {
    failures_max: u32,
    pause: Duration,
    state: Mutex<BreakerState>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// Failures since the last success.
    failures: u32,
    /// While open: when the next probe may be made.
    until: Option<Instant>,
}

/// For a service over the network: opens after eight failures in a row, for one second.
impl Default for CircuitBreaker {
    fn default() -> Self {
        Self::new(8, Duration::from_secs(1))
    }
}

impl CircuitBreaker {
    /// Opens after `failures_max` failures in a row, at least one, for `pause`.
    pub(crate) fn new(failures_max: u32, pause: Duration) -> Self {
        Self { failures_max: failures_max.max(1), pause, state: Mutex::default() }
    }

    /// Returns true when a call may be made now. After the pause only one caller, the probe, gets
    /// true.
    pub(crate) fn try_acquire(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match state.until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                // This caller is the probe; the others wait for its result, or for another pause.
                state.until = Some(now + self.pause);
                true
            }
        }
    }

    /// Records the result of a call. Returns true when it opened the breaker.
    pub(crate) fn record(&self, succeeded: bool, now: Instant) -> bool {
        let mut state = self.state.lock();
        if succeeded {
            *state = BreakerState::default();
            return false;
        }
        state.failures = state.failures.saturating_add(1);
        let was_open = state.until.is_some();
        if state.failures >= self.failures_max {
            state.until = Some(now + self.pause);
        }
        !was_open && state.until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_a_success() {
        let pause = Duration::from_secs(1);
        let circuit_breaker = CircuitBreaker::new(3, pause);
        let start = Instant::now();
        assert!(!circuit_breaker.record(false, start) && !circuit_breaker.record(false, start));
        circuit_breaker.record(true, start);
        assert!(
            !circuit_breaker.record(false, start) && !circuit_breaker.record(false, start),
            "a success forgets"
        );
        assert!(circuit_breaker.try_acquire(start));
        assert!(circuit_breaker.record(false, start), "the third in a row opens it");
        assert!(!circuit_breaker.try_acquire(start + pause / 2));
        assert!(circuit_breaker.try_acquire(start + pause), "one may try");
        assert!(!circuit_breaker.try_acquire(start + pause), "the others may not");
        circuit_breaker.record(false, start + pause);
        assert!(!circuit_breaker.try_acquire(start + pause * 3 / 2), "another pause");
        assert!(circuit_breaker.try_acquire(start + pause * 2));
        circuit_breaker.record(true, start + pause * 2);
        assert!(
            circuit_breaker.try_acquire(start + pause * 2) && circuit_breaker.try_acquire(start + pause * 2)
        );
    }
}
