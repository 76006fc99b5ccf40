//! Waiting for a timeline to grow, so that a request need not ask again and again; and what ends such a wait before its time.
//!
//! What another logic appends is not heard of here: whoever waits looks again every second. A wait is a member's way in as a session is
//! one, and ends like one: with its token, by an order of the backend, and when this process goes away.
//!
//! Waits are bounded: all of them, those of one member and those of one address. An order to end looks at each of them once.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goim_ports::{CloseReason, EndTarget, Mid, SessionKey, TimelineId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How many may wait at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitLimits {
    pub(super) all: usize,
    pub(super) per_member: Option<NonZeroU32>,
    pub(super) per_address: Option<NonZeroU32>,
}

/// Why somebody may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoWait {
    /// As many wait here as may.
    #[error("as many requests wait here as may; come back later")]
    Full,
    /// As many of the member's do.
    #[error("this member waits in as many requests as allowed")]
    Member,
    /// As many from the address do.
    #[error("this address waits in as many requests as allowed")]
    Address,
    /// The process goes away.
    #[error("this server goes away; come back at another")]
    Draining,
}

/// Why a wait has ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The token has ended.
    Expired,
    /// The backend has ended it, with this code.
    Ordered(CloseReason),
    /// This process goes away.
    Draining,
}

/// Who waits.
#[derive(Debug, Clone)]
pub(crate) struct Waiter {
    pub(crate) mid: Mid,
    /// The key that the token names; sessions of others have other ones.
    pub(crate) key: SessionKey,
    /// One address, or what counts as one.
    pub(crate) address: Option<IpAddr>,
    /// When the token ends.
    pub(crate) until: Option<Instant>,
}

/// Everybody who waits.
pub(super) struct Waits {
    limits: WaitLimits,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    timelines: HashMap<TimelineId, Waited>,
    of_member: HashMap<Mid, u32>,
    of_address: HashMap<IpAddr, u32>,
    next: u64,
    is_draining: bool,
}

/// One who waits, as others see him.
struct Waiting {
    who: Waiter,
    timeline: TimelineId,
    ending: watch::Sender<Option<Ending>>,
}

/// A timeline that somebody waits for.
struct Waited {
    grown: Arc<Notify>,
    by: usize,
}

/// One who waits. Made before the timeline is looked at, so that nothing comes between.
pub(crate) struct Wait {
    number: u64,
    until: Option<Instant>,
    grown: Arc<Notify>,
    ending: watch::Receiver<Option<Ending>>,
    state: Arc<Mutex<State>>,
}

impl Waits {
    pub(super) fn new(limits: WaitLimits) -> Self {
        Self { limits, state: Arc::default() }
    }

    /// Begins to wait.
    ///
    /// # Errors
    /// [`NoWait`] when as many do as may.
    pub(super) fn begin(&self, timeline: TimelineId, who: Waiter) -> Result<Wait, NoWait> {
        let mut state = lock(&self.state);
        let is_beyond = |count: Option<&u32>, max: Option<NonZeroU32>| {
            max.is_some_and(|max| count.copied().unwrap_or_default() >= max.get())
        };
        if state.is_draining {
            return Err(NoWait::Draining);
        }
        if state.waiting.len() >= self.limits.all {
            return Err(NoWait::Full);
        }
        let from = who.address.and_then(|address| state.of_address.get(&address));
        if is_beyond(from, self.limits.per_address) {
            return Err(NoWait::Address);
        }
        // Nobody in particular is not limited, as with devices.
        if !who.mid.is_anonymous() && is_beyond(state.of_member.get(&who.mid), self.limits.per_member) {
            return Err(NoWait::Member);
        }
        *state.of_member.entry(who.mid).or_default() += 1;
        if let Some(address) = who.address {
            *state.of_address.entry(address).or_default() += 1;
        }
        let waited = state
            .timelines
            .entry(timeline.clone())
            .or_insert_with(|| Waited { grown: Arc::default(), by: 0 });
        waited.by += 1;
        let grown = Arc::clone(&waited.grown);
        let (number, until) = (state.next, who.until);
        state.next += 1;
        let (sender, ending) = watch::channel(None);
        state.waiting.insert(number, Waiting { who, timeline, ending: sender });
        drop(state);
        Ok(Wait { number, until, grown, ending, state: Arc::clone(&self.state) })
    }

    /// A timeline has grown.
    pub(super) fn grown(&self, id: &TimelineId) {
        if let Some(waited) = lock(&self.state).timelines.get(id) {
            waited.grown.notify_waiters();
        }
    }

    /// The backend ends sessions. Answers how many waits that were.
    pub(super) fn end(&self, of: &EndTarget, reason: CloseReason) -> usize {
        let state = lock(&self.state);
        let mut ended = 0;
        let mut end = |concerns: &dyn Fn(&Waiting) -> bool| {
            for waiting in state.waiting.values().filter(|waiting| concerns(waiting)) {
                waiting.ending.send_replace(Some(Ending::Ordered(reason)));
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

    /// This process goes away: nobody waits any longer.
    pub(super) fn drain(&self) {
        let mut state = lock(&self.state);
        state.is_draining = true;
        for waiting in state.waiting.values() {
            waiting.ending.send_replace(Some(Ending::Draining));
        }
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        lock(&self.state).waiting.len()
    }
}

impl Wait {
    /// What becomes ready when the timeline grows after this call.
    pub(super) fn grown(&self) -> tokio::sync::futures::Notified<'_> {
        self.grown.notified()
    }

    /// Why it has ended, if it has.
    pub(super) fn ending(&self) -> Option<Ending> {
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        self.ending.borrow().or(is_over.then_some(Ending::Expired))
    }

    /// Becomes ready when it ends, and says why.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(super) async fn ended(&self) -> Ending {
        let mut ending = self.ending.clone();
        let ordered = async move {
            let said = ending.wait_for(Option::is_some).await.ok().and_then(|said| *said);
            match said {
                Some(ending) => ending,
                // Whoever would say it lives as long as this does.
                None => std::future::pending().await,
            }
        };
        let Some(until) = self.until else { return ordered.await };
        tokio::time::timeout_at(until, ordered).await.unwrap_or(Ending::Expired)
    }

    /// By another one than others, for what should not come from all at once.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        let Some(Waiting { who, timeline, .. }) = state.waiting.remove(&self.number) else { return };
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

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMITS: WaitLimits = WaitLimits { all: 2, per_member: None, per_address: None };

    fn id(mid: i64) -> TimelineId {
        TimelineId::Inbox(Mid(mid))
    }

    fn who(mid: i64, key: &str) -> Waiter {
        Waiter { mid: Mid(mid), key: key.into(), address: None, until: None }
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_leaves_nothing() {
        let waits = Waits::new(LIMITS);
        let begin = |mid| waits.begin(id(mid), who(mid, "k"));
        let (one, two) = (begin(1).unwrap(), begin(1).unwrap());
        assert_eq!(begin(2).err(), Some(NoWait::Full), "as many as may");
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
        let state = waits.state.lock().unwrap();
        assert!(state.timelines.is_empty() && state.of_member.is_empty() && state.waiting.is_empty());
        drop(state);
        assert!(begin(2).is_ok());
    }

    #[tokio::test]
    async fn a_member_and_an_address_wait_so_often() {
        let one = NonZeroU32::new(1);
        let waits = Waits::new(WaitLimits { all: 9, per_member: one, per_address: NonZeroU32::new(2) });
        let begin = |mid, address: &str| {
            let address = address.parse().ok();
            waits.begin(id(1), Waiter { address, ..who(mid, "k") })
        };
        let first = begin(1, "10.0.0.1").unwrap();
        assert_eq!(begin(1, "10.0.0.2").err(), Some(NoWait::Member));
        let second = begin(2, "10.0.0.1").unwrap();
        assert_eq!(begin(3, "10.0.0.1").err(), Some(NoWait::Address));
        drop((first, second));
        assert!(begin(1, "10.0.0.1").is_ok());
        let nobody = [begin(0, "").unwrap(), begin(0, "").unwrap()];
        assert_eq!(waits.count(), nobody.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_its_token_by_order_and_with_the_process() {
        let waits = Waits::new(WaitLimits { all: 9, ..LIMITS });
        let room = TimelineId::Room("live://1".into());
        let until = Some(Instant::now() + Duration::from_secs(5));
        let [by_mid, by_key, stays] =
            [(1, "a"), (2, "b"), (3, "c")].map(|(mid, key)| waits.begin(id(mid), who(mid, key)).unwrap());
        let by_room = waits.begin(room, who(3, "c")).unwrap();
        let short = waits.begin(id(3), Waiter { until, ..who(3, "c") }).unwrap();
        let reason = CloseReason::Revoked;
        assert_eq!(waits.end(&EndTarget::Mids(vec![Mid(1), Mid(9)]), reason), 1);
        assert_eq!(waits.end(&EndTarget::Keys(vec!["b".into()]), reason), 1);
        assert_eq!(waits.end(&EndTarget::Room("live://1".into()), reason), 1);
        for ended in [&by_mid, &by_key, &by_room] {
            assert_eq!(ended.ending(), Some(Ending::Ordered(reason)));
            assert_eq!(ended.ended().await, Ending::Ordered(reason));
        }
        assert_eq!((stays.ending(), short.ending()), (None, None));
        assert_eq!(short.ended().await, Ending::Expired);
        assert_eq!((stays.ending(), short.ending()), (None, Some(Ending::Expired)));
        waits.drain();
        assert_eq!(stays.ended().await, Ending::Draining);
        assert_eq!(waits.begin(id(1), who(1, "a")).err(), Some(NoWait::Draining));
    }
}
