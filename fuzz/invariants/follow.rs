//! What must hold of a client that follows timelines, whatever a server tells it. The fuzz target `sync` feeds these checks, and so do the
//! tests of `session`, so that they are made even where nobody fuzzes.
//!
//! Panics when something does not hold.

use std::time::Duration;

use bytes::Bytes;
use goim_session::Moment;
use goim_session::follow::{AskId, Follow, FollowRules, Follower};
use goim_wire::sync::{
    Ack, AckReply, Body, Message, Notify, Position, SendReply, SendRequest, SyncReply, SyncRequest,
};

const NAME: &str = "a";

/// More steps without an event from outside than any state has to do.
const STEPS_MAX: usize = 64;

/// Makes all checks.
pub(crate) fn check(data: &[u8]) {
    check_bodies(&Bytes::copy_from_slice(data));
    check_following(data);
}

/// What was read is written and read again to the same.
fn check_bodies(data: &Bytes) {
    fn of<B: Body + PartialEq + std::fmt::Debug>(data: &Bytes) {
        if let Some(read) = B::read(data.clone()) {
            assert_eq!(B::read(read.write().into()), Some(read));
        }
    }
    of::<Position>(data);
    of::<Message>(data);
    of::<Notify>(data);
    of::<SyncRequest>(data);
    of::<SyncReply>(data);
    of::<Ack>(data);
    of::<AckReply>(data);
    of::<SendRequest>(data);
    of::<SendReply>(data);
}

/// What the application knows.
#[derive(Default)]
struct Application {
    position: Position,
    /// The question that is out.
    asked: Option<AskId>,
}

impl Application {
    /// Where it begins it may have learned without a message.
    fn begin(&mut self, follower: &Follower) {
        if self.position.epoch == 0 {
            self.position = follower.positions().next().expect("follows one").1;
        }
    }

    /// Takes whatever there is to do.
    fn take(&mut self, follower: &mut Follower, now: Moment) {
        for _ in 0..STEPS_MAX {
            match follower.poll(now) {
                None => return self.begin(follower),
                Some(Follow::Ask { id, request }) => {
                    assert_eq!(request.timeline, NAME);
                    self.begin(follower);
                    assert_eq!(request.position, Some(self.position), "asks from where it is");
                    self.asked = Some(id);
                }
                Some(Follow::Gap { timeline, position }) => {
                    assert_eq!(timeline, NAME);
                    self.position = position;
                }
                Some(Follow::Give { timeline, messages, position }) => {
                    assert_eq!(timeline, NAME);
                    // The first answer of all says where a client without a position begins.
                    if self.position.epoch == 0 {
                        let first = messages.first().expect("never empty");
                        self.position = Position { epoch: position.epoch, seq: first.seq.wrapping_sub(1) };
                    }
                    for message in &messages {
                        let next = self.position.seq.checked_add(1);
                        assert_eq!(Some(message.seq), next, "in order, once, without holes");
                        self.position.seq = message.seq;
                    }
                    assert_eq!(position, self.position);
                }
            }
        }
        panic!("goes on and on by itself");
    }
}

/// A client of one timeline, told what the bytes say: small numbers, so that they often fit.
fn check_following(data: &[u8]) {
    let mut follower = Follower::new(FollowRules::default());
    let mut application = Application::default();
    let mut now = Moment(0);
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    if first & 1 != 0 {
        application.position = Position { epoch: u64::from(first >> 1 & 1), seq: number(first >> 2) };
    }
    follower.follow(NAME, application.position);
    for step in data.chunks_exact(4) {
        let [kind, a, b, c] = [step[0], step[1], step[2], step[3]];
        let (start, count) = (number(a), c & 3);
        let messages = || {
            let seqs = (0..count).map(|place| start.saturating_add(u64::from(place)).saturating_add(1));
            seqs.map(|seq| Message { seq, ..Message::default() }).collect::<Vec<_>>()
        };
        let (timeline, epoch) = (NAME.to_owned(), u64::from(c >> 2 & 1) + u64::from(c >> 3 & 1));
        match kind % 8 {
            0 => follower.connected(now, c & 1 != 0),
            1 => follower.disconnected(),
            2 | 3 => {
                let latest = Some(Position { epoch, seq: number(b) });
                follower.notified(now, Notify { timeline, latest, messages: messages() });
            }
            4 | 5 => {
                let id = if c & 16 == 0 { application.asked } else { None };
                let (more, reset) = (c & 32 != 0, c & 64 != 0);
                let messages = messages();
                let reply = SyncReply {
                    timeline,
                    epoch,
                    messages,
                    latest: number(b),
                    more,
                    gap: reset,
                    after: start,
                };
                follower.replied(now, id, reply);
            }
            6 => {
                if let Some(id) = application.asked {
                    follower.failed(now, id);
                }
            }
            _ => {
                now = now.after(Duration::from_millis(u64::from(a) * 100));
                follower.handle_timeout(now);
            }
        }
        application.take(&mut follower, now);
    }
}

/// Small ones, and the largest.
fn number(byte: u8) -> u64 {
    if byte >= 250 { u64::MAX - u64::from(255 - byte) } else { u64::from(byte & 7) }
}
