//! What a session may request and what it is answered: rows 8 to 16, 20, 21, 29, 31, 81, 100, 104
//! and 117 of the conformance table. Rows 17 and 18, which check what logic receives, are in
//! `upstream.rs`.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::{
    BOTH, Client, Packet, Server, Settings, Transport, Who, eventually, hex, shared, unique,
};

/// Setup A and W of the table.
fn setup(server: &Server, transport: Transport) -> Client {
    let mut client = Client::open(server, transport);
    let token = r#"{"mid":123,"room_id":"live://1000","platform":"web","accepts":[1000,1001,1002]}"#;
    client.send(&Packet::new(7, 1, token));
    client.expect(&Packet::new(8, 1, ""));
    client
}

#[test]
fn row_008_a_heartbeat_is_answered_with_the_count_of_the_room() {
    for transport in BOTH {
        let server = Server::start(&Settings::new());
        let mut client = setup(&server, transport);
        client.send_as_packet(&hex("00000010001000010000000200000001"));
        if transport == Transport::Ws {
            client.expect_bytes(&hex("8214"));
        }
        client.expect_bytes(&hex("00000014001000010000000300000001 00000001"));
    }
}

#[test]
fn row_009_the_body_of_a_heartbeat_is_swallowed() {
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new().room(&unique("r://")));
        client.send(&Packet::new(2, 1, "abc"));
        client.expect(&Packet::new(3, 1, [0, 0, 0, 1]));
        client.send(&Packet::new(1000, 2, ""));
        client.expect(&Packet::new(1000, 2, ""));
    }
}

#[test]
fn row_010_without_a_room_the_count_is_zero() {
    for transport in BOTH {
        assert_eq!(Client::login(shared(), transport, &Who::new()).heartbeat(), 0);
    }
}

#[test]
fn row_011_after_leaving_the_room_the_count_is_zero() {
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new().room(&unique("r://")));
        assert_eq!(client.heartbeat(), 1);
        client.send_as_packet(&hex("00000010001000010000000c00000008"));
        client.expect(&Packet::new(13, 8, ""));
        assert_eq!(client.heartbeat(), 0);
    }
}

#[test]
fn row_012_subscribing_echoes_and_takes_effect() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new();
        let mut client = Client::login(server, transport, &who);
        server.push_keys(1003, &[&who.key], "too early");
        server.push_keys(1000, &[&who.key], "marker");
        client.expect_push(1000, "marker");
        client.send_as_packet(&[hex("00000019001000010000000e00000005"), b"1003,1004".to_vec()].concat());
        client.expect(&Packet::new(15, 5, "1003,1004"));
        server.push_keys(1003, &[&who.key], "hello");
        client.expect_push(1003, "hello");
    }
}

#[test]
fn row_013_a_faulty_subscription_is_echoed_and_changes_nothing() {
    let server = shared();
    let bodies = [
        "1003, 1004",
        "1003,x",
        "1003,",
        ",1003",
        "",
        "2147483648,1003",
        "1_003",
        "1003;1004",
        "0x3eb",
        " 1003",
        "1003,,1004",
        "+",
        "-",
        "1003,-",
        "１００３",
    ];
    for transport in BOTH {
        let who = Who::new();
        let mut client = Client::login(server, transport, &who);
        for body in bodies {
            client.send(&Packet::new(14, 5, body));
            client.expect(&Packet::new(15, 5, body));
        }
        for op in [1003, 1004] {
            server.push_keys(op, &[&who.key], "not subscribed");
        }
        server.push_keys(1000, &[&who.key], "marker");
        client.expect_push(1000, "marker");
    }
}

#[test]
fn row_014_unsubscribing_echoes_and_takes_effect() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new().accepts(&[1003, 1000]);
        let mut client = Client::login(server, transport, &who);
        client.send_as_packet(&[hex("00000014001000010000001000000006"), b"1003".to_vec()].concat());
        client.expect(&Packet::new(17, 6, "1003"));
        server.push_keys(1003, &[&who.key], "no");
        server.push_keys(1000, &[&who.key], "yes");
        client.expect_push(1000, "yes");
    }
}

#[test]
fn row_015_changing_the_room_echoes_and_pushes_follow() {
    let server = shared();
    for transport in BOTH {
        let kind = unique("move");
        let (old, new) = (format!("{kind}://1000"), format!("{kind}://2000"));
        let mut client = Client::login(server, transport, &Who::new().room(&old));
        client.send(&Packet::new(12, 7, &new));
        client.expect(&Packet::new(13, 7, &new));
        server.push_room(1000, &old, "old");
        server.push_room(1000, &new, "new");
        client.expect_push(1000, "new");
        assert_eq!(client.heartbeat(), 1);
    }
}

#[test]
fn row_016_changing_to_ones_own_room_keeps_it() {
    let server = shared();
    for transport in BOTH {
        let room = unique("own") + "://1";
        let mut client = Client::login(server, transport, &Who::new().room(&room));
        for _ in 0..3 {
            client.send(&Packet::new(12, 7, &room));
            client.expect(&Packet::new(13, 7, &room));
            assert_eq!(client.heartbeat(), 1);
        }
        server.push_room(1000, &room, "hello");
        client.expect_push(1000, "hello");
    }
}

#[test]
fn row_020_operation_9_from_a_client() {
    let mut tcp = Client::login(shared(), Transport::Tcp, &Who::new());
    tcp.send(&Packet::new(9, 5, ""));
    tcp.send(&Packet::new(1000, 6, ""));
    // Nothing, or the echo that every other operation gets.
    let mut reply = tcp.packet();
    if reply == Packet::new(9, 5, "") {
        reply = tcp.packet();
    }
    assert_eq!(reply, Packet::new(1000, 6, ""));

    let mut ws = Client::login(shared(), Transport::Ws, &Who::new());
    ws.send(&Packet::new(9, 5, ""));
    ws.expect(&Packet::new(9, 5, ""));
    ws.expect_nothing();
}

#[test]
fn row_021_any_other_operation_is_echoed_without_a_body() {
    let operations = [-5, 0, 1, 3, 4, 5, 6, 8, 10, 11, 13, 15, 17, 18, 19, 31, 1000, i32::MAX, i32::MIN];
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new());
        for op in operations {
            client.send(&Packet { ver: 7, op, seq: 3, body: b"body".to_vec() });
            client.expect(&Packet { ver: 7, op, seq: 3, body: Vec::new() });
        }
    }
}

#[test]
fn row_029_twenty_requests_in_one_segment_are_answered_in_order() {
    for transport in BOTH {
        let mut client = Client::login(shared(), transport, &Who::new());
        let requests: Vec<Packet> = (1..=20).map(|seq| Packet::new(4, seq, "")).collect();
        client.send_together(&requests);
        for request in &requests {
            client.expect(request);
        }
    }
}

#[test]
fn row_031_only_heartbeats_keep_a_session_alive() {
    let server = Server::start(&Settings::new().heartbeat("1s", 1));
    std::thread::scope(|scope| {
        for transport in BOTH {
            let server = &server;
            scope.spawn(move || {
                let mut client = Client::login(server, transport, &Who::new());
                std::thread::sleep(Duration::from_millis(600));
                client.heartbeat();
                let last = Instant::now();
                // Backend packets all the time until the end.
                loop {
                    client.send(&Packet::new(4, 1, ""));
                    match client.rest_within(Duration::from_millis(50)) {
                        Some(_) => break,
                        None => {
                            assert!(last.elapsed() < Duration::from_secs(5), "{transport:?} is still open")
                        }
                    }
                }
                let lived = last.elapsed();
                assert!(
                    lived > Duration::from_millis(900),
                    "{transport:?}: closed {lived:?} after the heartbeat"
                );
            });
            scope.spawn(move || {
                let mut client = Client::login(server, transport, &Who::new());
                for _ in 0..8 {
                    std::thread::sleep(Duration::from_millis(300));
                    client.heartbeat();
                }
            });
        }
    });
}

#[test]
fn row_081_seven_different_requests_in_one_segment() {
    for transport in BOTH {
        let kind = unique("seven");
        let (old, new) = (format!("{kind}://1"), format!("{kind}://2"));
        let mut client = Client::login(shared(), transport, &Who::new().room(&old));
        client.send_together(&[
            Packet::new(2, 0, ""),
            Packet::new(1000, 1, "x"),
            Packet::new(14, 2, "5"),
            Packet::new(12, 3, &new),
            Packet::new(16, 4, "5"),
            Packet::new(2, 5, ""),
            Packet::new(4, 6, "y"),
        ]);
        for reply in [
            Packet::new(3, 0, [0, 0, 0, 1]),
            Packet::new(1000, 1, ""),
            Packet::new(15, 2, "5"),
            Packet::new(13, 3, &new),
            Packet::new(17, 4, "5"),
            Packet::new(3, 5, [0, 0, 0, 1]),
            Packet::new(4, 6, ""),
        ] {
            client.expect(&reply);
        }
    }
}

#[test]
fn row_100_sessions_of_a_room_are_counted_together_at_once() {
    let room = unique("count") + "://1";
    let server = shared();
    let mut sessions: Vec<Client> = ["abc", "test_key", "12345"]
        .into_iter()
        .enumerate()
        .map(|(nth, key)| {
            let who = Who { key: unique(key), ..Who::new().room(&room) };
            Client::login(server, BOTH[nth % 2], &who)
        })
        .collect();
    for session in &mut sessions {
        assert_eq!(session.heartbeat(), 3);
    }
    drop(sessions.pop());
    eventually("two are left", || sessions[0].heartbeat() == 2);
    assert_eq!(sessions[1].heartbeat(), 2);
}

#[test]
fn row_104_signs_zeroes_and_duplicates_in_subscriptions() {
    let server = shared();
    for transport in BOTH {
        let who = Who::new().accepts(&[]);
        let mut client = Client::login(server, transport, &who);
        client.send(&Packet::new(14, 1, "+1003,-5,01004,1003,0"));
        client.expect(&Packet::new(15, 1, "+1003,-5,01004,1003,0"));
        client.send(&Packet::new(16, 2, "1004,77"));
        client.expect(&Packet::new(17, 2, "1004,77"));
        for op in [1003, -5, 1004, 0] {
            server.push_keys(op, &[&who.key], "x");
        }
        for op in [1003, -5, 0] {
            client.expect_push(op, "x");
        }
    }
}

/// Sends heartbeats until the connection accepts no more for a while, and returns how many bytes
/// were sent.
fn flood(client: &Client, limit: usize) -> usize {
    let heartbeat = match client.transport() {
        Transport::Tcp => Packet::new(2, 1, "").encode(),
        Transport::Ws => harness::frame::masked(harness::frame::BINARY, &Packet::new(2, 1, "").encode()),
    };
    let block = heartbeat.repeat(1000);
    let mut stream = client.stream();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut progress) = (0, Instant::now());
    while progress.elapsed() < Duration::from_millis(500) {
        assert!(sent < limit, "{sent} bytes were taken from a client that does not read");
        match stream.write(&block[sent % heartbeat.len()..]) {
            Ok(taken) => (sent, progress) = (sent + taken, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(error) => panic!("closed instead of back-pressure, after {sent} bytes: {error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn row_117_a_client_that_sends_and_never_reads_is_held_up_and_answered_later() {
    let server = shared();
    for transport in BOTH {
        let mut client = Client::login(server, transport, &Who::new());
        let unit = if transport == Transport::Tcp { 16 } else { 22 };
        let sent = flood(&client, 64 << 20);
        // No other session notices.
        let mut other = Client::login(server, transport, &Who::new());
        let asked = Instant::now();
        other.heartbeat();
        assert!(asked.elapsed() < Duration::from_secs(2), "another client waited {:?}", asked.elapsed());
        for _ in 0..sent / unit {
            client.expect(&Packet::new(3, 1, [0; 4]));
        }
        // The last one may have been sent in part only.
        if !sent.is_multiple_of(unit) {
            let heartbeat = Packet::new(2, 1, "").encode();
            let whole = match transport {
                Transport::Tcp => heartbeat,
                Transport::Ws => harness::frame::masked(harness::frame::BINARY, &heartbeat),
            };
            client.send_bytes(&whole[sent % unit..]);
            client.expect(&Packet::new(3, 1, [0; 4]));
        }
        client.expect_nothing();
    }
}
