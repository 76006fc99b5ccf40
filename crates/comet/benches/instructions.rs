//! The hot paths of a shard, to be run a number of times: `instructions PATH TIMES`. Without
//! arguments, prints their names. Owns what is run; `scripts/instruction-counts.sh` counts and
//! compares. The shard is the real one, over sockets that take every write (`goim_comet::harness`).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a script: it prints, and must not go on"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_comet::Config;
use goim_comet::harness::{Harness, Opened};
use goim_ports::{
    Accepted, Broadcast, Call, ConnectError, ConnectRequest, KeyPush, LogicError, LogicPort, Mid,
    OnlineReport, OnlineTotals, Operation, PacketBuf, Payload, RoomPush, SessionRef, Upstream,
};

/// Sessions in the room. `-100` in the name of a path means that a count is for this many
/// deliveries.
const MANY: usize = 100;
const ROOM: &str = "live://1000";
const OPERATION: Operation = Operation(1000);

const PATHS: &[(&str, fn(u32))] = &[
    ("shard-push-key", push_key),
    ("shard-room-100", room::<1>),
    ("shard-room-burst-20-100", room::<20>),
    ("shard-broadcast-100", broadcast),
    ("shard-heartbeat", heartbeat),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [name, times] = arguments.as_slice() else {
        PATHS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, path) = PATHS.iter().find(|(known, _)| known == name).expect("a path of the list");
    path(times.parse().expect("how many times, as a number"));
}

/// Accepts every token as a session key.
struct AcceptAll;

impl LogicPort for AcceptAll {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        Call::Ready(Ok(Accepted {
            mid: Mid(1),
            key: String::from_utf8_lossy(&request.token).into_owned().into(),
            room: Some(ROOM.into()),
            accepts: vec![OPERATION, Operation(1001), Operation(1002)],
            heartbeat: Duration::from_secs(60),
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

    fn renew_online(&self, _: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        Call::Ready(Ok(OnlineTotals::default()))
    }

    fn receive(&self, _: Upstream) -> Call<Result<Bytes, LogicError>> {
        Call::Ready(Ok(Bytes::new()))
    }
}

fn shard() -> (Harness, Vec<Opened>) {
    let mut config = Config::default();
    config.limits.connections_per_address_max = None;
    let mut harness = Harness::new(config, Arc::new(AcceptAll)).unwrap();
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000));
    let opened =
        (0..MANY).map(|nth| harness.open(from, format!("key-{nth:032}").as_bytes()).unwrap()).collect();
    harness.settle();
    (harness, opened)
}

fn packet() -> PacketBuf {
    PacketBuf::push(OPERATION, Bytes::from_static(&[b'm'; 64]))
}

/// Checks the number of writes, or a count would be of something else.
fn check(before: u64, writes: u64) {
    assert_eq!(Harness::written().writes - before, writes, "writes");
}

fn push_key(times: u32) {
    let (mut harness, _) = shard();
    let before = Harness::written().writes;
    let key = format!("key-{:032}", 7);
    for _ in 0..times {
        let keys = vec![key.as_str().into()];
        assert!(harness.push(KeyPush {
            keys,
            operation: OPERATION,
            payload: Payload::plain(packet()),
            accepted_at: None
        }));
        harness.settle();
    }
    check(before, times.into());
}

/// Sends a number of messages at once, then flushes all of them.
fn room<const TOGETHER: u32>(times: u32) {
    let (mut harness, _) = shard();
    let before = Harness::written().writes;
    for _ in 0..times {
        for _ in 0..TOGETHER {
            assert!(harness.push_room(RoomPush {
                room: ROOM.into(),
                operation: OPERATION,
                payload: Payload::plain(packet()),
                accepted_at: None
            }));
        }
        harness.settle();
    }
    assert!(Harness::written().writes - before >= u64::from(times) * MANY as u64, "too few writes");
}

fn broadcast(times: u32) {
    let (mut harness, _) = shard();
    let before = Harness::written().writes;
    for _ in 0..times {
        let message = Broadcast {
            operation: OPERATION,
            payload: Payload::plain(packet()),
            accepted_at: None,
            speed: None,
        };
        assert!(harness.broadcast(message));
        harness.settle();
    }
    check(before, u64::from(times) * MANY as u64);
}

fn heartbeat(times: u32) {
    let (mut harness, opened) = shard();
    let before = Harness::written().writes;
    for nth in 0..times {
        let one = [opened[nth as usize % MANY]];
        assert_eq!(harness.heartbeat(&one), 1);
        harness.settle();
    }
    check(before, times.into());
}
