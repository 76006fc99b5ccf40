//! The backend decides about tokens: what it is sent, what its answers mean, and what happens when
//! it is slow, down or answers nonsense.

use std::time::{Duration, Instant};

use crate::harness::backend::{Answer, Asked, Backend};
use crate::harness::client::SWITCHED;
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use serde_json::{Value, json};

fn settings(backend: &Backend) -> Settings {
    Settings::new()
        .set("logic.identity.method", "webhook")
        .set("logic.identity.webhook.url", &backend.url("/who"))
        .set("logic.identity.webhook.secret", "the secret of the hook")
        .set("logic.identity.webhook.timeout", "300ms")
}

/// Tokens of the form `mid:N` are good.
fn usual(asked: &Asked) -> Answer {
    let token = asked.json()["token"].as_str().unwrap_or_default().to_owned();
    match token.strip_prefix("mid:").and_then(|mid| mid.parse::<i64>().ok()) {
        Some(mid) => Answer::ok(json!({ "mid": mid }).to_string()),
        None => Answer::status(403, r#"{"refuse":"who is that"}"#),
    }
}

fn code(packet: &Packet) -> u64 {
    let body: Value =
        serde_json::from_slice(&packet.body).unwrap_or_else(|error| panic!("{error}: {packet:?}"));
    body["code"].as_u64().unwrap_or_else(|| panic!("no code: {packet:?}"))
}

/// A negotiated client with this token: the first packet that it gets.
fn present(server: &Server, transport: Transport, token: &str) -> (Client, Packet) {
    let body = json!({ "protover": 1, "token": token, "accepts": [1000] }).to_string();
    let (client, arrived) = Client::present(server, transport, body);
    (client, arrived.expect("a negotiated client is told"))
}

#[test]
fn the_backend_receives_what_is_known_and_decides() {
    let backend = Backend::start(usual);
    let server = Server::start(&settings(&backend));
    let mid = i64::from(number());
    let body = json!({
        "token": format!("mid:{mid}"), "mid": mid, "room_id": "live://1", "platform": "ios", "protover": 1, "rooms": ["a://1"],
    });
    let mut client = Client::connect(&server, Transport::Ws);
    let upgrade = "GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nCookie: sid=7\r\nUser-Agent: phone/2\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    client.send_bytes(upgrade.as_bytes());
    client.expect_bytes(SWITCHED.as_bytes());
    client.send(&Packet::new(7, 1, body.to_string()));
    assert_eq!(code(&client.packet()), 0);
    let asked = backend.asked_at("/who").pop().unwrap();
    assert_eq!(asked.header("authorization"), Some("Bearer the secret of the hook"));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    let told = asked.json();
    let expected = json!({
        "token": format!("mid:{mid}"), "mid": mid, "key": "", "room_id": "live://1", "rooms": ["a://1"], "platform": "ios",
        "protover": 1, "ip": "127.0.0.1", "cookie": "sid=7", "user_agent": "phone/2", "server": told["server"],
    });
    assert_eq!(told, expected);
}

#[test]
fn its_answer_is_the_session() {
    let (key, room) = (unique("k"), unique("live://r"));
    let mid = i64::from(number());
    let answer = json!({ "mid": mid, "key": key, "rooms": [room], "accepts": [1000], "expires_at": 4_000_000_000_u64 });
    let backend = Backend::start(move |_| Answer::ok(answer.to_string()));
    let server = Server::start(&settings(&backend));
    for transport in BOTH {
        let (mut client, reply) = present(&server, transport, "any");
        let reply: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply["mid"].as_i64(), reply["key"].as_str()), (Some(mid), Some(key.as_str())));
        assert_eq!(
            (reply["rooms"].clone(), reply["expires_at"].clone()),
            (json!([room]), json!(4_000_000_000_u64))
        );
        server.push_room(1000, &room, "hello");
        client.expect_push(1000, "hello");
    }
}

#[test]
fn an_answer_without_a_decision_refuses_all() {
    let backend = Backend::start(usual);
    let server = Server::start(&settings(&backend));
    let slow = Duration::from_secs(5);
    let cases: Vec<(&str, Answer, u64)> = vec![
        ("refused", Answer::status(403, ""), 3206),
        ("refused with 401", Answer::status(401, "{}"), 3206),
        ("refused with a word", Answer::ok(r#"{"refuse":"banned"}"#), 3206),
        ("refused, with a mid", Answer::ok(r#"{"refuse":"banned","mid":1}"#), 3206),
        ("slow", Answer::ok(r#"{"mid":1}"#).after(slow), 3101),
        ("an error", Answer::status(500, r#"{"mid":1}"#), 3101),
        ("another status", Answer::status(204, ""), 3101),
        ("a redirection", Answer::status(302, r#"{"mid":1}"#), 3101),
        ("nothing", Answer::ok(""), 3101),
        ("no JSON", Answer::ok("<html>"), 3101),
        ("no mid", Answer::ok("{}"), 3101),
        ("a mid that is none", Answer::ok(r#"{"mid":true}"#), 3101),
        ("too much", Answer::ok(vec![b' '; 100 * 1024]), 3101),
        ("what has ended", Answer::ok(r#"{"mid":1,"expires_at":1}"#), 3201),
        ("another mid than the client says", Answer::ok(r#"{"mid":1}"#), 0),
    ];
    for (what, answer, expected) in cases {
        backend.answers(move |_| answer.clone());
        for transport in BOTH {
            let (_, arrived) = present(&server, transport, "mid:1");
            assert_eq!(code(&arrived), expected, "{what}: {arrived:?}");
            if expected != 0 {
                let (_, plain) = Client::present(&server, transport, r#"{"token":"mid:1"}"#);
                assert_eq!(plain, None, "{what}: a client of goim sees the end only");
            }
        }
        // Lets the circuit close before the next.
        backend.answers(usual);
        eventually("the hook is asked again", || code(&present(&server, Transport::Tcp, "mid:1").1) == 0);
    }
}

#[test]
fn a_backend_that_is_down_delays_no_other_route() {
    let backend = Backend::start(usual);
    let server = Server::start(&settings(&backend));
    let (mut inside, reply) = present(&server, Transport::Tcp, "mid:5");
    assert_eq!(code(&reply), 0);
    backend.set_down(true);
    eventually("the hook is left alone", || {
        let began = Instant::now();
        let (_, arrived) = present(&server, Transport::Tcp, "mid:6");
        assert_eq!(code(&arrived), 3101);
        let asked = backend.asked().len();
        began.elapsed() < Duration::from_millis(100) && asked > 0
    });
    // Who is inside notices nothing.
    inside.heartbeat();
    server.push_mids(1000, &[5], "hello");
    inside.expect_push(1000, "hello");
    backend.set_down(false);
    eventually("newcomers are let in again", || code(&present(&server, Transport::Tcp, "mid:6").1) == 0);
}

#[test]
fn a_blank_key_is_generated_for_each_session_and_a_room_without_a_name_is_refused() {
    for blank in ["", " "] {
        let backend = Backend::start(move |asked| {
            let mid = asked.json()["token"].as_str().unwrap().parse::<i64>().unwrap();
            Answer::ok(json!({ "mid": mid, "key": blank }).to_string())
        });
        let server = Server::start(&settings(&backend));
        for transport in BOTH {
            let mut sessions: Vec<(Client, String)> = (0..3)
                .map(|_| {
                    let (client, reply) = present(&server, transport, &number().to_string());
                    let reply: Value = serde_json::from_slice(&reply.body).unwrap();
                    (client, reply["key"].as_str().unwrap().to_owned())
                })
                .collect();
            let keys: std::collections::BTreeSet<String> =
                sessions.iter().map(|(_, key)| key.clone()).collect();
            assert_eq!(keys.len(), 3, "{blank:?}: all have keys of their own: {keys:?}");
            sessions.iter_mut().for_each(|(client, _)| client.expect_nothing());
        }
    }
    for answer in [
        json!({ "mid": 7, "rooms": [""] }),
        json!({ "mid": 7, "rooms": ["live://1", ""] }),
        json!({ "mid": 7, "rooms_allowed": [""] }),
    ] {
        let backend = Backend::start(move |_| Answer::ok(answer.to_string()));
        let server = Server::start(&settings(&backend));
        for transport in BOTH {
            assert_eq!(code(&present(&server, transport, "any").1), 3207);
        }
    }
    // A client's request is judged alike, whatever identity was accepted.
    let backend = Backend::start(usual);
    for settings in [settings(&backend), Settings::new()] {
        let server = Server::start(&settings);
        for transport in BOTH {
            let who = json!({ "token": "mid:7", "protover": 1, "rooms": ["live://1", ""] });
            let (_, reply) = Client::present(&server, transport, who.to_string());
            assert_eq!(code(&reply.unwrap()), 3207);
            // goim's own: without a room.
            let who = json!({ "token": "mid:7", "room_id": "" });
            let (mut client, reply) = Client::present(&server, transport, who.to_string());
            assert_eq!((reply.unwrap().op, client.heartbeat()), (8, 0));
        }
    }
}
