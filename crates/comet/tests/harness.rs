//! The harness does what a server does: packets and calls of the port become writes, to the right
//! sessions and to no others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_comet::Config;
use goim_comet::harness::{Harness, Opened, Written};
use goim_ports::{
    Accepted, Broadcast, Call, ConnectError, ConnectRequest, KeyPush, LogicError, LogicPort, Mid,
    OnlineReport, OnlineTotals, Operation, PacketBuf, Payload, RoomPush, SessionRef, Upstream,
};

/// Accepts every token but `no` as a key.
struct AcceptAll;

impl LogicPort for AcceptAll {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let key = String::from_utf8_lossy(&request.token).into_owned();
        if key == "no" {
            return Call::Ready(Err(ConnectError::refused("as asked")));
        }
        let accepts = vec![Operation(1000)];
        let heartbeat = Duration::from_secs(60);
        Call::Ready(Ok(Accepted {
            mid: Mid(1),
            key: key.into(),
            room: None,
            accepts,
            heartbeat,
            rooms: Vec::new(),
            scope: None,
            expires_at: None,
            protover: None,
            syncing: None,
        }))
    }

    fn disconnect(&self, _: SessionRef) -> Call<Result<bool, LogicError>> {
        Call::Ready(Ok(true))
    }

    fn heartbeat(&self, _: SessionRef) -> Call<Result<(), LogicError>> {
        Call::Ready(Ok(()))
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        Call::Ready(Ok(OnlineTotals { rooms: report.rooms, generation: None }))
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        Call::Ready(Ok(upstream.packet.body))
    }
}

fn start() -> Harness {
    Harness::new(Config::default(), Arc::new(AcceptAll)).expect("a harness can be made")
}

fn open(harness: &mut Harness, key: &str) -> Opened {
    let from = SocketAddr::from(([127, 0, 0, 1], 1));
    harness.open(from, key.as_bytes()).expect("logic accepts")
}

/// Returns the writes and bytes that `act` and all that follows from it cause.
fn written_by(harness: &mut Harness, act: impl FnOnce(&mut Harness)) -> (u64, u64) {
    let before = Harness::written();
    act(harness);
    harness.settle();
    let Written { writes, bytes } = Harness::written();
    (writes - before.writes, bytes - before.bytes)
}

fn packet(operation: i32) -> PacketBuf {
    PacketBuf::push(Operation(operation), Bytes::from_static(b"hello"))
}

fn push(keys: &[&str], operation: i32) -> KeyPush {
    let keys = keys.iter().map(|key| (*key).into()).collect();
    KeyPush {
        keys,
        operation: Operation(operation),
        payload: Payload::plain(packet(operation)),
        accepted_at: None,
    }
}

#[test]
fn packets_in_are_answered_and_pushes_reach_whom_they_are_for() {
    let mut harness = start();
    let mut opened = Vec::new();
    let auth_replies = written_by(&mut harness, |harness| {
        opened = ["a", "b", "c"].map(|key| open(harness, key)).to_vec();
    });
    assert_eq!(auth_replies, (3, 3 * 16));
    assert_eq!(harness.sessions(), 3);
    let (a, b) = (opened[0], opened[1]);
    assert_eq!(written_by(&mut harness, |harness| assert_eq!(harness.heartbeat(&[a]), 1)), (1, 20));
    assert_eq!(written_by(&mut harness, |harness| assert_eq!(harness.change_room(&[a], "r"), 1)), (1, 17));
    assert_eq!(written_by(&mut harness, |harness| assert_eq!(harness.change_room(&[b], "r"), 1)), (1, 17));
    assert_eq!(harness.rooms(), 1);
    let pushed = 16 + 5;
    for (what, keys, operation, receivers) in [
        ("a key", &["a"][..], 1000, 1),
        ("two keys", &["a", "c"], 1000, 2),
        ("an unknown key", &["d"], 1000, 0),
        ("an operation without subscribers", &["a"], 1001, 0),
    ] {
        let written = written_by(&mut harness, |harness| assert!(harness.push(push(keys, operation))));
        assert_eq!(written, (receivers, receivers * pushed), "{what}");
    }
    let room = |room: &str| RoomPush {
        room: room.into(),
        operation: Operation(1000),
        payload: Payload::plain(packet(1000)),
        accepted_at: None,
    };
    assert_eq!(written_by(&mut harness, |harness| assert!(harness.push_room(room("r")))), (2, 2 * pushed));
    assert_eq!(written_by(&mut harness, |harness| assert!(harness.push_room(room("s")))), (0, 0));
    let (operation, packet) = (Operation(1000), packet(1000));
    let all = Broadcast { operation, payload: Payload::plain(packet), accepted_at: None, speed: None };
    assert_eq!(written_by(&mut harness, |harness| assert!(harness.broadcast(all))), (3, 3 * pushed));
}

#[test]
fn who_is_refused_or_gone_is_not_there() {
    let mut harness = start();
    let a = open(&mut harness, "a");
    let refused = harness.open(SocketAddr::from(([127, 0, 0, 1], 1)), b"no");
    harness.settle();
    // The socket of a refused client lingers; there is no session.
    assert_eq!((refused.is_some(), harness.sessions()), (true, 1));
    assert!(harness.end(a));
    assert!(!harness.end(a) && harness.heartbeat(&[a]) == 0 && harness.change_room(&[a], "r") == 0);
    assert_eq!((harness.sessions(), harness.rooms()), (0, 0));
}

#[test]
fn the_clock_ends_sessions_without_a_heartbeat_and_no_others() {
    let mut harness = start();
    let [quiet, alive] = ["quiet", "alive"].map(|key| open(&mut harness, key));
    for _ in 0..3 {
        harness.advance(Duration::from_secs(25));
        harness.heartbeat(&[alive]);
        harness.settle();
    }
    assert_eq!(harness.sessions(), 1);
    // A heartbeat after the deadline is read and not answered.
    assert_eq!(
        written_by(&mut harness, |harness| {
            harness.heartbeat(&[quiet]);
        }),
        (0, 0)
    );
    assert_eq!(written_by(&mut harness, |harness| assert_eq!(harness.heartbeat(&[alive]), 1)), (1, 20));
}

#[test]
fn among_thousands_every_packet_is_answered_once_and_nothing_goes_to_who_has_left() {
    let mut harness = start();
    let keys: Vec<String> = (0..5000).map(|session| format!("k{session}")).collect();
    let opened: Vec<Opened> = keys.iter().map(|key| open(&mut harness, key)).collect();
    harness.settle();
    let (staying, leaving) = opened.split_at(3000);
    assert_eq!(written_by(&mut harness, |harness| assert_eq!(harness.heartbeat(&opened), 5000)).0, 5000);
    harness.change_room(&opened, "r");
    harness.settle();
    let room = || RoomPush {
        room: "r".into(),
        operation: Operation(1000),
        payload: Payload::plain(packet(1000)),
        accepted_at: None,
    };
    assert_eq!(written_by(&mut harness, |harness| assert!(harness.push_room(room()))).0, 5000);
    let heard = written_by(&mut harness, |harness| {
        assert!(leaving.iter().all(|one| harness.end(*one)));
        assert!(harness.push_room(room()));
    });
    assert_eq!(heard.0, 3000);
    assert_eq!((harness.heartbeat(leaving), harness.heartbeat(staying)), (0, 3000));
}

#[test]
fn among_thousands_every_push_arrives_once_and_nothing_reaches_who_has_left() {
    let mut harness = start();
    let keys: Vec<String> = (0..5000).map(|session| format!("k{session}")).collect();
    let opened: Vec<Opened> = keys.iter().map(|key| open(&mut harness, key)).collect();
    for (session, opened) in opened.iter().enumerate() {
        harness.change_room(&[*opened], if session < 3000 { "many" } else { "few" });
        assert!(session < 4990 || harness.change_room(&[*opened], &format!("own {session}")) == 1);
    }
    harness.settle();
    for leaving in &opened[2000..3000] {
        assert!(harness.end(*leaving));
    }
    let room = |room: &str| RoomPush {
        room: room.into(),
        operation: Operation(1000),
        payload: Payload::plain(packet(1000)),
        accepted_at: None,
    };
    for (what, rooms, receivers) in [
        ("a large room", &["many"][..], 2000),
        ("rooms of one", &["own 4990", "own 4999", "own 4991"], 3),
        ("a room that is not there", &["own 1", "own 4990"], 1),
        ("all sorts", &["few", "own 4995", "many", "none"], 1990 + 1 + 2000),
    ] {
        let written = written_by(&mut harness, |harness| {
            assert!(rooms.iter().all(|name| harness.push_room(room(name))));
        });
        assert_eq!(written.0, receivers, "{what}");
    }
    // More in one turn than is looked up at once, single and together, between pushes to rooms.
    let written = written_by(&mut harness, |harness| {
        assert!(keys[..100].iter().all(|key| harness.push(push(&[key], 1000))));
        assert!(harness.push_room(room("own 4992")));
        let many: Vec<&str> = keys[1900..2100].iter().map(String::as_str).collect();
        assert!(harness.push(push(&many, 1000)));
        assert!(harness.push(push(&["unknown", &keys[4999], "unknown too"], 1000)));
    });
    assert_eq!(written.0, 100 + 1 + 100 + 1);
}
