//! What members may send to others: which operations, to which targets, how fast; and that
//! receivers learn the sender.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::backend::{Answer, Backend};
use crate::harness::keeping::Keeping;
use crate::harness::proto::{Fields, Writer};
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use goim_client::{
    Client as RustClient, ClientConfig, Endpoint, Event, Events, Identity, MemoryPositions, SyncConfig,
};
use serde_json::{Value, json};

const SEND: i32 = 4;
const SEND_REPLY: i32 = 5;
const NOTIFY: i32 = 20;
const ERROR: i32 = 25;
const MEMBER_MESSAGE: i32 = 32;
const FAILED: u64 = 3512;
const RATE_LIMITED: u64 = 3113;

/// Every operation below the backend's except 4: goim's, this version's, unassigned ones, and
/// numbers without meaning.
fn operations_of_the_protocol() -> impl Iterator<Item = i32> {
    (1..=40).chain([64, 255, 256, 999, -1, -6, i32::MIN]).filter(|operation| *operation != SEND)
}

fn to_rooms(settings: Settings) -> Settings {
    settings.set("logic.timelines.send.allowed", "live://*: 4, 1000..2000000000")
}

fn member() -> i64 {
    i64::from(number())
}

fn login(server: &Server, transport: Transport, who: &Value) -> Client {
    let (client, reply) = Client::present(server, transport, who.to_string());
    assert_eq!(reply.expect("a session").op, 8);
    client
}

/// A client of goim, an extended one, and one that syncs.
fn goim(server: &Server, transport: Transport, mid: i64, room: &str) -> Client {
    login(
        server,
        transport,
        &json!({ "mid": mid, "key": unique("k"), "room_id": room, "accepts": [4, 6, 20, 1000] }),
    )
}

fn negotiated(server: &Server, transport: Transport, mid: i64, room: &str) -> Client {
    let who =
        json!({ "mid": mid, "key": unique("k"), "room_id": room, "accepts": [4, 6, 1000], "protover": 1 });
    login(server, transport, &who)
}

fn syncing(server: &Server, transport: Transport, mid: i64, room: &str) -> Client {
    let who = json!({
        "mid": mid, "key": unique("k"), "room_id": room, "accepts": [], "protover": 3, "resume": {},
    });
    login(server, transport, &who)
}

fn send(to: &str, operation: i32, body: impl AsRef<[u8]>) -> Packet {
    let operation = i64::from(operation).cast_unsigned();
    Packet::new(SEND, 9, Writer::default().bytes(1, to).number(2, operation).bytes(3, body).done())
}

/// Sends, and returns the reply; notifications of the message may arrive before it.
fn ask(client: &mut Client, packet: &Packet) -> Packet {
    client.send(packet);
    loop {
        let packet = client.packet();
        if packet.op != NOTIFY && packet.op != 9 && packet.op != MEMBER_MESSAGE {
            return packet;
        }
    }
}

fn code(reply: &Packet) -> u64 {
    assert_eq!((reply.op, reply.seq), (ERROR, 9), "{reply:?}");
    let error: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(error["op"], json!(SEND), "{error}");
    error["code"].as_u64().unwrap()
}

fn figure(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn no_operation_of_the_protocol_is_for_members() {
    let server =
        Keeping::start_with(|settings| to_rooms(settings).set("logic.timelines.send.messages_burst", "1000"));
    let mut passed = BTreeSet::new();
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let mut sender = syncing(&server, transport, mid, &room);
        let mut others = [
            goim(&server, transport, member(), &room),
            negotiated(&server, transport, member(), &room),
            negotiated(&server, transport, mid, &unique("live://other")),
            syncing(&server, transport, member(), &room),
        ];
        // As the server would end them for good.
        let body = json!({ "code": 3505, "reason": "kicked", "reconnect": false }).to_string();
        for operation in operations_of_the_protocol() {
            for to in [room.clone(), format!("mid://{mid}")] {
                let reply = ask(&mut sender, &send(&to, operation, &body));
                if reply.op != ERROR || code(&reply) != FAILED {
                    passed.insert(operation);
                }
            }
        }
        assert!(passed.is_empty(), "{transport:?}: {} operations passed: {passed:?}", passed.len());
        others.iter_mut().for_each(Client::expect_nothing);
    }
    assert_eq!(server.get("/v1/history?timeline=live://r&limit=9").json()["data"]["latest"], json!(0));
}

#[test]
fn by_itself_a_member_sends_to_its_own_inbox_and_nowhere_else() {
    let server = Keeping::start();
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let mut sender = negotiated(&server, transport, mid, &room);
        let mut other = goim(&server, transport, member(), &room);
        for (to, operation) in [
            (room.clone(), 4),
            (room.clone(), 0),
            (room.clone(), 1000),
            (format!("mid://{}", member()), 4),
            (format!("mid://{mid}"), 1000),
            (format!("mid://0{mid}"), 4),
            (format!("mid://+{mid}"), 4),
            ("mid://".to_owned(), 4),
            (String::new(), 4),
        ] {
            assert_eq!(code(&ask(&mut sender, &send(&to, operation, "x"))), FAILED, "{to} {operation}");
        }
        other.expect_nothing();
        for operation in [0, 4] {
            assert_eq!(ask(&mut sender, &send(&format!("mid://{mid}"), operation, "note")).op, SEND_REPLY);
        }
        // Receivers could not learn who an anonymous sender is.
        let mut anonymous = negotiated(&server, transport, 0, &room);
        for to in [room.as_str(), "mid://0"] {
            assert_eq!(code(&ask(&mut anonymous, &send(to, 4, "x"))), FAILED, "{to}");
        }
    }
}

#[test]
fn a_rule_allows_operations_by_the_names_of_rooms() {
    let server = Keeping::start_with(|settings| {
        settings.set("logic.timelines.send.allowed", "live://*: 4, 1000..1999; one://1: 4; mid://*: 3000")
    });
    let one = "one://1";
    for transport in BOTH {
        let (mid, live, twelve) = (member(), unique("live://r"), unique("one://1"));
        let inbox = format!("mid://{mid}");
        for (room, to, operation, allowed) in [
            (live.as_str(), live.as_str(), 4, true),
            (&live, &live, 1999, true),
            (&live, &live, 2000, false),
            (&live, one, 4, false),
            (one, one, 4, true),
            (one, one, 1000, false),
            (&twelve, &twelve, 4, false),
            (&live, &inbox, 4, true),
            (&live, &inbox, 3000, true),
            (&live, &inbox, 1000, false),
        ] {
            let mut sender = negotiated(&server, transport, mid, room);
            let reply = ask(&mut sender, &send(to, operation, "x"));
            let expected = if allowed { SEND_REPLY } else { ERROR };
            assert_eq!(reply.op, expected, "in {room} to {to} with {operation}");
        }
    }
}

#[test]
fn the_backend_decides_where_no_rule_does_and_is_not_asked_about_the_protocol() {
    let backend = Backend::start(|asked| match asked.json()["to"].as_str() {
        Some(to) if to.starts_with("no://") => Answer::status(403, ""),
        _ => Answer::status(204, ""),
    });
    let server = Keeping::start_with(|settings| {
        settings.set("logic.timelines.send_webhook.url", &backend.url("/may"))
    });
    let (mid, room, other) = (member(), unique("live://r"), member());
    let mut sender = negotiated(&server, Transport::Tcp, mid, &room);
    let to_other = format!("mid://{other}");
    for (to, operation, op) in [
        (room.as_str(), 4, SEND_REPLY),
        (&to_other, 1000, SEND_REPLY),
        ("no://1", 4, ERROR),
        (&room, 6, ERROR),
        (&to_other, 20, ERROR),
    ] {
        assert_eq!(ask(&mut sender, &send(to, operation, "abc")).op, op, "{to} {operation}");
    }
    let asked: Vec<Value> = backend.asked_at("/may").iter().map(harness::backend::Asked::json).collect();
    let expected = [(room.as_str(), true, 4), (&to_other, false, 1000), ("no://1", false, 4)];
    let expected = expected.map(|(to, in_room, operation)| {
        json!({ "mid": mid, "to": to, "in_room": in_room, "operation": operation, "body_bytes": 3 })
    });
    assert_eq!(asked, expected);
}

#[test]
fn receivers_learn_the_sender() {
    let server = Keeping::start_with(to_rooms);
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let mut sender = negotiated(&server, transport, mid, &room);
        let mut plain = goim(&server, transport, member(), &room);
        let mut told = negotiated(&server, transport, member(), &room);
        let mut follows = syncing(&server, transport, member(), &room);
        // A sender in the body is ignored.
        let body = json!({ "sender": 1, "mid": 1 }).to_string();
        sender.send(&send(&room, 1000, &body));
        let mut replies = [sender.packet(), sender.packet()];
        replies.sort_by_key(|packet| packet.op);
        assert_eq!((replies[0].op, replies[1].op), (SEND_REPLY, MEMBER_MESSAGE), "its own too");
        plain.expect_push(1000, &body);
        for (client, op) in [(&mut told, MEMBER_MESSAGE), (&mut follows, NOTIFY)] {
            let packet = client.packet();
            assert_eq!((packet.op, packet.seq), (op, 0), "{packet:?}");
            let fields = Fields::read(&packet.body);
            let [message] = &fields.messages(3)[..] else { panic!("one message: {fields:?}") };
            assert_eq!((fields.text(1), fields.message(2).number(2)), (room.clone(), 1));
            let (seq, operation, version) = (message.number(1), message.number(2), message.number(3));
            assert_eq!((seq, operation, version), (1, 1000, 1));
            assert_eq!((message.number(5), message.text(6)), (mid.cast_unsigned(), body.clone()));
        }
        // A message of the backend has none, and is a push like others.
        let stored =
            json!({ "to": { "room": room }, "operation": 1000, "body": "news", "delivery": "stored" });
        let headers = [("content-type", "application/json")];
        let body_of = json!({ "messages": [stored] }).to_string();
        let answer = server.request("POST", "/v1/push", &headers, body_of.as_bytes()).json();
        assert_eq!(answer["code"], json!(0), "{answer}");
        told.expect_push(1000, "news");
        sender.expect_push(1000, "news");
        // A second try is no second message.
        let again = |id: &str| {
            Packet::new(
                SEND,
                9,
                Writer::default().bytes(1, &room).number(2, 1000).bytes(3, "once").bytes(4, id).done(),
            )
        };
        assert_eq!(ask(&mut sender, &again("id")).op, SEND_REPLY);
        assert_eq!(told.packet().op, MEMBER_MESSAGE);
        assert_eq!(ask(&mut sender, &again("id")).op, SEND_REPLY);
        told.expect_nothing();
        // Over HTTP.
        let senders = |data: &Value| -> Vec<i64> {
            let messages = data["messages"].as_array().unwrap();
            messages.iter().map(|message| message["sender"].as_i64().unwrap()).collect()
        };
        let history = server.get(&format!("/v1/history?timeline={room}&limit=9")).json();
        assert_eq!(senders(&history["data"]), [mid, 0, mid], "{history}");
        let synced = server.get(&format!("/v1/sync?timeline={room}&mid={}", member())).json();
        assert_eq!(senders(&synced["data"]), [mid, 0, mid], "{synced}");
        let mut stream = std::net::TcpStream::connect(server.addrs.http).unwrap();
        stream.set_read_timeout(Some(harness::DEADLINE)).unwrap();
        write!(
            stream,
            "GET /v1/sync?timeline={room}&mid={mid} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
        )
        .unwrap();
        let lines = BufReader::new(stream).lines();
        let data = lines.map(Result::unwrap).find_map(|line| Some(line.strip_prefix("data: ")?.to_owned()));
        assert_eq!(senders(&serde_json::from_str(&data.unwrap()).unwrap()), [mid, 0, mid]);
    }
}

async fn next(events: &mut Events) -> Event {
    let next = tokio::time::timeout(harness::DEADLINE, events.recv()).await;
    next.expect("an event in time").expect("the client goes on")
}

#[test]
fn the_rust_client_gives_the_sender() {
    let server = Keeping::start_with(to_rooms);
    for syncs in [false, true] {
        let (mid, room) = (member(), unique("live://r"));
        let endpoint: Endpoint = format!("tcp://{}", server.addrs.tcp).parse().unwrap();
        let identity = Identity::new(member()).room(&room);
        let mut config = ClientConfig::new(endpoint, identity);
        if syncs {
            let positions = std::sync::Arc::new(MemoryPositions::default());
            config.sync = Some(SyncConfig::new([room.clone()], positions));
        }
        let mut sender = negotiated(&server, Transport::Ws, mid, &room);
        let (client, mut events) =
            harness::server::runtime().block_on(async { RustClient::start(config).unwrap() });
        harness::server::runtime().block_on(async {
            while !matches!(next(&mut events).await, Event::Connected { .. }) {}
            tokio::task::block_in_place(|| {
                assert_eq!(ask(&mut sender, &send(&room, 1000, "hello")).op, SEND_REPLY);
            });
            let (timeline, message) = loop {
                match next(&mut events).await {
                    Event::MemberMessage { timeline, message } if !syncs => break (timeline, message),
                    Event::Messages { timeline, mut messages, .. } if syncs => {
                        break (timeline, messages.remove(0));
                    }
                    Event::Online(_) => {}
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!((timeline, message.sender), (room.clone(), mid));
            assert_eq!((message.operation.0, message.body.as_deref()), (1000, Some(&b"hello"[..])));
            client.close().await;
        });
    }
}

#[test]
fn a_member_has_one_quota_for_all_its_connections() {
    let server = Keeping::start_with(|settings| {
        to_rooms(settings)
            .set("logic.timelines.send.messages_per_second_max", "5")
            .set("logic.timelines.send.messages_burst", "10")
    });
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let inbox = format!("mid://{mid}");
        let mut sessions: Vec<Client> =
            (0..5).map(|_| negotiated(&server, transport, mid, &unique("live://other"))).collect();
        let mut in_room = negotiated(&server, transport, mid, &room);
        let started = Instant::now();
        let (mut sent, mut refused) = (0, 0);
        let mut wait = 0;
        for session in &mut sessions {
            for _ in 0..20 {
                let reply = ask(session, &send(&inbox, 4, "x"));
                if reply.op == SEND_REPLY {
                    sent += 1;
                    continue;
                }
                assert_eq!(code(&reply), RATE_LIMITED);
                refused += 1;
                let error: Value = serde_json::from_slice(&reply.body).unwrap();
                wait = error["retry_after_ms"].as_u64().unwrap();
                assert!((1..=200).contains(&wait), "{error}");
            }
        }
        let earned = started.elapsed().as_millis() / 200;
        assert!(sent >= 10 && sent <= 11 + earned && sent + refused == 100, "{sent} sent, {refused} refused");
        // Whatever it sends to counts together; others have their own.
        assert_eq!(
            ask(&mut negotiated(&server, transport, member(), &room), &send(&room, 4, "x")).op,
            SEND_REPLY
        );
        std::thread::sleep(Duration::from_millis(wait));
        eventually("there is room again after the time that was said", || {
            ask(&mut in_room, &send(&room, 4, "x")).op == SEND_REPLY
        });
    }
    let name = "goim_logic_timeline_sends_limited_total{limit=\"messages\"}";
    assert!(figure(&server, name) > 100.0, "refusals are counted");
}

#[test]
fn bytes_are_limited_too() {
    let server = Keeping::start_with(|settings| {
        to_rooms(settings)
            .set("logic.timelines.send.messages_per_second_max", "1000000")
            .set("logic.timelines.send.messages_burst", "1000000")
            .set("logic.timelines.send.bytes_per_second_max", "10000 B")
            .set("logic.timelines.send.bytes_burst", "20000 B")
    });
    for transport in BOTH {
        let mid = member();
        let inbox = format!("mid://{mid}");
        let mut session = negotiated(&server, transport, mid, &unique("live://r"));
        let (started, body) = (Instant::now(), [b'x'; 4000]);
        let replies: Vec<Packet> = (0..50).map(|_| ask(&mut session, &send(&inbox, 4, body))).collect();
        let sent = replies.iter().filter(|reply| reply.op == SEND_REPLY).count() as u128;
        let earned = started.elapsed().as_millis() / 400;
        assert!(sent >= 5 && sent <= 6 + earned, "{sent} of 50");
        assert!(replies.iter().filter(|reply| reply.op == ERROR).all(|reply| code(reply) == RATE_LIMITED));
    }
    let name = "goim_logic_timeline_sends_limited_total{limit=\"bytes\"}";
    assert!(figure(&server, name) > 0.0, "refusals are counted");
}

#[test]
fn a_back_end_is_trusted_with_any_operation_as_in_goim() {
    let server = Keeping::start();
    for transport in BOTH {
        let room = unique("live://r");
        let mut plain = goim(&server, transport, member(), &room);
        for operation in [6, 8, 20, 25, 32] {
            server.push_room(operation, &room, "x");
            plain.expect_push(operation, "x");
        }
    }
}
