//! The client's sync loop: which sync requests are sent, which messages are delivered, in what
//! order.
//!
//! Each timeline has at most one request in flight. Notifications that are received meanwhile only
//! raise the latest known sequence; if there is more after the reply, the next request follows. The
//! driver passes every event to [`TimelineSync`] and calls [`TimelineSync::poll`] until it returns
//! `None`.
//!
//! Invariant: messages are delivered in order, once and without gaps; a gap that the server reports
//! is delivered before the messages after it. Packets may be lost, duplicated and delayed: a
//! request has an id that its reply carries, and it is sent again after a timeout.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use goim_wire::sync::{Message, Notify, Position, SyncReply, SyncRequest};

use crate::Millis;

/// Timeouts and limits of the sync loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncRules {
    /// Time to wait for a reply before the request counts as failed. Default 10 s.
    pub reply_timeout: Duration,
    /// Delay before a failed request is sent again. It doubles with every failure in a row, up to
    /// [`SyncRules::retry_delay_max`]. Default 1 s.
    pub retry_delay: Duration,
    /// Maximum of the retry delay. Default 30 s.
    pub retry_delay_max: Duration,
    /// A timeline is synced again after this time without news: a notification may have been lost.
    /// Default 5 min.
    pub resync_interval: Duration,
    /// One extra sync this long after the first reply of a connection, for notifications sent
    /// before every node had registered the client. Default 5 s.
    pub resync_after_connect: Duration,
    /// Maximum number of messages in one reply; zero leaves it to the server. Default zero.
    pub limit: u32,
}

impl Default for SyncRules {
    fn default() -> Self {
        Self {
            reply_timeout: Duration::from_secs(10),
            retry_delay: Duration::from_secs(1),
            retry_delay_max: Duration::from_secs(30),
            resync_interval: Duration::from_secs(300),
            resync_after_connect: Duration::from_secs(5),
            limit: 0,
        }
    }
}

/// The id of a sync request; its reply carries the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncId(pub u32);

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this request, and pass its reply or its failure on with this id.
    SendSync {
        /// The id.
        id: SyncId,
        /// The request.
        request: SyncRequest,
    },
    /// Deliver these messages to the application, in order.
    Deliver {
        /// The timeline.
        timeline: String,
        /// The messages, never empty.
        messages: Vec<Message>,
        /// The application's position after these messages.
        position: Position,
    },
    /// Report a gap to the application: messages between its position and this one may be missing,
    /// or the timeline was created again.
    Gap {
        /// The timeline.
        timeline: String,
        /// The position after the gap.
        position: Position,
    },
}

/// A request without a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// Sent as a packet.
    Request(SyncId),
    /// Sent as a resume position in the auth packet: the server replies without an id.
    Resume,
}

#[derive(Debug)]
struct Timeline {
    position: Position,
    /// The latest known sequence, in the epoch of `position`.
    latest: u64,
    in_flight: Option<InFlight>,
    /// A sync is needed even if no newer sequence is known: a notification named another epoch, or
    /// the resync interval has passed. If set while a request is in flight, one more follows it.
    needs_sync: bool,
    /// No reply was received on this connection yet.
    is_first_reply: bool,
    /// While a request is in flight, its timeout; otherwise the time of the retry or of the next
    /// resync.
    deadline: Millis,
    /// Failed requests in a row.
    failures: u32,
    /// Replies with a gap in a row.
    gaps: u32,
}

/// The sync loop of all timelines of one client. It outlives connections.
#[derive(Debug)]
pub struct TimelineSync {
    rules: SyncRules,
    timelines: BTreeMap<String, Timeline>,
    ready: VecDeque<Action>,
    next_id: u32,
    connected: bool,
}

impl TimelineSync {
    /// Creates a loop without timelines.
    #[must_use]
    pub fn new(rules: SyncRules) -> Self {
        Self { rules, timelines: BTreeMap::new(), ready: VecDeque::new(), next_id: 1, connected: false }
    }

    /// Subscribes to a timeline from the application's position; the default starts at the member's
    /// cursor. Does nothing if the timeline is subscribed already.
    pub fn subscribe(&mut self, timeline: impl Into<String>, position: Position) {
        let added = Timeline {
            position,
            latest: position.seq,
            in_flight: None,
            needs_sync: true,
            is_first_reply: true,
            deadline: Millis(0),
            failures: 0,
            gaps: 0,
        };
        self.timelines.entry(timeline.into()).or_insert(added);
    }

    /// Removes a timeline. Messages that are ready are still delivered.
    pub fn unsubscribe(&mut self, timeline: &str) {
        self.timelines.remove(timeline);
    }

    /// Returns the position in each timeline, for the auth packet of the next connection.
    pub fn positions(&self) -> impl Iterator<Item = (&str, Position)> {
        self.timelines.iter().map(|(name, timeline)| (name.as_str(), timeline.position))
    }

    /// Handles a new connection. If `resumed`, the positions were in the auth packet: the
    /// server then replies for each without a request.
    pub fn connected(&mut self, now: Millis, resumed: bool) {
        self.connected = true;
        let timeout = now.after(self.rules.reply_timeout);
        for timeline in self.timelines.values_mut() {
            timeline.failures = 0;
            timeline.needs_sync = !resumed;
            timeline.is_first_reply = true;
            timeline.in_flight = resumed.then_some(InFlight::Resume);
            timeline.deadline = if resumed { timeout } else { now };
        }
    }

    /// Handles the end of the connection: requests in flight get no reply.
    pub fn disconnected(&mut self) {
        self.connected = false;
        for timeline in self.timelines.values_mut() {
            timeline.in_flight = None;
        }
    }

    /// Handles a notification (operation 20): the timeline has grown or, without a timeline,
    /// notifications were lost.
    pub fn notified(&mut self, now: Millis, notify: Notify) {
        if notify.timeline.is_empty() {
            self.timelines.values_mut().for_each(|timeline| timeline.needs_sync = true);
        }
        let Some(timeline) = self.timelines.get_mut(&notify.timeline) else { return };
        let latest = notify.latest.unwrap_or_default();
        if latest.epoch != timeline.position.epoch {
            timeline.needs_sync = true;
            return;
        }
        timeline.latest = timeline.latest.max(latest.seq);
        if timeline.in_flight.is_none() && is_next(timeline.position, &notify.messages) {
            timeline.deadline = now.after(self.rules.resync_interval);
            deliver(&mut self.ready, timeline, notify.timeline, notify.messages);
        }
    }

    /// Handles a reply (operation 22); `id` is `None` for the reply to a resume position. A reply
    /// that matches no request in flight is ignored.
    pub fn replied(&mut self, now: Millis, id: Option<SyncId>, reply: SyncReply) {
        let Some(timeline) = self.timelines.get_mut(&reply.timeline) else { return };
        if timeline.in_flight != Some(id.map_or(InFlight::Resume, InFlight::Request)) {
            return;
        }
        timeline.in_flight = None;
        let resync = if core::mem::take(&mut timeline.is_first_reply) {
            self.rules.resync_after_connect
        } else {
            self.rules.resync_interval
        };
        timeline.deadline = now.after(resync);
        let start = Position { epoch: reply.epoch, seq: reply.after };
        timeline.gaps = if reply.gap { timeline.gaps.saturating_add(1).min(16) } else { 0 };
        if reply.gap {
            timeline.position = start;
            timeline.latest = reply.latest;
            self.ready.push_back(Action::Gap { timeline: reply.timeline.clone(), position: start });
        } else if timeline.position.epoch == 0 {
            timeline.position = start;
            timeline.latest = reply.latest;
        } else if timeline.position.epoch != reply.epoch {
            // Another epoch without a gap: none of our servers replies so.
            retry_now(timeline, &self.rules, now);
            return;
        }
        timeline.latest = timeline.latest.max(reply.latest);
        let fresh: Vec<Message> =
            reply.messages.into_iter().filter(|message| message.seq > timeline.position.seq).collect();
        if is_next(timeline.position, &fresh) {
            timeline.failures = 0;
            deliver(&mut self.ready, timeline, reply.timeline, fresh);
            if timeline.gaps > 1 {
                // One gap after the other: the position never advances, and requests without a
                // delay would never end.
                timeline.failures = timeline.gaps - 2;
                retry_later(timeline, &self.rules, now);
            }
        } else if !fresh.is_empty() || timeline.latest > timeline.position.seq {
            retry_now(timeline, &self.rules, now);
        } else {
            timeline.failures = 0;
        }
    }

    /// Handles a request that failed: an error packet (operation 25), or it could not be sent.
    pub fn failed(&mut self, now: Millis, id: SyncId) {
        let rules = self.rules;
        let failed = Some(InFlight::Request(id));
        if let Some(timeline) = self.timelines.values_mut().find(|timeline| timeline.in_flight == failed) {
            retry_later(timeline, &rules, now);
        }
    }

    /// Returns when [`TimelineSync::handle_timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        if !self.connected {
            return Millis::NEVER;
        }
        self.timelines.values().map(|timeline| timeline.deadline).min().unwrap_or(Millis::NEVER)
    }

    /// Handles due timeouts: retries requests without a reply, and syncs timelines without news.
    pub fn handle_timeout(&mut self, now: Millis) {
        let rules = self.rules;
        for timeline in self.timelines.values_mut().filter(|timeline| timeline.deadline <= now) {
            match timeline.in_flight {
                Some(_) => retry_later(timeline, &rules, now),
                None => timeline.needs_sync = true,
            }
        }
    }

    /// Returns the next action, or `None` if there is nothing to do now.
    pub fn poll(&mut self, now: Millis) -> Option<Action> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        if !self.connected {
            return None;
        }
        let (name, timeline) = self.timelines.iter_mut().find(|(_, timeline)| timeline.wants_sync(now))?;
        let id = SyncId(self.next_id);
        // Zero is the sequence of a reply without a request.
        self.next_id = self.next_id.checked_add(1).filter(|id| *id <= i32::MAX as u32).unwrap_or(1);
        timeline.in_flight = Some(InFlight::Request(id));
        timeline.needs_sync = false;
        timeline.deadline = now.after(self.rules.reply_timeout);
        let request = SyncRequest {
            timeline: name.clone(),
            position: Some(timeline.position),
            limit: self.rules.limit,
        };
        Some(Action::SendSync { id, request })
    }
}

impl Timeline {
    fn wants_sync(&self, now: Millis) -> bool {
        let is_behind = self.needs_sync || self.latest > self.position.seq;
        self.in_flight.is_none() && is_behind && (self.failures == 0 || self.deadline <= now)
    }
}

/// Schedules a failed request again, after the retry delay.
fn retry_later(timeline: &mut Timeline, rules: &SyncRules, now: Millis) {
    timeline.in_flight = None;
    timeline.needs_sync = true;
    let delay = rules.retry_delay.saturating_mul(1_u32.checked_shl(timeline.failures).unwrap_or(u32::MAX));
    timeline.failures = timeline.failures.saturating_add(1).min(16);
    timeline.deadline = now.after(delay.min(rules.retry_delay_max));
}

/// Schedules a request again immediately, because the reply has no next message although there is
/// one: its notification may have overtaken the reply. A second reply of this kind in a row waits
/// for the retry delay.
fn retry_now(timeline: &mut Timeline, rules: &SyncRules, now: Millis) {
    if timeline.failures > 0 {
        return retry_later(timeline, rules, now);
    }
    timeline.failures = 1;
    timeline.needs_sync = true;
    timeline.deadline = now;
}

/// Returns true if the messages follow directly on a position, without gaps.
fn is_next(position: Position, messages: &[Message]) -> bool {
    let last = messages
        .iter()
        .try_fold(position.seq, |before, message| before.checked_add(1).filter(|next| *next == message.seq));
    !messages.is_empty() && last.is_some()
}

fn deliver(ready: &mut VecDeque<Action>, timeline: &mut Timeline, name: String, messages: Vec<Message>) {
    let Some(last) = messages.last() else { return };
    timeline.position.seq = last.seq;
    timeline.latest = timeline.latest.max(last.seq);
    ready.push_back(Action::Deliver { timeline: name, position: timeline.position, messages });
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "mid://7";

    /// A server that always reports a gap, and more messages after it than it sends.
    #[test]
    fn repeated_gaps_are_retried_with_a_delay() {
        for messages in [0, 1] {
            let mut sync = TimelineSync::new(SyncRules::default());
            sync.subscribe(NAME, Position { epoch: 1, seq: 9 });
            sync.connected(Millis(0), false);
            let (mut now, mut requests) = (Millis(0), 0);
            let end = now.after(Duration::from_secs(60));
            while now < end && requests < 1_000 {
                match sync.poll(now) {
                    Some(Action::SendSync { id, request }) => {
                        requests += 1;
                        let message = Message { seq: 1, ..Message::default() };
                        let reply = SyncReply {
                            timeline: request.timeline,
                            epoch: 100 + requests,
                            latest: 50,
                            more: true,
                            gap: true,
                            after: 0,
                            messages: (0..messages).map(|_| message.clone()).collect(),
                        };
                        sync.replied(now, Some(id), reply);
                    }
                    Some(_) => {}
                    None => {
                        now = sync.deadline();
                        sync.handle_timeout(now);
                    }
                }
            }
            assert!(requests < 12, "{requests} requests in a minute, {messages} messages each");
        }
    }

    fn messages(seqs: core::ops::RangeInclusive<u64>) -> Vec<Message> {
        seqs.map(|seq| Message { seq, ..Message::default() }).collect()
    }

    fn reply(epoch: u64, after: u64, seqs: core::ops::RangeInclusive<u64>, latest: u64) -> SyncReply {
        let last = *seqs.end();
        SyncReply {
            timeline: NAME.into(),
            epoch,
            messages: messages(seqs),
            latest,
            more: last < latest,
            gap: false,
            after,
        }
    }

    fn notify(epoch: u64, seq: u64, with: core::ops::RangeInclusive<u64>) -> Notify {
        Notify { timeline: NAME.into(), latest: Some(Position { epoch, seq }), messages: messages(with) }
    }

    #[expect(clippy::reversed_empty_ranges, reason = "a range without elements")]
    const NONE: core::ops::RangeInclusive<u64> = 1..=0;

    /// A loop of one timeline at (epoch 5, 2), connected, without a request in flight.
    fn settled() -> TimelineSync {
        let mut sync = TimelineSync::new(SyncRules::default());
        sync.subscribe(NAME, Position { epoch: 5, seq: 2 });
        sync.connected(Millis(0), true);
        sync.replied(Millis(0), None, reply(5, 2, NONE, 2));
        assert_eq!(sync.poll(Millis(0)), None);
        sync
    }

    fn requested(sync: &mut TimelineSync, now: Millis) -> Option<(SyncId, u64, u64)> {
        match sync.poll(now)? {
            Action::SendSync { id, request } => {
                let position = request.position.unwrap();
                Some((id, position.epoch, position.seq))
            }
            other => panic!("{other:?}"),
        }
    }

    fn delivered(sync: &mut TimelineSync, now: Millis) -> Vec<u64> {
        match sync.poll(now) {
            Some(Action::Deliver { messages, position, .. }) => {
                let seqs: Vec<u64> = messages.iter().map(|message| message.seq).collect();
                assert_eq!(seqs.last(), Some(&position.seq));
                seqs
            }
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_request_is_in_flight_and_the_latest_notification_wins() {
        let mut sync = settled();
        let now = Millis(1000);
        sync.notified(now, notify(5, 4, NONE));
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        for seq in [5, 7, 6] {
            sync.notified(now, notify(5, seq, seq..=seq));
            assert_eq!(sync.poll(now), None, "a request is in flight");
        }
        sync.replied(now, Some(id), reply(5, 2, 3..=5, 5));
        assert_eq!(delivered(&mut sync, now), [3, 4, 5]);
        let (next, 5, 5) = requested(&mut sync, now).unwrap() else { panic!() };
        assert_ne!(next, id);
        // The reply to the first request, duplicated.
        sync.replied(now, Some(id), reply(5, 2, 3..=5, 5));
        assert_eq!(sync.poll(now), None);
        // It overlaps the delivered messages.
        sync.replied(now, Some(next), reply(5, 4, 5..=7, 7));
        assert_eq!(delivered(&mut sync, now), [6, 7]);
        assert_eq!(sync.poll(now), None);
    }

    #[test]
    fn inline_messages_are_delivered_if_they_are_next() {
        let mut sync = settled();
        let now = Millis(1000);
        sync.notified(now, notify(5, 3, 3..=3));
        assert_eq!(delivered(&mut sync, now), [3]);
        sync.notified(now, notify(5, 3, 3..=3));
        assert_eq!(sync.poll(now), None, "a duplicate");
        sync.notified(now, notify(5, 5, 5..=5));
        let (id, 5, 3) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.replied(now, Some(id), reply(5, 3, 4..=5, 5));
        assert_eq!(delivered(&mut sync, now), [4, 5]);
    }

    #[test]
    fn a_request_without_reply_is_retried_with_growing_delays() {
        let mut sync = settled();
        sync.notified(Millis(0), notify(5, 3, NONE));
        let mut now = Millis(0);
        let mut delays = Vec::new();
        for _ in 0..7 {
            assert!(requested(&mut sync, now).is_some());
            now = sync.deadline();
            sync.handle_timeout(now);
            let lost = now;
            assert_eq!(sync.poll(now), None, "not immediately");
            now = sync.deadline();
            sync.handle_timeout(now);
            delays.push(lost.until(now).as_secs());
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        let (id, ..) = requested(&mut sync, now).unwrap();
        sync.replied(now, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(delivered(&mut sync, now), [3]);
    }

    #[test]
    fn a_gap_is_delivered_before_the_messages_after_it() {
        let mut sync = settled();
        let now = Millis(0);
        // A notification of another epoch.
        sync.notified(now, notify(6, 1, 1..=1));
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.replied(now, Some(id), SyncReply { gap: true, ..reply(6, 0, 1..=2, 2) });
        let start = Position { epoch: 6, seq: 0 };
        assert_eq!(sync.poll(now), Some(Action::Gap { timeline: NAME.into(), position: start }));
        assert_eq!(delivered(&mut sync, now), [1, 2]);
        assert_eq!(sync.positions().collect::<Vec<_>>(), [(NAME, Position { epoch: 6, seq: 2 })]);
        assert_eq!(sync.poll(now), None);
    }

    #[test]
    fn a_new_device_starts_where_the_server_says() {
        let mut sync = TimelineSync::new(SyncRules::default());
        sync.subscribe(NAME, Position::default());
        sync.connected(Millis(0), false);
        let (id, 0, 0) = requested(&mut sync, Millis(0)).unwrap() else { panic!() };
        sync.replied(Millis(0), Some(id), reply(5, 40, 41..=42, 42));
        assert_eq!(delivered(&mut sync, Millis(0)), [41, 42]);
        assert_eq!(sync.poll(Millis(0)), None);
    }

    #[test]
    fn a_reply_with_missing_messages_is_ignored() {
        let mut sync = settled();
        let now = Millis(0);
        sync.notified(now, notify(5, 6, NONE));
        let (id, ..) = requested(&mut sync, now).unwrap();
        let incomplete =
            SyncReply { messages: [messages(3..=3), messages(5..=6)].concat(), ..reply(5, 2, NONE, 6) };
        sync.replied(now, Some(id), incomplete.clone());
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.replied(now, Some(id), incomplete);
        assert_eq!(sync.poll(now), None, "not a third time");
        let now = sync.deadline();
        assert_eq!(Millis(0).until(now).as_secs(), 2);
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.replied(now, Some(id), reply(5, 2, 3..=6, 6));
        assert_eq!(delivered(&mut sync, now), [3, 4, 5, 6]);
    }

    #[test]
    fn lost_notifications_sync_every_timeline() {
        let mut sync = settled();
        sync.notified(Millis(0), Notify::default());
        let (id, 5, 2) = requested(&mut sync, Millis(0)).unwrap() else { panic!() };
        sync.notified(Millis(0), Notify::default());
        assert_eq!(sync.poll(Millis(0)), None, "a request is in flight");
        // The reply may be older than the last notification.
        sync.replied(Millis(0), Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(delivered(&mut sync, Millis(0)), [3]);
        let (id, 5, 3) = requested(&mut sync, Millis(0)).unwrap() else { panic!() };
        sync.replied(Millis(0), Some(id), reply(5, 3, NONE, 3));
        assert_eq!(sync.poll(Millis(0)), None);
    }

    #[test]
    fn a_notification_that_overtakes_the_reply_is_synced_immediately() {
        let mut sync = settled();
        let now = sync.deadline();
        sync.handle_timeout(now);
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.notified(now, notify(5, 3, 3..=3));
        sync.replied(now, Some(id), reply(5, 2, NONE, 2));
        let (id, 5, 2) = requested(&mut sync, now).unwrap() else { panic!() };
        sync.replied(now, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(delivered(&mut sync, now), [3]);
    }

    #[test]
    fn a_silent_timeline_is_resynced_and_a_connection_starts_over() {
        let mut sync = settled();
        let at = sync.deadline();
        assert_eq!(
            at,
            Millis(0).after(SyncRules::default().resync_after_connect),
            "after the first reply of a connection"
        );
        sync.handle_timeout(at);
        let (id, ..) = requested(&mut sync, at).unwrap();
        sync.replied(at, Some(id), reply(5, 2, NONE, 2));
        assert_eq!(sync.deadline(), at.after(SyncRules::default().resync_interval));
        let at = sync.deadline();
        sync.handle_timeout(at);
        let (id, ..) = requested(&mut sync, at).unwrap();
        sync.disconnected();
        assert_eq!((sync.poll(at), sync.deadline()), (None, Millis::NEVER));
        sync.connected(at, true);
        sync.replied(at, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(sync.poll(at), None, "a reply of the previous connection");
        sync.replied(at, None, reply(5, 2, 3..=3, 3));
        assert_eq!(delivered(&mut sync, at), [3]);
        sync.replied(at, None, reply(5, 2, 3..=3, 3));
        assert_eq!(sync.poll(at), None, "once");
    }
}
