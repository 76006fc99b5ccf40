//! How fast members may send.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use goim_ports::Mid;
use parking_lot::Mutex;

use crate::config::SendConfig;

/// The quota that a message exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QuotaExceeded {
    /// `messages` or `bytes`.
    pub(super) limit: &'static str,
    /// The time after which the message fits.
    pub(super) retry_after: Duration,
}

/// The send quotas of members: for each member the times at which its messages and its bytes are
/// paid for at the allowed rate. Members whose times are past are forgotten.
pub(super) struct SendQuotas {
    config: SendConfig,
    state: Mutex<MemberQuotas>,
}

#[derive(Default)]
struct MemberQuotas {
    members: HashMap<Mid, QuotaUsage>,
    forgotten_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct QuotaUsage {
    messages_at: Instant,
    bytes_at: Instant,
}

/// The minimum interval between two passes over all members.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// The key of the quota that members share when `tracked_members_max` is reached.
const SHARED: Mid = Mid(0);

impl SendQuotas {
    pub(super) fn new(config: SendConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    /// Takes a message of a member at `now`, or returns the exceeded quota and takes nothing.
    pub(super) fn take(&self, mid: Mid, bytes: usize, now: Instant) -> Result<(), QuotaExceeded> {
        let SendConfig { messages_per_second_max, messages_burst, bytes_per_second_max, bytes_burst, .. } =
            self.config;
        let interval = Duration::from_secs(1) / messages_per_second_max.get();
        let bytes_time = |bytes: usize| {
            let nanos = bytes as u128 * 1_000_000_000 / bytes_per_second_max.max(1) as u128;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
        };
        let mut state = self.state.lock();
        let mid = state.quota_key(mid, self.config.tracked_members_max, now);
        let paid = state.members.entry(mid).or_insert(QuotaUsage { messages_at: now, bytes_at: now });
        let owed = |at: Instant| at.saturating_duration_since(now);
        let ahead = owed(paid.messages_at);
        let most = interval * (messages_burst.get() - 1);
        if ahead > most {
            return Err(QuotaExceeded { limit: "messages", retry_after: millis_up(ahead - most) });
        }
        let (ahead, cost, most) = (owed(paid.bytes_at), bytes_time(bytes), bytes_time(bytes_burst));
        // A message larger than the burst is allowed when all earlier bytes are paid for.
        let most = most.saturating_sub(cost);
        if ahead > most {
            return Err(QuotaExceeded { limit: "bytes", retry_after: millis_up(ahead - most) });
        }
        paid.messages_at = paid.messages_at.max(now) + interval;
        paid.bytes_at = paid.bytes_at.max(now) + cost;
        Ok(())
    }
}

impl MemberQuotas {
    fn quota_key(&mut self, mid: Mid, tracked_members_max: usize, now: Instant) -> Mid {
        if self.members.len() < tracked_members_max || self.members.contains_key(&mid) {
            return mid;
        }
        if self.forgotten_at.is_none_or(|at| now.saturating_duration_since(at) >= FORGET_INTERVAL) {
            self.forgotten_at = Some(now);
            self.members.retain(|_, paid| paid.messages_at > now || paid.bytes_at > now);
        }
        if self.members.len() < tracked_members_max { mid } else { SHARED }
    }
}

/// Rounds up to whole milliseconds, the unit of the protocol. A client that waits this long must
/// not be refused again.
fn millis_up(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn quotas(tracked_members_max: usize) -> SendQuotas {
        let number = |number| NonZeroU32::new(number).unwrap();
        SendQuotas::new(SendConfig {
            messages_per_second_max: number(10),
            messages_burst: number(5),
            bytes_per_second_max: 1000,
            bytes_burst: 2000,
            tracked_members_max,
            ..SendConfig::default()
        })
    }

    #[test]
    fn a_burst_and_then_the_rate_for_each_member() {
        let (quotas, start) = (quotas(100), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let taken = |mid, now| (0..100).filter(|_| quotas.take(Mid(mid), 0, now).is_ok()).count();
        assert_eq!((taken(1, at(0)), taken(2, at(0))), (5, 5));
        let exceeded = quotas.take(Mid(1), 0, at(0)).unwrap_err();
        assert_eq!(exceeded, QuotaExceeded { limit: "messages", retry_after: Duration::from_millis(100) });
        for (wait, told) in [(1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)] {
            assert_eq!(millis_up(Duration::from_nanos(wait)), Duration::from_millis(told), "{wait} ns");
        }
        assert_eq!((taken(1, at(100)), taken(1, at(400)), taken(1, at(60_000))), (1, 3, 5));
    }

    #[test]
    fn bytes_count_too_and_a_large_message_waits_until_all_is_paid() {
        let (quotas, start) = (quotas(100), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let take = |bytes, ms| quotas.take(Mid(1), bytes, at(ms));
        assert_eq!(take(1500, 0), Ok(()));
        assert_eq!(
            take(1000, 0),
            Err(QuotaExceeded { limit: "bytes", retry_after: Duration::from_millis(500) })
        );
        assert_eq!((take(500, 0), take(1000, 1000)), (Ok(()), Ok(())));
        assert_eq!(
            take(9000, 1000),
            Err(QuotaExceeded { limit: "bytes", retry_after: Duration::from_secs(2) })
        );
        assert_eq!(take(9000, 3000), Ok(()));
        assert_eq!(take(1, 3000).unwrap_err().limit, "bytes");
    }

    #[test]
    fn memory_is_bounded() {
        let (quotas, start) = (quotas(3), Instant::now());
        for mid in 1..=1000 {
            let _ = quotas.take(Mid(mid), 0, start);
        }
        assert_eq!(quotas.state.lock().members.len(), 4, "three members, and one for all others");
        assert!(quotas.take(Mid(2000), 0, start).is_err(), "they share one allowance");
        assert_eq!(quotas.take(Mid(2000), 0, start + Duration::from_secs(60)), Ok(()));
    }
}
