//! Which clients get a session: rows 1 to 7, 19, 30, 107 and 119 of the conformance table.

use std::time::{Duration, Instant};

use crate::harness::{
    BOTH, Client, Packet, Server, Settings, Transport, Who, eventually, hex, number, shared, unique,
};

/// The auth packet of the table's setups.
const SETUP: &str = "0000005f001000010000000700000001";
const SETUP_TOKEN: &str =
    r#"{"mid":123,"room_id":"live://1000","platform":"web","accepts":[1000,1001,1002]}"#;

fn setup_bytes() -> Vec<u8> {
    [hex(SETUP), SETUP_TOKEN.as_bytes().to_vec()].concat()
}

#[test]
fn row_001_auth_is_answered_with_version_and_sequence_of_the_request() {
    let mut tcp = Client::open(shared(), Transport::Tcp);
    tcp.send_bytes(&setup_bytes());
    tcp.expect_bytes(&hex("00000010001000010000000800000001"));
    let mut ws = Client::open(shared(), Transport::Ws);
    ws.send_as_packet(&setup_bytes());
    ws.expect_bytes(&hex("8210 00000010001000010000000800000001"));
}

#[test]
fn row_002_version_and_sequence_of_auth_may_be_anything() {
    for transport in BOTH {
        let mut client = Client::open(shared(), transport);
        client.send(&Packet { ver: -1, op: 7, seq: -1, body: SETUP_TOKEN.into() });
        client.expect(&Packet { ver: -1, op: 8, seq: -1, body: Vec::new() });
    }
}

#[test]
fn row_003_packets_before_auth_are_passed_over() {
    for transport in BOTH {
        let mut client = Client::open(shared(), transport);
        client.send_as_packet(&hex("00000010001000010000000200000001"));
        client.send(&Packet::new(1000, 2, "x"));
        client.send_as_packet(&setup_bytes());
        client.expect(&Packet::new(8, 1, ""));
        client.expect_nothing();
    }
}

#[test]
fn row_004_who_sends_nothing_is_closed_after_the_handshake_timeout() {
    let server = Server::start(&Settings::new().handshake_timeout("1s"));
    let started = Instant::now();
    let mut clients = [
        Client::open(&server, Transport::Tcp),
        Client::open(&server, Transport::Ws),
        Client::connect(&server, Transport::Ws),
    ];
    for client in &mut clients {
        client.expect_closed();
    }
    let took = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "closed after {took:?}");
}

#[test]
fn row_005_a_token_of_the_wrong_form_closes_without_a_byte() {
    let tokens: [&[u8]; 17] = [
        b"not json",
        b"",
        br#"{"mid":"1"}"#,
        b"1,game",
        b"[]",
        br#""a""#,
        b"1",
        b"true",
        b"{} x",
        br#"{"mid":1.0}"#,
        br#"{"mid":1e3}"#,
        br#"{"mid":9223372036854775808}"#,
        br#"{"accepts":[2147483648]}"#,
        br#"{"accepts":["1"]}"#,
        br#"{"key":1}"#,
        b"\xef\xbb\xbf{}",
        b"{",
    ];
    for transport in BOTH {
        for token in tokens {
            let mut client = Client::open(shared(), transport);
            client.send(&Packet::new(7, 1, token));
            let rest = client.rest();
            assert!(rest.is_empty(), "{transport:?} {:?}: {rest:?}", String::from_utf8_lossy(token));
        }
    }
}

#[test]
fn row_006_null_and_an_empty_object_are_anonymous_sessions() {
    for transport in BOTH {
        // Both stay: each has got a different key.
        let mut sessions: Vec<Client> = ["null", "{}"]
            .into_iter()
            .map(|token| {
                let mut client = Client::open(shared(), transport);
                client.send(&Packet::new(7, 1, token));
                client.expect(&Packet::new(8, 1, ""));
                client
            })
            .collect();
        for session in &mut sessions {
            assert_eq!(session.heartbeat(), 0);
        }
    }
}

#[test]
fn row_007_names_in_the_token_match_in_any_case_and_the_last_wins() {
    let server = shared();
    for transport in BOTH {
        let (mid, room) = (number(), unique("case"));
        let token = format!(
            r#"{{"MID":{mid},"Room_ID":"{room}://1","x":{{"y":[1]}},"accepts":[1],"ACCEPTS":[1000]}} "#
        );
        let mut client = Client::open(server, transport);
        client.send(&Packet::new(7, 1, token + "\n"));
        client.expect(&Packet::new(8, 1, ""));
        server.push_room(77, &format!("{room}://1"), "room");
        client.expect_push(77, "room");
        server.push_mids(1, &[i64::from(mid)], "not accepted");
        server.push_mids(1000, &[i64::from(mid)], "mid");
        client.expect_push(1000, "mid");
    }
}

#[test]
fn row_019_a_second_auth_is_a_backend_packet() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new();
        let mut client = Client::login(server, transport, &who);
        client.send(&Packet::new(7, 2, SETUP_TOKEN));
        client.expect(&Packet::new(7, 2, ""));
        server.push_keys(1000, &[&who.key], "still me");
        client.expect_push(1000, "still me");
        assert_eq!(client.heartbeat(), 0, "it is in no room");
    }
}

#[test]
fn row_030_the_newer_session_with_a_key_wins() {
    let server = shared();
    for (first, second) in BOTH.into_iter().flat_map(|first| BOTH.map(|second| (first, second))) {
        let kind = unique("dup");
        let rooms = [format!("{kind}://1"), format!("{kind}://2")];
        let who = Who::new();
        let mut old = Client::login(server, first, &who.clone().room(&rooms[0]));
        let mut new = Client::login(server, second, &who.clone().room(&rooms[0]));
        old.expect_closed();
        // The end of the old one has taken nothing of the new one with it.
        server.push_keys(1000, &[&who.key], "by key");
        new.expect_push(1000, "by key");
        server.push_mids(1000, &[who.mid], "by mid");
        new.expect_push(1000, "by mid");
        server.push_room(1000, &rooms[0], "by room");
        new.expect_push(1000, "by room");
        eventually("one session in the room", || new.heartbeat() == 1);
        new.send(&Packet::new(12, 9, &rooms[1]));
        new.expect(&Packet::new(13, 9, &rooms[1]));
        server.push_room(1000, &rooms[1], "by new room");
        new.expect_push(1000, "by new room");
    }
}

#[test]
fn row_107_anonymous_members_and_odd_keys() {
    let server = Server::start(&Settings::new());
    for transport in BOTH {
        let mut nobodies: Vec<Client> = [0, -3]
            .into_iter()
            .map(|mid| Client::login(&server, transport, &Who { mid, ..Who::new() }))
            .collect();
        let odd = Who { key: unique("ключ /?&%"), ..Who::new() };
        let mut client = Client::login(&server, transport, &odd);
        server.push_mids(1000, &[0, -3], "to nobody");
        server.push_mids(1000, &[0, -3, odd.mid], "x");
        client.expect_push(1000, "x");
        server.push_keys(1000, &[&odd.key], "y");
        client.expect_push(1000, "y");
        for nobody in &mut nobodies {
            nobody.expect_nothing();
        }
    }
    // All have left: what was stored about them is removed too.
    eventually("no connection left", || server.get("/goim/online/total").json()["data"]["conn_count"] == 0);
}

#[test]
fn row_119_packets_before_auth_do_not_extend_the_handshake_timeout() {
    let server = Server::start(&Settings::new().handshake_timeout("1s"));
    for transport in BOTH {
        let started = Instant::now();
        let mut client = Client::open(&server, transport);
        let rest = loop {
            client.send(&Packet::new(2, 1, ""));
            if let Some(rest) = client.rest_within(Duration::from_millis(100)) {
                break rest;
            }
            assert!(started.elapsed() < Duration::from_secs(5), "{transport:?} is still open");
        };
        assert!(rest.is_empty(), "{transport:?}: {rest:?}");
        assert!(started.elapsed() > Duration::from_millis(900), "closed after {:?}", started.elapsed());
    }
}
