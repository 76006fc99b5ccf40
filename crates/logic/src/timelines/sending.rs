//! Which messages members may send, and how fast.
//!
//! Receivers get a member's message with the operation that the member chose. Operations of the
//! protocol are therefore reserved: a client that could send operation 6 to its room would speak
//! for the server. Members send operation 4 and those of the backend, from 1000 on. Send rules
//! allow messages to timelines; the backend decides about all others.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::{Duration, Instant};

use goim_ports::{Mid, Operation, TimelineId};
use parking_lot::Mutex;

use crate::config::SendConfig;

/// True for an operation that members may send: 4, and those from 1000 on. All others are the
/// protocol's.
pub(crate) fn is_for_members(operation: i32) -> bool {
    operation == Operation::SEND.0 || operation >= Operation::BACKEND_MIN.0
}

/// A rule: members may send messages with these operations to timelines with these names, without a
/// call of the backend. The format is `live://*: 4, 1000..1999`: a name, or a prefix of names
/// followed by `*`, and operations or ranges of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRule {
    name: String,
    operations: Vec<RangeInclusive<i32>>,
}

impl SendRule {
    fn allows(&self, timeline: &str, operation: Operation) -> bool {
        let is_named = match self.name.strip_suffix('*') {
            Some(beginning) => timeline.starts_with(beginning),
            None => timeline == self.name,
        };
        is_named && self.operations.iter().any(|range| range.contains(&operation.0))
    }
}

impl FromStr for SendRule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Names contain colons, operations do not.
        let (name, list) = text.rsplit_once(':').ok_or(())?;
        let name = name.trim();
        if name.is_empty() || name.strip_suffix('*').is_none() && TimelineId::parse(name).is_none() {
            return Err(());
        }
        let range = |text: &str| {
            let (first, last) = text.split_once("..").unwrap_or((text, text));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            let is_one = first == last && is_for_members(first);
            let is_backend = first >= Operation::BACKEND_MIN.0 && first <= last;
            (is_one || is_backend).then_some(first..=last)
        };
        let operations: Option<Vec<_>> = list.split(',').map(range).collect();
        Ok(Self { name: name.to_owned(), operations: operations.ok_or(())? })
    }
}

impl fmt::Display for SendRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (place, range) in self.operations.iter().enumerate() {
            let (first, last) = (range.start(), range.end());
            f.write_str(if place == 0 { " " } else { ", " })?;
            if first == last { write!(f, "{first}")? } else { write!(f, "{first}..{last}")? }
        }
        Ok(())
    }
}

/// True when a rule allows the message without a call of the backend. `own` is true for the
/// member's own inbox and for a room that its session is in.
pub(super) fn is_allowed(rules: &[SendRule], own: bool, timeline: &TimelineId, operation: Operation) -> bool {
    let is_own_inbox = own && matches!(timeline, TimelineId::Inbox(_));
    let name = timeline.to_string();
    own && (is_own_inbox && operation == Operation::SEND
        || rules.iter().any(|rule| rule.allows(&name, operation)))
}

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

    #[test]
    fn operations_of_the_protocol_are_not_for_members() {
        for operation in [i32::MIN, -1, 0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 20, 22, 25, 31, 32, 999] {
            assert!(!is_for_members(operation), "{operation}");
        }
        for operation in [4, 1000, i32::MAX] {
            assert!(is_for_members(operation), "{operation}");
        }
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in ["live://*: 4", "live://1: 4, 1000..1999", "mid://*: 1000", "*: 4, 5000..2147483647"] {
            let rule: SendRule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        for text in [
            "",
            "live://*",
            ": 4",
            "live://*:",
            "live: 4",
            "live://*: 6",
            "live://*: 4..1000",
            "live://*: 999..1001",
            "live://*: 1001..1000",
            "live://*: 4,",
            "live://*: 0..5",
            "mid://x: 4",
        ] {
            assert!(text.parse::<SendRule>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn send_rules_allow() {
        let rules: Vec<SendRule> = ["live://*: 4, 1000..1999", "chat://7: 4", "mid://*: 2000"]
            .map(|rule| rule.parse().unwrap())
            .into();
        let may = |own, name: &str, operation| {
            is_allowed(&rules, own, &TimelineId::parse(name).unwrap(), Operation(operation))
        };
        for (own, name, operation, allowed) in [
            (true, "live://1", 4, true),
            (true, "live://1", 1999, true),
            (true, "live://1", 2000, false),
            (false, "live://1", 4, false),
            (true, "chat://7", 4, true),
            (true, "chat://77", 4, false),
            (true, "other://7", 4, false),
            (true, "mid://7", 4, true),
            (true, "mid://7", 2000, true),
            (true, "mid://7", 1000, false),
            (false, "mid://7", 4, false),
        ] {
            assert_eq!(may(own, name, operation), allowed, "{own} {name} {operation}");
        }
        assert!(is_allowed(&[], true, &TimelineId::Inbox(Mid(7)), Operation::SEND), "its own inbox");
        assert!(!is_allowed(&[], true, &TimelineId::Room("live://1".into()), Operation::SEND));
    }

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
