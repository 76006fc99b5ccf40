//! A circuit breaker: whoever has failed several times in a row is left alone for a while.
//!
//! Closed, every call goes through. After [`CircuitBreaker::new`]'s number of failures without a success between them it is open: calls
//! fail at once, so that a dead system costs its callers nothing. When the pause is over one call goes through to try; its
//! success closes the circuit, its failure begins another pause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The state of one circuit.
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
    /// While open: when it may be tried again.
    until: Option<Instant>,
}

/// For a backend that is asked over a network: eight failures in a row, a pause of a second.
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

    /// True when a call may be made now. Of a circuit whose pause is over, one caller only is told so.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match state.until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                // This caller tries; the others wait for as long again at most.
                state.until = Some(now + self.pause);
                true
            }
        }
    }

    /// Takes note of how a call has ended. True when this has opened the circuit.
    pub(crate) fn ended(&self, succeeded: bool, now: Instant) -> bool {
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
        let circuit = CircuitBreaker::new(3, pause);
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
