//! Packets of clients to the backend and its answers: failures, retries, duplicates, and a backend
//! that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::backend::{Answer, Asked, Backend};
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use serde_json::{Value, json};

/// The settings of one route beyond operations and address.
fn route(operations: &str, url: &str, more: &str) -> String {
    format!("{{ operations = \"{operations}\", to = \"{url}\", {more} }}")
}

fn settings(routes: &[String]) -> Settings {
    Settings::new().set("logic.upstream.routes", &format!("[{}]", routes.join(", ")))
}

fn echo(asked: &Asked) -> Answer {
    Answer::ok([b"answer to ", asked.body.as_slice()].concat())
}

fn login(server: &Server, transport: Transport, negotiated: bool, mid: u32) -> Client {
    let mut body = json!({ "mid": mid, "key": unique("k") });
    if negotiated {
        body["protover"] = json!(1);
    }
    let (client, reply) = Client::present(server, transport, body.to_string());
    assert_eq!(reply.expect("a session").op, 8);
    client
}

#[track_caller]
fn check_error(answer: &Packet, sequence: i32, code: u64, operation: i32) {
    assert_eq!((answer.op, answer.seq), (25, sequence), "{answer:?}");
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((&body["code"], &body["op"]), (&json!(code), &json!(operation)), "{body}");
    assert_eq!(body["retry_after_ms"].is_number(), code < 3200, "{body}");
}

#[test]
fn the_backend_answers() {
    let backend = Backend::start(echo);
    let routes = [
        route("2000..2999", &backend.url("/chat"), "secret = \"hook\""),
        route("3000", &backend.url("/one"), ""),
    ];
    let server = Server::start(&settings(&routes));
    for transport in BOTH {
        for negotiated in [false, true] {
            let mid = number();
            let mut client = login(&server, transport, negotiated, mid);
            let answer = client.ask(&Packet::new(2345, 77, "hello"));
            assert_eq!(answer, Packet::new(2345, 77, "answer to hello"), "{transport:?} {negotiated}");
            assert_eq!(client.ask(&Packet::new(3000, 78, "one")), Packet::new(3000, 78, "answer to one"));
            // Where nothing is configured it is as in goim.
            assert_eq!(client.ask(&Packet::new(3001, 79, "x")), Packet::new(3001, 79, ""));
            let asked = backend.asked_at("/chat").pop().unwrap();
            let header = |name: &str| asked.header(name).unwrap_or_default().to_owned();
            assert_eq!(header("goim-mid"), mid.to_string());
            assert_eq!(
                (header("goim-operation"), header("goim-sequence")),
                ("2345".to_owned(), "77".to_owned())
            );
            assert_eq!(
                (header("goim-schema"), header("authorization")),
                ("1".to_owned(), "Bearer hook".to_owned())
            );
            assert!(header("goim-key").starts_with("k-"));
            assert_eq!(backend.asked_at("/one").pop().unwrap().header("authorization"), None);
        }
    }
}

#[test]
fn a_failure_is_a_code_for_negotiated_clients_and_an_empty_echo_for_goim_v2_clients() {
    let backend = Backend::start(echo);
    let routes = [route("2000", &backend.url("/"), "timeout = \"200ms\"")];
    let server = Server::start(&settings(&routes));
    let slow = Answer::ok("late").after(Duration::from_millis(700));
    for (what, answer, code) in [
        ("no", Answer::status(403, "no"), 3512),
        ("an error", Answer::status(500, ""), 3112),
        ("too many requests", Answer::status(429, ""), 3112),
        ("late", slow, 3111),
    ] {
        backend.answers(move |_| answer.clone());
        for transport in BOTH {
            let mut client = login(&server, transport, true, number());
            check_error(&client.ask(&Packet::new(2000, 5, "x")), 5, code, 2000);
            client.heartbeat();
            let mut plain = login(&server, transport, false, number());
            assert_eq!(plain.ask(&Packet::new(2000, 5, "x")), Packet::new(2000, 5, ""), "{what}");
        }
        backend.answers(echo);
        let mut client = login(&server, Transport::Tcp, true, number());
        eventually("the route is well again", || client.ask(&Packet::new(2000, 6, "x")).op == 2000);
    }
}

#[test]
fn a_backend_that_is_down_is_left_alone_and_found_again() {
    let backend = Backend::start(echo);
    backend.set_down(true);
    let server = Server::start(&settings(&[route("2000", &backend.url("/"), "")]));
    let mut client = login(&server, Transport::Tcp, true, number());
    for sequence in 1..30 {
        check_error(&client.ask(&Packet::new(2000, sequence, "x")), sequence, 3112, 2000);
    }
    backend.set_down(false);
    eventually("the backend is asked again", || client.ask(&Packet::new(2000, 99, "x")).op == 2000);
}

#[test]
fn a_backend_that_hangs_delays_only_its_own_route() {
    let hangs = Backend::start(|_| Answer::ok("").after(Duration::from_secs(30)));
    let works = Backend::start(echo);
    let routes = [
        route("2000..2999", &hangs.url("/"), "timeout = \"3s\", calls_max = 8"),
        route("3000..3999", &works.url("/"), ""),
    ];
    let server = Server::start(&settings(&routes));
    // More callers than the route takes at once.
    let mut waiting: Vec<Client> = (0..40).map(|nth| login(&server, BOTH[nth % 2], true, number())).collect();
    let began = Instant::now();
    for client in &mut waiting {
        client.send(&Packet::new(2001, 1, "x"));
    }
    eventually("the backend has been asked", || !hangs.asked().is_empty());
    let mut others: Vec<Client> = (0..8).map(|nth| login(&server, BOTH[nth % 2], true, number())).collect();
    let mut rounds = 0;
    while began.elapsed() < Duration::from_secs(2) {
        for client in &mut others {
            let asked = Instant::now();
            assert_eq!(client.ask(&Packet::new(3001, 7, "x")), Packet::new(3001, 7, "answer to x"));
            client.heartbeat();
            assert!(asked.elapsed() < Duration::from_secs(1), "waited {:?}", asked.elapsed());
        }
        rounds += 1;
    }
    assert!(rounds > 10, "{rounds} rounds in two seconds");
    assert!(hangs.asked().len() <= 8, "no more at once than allowed: {}", hangs.asked().len());
    let mut codes: Vec<u64> = Vec::new();
    for client in &mut waiting {
        let answer = client.packet();
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        codes.push(body["code"].as_u64().unwrap());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "all have heard after {:?}", began.elapsed());
    assert!(codes.contains(&3111), "some were late: {codes:?}");
    assert!(
        codes.iter().all(|code| [3110, 3111, 3112].contains(code)),
        "late, busy, or left alone: {codes:?}"
    );
}

#[test]
fn what_may_be_done_twice_is_tried_again() {
    let backend = Backend::start(echo);
    let routes = [
        route("2000", &backend.url("/twice"), "retries = 2"),
        route("3000", &backend.url("/once"), ""),
        route("4000", &backend.url("/no"), "retries = 2"),
    ];
    let server = Server::start(&settings(&routes));
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    backend.answers(move |asked| match asked.path.as_str() {
        "/no" => Answer::status(400, ""),
        _ if counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) => Answer::status(503, ""),
        _ => echo(asked),
    });
    let mut client = login(&server, Transport::Tcp, true, number());
    assert_eq!(client.ask(&Packet::new(2000, 1, "x")), Packet::new(2000, 1, "answer to x"));
    assert_eq!(backend.asked_at("/twice").len(), 2);
    tries.store(0, Ordering::SeqCst);
    check_error(&client.ask(&Packet::new(3000, 2, "x")), 2, 3112, 3000);
    assert_eq!(backend.asked_at("/once").len(), 1);
    // A no is an answer.
    check_error(&client.ask(&Packet::new(4000, 3, "x")), 3, 3512, 4000);
    assert_eq!(backend.asked_at("/no").len(), 1);
}

#[test]
fn what_is_sent_twice_is_answered_from_the_first_time() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let backend =
        Backend::start(move |_| Answer::ok(format!("order {}", counted.fetch_add(1, Ordering::SeqCst))));
    let routes =
        [route("2000", &backend.url("/"), "duplicates = \"1m\""), route("3000", &backend.url("/"), "")];
    let server = Server::start(&settings(&routes));
    let mid = number();
    let mut first = login(&server, Transport::Tcp, true, mid);
    assert_eq!(first.ask(&Packet::new(2000, 123, "buy")), Packet::new(2000, 123, "order 0"));
    drop(first);
    // The answer was lost with the connection: the client asks again, from elsewhere.
    let mut again = login(&server, Transport::Ws, true, mid);
    assert_eq!(again.ask(&Packet::new(2000, 123, "buy")), Packet::new(2000, 123, "order 0"));
    assert_eq!(again.ask(&Packet::new(2000, 124, "buy")), Packet::new(2000, 124, "order 1"));
    let mut other = login(&server, Transport::Ws, true, number());
    assert_eq!(
        other.ask(&Packet::new(2000, 123, "buy")),
        Packet::new(2000, 123, "order 2"),
        "another member"
    );
    assert_eq!(other.ask(&Packet::new(3000, 123, "buy")), Packet::new(3000, 123, "order 3"));
    assert_eq!(
        other.ask(&Packet::new(3000, 123, "buy")),
        Packet::new(3000, 123, "order 4"),
        "not on this route"
    );

    // The second may arrive while the first is in flight.
    backend.answers(|_| Answer::ok("slow").after(Duration::from_millis(300)));
    let before = backend.asked().len();
    let mut pair = [login(&server, Transport::Tcp, true, mid), login(&server, Transport::Ws, true, mid)];
    pair.iter_mut().for_each(|client| client.send(&Packet::new(2000, 200, "buy")));
    pair.iter_mut().for_each(|client| client.expect(&Packet::new(2000, 200, "slow")));
    assert_eq!(backend.asked().len() - before, 1);
    // What had no answer is tried again.
    backend.answers(|_| Answer::status(503, ""));
    check_error(&other.ask(&Packet::new(2000, 300, "buy")), 300, 3112, 2000);
    backend.answers(echo);
    assert_eq!(other.ask(&Packet::new(2000, 300, "buy")), Packet::new(2000, 300, "answer to buy"));
}
