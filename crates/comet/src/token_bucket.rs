//! A token bucket: an average rate with a bounded burst.
//!
//! Owns the arithmetic for every limit and pace of this crate. The rate is passed to each call, so
//! a bucket is 16 bytes and a connection can have one. Integers only: at millisecond precision a
//! rate per second is an exact number of thousandths of a token per millisecond.

use std::num::NonZeroU32;
use std::time::Duration;

use goim_session::Millis;

/// One token, in the unit of [`TokenBucket::millitokens`].
const TOKEN: u64 = 1000;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    per_second: u32,
    burst_millitokens: u64,
}

impl Rate {
    /// `per_second` tokens; at most what accrues in `burst` is spent at once, and never less than
    /// one token.
    pub(crate) fn with_burst_time(per_second: NonZeroU32, burst: Duration) -> Self {
        let burst_ms = u64::try_from(burst.as_millis()).unwrap_or(u64::MAX);
        let accrued = burst_ms.saturating_mul(u64::from(per_second.get()));
        Self { per_second: per_second.get(), burst_millitokens: accrued.max(TOKEN) }
    }

    /// `per_second` tokens; at most `burst` are spent at once.
    pub(crate) fn with_burst(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { per_second: per_second.get(), burst_millitokens: u64::from(burst.get()) * TOKEN }
    }

    /// `per_second` tokens; what was not spent accrues without bound.
    pub(crate) fn unbounded(per_second: NonZeroU32) -> Self {
        Self { per_second: per_second.get(), burst_millitokens: u64::MAX }
    }
}

/// The part of a rate per second that each of `shards` shards gets, rounded up; at least one.
pub(crate) fn per_shard(per_second: NonZeroU32, shards: usize) -> NonZeroU32 {
    let shards = u32::try_from(shards).unwrap_or(u32::MAX).max(1);
    NonZeroU32::new(per_second.get().div_ceil(shards)).unwrap_or(NonZeroU32::MIN)
}

/// The state of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    /// Thousandths of a token.
    millitokens: u64,
    refilled: Millis,
}

impl TokenBucket {
    /// A bucket without tokens.
    pub(crate) fn empty(now: Millis) -> Self {
        Self { millitokens: 0, refilled: now }
    }

    /// A bucket with one token: the first unit does not wait.
    pub(crate) fn with_one(now: Millis) -> Self {
        Self { millitokens: TOKEN, refilled: now }
    }

    /// A bucket that holds its whole burst.
    pub(crate) fn full(now: Millis, rate: &Rate) -> Self {
        Self { millitokens: rate.burst_millitokens, refilled: now }
    }

    /// Adds what has accrued since the last refill, up to the burst.
    pub(crate) fn refill(&mut self, now: Millis, rate: &Rate) {
        let passed_ms = now.0.saturating_sub(self.refilled.0);
        self.refilled = now;
        let accrued = passed_ms.saturating_mul(u64::from(rate.per_second));
        self.millitokens = self.millitokens.saturating_add(accrued).min(rate.burst_millitokens);
    }

    /// True when a token can be spent.
    pub(crate) fn has_token(&self) -> bool {
        self.millitokens >= TOKEN
    }

    /// Spends a token; of a bucket with less than one, what is left.
    pub(crate) fn spend(&mut self) {
        self.millitokens = self.millitokens.saturating_sub(TOKEN);
    }

    /// Spends a token if there is one.
    pub(crate) fn try_spend(&mut self) -> bool {
        let has_token = self.has_token();
        if has_token {
            self.spend();
        }
        has_token
    }

    /// Time until there is a token, rounded up to whole milliseconds and at least one; zero when
    /// there is one.
    pub(crate) fn until_token(&self, rate: &Rate) -> Duration {
        if self.has_token() {
            return Duration::ZERO;
        }
        let missing = TOKEN - self.millitokens;
        Duration::from_millis(missing.div_ceil(u64::from(rate.per_second)).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn spend_all(bucket: &mut TokenBucket) -> u32 {
        std::iter::from_fn(|| bucket.try_spend().then_some(())).count() as u32
    }

    #[test]
    fn tokens_accrue_at_the_rate_and_up_to_the_burst() {
        for (rate, passed_ms, expected) in [
            (Rate::with_burst_time(per_second(1000), Duration::from_millis(100)), 50, 50),
            (Rate::with_burst_time(per_second(1000), Duration::from_millis(100)), 1000, 100),
            // Less than one token per burst time still makes one.
            (Rate::with_burst_time(per_second(3), Duration::from_millis(100)), 60_000, 1),
            (Rate::with_burst(per_second(10), per_second(20)), 1000, 10),
            (Rate::with_burst(per_second(10), per_second(20)), 60_000, 20),
            (Rate::unbounded(per_second(7)), 100_000, 700),
        ] {
            let mut bucket = TokenBucket::empty(Millis(5));
            assert!(!bucket.try_spend());
            bucket.refill(Millis(5 + passed_ms), &rate);
            assert_eq!(spend_all(&mut bucket), expected, "{rate:?} after {passed_ms} ms");
        }
    }

    #[test]
    fn parts_of_a_token_are_not_lost() {
        let rate = Rate::with_burst(per_second(3), per_second(5));
        let mut bucket = TokenBucket::empty(Millis(0));
        let mut spent = 0;
        for ms in 1..=10_000 {
            bucket.refill(Millis(ms), &rate);
            spent += spend_all(&mut bucket);
        }
        assert_eq!(spent, 30);
    }

    #[test]
    fn the_wait_ends_with_a_token() {
        for number in [1, 3, 999, 1000, 1001, u32::MAX] {
            let rate = Rate::with_burst(per_second(number), per_second(1));
            let mut bucket = TokenBucket::full(Millis(0), &rate);
            assert_eq!(bucket.until_token(&rate), Duration::ZERO);
            bucket.spend();
            let wait = bucket.until_token(&rate);
            bucket.refill(Millis(0).after(wait - Duration::from_millis(1)), &rate);
            assert!(!bucket.has_token(), "{number} per second, {wait:?}");
            bucket.refill(Millis(0).after(wait), &rate);
            assert!(bucket.has_token(), "{number} per second, {wait:?}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_adds_nothing() {
        let rate = Rate::unbounded(per_second(1000));
        let mut bucket = TokenBucket::with_one(Millis(100));
        bucket.refill(Millis(100), &rate);
        bucket.refill(Millis(50), &rate);
        assert_eq!(spend_all(&mut bucket), 1);
        // No token: spending leaves none, and does not go into debt.
        bucket.spend();
        bucket.refill(Millis(51), &rate);
        assert!(bucket.has_token());
    }

    #[test]
    fn each_shard_gets_a_part_rounded_up() {
        let part = |per, shards| per_shard(per_second(per), shards).get();
        assert_eq!([part(10, 1), part(10, 4), part(1, 8), part(7, 0)], [10, 3, 1, 7]);
    }
}
