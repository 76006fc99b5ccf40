//! Which sessions a push reaches, in which form and order: rows 32 to 38, 88 to 94 and 106 of the
//! conformance table. How goim groups room messages is timing; content and order are binding.

use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::{BOTH, Client, Packet, Transport, Who, hex, number, shared, unique};

fn operation() -> i32 {
    i32::try_from(number()).unwrap()
}

#[test]
fn row_032_a_push_to_a_key_over_tcp() {
    let who = Who::new();
    let mut client = Client::login(shared(), Transport::Tcp, &who);
    shared().push_keys(1000, &[&who.key], "hello");
    client.expect_bytes(&hex("0000001500100001000003e800000000 68656c6c6f"));
}

#[test]
fn row_033_a_push_to_a_key_over_ws() {
    let who = Who::new();
    let mut client = Client::login(shared(), Transport::Ws, &who);
    shared().push_keys(1000, &[&who.key], "hello");
    client.expect_bytes(&hex(
        "8225 00000025001000010000000900000000 0000001500100001000003e800000000 68656c6c6f",
    ));
}

#[test]
fn row_034_an_operation_that_was_not_asked_for_is_not_delivered() {
    let server = shared();
    for transport in BOTH {
        let wanted = operation();
        let who = Who::new().accepts(&[wanted]);
        let mut client = Client::login(server, transport, &who);
        server.push_keys(2000, &[&who.key], "hello");
        server.push_mids(2000, &[who.mid], "hello");
        server.push_all(2000, "hello");
        server.push_keys(wanted, &[&who.key], "key");
        client.expect_push(wanted, "key");
        server.push_mids(wanted, &[who.mid], "mid");
        client.expect_push(wanted, "mid");
        server.push_all(wanted, "all");
        client.expect_push(wanted, "all");
        client.expect_nothing();
    }
}

#[test]
fn row_035_a_room_push_is_delivered_whatever_was_asked_for() {
    let server = shared();
    for transport in BOTH {
        let room = unique("live") + "://1";
        let mut client = Client::login(server, transport, &Who::new().room(&room));
        let asked = Instant::now();
        server.push_room(2000, &room, "hello");
        client.expect_push(2000, "hello");
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(2), "a lone room message took {took:?}");
    }
}

#[test]
fn row_036_two_room_pushes_tcp() {
    let room = unique("live") + "://1";
    let mut client = Client::login(shared(), Transport::Tcp, &Who::new().room(&room));
    shared().push_room(1000, &room, "hello");
    shared().push_room(1000, &room, "hi");
    client.expect_bytes(&hex(
        "0000001500100001000003e80000000068656c6c6f 0000001200100001000003e8000000006869",
    ));
}

#[test]
fn row_037_two_room_pushes_ws() {
    let room = unique("live") + "://1";
    let mut client = Client::login(shared(), Transport::Ws, &Who::new().room(&room));
    shared().push_room(1000, &room, "hello");
    shared().push_room(1000, &room, "hi");
    client.expect_push(1000, "hello");
    client.expect_push(1000, "hi");
}

#[test]
fn row_038_many_room_pushes_arrive_complete_and_in_order() {
    let room = unique("live") + "://1";
    let mut clients = BOTH.map(|transport| Client::login(shared(), transport, &Who::new().room(&room)));
    for nth in 0..21 {
        shared().push_room(1000 + nth % 3, &room, format!("{nth:02}"));
    }
    for client in &mut clients {
        for nth in 0..21 {
            client.expect_push(1000 + nth % 3, format!("{nth:02}"));
        }
        client.expect_nothing();
    }
}

#[test]
fn row_088_a_push_to_a_member_reaches_all_sessions_once() {
    let server = shared();
    let mid = i64::from(number());
    let with_mid = || Who { mid, ..Who::new() };
    let mut sessions = [Transport::Tcp, Transport::Ws, Transport::Tcp]
        .map(|transport| Client::login(server, transport, &with_mid()));
    let other = Who::new();
    let mut stranger = Client::login(server, Transport::Tcp, &other);
    server.push_mids(1000, &[mid, 999_999_999], "hello");
    server.push_mids(1000, &[mid, mid, other.mid], "again");
    for session in &mut sessions {
        session.expect_push(1000, "hello");
        session.expect_push(1000, "again");
    }
    stranger.expect_push(1000, "again");
    // The next message shows that "again" arrived once.
    server.push_mids(1000, &[mid], "end");
    for session in &mut sessions {
        session.expect_push(1000, "end");
    }
}

#[test]
fn row_089_a_room_push_reaches_the_room_only() {
    let server = shared();
    let kind = unique("live");
    let rooms = [format!("{kind}://1"), format!("{kind}://10")];
    let join = |transport, room: &str| Client::login(server, transport, &Who::new().room(room).accepts(&[]));
    let mut inside: Vec<Client> =
        [BOTH, BOTH].concat().into_iter().map(|transport| join(transport, &rooms[0])).collect();
    let mut outside: Vec<Client> = BOTH.into_iter().map(|transport| join(transport, &rooms[1])).collect();
    server.push_room(1000, &rooms[0], "hello");
    for client in &mut inside {
        client.expect_push(1000, "hello");
    }
    server.push_room(1000, &rooms[1], "for the others");
    for client in &mut outside {
        client.expect_push(1000, "for the others");
    }
    for client in inside.iter_mut().chain(&mut outside) {
        client.expect_nothing();
    }
}

#[test]
fn row_090_known_keys_get_it_and_commas_do_not_separate() {
    let server = shared();
    let people = [Who::new(), Who::new()];
    let [a, b] = [&people[0].key, &people[1].key];
    let mut clients = [0, 1].map(|nth| Client::login(server, BOTH[nth], &people[nth]));
    server.push_keys(1000, &["nobody", a, "nobody either", b], "hello");
    server.push_keys(1000, &[&format!("{a},{b}")], "no");
    server.push_keys(1000, &[a, a], "twice");
    server.push_keys(1000, &[b], "end");
    clients[0].expect_push(1000, "hello");
    clients[0].expect_push(1000, "twice");
    clients[0].expect_push(1000, "twice");
    clients[1].expect_push(1000, "hello");
    clients[1].expect_push(1000, "end");
    for client in &mut clients {
        client.expect_nothing();
    }
}

#[test]
fn row_091_an_empty_body_is_a_packet() {
    let server = shared();
    let room = unique("live") + "://1";
    for transport in BOTH {
        let who = Who::new().room(&room);
        let mut client = Client::login(server, transport, &who);
        for by_room in [false, true] {
            if by_room {
                server.push_room(1000, &room, "")
            } else {
                server.push_keys(1000, &[&who.key], "")
            }
            if transport == Transport::Ws {
                client.expect_bytes(&hex("8220 00000020001000010000000900000000"));
            }
            client.expect_bytes(&hex("0000001000100001000003e800000000"));
        }
    }
}

#[test]
fn row_092_every_byte_arrives_as_it_was_given() {
    let server = shared();
    let body: Vec<u8> = (0..=255).collect();
    for transport in BOTH {
        let who = Who::new();
        let mut client = Client::login(server, transport, &who);
        for content_type in
            ["application/x-www-form-urlencoded", "application/json", "text/plain; charset=latin1"]
        {
            let target = format!("/goim/push/keys?operation=1000&keys={}", who.key);
            let answer = server.request("POST", &target, &[("Content-Type", content_type)], &body);
            assert_eq!(answer.text(), r#"{"code":0,"message":""}"#);
            client.expect_push(1000, &body);
        }
    }
}

#[test]
fn row_093_frame_lengths_are_in_their_shortest_form() {
    let server = shared();
    let who = [Who::new(), Who::new()];
    let mut tcp = Client::login(server, Transport::Tcp, &who[0]);
    let mut ws = Client::login(server, Transport::Ws, &who[1]);
    // Two headers of sixteen bytes are around the body.
    for (length, head) in [
        (125, "827d"),
        (126, "827e007e"),
        (65_535, "827effff"),
        (65_536, "827f0000000000010000"),
        (900_032, "827f00000000000dbbc0"),
    ] {
        let body = vec![b'z'; length - 32];
        server.push_keys(1000, &[&who[0].key, &who[1].key], &body);
        tcp.expect_push(1000, &body);
        ws.expect_bytes(&hex(head));
        let inner = Packet::new(1000, 0, &body).encode();
        ws.expect_bytes(&Packet::new(9, 0, inner).encode());
    }
}

#[test]
fn row_094_a_push_to_all_reaches_all_who_asked_for_it() {
    let server = shared();
    let wanted = operation();
    let mut takers = BOTH.map(|transport| Client::login(server, transport, &Who::new().accepts(&[wanted])));
    let mut other = Client::login(server, Transport::Tcp, &Who::new());
    for (nth, speed) in ["", "&speed=", "&speed=0", "&speed=-1", "&speed=1000000"].into_iter().enumerate() {
        server.push(&format!("/goim/push/all?operation={wanted}{speed}"), format!("hello {nth}"));
        for taker in &mut takers {
            taker.expect_push(wanted, format!("hello {nth}"));
        }
    }
    other.expect_nothing();
}

#[test]
fn row_106_names_of_rooms_are_opaque() {
    let server = shared();
    let long = format!("k://{}", "r".repeat(1990));
    for transport in BOTH {
        let mut client = Client::login(server, transport, &Who::new());
        for room in ["直播://房间一", "a://b/c?d=e#f", "live:// x ", &long] {
            // Other tests do not use these names, the other transport does: it has left.
            client.send(&Packet::new(12, 1, room));
            client.expect(&Packet::new(13, 1, room));
            server.push_room(1000, room, "x");
            client.expect_push(1000, "x");
        }
        client.send(&Packet::new(12, 1, "no scheme"));
        client.expect(&Packet::new(13, 1, "no scheme"));
        assert!(client.heartbeat() >= 1);
    }
}

#[test]
fn pushes_to_one_key_and_to_one_room_arrive_in_the_order_of_their_answers() {
    let server = shared();
    let room = unique("order") + "://1";
    let people = BOTH.map(|_| Who::new().room(&room));
    let mut clients = [0, 1].map(|nth| Client::login(server, BOTH[nth], &people[nth]));
    let keys = [people[0].key.as_str(), people[1].key.as_str()];
    let mut http = harness::http::Http::connect(server.addrs.http);
    for nth in 0..300 {
        let keys = format!("/goim/push/keys?operation=1000&keys={}&keys={}", keys[0], keys[1]);
        let (kind, name) = room.split_once("://").unwrap();
        let room = format!("/goim/push/room?operation=1001&type={kind}&room={name}");
        for target in [keys, room] {
            assert_eq!(http.request("POST", &target, &[], format!("{nth}").as_bytes()).status, 200);
        }
    }
    for client in &mut clients {
        let mut next = [0, 0];
        while next != [300, 300] {
            let push = client.pushed();
            let which = usize::try_from(push.op - 1000).unwrap();
            assert_eq!(
                push.body,
                next[which].to_string().into_bytes(),
                "{:?} op {}",
                client.transport(),
                push.op
            );
            next[which] += 1;
        }
        client.expect_nothing();
    }
}
