//! How long to wait before the next attempt: goim's formula, and a source of chance for it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Delays that grow from attempt to attempt, with jitter, so that clients cut off together do not return together.
///
/// The delay before attempt n (from 0) is `min(max_delay, base_delay * factor^n) * (1 + jitter * r)` with r drawn
/// evenly from -1 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first delay, before jitter. Default 3 s, as in goim.
    pub base_delay: Duration,
    /// The largest delay, before jitter. Default 300 s, as in goim.
    pub max_delay: Duration,
    /// Growth from one delay to the next, at least 1. Default 1.8, as in goim.
    pub factor: f64,
    /// Share of the delay that is left to chance, 0 to 1. Default 0.3, as in goim's example; goim's own default of
    /// 1.3 would give negative delays.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base_delay: Duration::from_secs(3),
            max_delay: Duration::from_secs(300),
            factor: 1.8,
            jitter: 0.3,
        }
    }
}

impl Backoff {
    /// The delay before attempt `attempt`, counted from 0. `random` is from 0 to 1 and decides about the jitter.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let growth = self.factor.max(1.0).powi(i32::try_from(attempt).unwrap_or(i32::MAX));
        // An infinite product is cut off like any other that is too large.
        let delay = (self.base_delay.as_secs_f64() * growth).min(self.max_delay.as_secs_f64());
        let jitter = self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0).mul_add(2.0, -1.0);
        Duration::try_from_secs_f64(delay * (1.0 + jitter)).unwrap_or(self.max_delay)
    }

    /// The delay when the server has said to come back at once: a little, drawn evenly, for it has said so to many.
    pub(crate) fn at_once(&self, random: f64) -> Duration {
        self.base_delay.min(Duration::from_secs(1)).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Chance for jitter and masks: SipHash of a counter, under keys that come from the operating system.
///
/// That is enough for both. A mask must not be foreseen by who chooses the payload (RFC 6455, section 10.3), and
/// here that is the program itself.
#[derive(Debug, Default)]
pub(crate) struct Chance {
    keys: RandomState,
    drawn: u64,
}

impl Chance {
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        self.keys.hash_one(self.drawn)
    }

    /// Drawn evenly from 0 to 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        // The upper 53 bits are what an f64 holds exactly.
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn mask(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.next_u64().to_be_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_largest_and_jitter_stays_in_its_share() {
        let backoff = Backoff::default();
        let check = |attempt, random, millis| {
            assert_eq!(backoff.delay(attempt, random).as_millis(), millis, "attempt {attempt}, {random}");
        };
        check(0, 0.5, 3_000);
        check(1, 0.5, 5_400);
        check(2, 0.5, 9_720);
        check(0, 0.0, 2_100);
        check(0, 1.0, 3_900);
        check(50, 0.5, 300_000);
        check(u32::MAX, 1.0, 390_000);
    }

    #[test]
    fn senseless_parameters_give_sensible_delays() {
        let wild = Backoff { factor: f64::NAN, jitter: 1.3, ..Backoff::default() };
        assert_eq!(wild.delay(3, 0.0), Duration::ZERO);
        assert!(wild.delay(3, 1.0) <= Duration::from_secs(6));
    }

    #[test]
    fn chance_covers_the_range() {
        let mut chance = Chance::default();
        let drawn: Vec<f64> = (0..1000).map(|_| chance.fraction()).collect();
        assert!(drawn.iter().all(|x| (0.0..1.0).contains(x)));
        assert!(drawn.iter().any(|x| *x < 0.1) && drawn.iter().any(|x| *x > 0.9));
        assert_ne!(chance.mask(), chance.mask());
    }
}
