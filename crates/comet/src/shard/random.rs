//! Numbers that spread work over time. Not for secrets.

/// A xorshift64 generator.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// Seeds the generator so that shards of one process, and processes, differ.
    pub(super) fn new(shard: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (u64::from(std::process::id()) << 20) ^ shard as u64)
    }

    /// Returns a number below `bound`; zero when that is zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_the_bound_and_vary() {
        let mut random = Random::new(3);
        assert_eq!(random.below(0), 0);
        let numbers: std::collections::HashSet<u64> = (0..1000).map(|_| random.below(16)).collect();
        assert_eq!(numbers, (0..16).collect());
    }
}
