//! Pushes that are queued on their receivers and not yet flushed.
//!
//! Owns when each completes. While a push is in flight it holds its part of the inbox's bound,
//! which is how a publisher is slowed down to the pace of the sockets.

use std::collections::VecDeque;

use goim_ports::AcceptedAt;
use goim_session::Millis;

use crate::connection::ConnectionId;
use crate::inbox::Sends;

/// A push in flight.
#[derive(Debug)]
pub(super) struct InFlightPush {
    /// Count of sessions that have left the flush queue once all receivers of this push have.
    pub(super) passed: u64,
    pub(super) began: Millis,
    pub(super) accepted_at: Option<AcceptedAt>,
    /// The last receiver, when all that took the push lagged at that time.
    pub(super) lagging: Option<ConnectionId>,
    /// Given back to the inbox when dropped.
    pub(super) _sends: Sends,
}

/// All pushes in flight of one shard.
#[derive(Debug, Default)]
pub(super) struct InFlightPushes {
    /// Those whose receivers are in the flush queue, oldest first.
    queued: VecDeque<InFlightPush>,
    /// Those whose receivers are flushed at the end of this turn.
    urgent: Vec<InFlightPush>,
    /// Urgent ones of earlier turns whose receivers still lag, oldest first.
    lagging: VecDeque<InFlightPush>,
}

impl InFlightPushes {
    pub(super) fn add_urgent(&mut self, push: InFlightPush) {
        self.urgent.push(push);
    }

    pub(super) fn add_queued(&mut self, push: InFlightPush) {
        self.queued.push_back(push);
    }

    /// True when nothing is in flight beyond the current turn.
    pub(super) fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.lagging.is_empty()
    }

    /// Completes the urgent pushes, which were flushed this turn, and calls `completed` for each.
    /// Those that `is_lagging` holds for stay in flight: a publisher that sends faster than its
    /// receivers read must wait, or their queues would overflow.
    pub(super) fn complete_urgent(
        &mut self,
        is_lagging: impl Fn(&InFlightPush) -> bool,
        completed: impl Fn(Option<AcceptedAt>),
    ) {
        while let Some(push) = self.lagging.pop_front_if(|push| !is_lagging(push)) {
            completed(push.accepted_at);
        }
        for push in self.urgent.drain(..) {
            if is_lagging(&push) {
                self.lagging.push_back(push);
            } else {
                completed(push.accepted_at);
            }
        }
    }

    /// Completes the queued pushes whose receivers have all left the flush queue, and calls
    /// `completed` for each. Stops at one that is held up.
    pub(super) fn complete_queued(
        &mut self,
        passed: u64,
        is_held_up: impl Fn(&InFlightPush) -> bool,
        completed: impl Fn(Option<AcceptedAt>),
    ) {
        while let Some(push) = self.queued.pop_front_if(|push| push.passed <= passed && !is_held_up(push)) {
            completed(push.accepted_at);
        }
    }

    /// Frees the memory of the lists that are empty.
    pub(super) fn release_memory(&mut self) {
        self.queued.shrink_to_fit();
        self.urgent.shrink_to_fit();
        self.lagging.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn push(number: u64, passed: u64) -> InFlightPush {
        InFlightPush {
            passed,
            began: Millis(number),
            accepted_at: Some(AcceptedAt(number)),
            lagging: None,
            _sends: Sends::for_test(),
        }
    }

    /// Collects the numbers of the pushes that `complete` completes.
    fn completed(complete: impl FnOnce(&dyn Fn(Option<AcceptedAt>))) -> Vec<u64> {
        let numbers = RefCell::new(Vec::new());
        complete(&|accepted_at| numbers.borrow_mut().push(accepted_at.unwrap().0));
        numbers.into_inner()
    }

    #[test]
    fn a_queued_push_completes_when_its_last_receiver_has_left_the_queue() {
        let mut pushes = InFlightPushes::default();
        for (number, passed) in [(1, 10), (2, 10), (3, 20)] {
            pushes.add_queued(push(number, passed));
        }
        assert!(!pushes.is_empty());
        let mut at = |passed| completed(|done| pushes.complete_queued(passed, |_| false, done));
        assert_eq!(at(9), [0_u64; 0]);
        assert_eq!(at(10), [1, 2]);
        assert_eq!(at(25), [3]);
        assert!(pushes.is_empty());
    }

    #[test]
    fn a_held_up_push_holds_up_those_after_it() {
        let mut pushes = InFlightPushes::default();
        for number in [1, 2, 3] {
            pushes.add_queued(push(number, 1));
        }
        let is_second = |push: &InFlightPush| push.began == Millis(2);
        assert_eq!(completed(|done| pushes.complete_queued(1, is_second, done)), [1]);
        assert_eq!(completed(|done| pushes.complete_queued(1, |_| false, done)), [2, 3]);
    }

    #[test]
    fn an_urgent_push_completes_in_its_turn_unless_its_receivers_lag() {
        let mut pushes = InFlightPushes::default();
        for number in [1, 2, 3] {
            pushes.add_urgent(push(number, 0));
        }
        // Flushed in this turn: nothing remains to be checked later.
        assert!(pushes.is_empty());
        let lags = |push: &InFlightPush| push.began != Millis(2);
        assert_eq!(completed(|done| pushes.complete_urgent(lags, done)), [2]);
        assert!(!pushes.is_empty());
        pushes.add_urgent(push(4, 0));
        // Those of earlier turns complete first, and in order.
        let lags = |push: &InFlightPush| push.began == Millis(3);
        assert_eq!(completed(|done| pushes.complete_urgent(lags, done)), [1, 4]);
        assert_eq!(completed(|done| pushes.complete_urgent(|_| false, done)), [3]);
        assert!(pushes.is_empty());
    }
}
