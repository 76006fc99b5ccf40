//! Long polls and streams that wait for a timeline to grow, and what ends them early.
//!
//! Messages that another logic appends send no notification here, so each long poll also reads the
//! timeline every second. Like a session, a long poll ends with its token, by an order of the
//! backend, and when this process drains.
//!
//! The number of long polls is limited in total, per member and per address. An order to end visits
//! each of them once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use goim_ports::{CloseReason, EndTarget, Mid, SessionKey, TimelineId};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The maximum numbers of concurrent long polls.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongPollLimits {
    pub(super) all: usize,
    pub(super) per_member: Option<NonZeroU32>,
    pub(super) per_address: Option<NonZeroU32>,
}

/// Why a long poll was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LongPollError {
    /// The total limit is reached.
    #[error("too many long polls on this server; try again later")]
    Full,
    /// The member's limit is reached.
    #[error("too many long polls of this member")]
    Member,
    /// The address's limit is reached.
    #[error("too many long polls from this address")]
    Address,
    /// The process drains.
    #[error("this server is shutting down; use another one")]
    Draining,
}

/// Why a long poll ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LongPollEnd {
    /// The token expired.
    Expired,
    /// The backend ended it, for this reason.
    Ordered(CloseReason),
    /// The process drains.
    Draining,
}

/// Who a long poll belongs to.
#[derive(Debug, Clone)]
pub(crate) struct LongPollOwner {
    pub(crate) mid: Mid,
    /// The session key in the token, or a random one when the token has none.
    pub(crate) key: SessionKey,
    /// The address, or the network that counts as one.
    pub(crate) address: Option<IpAddr>,
    /// When the token expires.
    pub(crate) until: Option<Instant>,
}

/// All long polls of a logic. Clones share their state.
#[derive(Clone)]
pub(super) struct LongPolls {
    limits: LongPollLimits,
    state: Arc<Mutex<LongPollRegistry>>,
}

#[derive(Default)]
struct LongPollRegistry {
    waiting: HashMap<u64, LongPollEntry>,
    timelines: HashMap<TimelineId, GrowthWaiters>,
    of_member: HashMap<Mid, u32>,
    of_address: HashMap<IpAddr, u32>,
    next: u64,
    is_draining: bool,
}

/// A long poll as the registry sees it.
struct LongPollEntry {
    who: LongPollOwner,
    timeline: TimelineId,
    ending: watch::Sender<Option<LongPollEnd>>,
}

/// The long polls on one timeline.
struct GrowthWaiters {
    grown: Arc<Notify>,
    by: usize,
}

/// A long poll. Created before the timeline is read, so that no message is missed in between.
pub(crate) struct LongPoll {
    number: u64,
    until: Option<Instant>,
    grown: Arc<Notify>,
    ending: watch::Receiver<Option<LongPollEnd>>,
    state: Arc<Mutex<LongPollRegistry>>,
}

impl LongPolls {
    pub(super) fn new(limits: LongPollLimits) -> Self {
        Self { limits, state: Arc::default() }
    }

    /// Starts a long poll.
    ///
    /// # Errors
    /// [`LongPollError`] when a limit is reached or the process drains.
    pub(super) fn begin(&self, timeline: TimelineId, who: LongPollOwner) -> Result<LongPoll, LongPollError> {
        let mut state = self.state.lock();
        let is_beyond = |count: Option<&u32>, max: Option<NonZeroU32>| {
            max.is_some_and(|max| count.copied().unwrap_or_default() >= max.get())
        };
        if state.is_draining {
            return Err(LongPollError::Draining);
        }
        if state.waiting.len() >= self.limits.all {
            return Err(LongPollError::Full);
        }
        let from = who.address.and_then(|address| state.of_address.get(&address));
        if is_beyond(from, self.limits.per_address) {
            return Err(LongPollError::Address);
        }
        // Anonymous members share an id, so the limit does not apply to them.
        if !who.mid.is_anonymous() && is_beyond(state.of_member.get(&who.mid), self.limits.per_member) {
            return Err(LongPollError::Member);
        }
        *state.of_member.entry(who.mid).or_default() += 1;
        if let Some(address) = who.address {
            *state.of_address.entry(address).or_default() += 1;
        }
        let waited = state
            .timelines
            .entry(timeline.clone())
            .or_insert_with(|| GrowthWaiters { grown: Arc::default(), by: 0 });
        waited.by += 1;
        let grown = Arc::clone(&waited.grown);
        let (number, until) = (state.next, who.until);
        state.next += 1;
        let (sender, ending) = watch::channel(None);
        state.waiting.insert(number, LongPollEntry { who, timeline, ending: sender });
        drop(state);
        Ok(LongPoll { number, until, grown, ending, state: Arc::clone(&self.state) })
    }

    /// Wakes the long polls on a timeline that has grown.
    pub(super) fn grown(&self, id: &TimelineId) {
        if let Some(waited) = self.state.lock().timelines.get(id) {
            waited.grown.notify_waiters();
        }
    }

    /// Ends long polls by an order of the backend. Returns their number.
    pub(super) fn end(&self, of: &EndTarget, reason: CloseReason) -> usize {
        let state = self.state.lock();
        let mut ended = 0;
        let mut end = |concerns: &dyn Fn(&LongPollEntry) -> bool| {
            for waiting in state.waiting.values().filter(|waiting| concerns(waiting)) {
                waiting.ending.send_replace(Some(LongPollEnd::Ordered(reason)));
                ended += 1;
            }
        };
        match of {
            EndTarget::Keys(keys) => {
                let keys: HashSet<&SessionKey> = keys.iter().collect();
                end(&|waiting| keys.contains(&waiting.who.key));
            }
            EndTarget::Mids(mids) => {
                let mids: HashSet<&Mid> = mids.iter().collect();
                end(&|waiting| mids.contains(&waiting.who.mid));
            }
            EndTarget::Room(room) => {
                end(&|waiting| matches!(&waiting.timeline, TimelineId::Room(of) if of == room));
            }
        }
        ended
    }

    /// Ends all long polls and refuses new ones.
    pub(super) fn drain(&self) {
        let mut state = self.state.lock();
        state.is_draining = true;
        for waiting in state.waiting.values() {
            waiting.ending.send_replace(Some(LongPollEnd::Draining));
        }
    }

    /// Returns the number of long polls.
    pub(super) fn count(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl LongPoll {
    /// Completes when the timeline grows after this call.
    pub(super) fn grown(&self) -> tokio::sync::futures::Notified<'_> {
        self.grown.notified()
    }

    /// Returns why it ended, if it did.
    pub(super) fn ending(&self) -> Option<LongPollEnd> {
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        self.ending.borrow().or(is_over.then_some(LongPollEnd::Expired))
    }

    /// Completes when the long poll ends, with the reason.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(super) async fn ended(&self) -> LongPollEnd {
        let mut ending = self.ending.clone();
        let ordered = async move {
            let said = ending.wait_for(Option::is_some).await.ok().and_then(|said| *said);
            match said {
                Some(ending) => ending,
                // The registry holds the sender for as long as this long poll exists.
                None => std::future::pending().await,
            }
        };
        let Some(until) = self.until else { return ordered.await };
        tokio::time::timeout_at(until, ordered).await.unwrap_or(LongPollEnd::Expired)
    }

    /// A number that no other long poll of this process has. Used to spread reconnects.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for LongPoll {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let Some(LongPollEntry { who, timeline, .. }) = state.waiting.remove(&self.number) else { return };
        count_out(&mut state.of_member, &who.mid);
        if let Some(address) = who.address {
            count_out(&mut state.of_address, &address);
        }
        if let Some(waited) = state.timelines.get_mut(&timeline) {
            waited.by -= 1;
            if waited.by == 0 {
                state.timelines.remove(&timeline);
            }
        }
    }
}

fn count_out<K: Hash + Eq>(counts: &mut HashMap<K, u32>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMITS: LongPollLimits = LongPollLimits { all: 2, per_member: None, per_address: None };

    fn id(mid: i64) -> TimelineId {
        TimelineId::Inbox(Mid(mid))
    }

    fn who(mid: i64, key: &str) -> LongPollOwner {
        LongPollOwner { mid: Mid(mid), key: key.into(), address: None, until: None }
    }

    #[tokio::test]
    async fn a_long_poll_is_woken_and_leaves_no_state() {
        let waits = LongPolls::new(LIMITS);
        let begin = |mid| waits.begin(id(mid), who(mid, "k"));
        let (one, two) = (begin(1).unwrap(), begin(1).unwrap());
        assert_eq!(begin(2).err(), Some(LongPollError::Full), "the total limit");
        {
            let (first, second) = (one.grown(), two.grown());
            tokio::pin!(first, second);
            first.as_mut().enable();
            second.as_mut().enable();
            waits.grown(&id(2));
            waits.grown(&id(1));
            first.await;
            second.await;
        }
        drop((one, two));
        let state = waits.state.lock();
        assert!(state.timelines.is_empty() && state.of_member.is_empty() && state.waiting.is_empty());
        drop(state);
        assert!(begin(2).is_ok());
    }

    #[tokio::test]
    async fn members_and_addresses_have_limits() {
        let one = NonZeroU32::new(1);
        let waits =
            LongPolls::new(LongPollLimits { all: 9, per_member: one, per_address: NonZeroU32::new(2) });
        let begin = |mid, address: &str| {
            let address = address.parse().ok();
            waits.begin(id(1), LongPollOwner { address, ..who(mid, "k") })
        };
        let first = begin(1, "10.0.0.1").unwrap();
        assert_eq!(begin(1, "10.0.0.2").err(), Some(LongPollError::Member));
        let second = begin(2, "10.0.0.1").unwrap();
        assert_eq!(begin(3, "10.0.0.1").err(), Some(LongPollError::Address));
        drop((first, second));
        assert!(begin(1, "10.0.0.1").is_ok());
        let nobody = [begin(0, "").unwrap(), begin(0, "").unwrap()];
        assert_eq!(waits.count(), nobody.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_poll_ends_with_its_token_by_order_and_with_the_process() {
        let waits = LongPolls::new(LongPollLimits { all: 9, ..LIMITS });
        let room = TimelineId::Room("live://1".into());
        let until = Some(Instant::now() + Duration::from_secs(5));
        let [by_mid, by_key, stays] =
            [(1, "a"), (2, "b"), (3, "c")].map(|(mid, key)| waits.begin(id(mid), who(mid, key)).unwrap());
        let by_room = waits.begin(room, who(3, "c")).unwrap();
        let short = waits.begin(id(3), LongPollOwner { until, ..who(3, "c") }).unwrap();
        let reason = CloseReason::Revoked;
        assert_eq!(waits.end(&EndTarget::Mids(vec![Mid(1), Mid(9)]), reason), 1);
        assert_eq!(waits.end(&EndTarget::Keys(vec!["b".into()]), reason), 1);
        assert_eq!(waits.end(&EndTarget::Room("live://1".into()), reason), 1);
        for ended in [&by_mid, &by_key, &by_room] {
            assert_eq!(ended.ending(), Some(LongPollEnd::Ordered(reason)));
            assert_eq!(ended.ended().await, LongPollEnd::Ordered(reason));
        }
        assert_eq!((stays.ending(), short.ending()), (None, None));
        assert_eq!(short.ended().await, LongPollEnd::Expired);
        assert_eq!((stays.ending(), short.ending()), (None, Some(LongPollEnd::Expired)));
        waits.drain();
        assert_eq!(stays.ended().await, LongPollEnd::Draining);
        assert_eq!(waits.begin(id(1), who(1, "a")).err(), Some(LongPollError::Draining));
    }
}
