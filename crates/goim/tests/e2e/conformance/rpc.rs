//! comet's gRPC service, as goim's job calls it: rows 71, 105 and 116 of the table of conformance.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::grpc::{bytes, call, number, proto};
use crate::harness::{BOTH, Client, Packet, Server, Transport, Who, eventually, hex, shared, unique};
use socket2::{Domain, Socket, Type};

const PUSH: &str = "/goim.comet.Comet/PushMsg";
const BROADCAST: &str = "/goim.comet.Comet/Broadcast";
const ROOM: &str = "/goim.comet.Comet/BroadcastRoom";
const ROOMS: &str = "/goim.comet.Comet/Rooms";

/// An ordinary call by job, whose answer is empty.
fn done(server: &Server, method: &'static str, message: Vec<u8>) {
    assert_eq!(call(server.addrs.comet_rpc, method, message).unwrap(), Vec::<u8>::new(), "{method}");
}

/// What job sends for a push: a packet inside operation 9.
fn raw(inner: &Packet) -> Vec<u8> {
    proto(&Packet::new(9, 0, inner.encode()))
}

#[test]
fn row_071_a_call_without_what_it_needs_is_an_error() {
    let packet = Packet::new(9, 0, Packet::new(1000, 0, "hello").encode());
    for (method, message, text) in [
        (PUSH, vec![], "rpc pushmsg arg error"),
        (PUSH, [bytes(2, proto(&packet)), number(3, 1000)].concat(), "rpc pushmsg arg error"),
        (PUSH, [bytes(1, "k1"), number(3, 1000)].concat(), "rpc pushmsg arg error"),
        (BROADCAST, vec![], "rpc broadcast arg error"),
        (BROADCAST, number(1, 1000), "rpc broadcast arg error"),
        (ROOM, vec![], "rpc broadcast  room arg error"),
        (ROOM, bytes(1, "live://1000"), "rpc broadcast  room arg error"),
        (ROOM, bytes(2, proto(&packet)), "rpc broadcast  room arg error"),
    ] {
        let status =
            call(shared().addrs.comet_rpc, method, message.clone()).expect_err("an argument is missing");
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unknown, text),
            "{method} {message:02x?}"
        );
    }
}

#[test]
fn row_068_and_069_what_job_sends_is_delivered() {
    let server = shared();
    let inner = "0000001500100001000003e80000000068656c6c6f";
    for transport in BOTH {
        let room = unique("live://");
        let who = Who::new().room(&room);
        let mut client = Client::login(server, transport, &who);
        let packet = hex(&format!("121b 08011009 2215 {inner}"));
        done(server, PUSH, [bytes(1, &who.key), packet.clone(), hex("18e807")].concat());
        client.expect_push(1000, "hello");
        done(server, ROOM, [bytes(1, &room), packet].concat());
        client.expect_push(1000, "hello");
    }
}

#[test]
fn row_105_packets_that_are_not_wrapped_keep_their_header() {
    let server = shared();
    let direct = Packet { ver: 7, op: 1234, seq: 99, body: b"direct".to_vec() };
    for transport in BOTH {
        let room = unique("rpc://");
        let wanted = i32::try_from(harness::number()).unwrap();
        let who = Who::new().room(&room).accepts(&[wanted]);
        let mut client = Client::login(server, transport, &who);
        let message = proto(&direct);
        let op = |field| number(field, i64::from(wanted));
        // An operation that the session did not subscribe to is not received, whatever the packet
        // contains.
        done(server, PUSH, [bytes(1, &who.key), bytes(2, &message), number(3, 1234)].concat());
        done(server, PUSH, [bytes(1, "nobody"), bytes(1, &who.key), bytes(2, &message), op(3)].concat());
        client.expect(&direct);
        done(server, BROADCAST, [number(1, 1234), bytes(2, &message)].concat());
        done(server, BROADCAST, [op(1), bytes(2, &message)].concat());
        client.expect(&direct);
        done(server, ROOM, [bytes(1, &room), bytes(2, &message)].concat());
        client.expect(&direct);
        client.expect_nothing();
        let listed = [bytes(1, &room), number(2, 1)].concat();
        eventually("the room is listed", || {
            let rooms = call(server.addrs.comet_rpc, ROOMS, vec![]).unwrap();
            rooms.windows(listed.len()).any(|part| part == listed)
        });
    }
}

/// A session whose own side takes as little as the system allows.
fn small(server: &Server, transport: Transport, who: &Who) -> Client {
    let addr: SocketAddr = server.client_addr(transport);
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut client = Client::over(socket.into(), transport);
    client.send(&who.auth());
    client.expect(&Packet::new(8, 1, ""));
    client
}

#[test]
fn row_116_a_session_that_does_not_read_takes_nothing_from_the_others() {
    let server = shared();
    for transport in BOTH {
        let people = [Who::new(), Who::new(), Who::new()];
        let mut first = Client::login(server, transport, &people[0]);
        let mut silent = small(server, transport, &people[1]);
        let mut last = Client::login(server, transport, &people[2]);
        let keys: Vec<u8> = people.iter().flat_map(|who| bytes(1, &who.key)).collect();
        for nth in 0..40 {
            let inner = Packet::new(1000, 0, [&[nth; 4][..], &[b'.'; 60_000]].concat());
            let asked = Instant::now();
            done(server, PUSH, [keys.clone(), bytes(2, raw(&inner)), number(3, 1000)].concat());
            assert_eq!(first.pushed(), inner, "push {nth}");
            assert_eq!(last.pushed(), inner, "push {nth}");
            assert!(asked.elapsed() < Duration::from_secs(2), "push {nth} took {:?}", asked.elapsed());
        }
        // It has got the first ones whole, and is still there.
        let push = silent.pushed();
        assert_eq!((push.op, push.body.len()), (1000, 60_004));
        first.expect_nothing();
        last.expect_nothing();
    }
}
