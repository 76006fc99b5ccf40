//! Batches of rooms on a virtual clock, mostly for one comet.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{AcceptedAt, LogPosition, Operation, Payload, PushTarget};
use goim_wire::{HEADER_LEN, batch};

use super::*;
use crate::completion::CompletionGuard;
use crate::config::InFlightConfig;
use crate::delivery::Push;

struct Check {
    rooms: Rooms,
    in_flight: Arc<InFlight>,
    start: Instant,
    offset: i64,
}

impl Check {
    fn new(config: RoomConfig) -> Self {
        let in_flight = Arc::new(InFlight::new(InFlightConfig::default()));
        let rooms = Rooms::new(config, Arc::clone(&in_flight));
        Self { rooms, in_flight, start: Instant::now(), offset: 0 }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Adds a message and returns the batches that leave immediately.
    fn add(&mut self, ms: u64, room: &str, body: &str) -> Vec<String> {
        show(self.add_for(&["a"], ms, room, body))
    }

    fn add_for(&mut self, comets: &[&str], ms: u64, room: &str, body: &str) -> Vec<Delivery> {
        let (position, body) =
            (LogPosition { partition: 0, offset: self.offset }, Bytes::from(body.to_owned()));
        let record = PushRecord {
            target: PushTarget::Room(room.into()),
            operation: Operation(1000),
            payload: Payload::plain(body),
            accepted_at: AcceptedAt(self.offset.cast_unsigned()),
        };
        let ack = Ack::new(&self.in_flight, self.in_flight.register(position, &record));
        self.offset += 1;
        let (now, mut out) = (self.at(ms), Vec::new());
        for comet in comets {
            self.rooms.add(&ServerId::from(*comet), &room.into(), &record, ack.clone(), now, &mut out);
        }
        out
    }

    fn activated(&mut self, ms: u64) -> Vec<String> {
        let (now, mut out) = (self.at(ms), Vec::new());
        self.rooms.take_activated(now, &mut out);
        show(out)
    }

    fn due(&mut self, ms: u64) -> Vec<String> {
        let (now, mut out) = (self.at(ms), Vec::new());
        self.rooms.take_due(now, &mut out);
        show(out)
    }
}

/// `room: body body …` for each batch.
fn show(batches: Vec<Delivery>) -> Vec<String> {
    let show = |batch: Delivery| {
        let Push::Room(push) = &batch.push else { panic!("not a batch: {batch:?}") };
        assert!(matches!(batch.guard, CompletionGuard::Batch(_, _)));
        let packet = push.payload.primary().expect("a packet");
        assert_eq!(packet.operation, Operation::RAW);
        let bodies: Vec<_> = batch::packets(&packet.body)
            .map(|packet| String::from_utf8(packet.expect("whole").body.to_vec()).expect("text"))
            .collect();
        assert_eq!(bodies.len(), batch.guard.records_len());
        format!("{}: {}", push.room, bodies.join(" "))
    };
    batches.into_iter().map(show).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_lone_message_leaves_immediately_and_the_idle_room_is_removed() {
    let mut check = Check::new(RoomConfig::default());
    assert_eq!(check.add(0, "r", "a"), NOTHING);
    assert_eq!(check.activated(0), ["r: a"]);
    assert_eq!(check.rooms.next_due(), Some(check.at(10)));
    assert_eq!(check.due(9), NOTHING);
    check.rooms.remove_departed(|_| false);
    assert_eq!(check.rooms.comets.len(), 1, "its interval is not over");
    assert_eq!(check.due(10), NOTHING);
    check.rooms.remove_departed(|_| false);
    assert!(check.rooms.comets.is_empty());
    assert_eq!(check.add(11, "r", "b"), NOTHING);
    assert_eq!(check.activated(11), ["r: b"]);
}

#[test]
fn messages_of_one_read_form_one_batch() {
    let mut check = Check::new(RoomConfig::default());
    for (room, body) in [("r", "1"), ("s", "x"), ("r", "2"), ("r", "3")] {
        assert_eq!(check.add(0, room, body), NOTHING);
    }
    assert_eq!(check.activated(0), ["r: 1 2 3", "s: x"]);
}

#[test]
fn a_busy_room_gathers_until_its_interval_ends() {
    let mut check = Check::new(RoomConfig::default());
    check.add(0, "r", "1");
    assert_eq!(check.activated(0), ["r: 1"]);
    for (ms, body) in [(1, "2"), (5, "3"), (9, "4")] {
        assert_eq!(check.add(ms, "r", body), NOTHING);
        assert_eq!(check.activated(ms), NOTHING);
    }
    assert_eq!(check.due(10), ["r: 2 3 4"]);
    assert_eq!(check.add(12, "r", "5"), NOTHING);
    assert_eq!(check.due(19), NOTHING);
    assert_eq!(check.due(20), ["r: 5"]);
}

#[test]
fn a_full_batch_does_not_wait_and_begins_a_new_interval() {
    let mut check = Check::new(RoomConfig {
        batch_messages_max: NonZeroUsize::new(3).expect("not zero"),
        ..RoomConfig::default()
    });
    check.add(0, "r", "1");
    check.activated(0);
    check.add(2, "r", "2");
    check.add(3, "r", "3");
    assert_eq!(check.add(4, "r", "4"), ["r: 2 3 4"]);
    assert_eq!(check.add(5, "r", "5"), NOTHING);
    assert_eq!(check.due(10), NOTHING, "the interval of the first batch is no longer valid");
    assert_eq!(check.due(14), ["r: 5"]);
}

#[test]
fn a_quiet_room_may_fill_a_batch_within_one_read() {
    let mut check = Check::new(RoomConfig {
        batch_messages_max: NonZeroUsize::new(2).expect("not zero"),
        ..RoomConfig::default()
    });
    assert_eq!(check.add(0, "r", "1"), NOTHING);
    assert_eq!(check.add(0, "r", "2"), ["r: 1 2"]);
    assert_eq!(check.add(0, "r", "3"), NOTHING);
    assert_eq!(check.activated(0), NOTHING, "it is busy now");
    assert_eq!(check.due(10), ["r: 3"]);
}

#[test]
fn bytes_are_bounded() {
    let mut check = Check::new(RoomConfig { batch_bytes_max: 2 * (HEADER_LEN + 2), ..RoomConfig::default() });
    check.add(0, "r", "aa");
    assert_eq!(check.add(0, "r", "bb"), ["r: aa bb"], "exactly full");
    check.add(1, "r", "cc");
    assert_eq!(check.add(2, "r", "ddd"), ["r: cc"], "the next message would exceed the limit");
    // A separate batch after the previous one.
    assert_eq!(check.add(3, "r", &"e".repeat(50)), ["r: ddd"]);
    assert_eq!(check.due(3), [format!("r: {}", "e".repeat(50))]);
    assert_eq!(check.due(100), NOTHING);
}

#[test]
fn a_batch_has_the_oldest_acceptance_time() {
    let mut check = Check::new(RoomConfig::default());
    check.offset = 7;
    check.add(0, "r", "1");
    check.offset = 5;
    check.add(0, "r", "2");
    let mut out = Vec::new();
    check.rooms.take_activated(check.start, &mut out);
    let Push::Room(push) = &out[0].push else { panic!("not a batch") };
    assert_eq!(push.accepted_at, Some(AcceptedAt(5)));
}

#[test]
fn take_all_takes_everything() {
    let mut check = Check::new(RoomConfig::default());
    check.add(0, "r", "1");
    check.activated(0);
    check.add(1, "r", "2");
    check.add(1, "s", "x");
    let mut out = Vec::new();
    check.rooms.take_all(&mut out);
    let mut left = show(out);
    left.sort();
    assert_eq!(left, ["r: 2", "s: x"]);
    assert_eq!(check.rooms.next_due(), None);
}

#[test]
fn messages_gather_while_a_batch_is_in_flight_and_leave_when_it_completes() {
    let mut check = Check::new(RoomConfig::default());
    assert_eq!(check.add(0, "r", "a"), NOTHING);
    let mut out = Vec::new();
    check.rooms.take_activated(check.at(0), &mut out);
    let first = out.pop().expect("leaves immediately");
    // The interval ended long ago, but the comet is slow.
    assert_eq!(check.add(5, "r", "b"), NOTHING);
    assert_eq!(check.due(50), NOTHING);
    assert_eq!(check.add(60, "r", "c"), NOTHING);
    assert_eq!(check.activated(60), NOTHING);
    assert!(check.rooms.has_capacity(|_| false));
    drop(first);
    assert_eq!(check.due(61), ["r: b c"]);
    // Nothing arrived since: the room is removed at the end of its interval, and idle again.
    assert_eq!(check.due(100), NOTHING);
    assert_eq!(check.add(101, "r", "d"), NOTHING);
    assert_eq!(check.activated(101), ["r: d"]);
}

#[test]
fn full_batches_wait_for_earlier_ones_and_stop_the_reader() {
    let two = NonZeroUsize::new(2).expect("two");
    let mut check = Check::new(RoomConfig { batch_messages_max: two, ..RoomConfig::default() });
    let mut out = Vec::new();
    for body in ["a", "b", "c", "d", "e"] {
        out.extend(check.add_for(&["a"], 0, "r", body));
    }
    let first = out.pop().expect("the first two leave");
    assert!(out.is_empty() && !check.rooms.has_capacity(|_| false));
    assert!(
        check.rooms.has_capacity(|server| server.as_str() == "a"),
        "a slow comet does not stop the reader"
    );
    drop(first);
    assert_eq!(check.due(1), ["r: c d"]);
    assert!(check.rooms.has_capacity(|_| false));
    assert_eq!(check.due(20), ["r: e"]);
}

#[test]
fn a_comet_that_hangs_does_not_delay_another() {
    let two = NonZeroUsize::new(2).expect("two");
    let mut check = Check::new(RoomConfig { batch_messages_max: two, ..RoomConfig::default() });
    let (mut hung, mut taken) = (Vec::new(), Vec::new());
    let mut sort = |batches: Vec<Delivery>| {
        for batch in batches {
            if batch.server.as_str() == "hung" {
                hung.push(batch);
            } else {
                taken.extend(show(vec![batch]));
            }
        }
    };
    for n in 0..FULL_BATCHES_MAX * 2 + 2 {
        assert!(check.rooms.has_capacity(|_| false), "at {n}");
        let ms = n as u64;
        sort(check.add_for(&["hung", "well"], ms, "r", &n.to_string()));
        let (now, mut due) = (check.at(ms), Vec::new());
        check.rooms.take_due(now, &mut due);
        sort(due);
    }
    assert_eq!(taken.len(), FULL_BATCHES_MAX + 1);
    assert!(
        !check.rooms.has_capacity(|_| false) && check.rooms.has_capacity(|server| server.as_str() == "hung")
    );
    assert_eq!(show(hung), ["r: 0 1"]);
}
