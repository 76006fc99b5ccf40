//! How long to wait before the next attempt, and the source of randomness for it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// Delays that grow from attempt to attempt, with jitter, so that clients that were disconnected
/// together do not reconnect together.
///
/// The ceiling of attempt n, from 0, is `min(max_delay, base_delay * factor^n)`; [`Jitter`] is how
/// the delay is chosen from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first ceiling. Default 0.5 s.
    pub base_delay: Duration,
    /// The largest ceiling. Default 20 s.
    pub max_delay: Duration,
    /// The growth from one ceiling to the next, at least 1. Default 2.
    pub factor: f64,
    /// How much of the delay is random. Default [`Jitter::Full`].
    pub jitter: Jitter,
}

/// How a delay is chosen from the ceiling of an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// Evenly distributed from 0 to the ceiling.
    Full,
    /// goim v2's formula: `ceiling * (1 + share * r)` with r evenly distributed from -1 to 1. The
    /// share is from 0 to 1; with 1 the delay is at most twice the ceiling.
    Proportional(f64),
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(20),
            factor: 2.0,
            jitter: Jitter::Full,
        }
    }
}

impl Backoff {
    /// goim v2's parameters: 3 s, growing by 1.8 up to 300 s, with 30 % jitter as in its example
    /// configuration. (goim v2's own default jitter of 1.3 would give negative delays.)
    pub const GOIM: Self = Self {
        base_delay: Duration::from_secs(3),
        max_delay: Duration::from_secs(300),
        factor: 1.8,
        jitter: Jitter::Proportional(0.3),
    };

    /// Returns the delay of attempt `attempt`, counted from 0, before jitter.
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let growth = self.factor.max(1.0).powi(i32::try_from(attempt).unwrap_or(i32::MAX));
        // An infinite product is capped like any other that is too large; zero times infinity is
        // NaN, which `min` replaces.
        let delay = (self.base_delay.as_secs_f64() * growth).min(self.max_delay.as_secs_f64());
        Duration::try_from_secs_f64(delay).unwrap_or(self.max_delay)
    }

    /// Returns the delay before attempt `attempt`, counted from 0. `random` is evenly distributed
    /// from 0 to 1.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let scale = match self.jitter {
            Jitter::Full => random,
            Jitter::Proportional(share) => share.clamp(0.0, 1.0).mul_add(random.mul_add(2.0, -1.0), 1.0),
        };
        let delay = self.ceiling(attempt).as_secs_f64() * scale;
        Duration::try_from_secs_f64(delay).unwrap_or(self.max_delay)
    }

    /// Returns the delay when the server asks for an immediate reconnect: up to a second, because
    /// it asks many clients at a time.
    pub(crate) fn immediate(&self, random: f64) -> Duration {
        self.base_delay.min(Duration::from_secs(1)).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Random numbers for jitter and masks: SipHash of a counter, with keys from the operating system.
///
/// That is strong enough for both. A mask must be unpredictable for the author of the payload
/// (RFC 6455, section 10.3), which here is the program itself.
#[derive(Debug, Default)]
pub(crate) struct Random {
    keys: RandomState,
    counter: u64,
}

impl Random {
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.keys.hash_one(self.counter)
    }

    /// Returns a number that is evenly distributed from 0 (inclusive) to 1 (exclusive).
    pub(crate) fn fraction(&mut self) -> f64 {
        // The upper 53 bits fit an f64 exactly.
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn mask(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.next_u64().to_be_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(backoff: &Backoff, attempt: u32, random: f64, millis: u128) {
        assert_eq!(backoff.delay(attempt, random).as_millis(), millis, "attempt {attempt}, {random}");
    }

    #[test]
    fn the_default_starts_at_half_a_second_and_ends_at_twenty() {
        let backoff = Backoff::default();
        check(&backoff, 0, 0.0, 0);
        check(&backoff, 0, 0.5, 250);
        check(&backoff, 0, 1.0, 500);
        check(&backoff, 1, 1.0, 1_000);
        check(&backoff, 5, 1.0, 16_000);
        check(&backoff, 6, 1.0, 20_000);
        check(&backoff, u32::MAX, 1.0, 20_000);
    }

    #[test]
    fn goims_formula_grows_to_its_maximum() {
        let backoff = Backoff::GOIM;
        check(&backoff, 0, 0.5, 3_000);
        check(&backoff, 1, 0.5, 5_400);
        check(&backoff, 2, 0.5, 9_720);
        check(&backoff, 0, 0.0, 2_100);
        check(&backoff, 0, 1.0, 3_900);
        check(&backoff, 50, 0.5, 300_000);
        check(&backoff, u32::MAX, 1.0, 390_000);
    }

    #[test]
    fn invalid_parameters_give_bounded_delays() {
        let wild = Backoff { factor: f64::NAN, jitter: Jitter::Proportional(1.3), ..Backoff::GOIM };
        assert_eq!(wild.delay(3, 0.0), Duration::ZERO);
        assert!(wild.delay(3, 1.0) <= Duration::from_secs(6));
    }

    #[test]
    fn full_jitter_is_evenly_distributed() {
        let (backoff, mut random) = (Backoff::default(), Random::default());
        for attempt in 0..8 {
            let ceiling = backoff.ceiling(attempt).as_secs_f64();
            let mut quarters = [0_u32; 4];
            for _ in 0..4000 {
                let share = backoff.delay(attempt, random.fraction()).as_secs_f64() / ceiling;
                quarters[(share * 4.0) as usize] += 1;
            }
            // 1,000 expected, standard deviation 27: eight deviations to both sides.
            assert!(quarters.iter().all(|count| (780..=1220).contains(count)), "{attempt}: {quarters:?}");
        }
    }

    #[test]
    fn random_numbers_cover_the_range() {
        let mut random = Random::default();
        let numbers: Vec<f64> = (0..1000).map(|_| random.fraction()).collect();
        assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
        assert!(numbers.iter().any(|x| *x < 0.1) && numbers.iter().any(|x| *x > 0.9));
        assert_ne!(random.mask(), random.mask());
    }

    fn jitter() -> impl Strategy<Value = Jitter> {
        prop_oneof![Just(Jitter::Full), any::<f64>().prop_map(Jitter::Proportional)]
    }

    proptest! {
        #[test]
        fn delays_are_bounded_for_all_parameters(
            base in 0_u64..1 << 40,
            max in 0_u64..1 << 40,
            factor in any::<f64>(),
            jitter in jitter(),
            attempt in any::<u32>(),
            random in any::<f64>(),
        ) {
            let (base_delay, max_delay) = (Duration::from_millis(base), Duration::from_millis(max));
            let backoff = Backoff { base_delay, max_delay, factor, jitter };
            // A rounding error of f64 apart.
            let margin = Duration::from_millis(1) + max_delay / 1_000_000;
            prop_assert!(backoff.ceiling(attempt) <= max_delay + margin);
            let times = if jitter == Jitter::Full { 1 } else { 2 };
            prop_assert!(backoff.delay(attempt, random) <= max_delay * times + margin);
            prop_assert!(backoff.immediate(random) <= Duration::from_secs(1));
        }

        #[test]
        fn ceilings_never_shrink(attempt in 0_u32..100, factor in 1.0_f64..10.0) {
            let backoff = Backoff { factor, ..Backoff::default() };
            prop_assert!(backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1));
        }
    }
}
