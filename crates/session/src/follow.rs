//! The client's loop of timelines: what is asked for, what is given to the application, in what order.
//!
//! For each timeline that is followed there is one question at a time. While it is out, words of newer messages only raise what is known to
//! be there; when the answer is there, and more is known, the next question follows. Messages are given in order and once: what is behind
//! the position already is passed over, and what does not follow on it directly is not taken but asked for. A hole that the server
//! announces is told to the application before anything behind it.
//!
//! The driver passes on what comes and goes, and asks [`Follower::poll`] until there is nothing left to do. Packets may be lost, doubled and
//! delayed: a question has a mark that its answer carries, and one that stays without an answer is asked again.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use goim_wire::sync::{Message, Notify, Position, SyncReply, SyncRequest};

use crate::Moment;

/// How timelines are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowRules {
    /// A question is asked again when no answer has come for so long. Default 10 s.
    pub answer_timeout: Duration,
    /// The pause before a question is asked again that has failed; each next one is twice as long, up to [`FollowRules::pause_max`].
    /// Default 1 s.
    pub pause: Duration,
    /// The longest pause. Default 30 s.
    pub pause_max: Duration,
    /// A timeline of which nothing was heard for so long is asked for: a word of it may have been lost. Default 5 min.
    pub look_again: Duration,
    /// The same, once, behind the first answer of a connection: parts of a cluster may learn only now that the client is there, and what
    /// they had to say meanwhile has not come. Default 5 s.
    pub look_soon: Duration,
    /// Messages of one answer at most; zero: as many as the server gives, the default.
    pub limit: u32,
}

impl Default for FollowRules {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(10),
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            look_again: Duration::from_secs(300),
            look_soon: Duration::from_secs(5),
            limit: 0,
        }
    }
}

/// Marks a question; its answer carries the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u32);

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Follow {
    /// Send this question, and pass its answer, or its failure, on with this mark.
    Ask {
        /// The mark.
        id: AskId,
        /// The question.
        request: SyncRequest,
    },
    /// Give these messages to the application, in order. When it has them, `position` is where it is.
    Give {
        /// Of which timeline.
        timeline: String,
        /// What came, never empty.
        messages: Vec<Message>,
        /// The place of the last.
        position: Position,
    },
    /// Tell the application that there may be a hole: what follows begins behind `position`, and what it has may be of another life of the
    /// timeline.
    Gap {
        /// Which timeline.
        timeline: String,
        /// Where it goes on.
        position: Position,
    },
}

/// A question that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// By a packet of ours.
    By(AskId),
    /// By the position in the token: the server answers without a mark.
    Token,
}

#[derive(Debug)]
struct Timeline {
    position: Position,
    /// The newest sequence that is known to be there, of the epoch of `position`.
    newest: u64,
    asked: Option<Asked>,
    /// Whatever is known, it must be asked: the word was of another life of the timeline, or it is time to look. Set while a question is
    /// out: once more behind it.
    must_ask: bool,
    /// Nothing was answered on this connection.
    is_new: bool,
    /// Answer timeout while a question is out; else when it may be asked again, or is to be looked at.
    at: Moment,
    /// Questions that have failed in a row.
    failures: u32,
    /// Holes that were announced in a row.
    resets: u32,
}

/// The loop for all timelines of one client. It outlives connections.
#[derive(Debug)]
pub struct Follower {
    rules: FollowRules,
    timelines: BTreeMap<String, Timeline>,
    ready: VecDeque<Follow>,
    next_id: u32,
    connected: bool,
}

impl Follower {
    /// A loop that follows nothing yet.
    #[must_use]
    pub fn new(rules: FollowRules) -> Self {
        Self { rules, timelines: BTreeMap::new(), ready: VecDeque::new(), next_id: 1, connected: false }
    }

    /// Follows a timeline from what the application has of it; the default begins at the member's cursor. One that is followed already
    /// stays as it is.
    pub fn follow(&mut self, timeline: impl Into<String>, position: Position) {
        let begun = Timeline {
            position,
            newest: position.seq,
            asked: None,
            must_ask: true,
            is_new: true,
            at: Moment(0),
            failures: 0,
            resets: 0,
        };
        self.timelines.entry(timeline.into()).or_insert(begun);
    }

    /// Follows a timeline no longer. What was ready for the application is still given.
    pub fn leave(&mut self, timeline: &str) {
        self.timelines.remove(timeline);
    }

    /// Where the client is in each timeline: for the token of the next connection.
    pub fn positions(&self) -> impl Iterator<Item = (&str, Position)> {
        self.timelines.iter().map(|(name, timeline)| (name.as_str(), timeline.position))
    }

    /// There is a connection. `in_token` says that the positions were in its token: the server answers them without being asked.
    pub fn connected(&mut self, now: Moment, in_token: bool) {
        self.connected = true;
        let timeout = now.after(self.rules.answer_timeout);
        for timeline in self.timelines.values_mut() {
            timeline.failures = 0;
            timeline.must_ask = !in_token;
            timeline.is_new = true;
            timeline.asked = in_token.then_some(Asked::Token);
            timeline.at = if in_token { timeout } else { now };
        }
    }

    /// The connection has ended: what was asked is not answered any more.
    pub fn disconnected(&mut self) {
        self.connected = false;
        for timeline in self.timelines.values_mut() {
            timeline.asked = None;
        }
    }

    /// A word that a timeline has grown, or, when it names none, that words were lost (operation 20).
    pub fn notified(&mut self, now: Moment, notify: Notify) {
        if notify.timeline.is_empty() {
            self.timelines.values_mut().for_each(|timeline| timeline.must_ask = true);
        }
        let Some(timeline) = self.timelines.get_mut(&notify.timeline) else { return };
        let latest = notify.latest.unwrap_or_default();
        if latest.epoch != timeline.position.epoch {
            timeline.must_ask = true;
            return;
        }
        timeline.newest = timeline.newest.max(latest.seq);
        if timeline.asked.is_none() && follows(timeline.position, &notify.messages) {
            let heard = now.after(self.rules.look_again);
            give(&mut self.ready, timeline, notify.timeline, notify.messages);
            timeline.at = heard;
        }
    }

    /// The answer to a question (operation 22); `id` is `None` for one that was not asked by a packet. What answers no question that is
    /// out is passed over.
    pub fn replied(&mut self, now: Moment, id: Option<AskId>, reply: SyncReply) {
        let Some(timeline) = self.timelines.get_mut(&reply.timeline) else { return };
        if timeline.asked != Some(id.map_or(Asked::Token, Asked::By)) {
            return;
        }
        timeline.asked = None;
        let look =
            if core::mem::take(&mut timeline.is_new) { self.rules.look_soon } else { self.rules.look_again };
        timeline.at = now.after(look);
        let start = Position { epoch: reply.epoch, seq: reply.after };
        timeline.resets = if reply.gap { timeline.resets.saturating_add(1).min(16) } else { 0 };
        if reply.gap {
            timeline.position = start;
            timeline.newest = reply.latest;
            self.ready.push_back(Follow::Gap { timeline: reply.timeline.clone(), position: start });
        } else if timeline.position.epoch == 0 {
            timeline.position = start;
            timeline.newest = reply.latest;
        } else if timeline.position.epoch != reply.epoch {
            // Of another life, and nothing said of it. No server of ours does so.
            doubt(timeline, &self.rules, now);
            return;
        }
        timeline.newest = timeline.newest.max(reply.latest);
        let fresh: Vec<Message> =
            reply.messages.into_iter().filter(|message| message.seq > timeline.position.seq).collect();
        if follows(timeline.position, &fresh) {
            timeline.failures = 0;
            give(&mut self.ready, timeline, reply.timeline, fresh);
            if timeline.resets > 1 {
                // One hole after the other: what is given is never got on with, and asking at once would go on for ever.
                timeline.failures = timeline.resets - 2;
                fail(timeline, &self.rules, now);
            }
        } else if !fresh.is_empty() || timeline.newest > timeline.position.seq {
            doubt(timeline, &self.rules, now);
        } else {
            timeline.failures = 0;
        }
    }

    /// A question has failed (operation 25, or it could not be sent).
    pub fn failed(&mut self, now: Moment, id: AskId) {
        let rules = self.rules;
        let asked = self.timelines.values_mut().find(|timeline| timeline.asked == Some(Asked::By(id)));
        if let Some(timeline) = asked {
            fail(timeline, &rules, now);
        }
    }

    /// When [`Follower::handle_timeout`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        if !self.connected {
            return Moment::NEVER;
        }
        self.timelines.values().map(|timeline| timeline.at).min().unwrap_or(Moment::NEVER)
    }

    /// Asks again what was not answered, and looks where nothing was heard for long.
    pub fn handle_timeout(&mut self, now: Moment) {
        let rules = self.rules;
        for timeline in self.timelines.values_mut().filter(|timeline| timeline.at <= now) {
            match timeline.asked {
                Some(_) => fail(timeline, &rules, now),
                None => timeline.must_ask = true,
            }
        }
    }

    /// What is to be done next.
    pub fn poll(&mut self, now: Moment) -> Option<Follow> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        if !self.connected {
            return None;
        }
        let (name, timeline) = self.timelines.iter_mut().find(|(_, timeline)| timeline.wants_to_ask(now))?;
        let id = AskId(self.next_id);
        // Zero marks what was not asked for.
        self.next_id = self.next_id.checked_add(1).filter(|id| *id <= i32::MAX as u32).unwrap_or(1);
        timeline.asked = Some(Asked::By(id));
        timeline.must_ask = false;
        timeline.at = now.after(self.rules.answer_timeout);
        let request = SyncRequest {
            timeline: name.clone(),
            position: Some(timeline.position),
            limit: self.rules.limit,
        };
        Some(Follow::Ask { id, request })
    }
}

impl Timeline {
    fn wants_to_ask(&self, now: Moment) -> bool {
        let knows_more = self.must_ask || self.newest > self.position.seq;
        self.asked.is_none() && knows_more && (self.failures == 0 || self.at <= now)
    }
}

/// A question that came to nothing: it is asked again after a pause.
fn fail(timeline: &mut Timeline, rules: &FollowRules, now: Moment) {
    timeline.asked = None;
    timeline.must_ask = true;
    let pause = rules.pause.saturating_mul(1_u32.checked_shl(timeline.failures).unwrap_or(u32::MAX));
    timeline.failures = timeline.failures.saturating_add(1).min(16);
    timeline.at = now.after(pause.min(rules.pause_max));
}

/// Nothing came that follows, and something is there. The word of it may have overtaken the answer: the question is asked again at once,
/// but then not again and again.
fn doubt(timeline: &mut Timeline, rules: &FollowRules, now: Moment) {
    if timeline.failures > 0 {
        return fail(timeline, rules, now);
    }
    timeline.failures = 1;
    timeline.must_ask = true;
    timeline.at = now;
}

/// True for messages that follow directly on a position, without holes.
fn follows(position: Position, messages: &[Message]) -> bool {
    let last = messages
        .iter()
        .try_fold(position.seq, |before, message| before.checked_add(1).filter(|next| *next == message.seq));
    !messages.is_empty() && last.is_some()
}

fn give(ready: &mut VecDeque<Follow>, timeline: &mut Timeline, name: String, messages: Vec<Message>) {
    let Some(last) = messages.last() else { return };
    timeline.position.seq = last.seq;
    timeline.newest = timeline.newest.max(last.seq);
    ready.push_back(Follow::Give { timeline: name, position: timeline.position, messages });
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "mid://7";

    /// A server that always announces a hole, and more behind it than it gives.
    #[test]
    fn one_hole_after_the_other_is_not_asked_for_without_a_pause() {
        for messages in [0, 1] {
            let mut follower = Follower::new(FollowRules::default());
            follower.follow(NAME, Position { epoch: 1, seq: 9 });
            follower.connected(Moment(0), false);
            let (mut now, mut asked) = (Moment(0), 0);
            let end = now.after(Duration::from_secs(60));
            while now < end && asked < 1_000 {
                match follower.poll(now) {
                    Some(Follow::Ask { id, request }) => {
                        asked += 1;
                        let message = Message { seq: 1, ..Message::default() };
                        let reply = SyncReply {
                            timeline: request.timeline,
                            epoch: 100 + asked,
                            latest: 50,
                            more: true,
                            gap: true,
                            after: 0,
                            messages: (0..messages).map(|_| message.clone()).collect(),
                        };
                        follower.replied(now, Some(id), reply);
                    }
                    Some(_) => {}
                    None => {
                        now = follower.deadline();
                        follower.handle_timeout(now);
                    }
                }
            }
            assert!(asked < 12, "{asked} questions in a minute, {messages} messages each");
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

    /// A follower of one timeline that is at (epoch 5, 2), connected, with nothing out.
    fn settled() -> Follower {
        let mut follower = Follower::new(FollowRules::default());
        follower.follow(NAME, Position { epoch: 5, seq: 2 });
        follower.connected(Moment(0), true);
        follower.replied(Moment(0), None, reply(5, 2, NONE, 2));
        assert_eq!(follower.poll(Moment(0)), None);
        follower
    }

    fn asked(follower: &mut Follower, now: Moment) -> Option<(AskId, u64, u64)> {
        match follower.poll(now)? {
            Follow::Ask { id, request } => {
                let position = request.position.unwrap();
                Some((id, position.epoch, position.seq))
            }
            other => panic!("{other:?}"),
        }
    }

    fn given(follower: &mut Follower, now: Moment) -> Vec<u64> {
        match follower.poll(now) {
            Some(Follow::Give { messages, position, .. }) => {
                let seqs: Vec<u64> = messages.iter().map(|message| message.seq).collect();
                assert_eq!(seqs.last(), Some(&position.seq));
                seqs
            }
            None => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_question_at_a_time_and_the_newest_word_wins() {
        let mut follower = settled();
        let now = Moment(1000);
        follower.notified(now, notify(5, 4, NONE));
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        for seq in [5, 7, 6] {
            follower.notified(now, notify(5, seq, seq..=seq));
            assert_eq!(follower.poll(now), None, "a question is out");
        }
        follower.replied(now, Some(id), reply(5, 2, 3..=5, 5));
        assert_eq!(given(&mut follower, now), [3, 4, 5]);
        let (next, 5, 5) = asked(&mut follower, now).unwrap() else { panic!() };
        assert_ne!(next, id);
        // The answer to the first, once more.
        follower.replied(now, Some(id), reply(5, 2, 3..=5, 5));
        assert_eq!(follower.poll(now), None);
        // It overlaps what the client has.
        follower.replied(now, Some(next), reply(5, 4, 5..=7, 7));
        assert_eq!(given(&mut follower, now), [6, 7]);
        assert_eq!(follower.poll(now), None);
    }

    #[test]
    fn messages_that_come_with_the_word_are_taken_when_they_follow_directly() {
        let mut follower = settled();
        let now = Moment(1000);
        follower.notified(now, notify(5, 3, 3..=3));
        assert_eq!(given(&mut follower, now), [3]);
        follower.notified(now, notify(5, 3, 3..=3));
        assert_eq!(follower.poll(now), None, "it has it");
        follower.notified(now, notify(5, 5, 5..=5));
        let (id, 5, 3) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.replied(now, Some(id), reply(5, 3, 4..=5, 5));
        assert_eq!(given(&mut follower, now), [4, 5]);
    }

    #[test]
    fn what_stays_without_an_answer_is_asked_again_after_growing_pauses() {
        let mut follower = settled();
        follower.notified(Moment(0), notify(5, 3, NONE));
        let mut now = Moment(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(asked(&mut follower, now).is_some());
            now = follower.deadline();
            follower.handle_timeout(now);
            let lost = now;
            assert_eq!(follower.poll(now), None, "not at once");
            now = follower.deadline();
            follower.handle_timeout(now);
            pauses.push(lost.until(now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        let (id, ..) = asked(&mut follower, now).unwrap();
        follower.replied(now, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(given(&mut follower, now), [3]);
    }

    #[test]
    fn a_hole_is_told_before_what_is_behind_it() {
        let mut follower = settled();
        let now = Moment(0);
        // A word of another life.
        follower.notified(now, notify(6, 1, 1..=1));
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.replied(now, Some(id), SyncReply { gap: true, ..reply(6, 0, 1..=2, 2) });
        let start = Position { epoch: 6, seq: 0 };
        assert_eq!(follower.poll(now), Some(Follow::Gap { timeline: NAME.into(), position: start }));
        assert_eq!(given(&mut follower, now), [1, 2]);
        assert_eq!(follower.positions().collect::<Vec<_>>(), [(NAME, Position { epoch: 6, seq: 2 })]);
        assert_eq!(follower.poll(now), None);
    }

    #[test]
    fn a_new_device_begins_where_the_server_says() {
        let mut follower = Follower::new(FollowRules::default());
        follower.follow(NAME, Position::default());
        follower.connected(Moment(0), false);
        let (id, 0, 0) = asked(&mut follower, Moment(0)).unwrap() else { panic!() };
        follower.replied(Moment(0), Some(id), reply(5, 40, 41..=42, 42));
        assert_eq!(given(&mut follower, Moment(0)), [41, 42]);
        assert_eq!(follower.poll(Moment(0)), None);
    }

    #[test]
    fn an_answer_with_a_hole_in_it_is_not_taken() {
        let mut follower = settled();
        let now = Moment(0);
        follower.notified(now, notify(5, 6, NONE));
        let (id, ..) = asked(&mut follower, now).unwrap();
        let holed =
            SyncReply { messages: [messages(3..=3), messages(5..=6)].concat(), ..reply(5, 2, NONE, 6) };
        follower.replied(now, Some(id), holed.clone());
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.replied(now, Some(id), holed);
        assert_eq!(follower.poll(now), None, "not again and again");
        let now = follower.deadline();
        assert_eq!(Moment(0).until(now).as_secs(), 2);
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.replied(now, Some(id), reply(5, 2, 3..=6, 6));
        assert_eq!(given(&mut follower, now), [3, 4, 5, 6]);
    }

    #[test]
    fn where_words_were_lost_everything_is_looked_at() {
        let mut follower = settled();
        follower.notified(Moment(0), Notify::default());
        let (id, 5, 2) = asked(&mut follower, Moment(0)).unwrap() else { panic!() };
        follower.notified(Moment(0), Notify::default());
        assert_eq!(follower.poll(Moment(0)), None, "a question is out");
        // It may have been answered before the last of them.
        follower.replied(Moment(0), Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(given(&mut follower, Moment(0)), [3]);
        let (id, 5, 3) = asked(&mut follower, Moment(0)).unwrap() else { panic!() };
        follower.replied(Moment(0), Some(id), reply(5, 3, NONE, 3));
        assert_eq!(follower.poll(Moment(0)), None);
    }

    #[test]
    fn a_word_that_overtakes_the_answer_is_asked_for_at_once() {
        let mut follower = settled();
        let now = follower.deadline();
        follower.handle_timeout(now);
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.notified(now, notify(5, 3, 3..=3));
        follower.replied(now, Some(id), reply(5, 2, NONE, 2));
        let (id, 5, 2) = asked(&mut follower, now).unwrap() else { panic!() };
        follower.replied(now, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(given(&mut follower, now), [3]);
    }

    #[test]
    fn what_is_silent_is_looked_at_and_connections_begin_anew() {
        let mut follower = settled();
        let at = follower.deadline();
        assert_eq!(
            at,
            Moment(0).after(FollowRules::default().look_soon),
            "behind the first answer of a connection"
        );
        follower.handle_timeout(at);
        let (id, ..) = asked(&mut follower, at).unwrap();
        follower.replied(at, Some(id), reply(5, 2, NONE, 2));
        assert_eq!(follower.deadline(), at.after(FollowRules::default().look_again));
        let at = follower.deadline();
        follower.handle_timeout(at);
        let (id, ..) = asked(&mut follower, at).unwrap();
        follower.disconnected();
        assert_eq!((follower.poll(at), follower.deadline()), (None, Moment::NEVER));
        follower.connected(at, true);
        follower.replied(at, Some(id), reply(5, 2, 3..=3, 3));
        assert_eq!(follower.poll(at), None, "that was another connection's");
        follower.replied(at, None, reply(5, 2, 3..=3, 3));
        assert_eq!(given(&mut follower, at), [3]);
        follower.replied(at, None, reply(5, 2, 3..=3, 3));
        assert_eq!(follower.poll(at), None, "once");
    }
}
