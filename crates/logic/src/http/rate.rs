//! Limits the requests per second of a client address.
//!
//! Each address has the time at which all its requests are paid for at the allowed rate. It may be
//! up to a second in the future, so that a burst of a second's requests is allowed. Addresses whose
//! time is past are forgotten.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The maximum number of addresses tracked, about 5 MB. Further addresses share one allowance.
const ADDRESSES_MAX: usize = 65_536;
/// How far in the future an address's time may be.
const BURST: Duration = Duration::from_secs(1);
/// The key of the shared allowance.
const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

pub(super) struct RateLimiter {
    interval: Duration,
    state: Mutex<AddressQuotas>,
}

struct AddressQuotas {
    paid_at: HashMap<IpAddr, Instant>,
    forgotten_at: Instant,
}

impl RateLimiter {
    pub(super) fn new(requests_per_second_max: NonZeroU32) -> Self {
        let state = AddressQuotas { paid_at: HashMap::new(), forgotten_at: Instant::now() };
        Self { interval: BURST / requests_per_second_max.get(), state: Mutex::new(state) }
    }

    /// Takes a request of `peer` at `now`, or returns the time to wait.
    pub(super) fn take(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock();
        let peer = state.quota_key(network(peer), now);
        let paid_at = state.paid_at.entry(peer).or_insert(now);
        let start = (*paid_at).max(now);
        let after = start + self.interval;
        let ahead = after.saturating_duration_since(now);
        if ahead > BURST {
            return Err(ahead - BURST);
        }
        *paid_at = after;
        Ok(())
    }
}

impl AddressQuotas {
    /// Returns the key under which an address is counted. Forgets addresses at most once a second,
    /// because that visits all of them.
    fn quota_key(&mut self, peer: IpAddr, now: Instant) -> IpAddr {
        if self.paid_at.len() < ADDRESSES_MAX || self.paid_at.contains_key(&peer) {
            return peer;
        }
        if now.saturating_duration_since(self.forgotten_at) >= BURST {
            self.forgotten_at = now;
            self.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        if self.paid_at.len() < ADDRESSES_MAX { peer } else { SHARED }
    }
}

/// Returns what counts as one client: an IPv4 address, or the /64 network of an IPv6 address.
pub(super) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(rate: u32) -> RateLimiter {
        RateLimiter::new(NonZeroU32::new(rate).unwrap())
    }

    fn taken(limiter: &RateLimiter, peer: &str, now: Instant, tries: usize) -> usize {
        let peer = peer.parse().unwrap();
        (0..tries).filter(|_| limiter.take(peer, now).is_ok()).count()
    }

    #[test]
    fn a_burst_of_a_second_and_then_the_rate() {
        let limiter = limiter(10);
        let start = Instant::now();
        assert_eq!(taken(&limiter, "10.0.0.1", start, 100), 10);
        assert_eq!(taken(&limiter, "10.0.0.2", start, 100), 10);
        assert_eq!(taken(&limiter, "10.0.0.1", start + Duration::from_millis(300), 100), 3);
        assert_eq!(taken(&limiter, "10.0.0.1", start + Duration::from_secs(60), 100), 10);
    }

    #[test]
    fn a_refusal_has_the_time_to_wait() {
        let limiter = limiter(1);
        let start = Instant::now();
        let peer = "10.0.0.1".parse().unwrap();
        assert_eq!(limiter.take(peer, start), Ok(()));
        let wait = limiter.take(peer, start).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        assert_eq!(limiter.take(peer, start + wait), Ok(()));
    }

    #[test]
    fn a_household_is_one_client_and_mapped_addresses_are_their_own() {
        let limiter = limiter(4);
        let start = Instant::now();
        assert_eq!(taken(&limiter, "2001:db8::1", start, 3), 3);
        assert_eq!(taken(&limiter, "2001:db8::ffff:2", start, 3), 1);
        assert_eq!(taken(&limiter, "2001:db8:0:1::1", start, 9), 4);
        assert_eq!(taken(&limiter, "::ffff:10.0.0.1", start, 3), 3);
        assert_eq!(taken(&limiter, "10.0.0.1", start, 3), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = limiter(1);
        let start = Instant::now();
        for number in 0..70_000_u32 {
            let _ = limiter.take(IpAddr::V4(Ipv4Addr::from_bits(number + 1)), start);
        }
        assert!(limiter.state.lock().paid_at.len() <= ADDRESSES_MAX + 1);
        let later = start + Duration::from_secs(10);
        assert_eq!(limiter.take("192.0.2.1".parse().unwrap(), later), Ok(()));
        assert_eq!(limiter.state.lock().paid_at.len(), 1);
    }
}
