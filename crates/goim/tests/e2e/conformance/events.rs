//! Session events as the backend receives them: every event, in order for each session, and again
//! when it was not accepted.

use std::collections::{HashMap, HashSet};

use crate::harness::backend::{Answer, Asked, Backend};
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use serde_json::{Value, json};

struct Session {
    client: Client,
    key: String,
    mid: u32,
}

fn settings(backend: &Backend) -> Settings {
    Settings::new()
        .set("events.url", &backend.url("/sessions"))
        .set("events.secret", "hook")
        .set("comet.events.interval", "50ms")
}

fn login(server: &Server, transport: Transport, room: &str) -> Session {
    let (mid, key) = (number(), unique("k"));
    let body = json!({ "mid": mid, "key": key, "accepts": [1000], "room_id": room, "protover": 1 });
    let (client, reply) = Client::present(server, transport, body.to_string());
    assert_eq!(reply.expect("a session").op, 8);
    Session { client, key, mid }
}

fn events_in(asked: &[Asked]) -> Vec<Value> {
    asked
        .iter()
        .flat_map(|asked| {
            assert_eq!(asked.header("authorization"), Some("Bearer hook"));
            assert_eq!(asked.header("content-type"), Some("application/json"));
            asked.json()["events"].as_array().unwrap().clone()
        })
        .collect()
}

/// What the backend has heard of a session, in order, each event once.
fn heard(backend: &Backend, key: &str) -> Vec<Value> {
    let mut seen = HashSet::new();
    let mut events = events_in(&backend.asked_at("/sessions"));
    events.retain(|event| event["key"] == key && seen.insert(event["id"].to_string()));
    events
}

#[track_caller]
fn check_heard(backend: &Backend, session: &Session, expected: &[(&str, &[&str], &str)]) {
    eventually("the backend has heard of everything", || {
        heard(backend, &session.key).len() >= expected.len()
    });
    let events = heard(backend, &session.key);
    let told: Vec<Value> =
        events.iter().map(|event| json!([event["kind"], event["rooms"], event["reason"]])).collect();
    let expected: Vec<Value> = expected.iter().map(|event| json!(event)).collect();
    assert_eq!(told, expected);
    for event in &events {
        assert_eq!(event["mid"], json!(session.mid));
        assert!(!event["server"].as_str().unwrap().is_empty());
        assert!(event["at_ms"].as_u64().unwrap() > 1_700_000_000_000, "{event}");
    }
}

#[test]
fn the_events_of_a_session_are_sent() {
    let backend = Backend::start(|_| Answer::ok(""));
    let server = Server::start(&settings(&backend));
    for transport in BOTH {
        let [a, b, c, d] = [0; 4].map(|_| unique("live://r"));
        let mut session = login(&server, transport, &a);
        let body = json!([b, c, b]).to_string();
        assert_eq!(session.client.ask(&Packet::new(26, 1, body)).op, 27);
        assert_eq!(session.client.ask(&Packet::new(28, 2, json!([c, d]).to_string())).op, 29);
        // goim's change of room leaves the first one; into a room of the list it joins nothing.
        assert_eq!(session.client.ask(&Packet::new(12, 3, &d)).op, 13);
        assert_eq!(session.client.ask(&Packet::new(12, 4, &b)).op, 13);
        session.client.finish();
        session.client.rest();
        check_heard(
            &backend,
            &session,
            &[
                ("connect", &[&a], ""),
                ("join", &[&b, &c], ""),
                ("leave", &[&c], ""),
                ("leave", &[&a], ""),
                ("join", &[&d], ""),
                ("leave", &[&d], ""),
                ("disconnect", &[], "peer_closed"),
            ],
        );
    }
}

#[test]
fn the_reason_of_an_end_is_sent() {
    let backend = Backend::start(|_| Answer::ok(""));
    let server = Server::start(&settings(&backend));
    let mut kicked = login(&server, Transport::Tcp, "");
    let order = json!({ "of": { "keys": [kicked.key] }, "reason": "kicked" });
    assert_eq!(server.post("/v1/sessions/end", order.to_string()).status, 200);
    kicked.client.rest();
    check_heard(&backend, &kicked, &[("connect", &[], ""), ("disconnect", &[], "kicked")]);
    // A client without a session causes no events.
    let (mut refused, _) = Client::present(&server, Transport::Tcp, "not a token");
    refused.rest();
    let after = login(&server, Transport::Tcp, "");
    check_heard(&backend, &after, &[("connect", &[], "")]);
    assert!(events_in(&backend.asked()).iter().all(|event| !event["key"].as_str().unwrap().is_empty()));
}

#[test]
fn events_that_were_not_accepted_are_sent_again() {
    let backend = Backend::start(|_| Answer::status(503, ""));
    let server = Server::start(&settings(&backend));
    let mut sessions: Vec<Session> = (0..20).map(|nth| login(&server, BOTH[nth % 2], "")).collect();
    eventually("the backend was told and did not take it", || !backend.asked().is_empty());
    let refused = backend.asked().len();
    backend.set_down(true);
    for session in &mut sessions {
        session.client.finish();
        session.client.rest();
    }
    backend.set_down(false);
    backend.answers(|_| Answer::ok(""));
    for session in &sessions {
        check_heard(&backend, session, &[("connect", &[], ""), ("disconnect", &[], "peer_closed")]);
    }
    // An event that is sent again has the same id; one that was accepted is not sent again.
    let asked = backend.asked_at("/sessions");
    let mut told: HashMap<String, usize> = HashMap::new();
    for event in events_in(&asked) {
        *told.entry(event["id"].to_string()).or_default() += 1;
    }
    assert!(told.values().any(|times| *times > 1), "what was refused came again: {told:?}");
    assert_eq!(told.len(), 40);
    assert!(asked.len() > refused);
}
