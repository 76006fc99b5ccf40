//! Invariants of a client that syncs timelines, for arbitrary server packets. The fuzz target
//! `sync` and the tests of `session` run these checks.
//!
//! Panics if an invariant does not hold.

use std::time::Duration;

use bytes::Bytes;
use goim_session::Millis;
use goim_session::timeline_sync::{Action, SyncId, SyncRules, TimelineSync};
use goim_wire::sync::{
    Ack, AckReply, Body, Message, Notify, Position, SendReply, SendRequest, SyncReply, SyncRequest,
};

const NAME: &str = "a";

/// More actions than any state has without an event from the driver.
const STEPS_MAX: usize = 64;

/// Runs all checks.
pub(crate) fn check(data: &[u8]) {
    check_bodies(&Bytes::copy_from_slice(data));
    check_sync(data);
}

/// A body that was read is the same after it is written and read again.
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

/// The application's state.
#[derive(Default)]
struct Application {
    position: Position,
    /// The request in flight.
    in_flight: Option<SyncId>,
}

impl Application {
    /// Takes over the start position, which may be known without a message.
    fn start(&mut self, sync: &TimelineSync) {
        if self.position.epoch == 0 {
            self.position = sync.positions().next().expect("one timeline").1;
        }
    }

    /// Handles all actions.
    fn take(&mut self, sync: &mut TimelineSync, now: Millis) {
        for _ in 0..STEPS_MAX {
            match sync.poll(now) {
                None => return self.start(sync),
                Some(Action::SendSync { id, request }) => {
                    assert_eq!(request.timeline, NAME);
                    self.start(sync);
                    assert_eq!(
                        request.position,
                        Some(self.position),
                        "syncs from the application's position"
                    );
                    self.in_flight = Some(id);
                }
                Some(Action::Gap { timeline, position }) => {
                    assert_eq!(timeline, NAME);
                    self.position = position;
                }
                Some(Action::Deliver { timeline, messages, position }) => {
                    assert_eq!(timeline, NAME);
                    // The first reply gives the start position of a client without one.
                    if self.position.epoch == 0 {
                        let first = messages.first().expect("never empty");
                        self.position = Position { epoch: position.epoch, seq: first.seq.wrapping_sub(1) };
                    }
                    for message in &messages {
                        let next = self.position.seq.checked_add(1);
                        assert_eq!(Some(message.seq), next, "in order, once, without gaps");
                        self.position.seq = message.seq;
                    }
                    assert_eq!(position, self.position);
                }
            }
        }
        panic!("the actions never end");
    }
}

/// A client of one timeline and the events that the bytes encode. The numbers are small, so that
/// they often match.
fn check_sync(data: &[u8]) {
    let mut sync = TimelineSync::new(SyncRules::default());
    let mut application = Application::default();
    let mut now = Millis(0);
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    if first & 1 != 0 {
        application.position = Position { epoch: u64::from(first >> 1 & 1), seq: number(first >> 2) };
    }
    sync.subscribe(NAME, application.position);
    for step in data.chunks_exact(4) {
        let [kind, a, b, c] = [step[0], step[1], step[2], step[3]];
        let (start, count) = (number(a), c & 3);
        let messages = || {
            let seqs = (0..count).map(|place| start.saturating_add(u64::from(place)).saturating_add(1));
            seqs.map(|seq| Message { seq, ..Message::default() }).collect::<Vec<_>>()
        };
        let (timeline, epoch) = (NAME.to_owned(), u64::from(c >> 2 & 1) + u64::from(c >> 3 & 1));
        match kind % 8 {
            0 => sync.connected(now, c & 1 != 0),
            1 => sync.disconnected(),
            2 | 3 => {
                let latest = Some(Position { epoch, seq: number(b) });
                sync.notified(now, Notify { timeline, latest, messages: messages() });
            }
            4 | 5 => {
                let id = if c & 16 == 0 { application.in_flight } else { None };
                let (more, gap) = (c & 32 != 0, c & 64 != 0);
                let messages = messages();
                let reply =
                    SyncReply { timeline, epoch, messages, latest: number(b), more, gap, after: start };
                sync.replied(now, id, reply);
            }
            6 => {
                if let Some(id) = application.in_flight {
                    sync.failed(now, id);
                }
            }
            _ => {
                now = now.after(Duration::from_millis(u64::from(a) * 100));
                sync.handle_timeout(now);
            }
        }
        application.take(&mut sync, now);
    }
}

/// Returns a small number, or one of the largest.
fn number(byte: u8) -> u64 {
    if byte >= 250 { u64::MAX - u64::from(255 - byte) } else { u64::from(byte & 7) }
}
