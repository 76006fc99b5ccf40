//! Timelines as clients and publishers see them: stored pushes, their notifications, syncing over a
//! connection and over HTTP, sending, cursors, history. The test encodes and decodes bodies itself.

use crate::harness;
use crate::harness::backend::{Answer, Backend};
use crate::harness::keeping::{Keeping, Place};
use crate::harness::proto::{Fields, Writer};
use crate::harness::{BOTH, Client, Packet, Server, Transport, eventually, number, unique};
use serde_json::{Value, json};

const NOTIFY: i32 = 20;
const SYNC: i32 = 21;
const SYNC_REPLY: i32 = 22;
const ACK: i32 = 23;
const ERROR: i32 = 25;

/// A session that syncs, after the auth reply. `more` is merged into its token.
fn syncing(server: &Server, transport: Transport, mid: i64, more: Value) -> Client {
    let mut token = json!({
        "mid": mid, "key": unique("k"), "protover": 3, "accepts": [], "resume": {},
    });
    token.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (client, reply) = Client::present(server, transport, token.to_string());
    assert_eq!(reply.expect("a session").op, 8);
    client
}

fn json_request(server: &Server, target: &str, body: &Value) -> Value {
    let headers = [("content-type", "application/json")];
    server.request("POST", target, &headers, body.to_string().as_bytes()).json()
}

/// Pushes a stored message and gives where it is: for each receiver (epoch, seq).
fn store(server: &Server, to: &Value, body: &str) -> Vec<(u64, u64)> {
    let message = json!({ "to": to, "operation": 1000, "body": body, "delivery": "stored" });
    let answer = json_request(server, "/v1/push", &json!({ "messages": [message] }));
    assert_eq!((&answer["code"], &answer["accepted"]), (&json!(0), &json!(1)), "{answer}");
    let placed = answer["positions"][0].as_array().unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    placed.iter().map(|placed| (number(&placed["epoch"]), number(&placed["seq"]))).collect()
}

fn position(epoch: u64, seq: u64) -> Vec<u8> {
    Writer::default().number(1, epoch).number(2, seq).done()
}

fn sync_request(timeline: &str, epoch: u64, seq: u64, limit: u64) -> Packet {
    let body = Writer::default().bytes(1, timeline).bytes(2, position(epoch, seq)).number(3, limit).done();
    Packet::new(SYNC, 77, body)
}

fn sync(client: &mut Client, timeline: &str, epoch: u64, seq: u64, limit: u64) -> Reply {
    let reply = client.ask(&sync_request(timeline, epoch, seq, limit));
    assert_eq!((reply.op, reply.seq), (SYNC_REPLY, 77), "{}", String::from_utf8_lossy(&reply.body));
    Reply::read(&reply.body)
}

/// A reply to a sync, or a part of one.
#[derive(Debug, PartialEq)]
struct Reply {
    timeline: String,
    epoch: u64,
    after: u64,
    messages: Vec<(u64, String)>,
    latest: u64,
    more: bool,
    gap: bool,
}

impl Reply {
    fn read(body: &[u8]) -> Self {
        let fields = Fields::read(body);
        let message = |message: &Fields| (message.number(1), message.text(6));
        Self {
            timeline: fields.text(1),
            epoch: fields.number(2),
            messages: fields.messages(3).iter().map(message).collect(),
            latest: fields.number(4),
            more: fields.number(5) == 1,
            gap: fields.number(6) == 1,
            after: fields.number(7),
        }
    }

    fn seqs(&self) -> Vec<u64> {
        self.messages.iter().map(|(seq, _)| *seq).collect()
    }
}

/// The next packet is a notification of a timeline: its position, and the messages in it.
fn notified(client: &mut Client, timeline: &str) -> (u64, u64, Vec<(u64, String)>) {
    let packet = client.packet();
    assert_eq!((packet.op, packet.seq), (NOTIFY, 0));
    let fields = Fields::read(&packet.body);
    assert_eq!(fields.text(1), timeline);
    let latest = fields.message(2);
    let messages = fields.messages(3).iter().map(|message| (message.number(1), message.text(6))).collect();
    (latest.number(1), latest.number(2), messages)
}

fn expect_failure(reply: &Packet, op: i32, code: u64) {
    assert_eq!(reply.op, ERROR, "{reply:?}");
    let error: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((&error["op"], &error["code"]), (&json!(op), &json!(code)), "{error}");
}

fn member() -> i64 {
    i64::from(number())
}

#[test]
fn a_stored_message_is_a_push_to_goim_v2_clients_and_a_notification_to_clients_that_sync() {
    let server = Keeping::start();
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let who = json!({ "mid": mid, "key": unique("k"), "room_id": room, "accepts": [1000] }).to_string();
        let (mut goim, _) = Client::present(&server, transport, who);
        let mut full = syncing(&server, transport, mid, json!({ "room_id": room }));
        let mut bare = syncing(&server, transport, mid, json!({ "room_id": room, "notify_only": true }));
        let inbox = format!("mid://{mid}");
        for (to, timeline) in [(json!({ "mids": [mid] }), &inbox), (json!({ "room": room }), &room)] {
            let [(epoch, 1)] = store(&server, &to, "hello")[..] else { panic!("the first has place 1") };
            goim.expect_push(1000, "hello");
            assert_eq!(notified(&mut full, timeline), (epoch, 1, vec![(1, "hello".to_owned())]));
            assert_eq!(notified(&mut bare, timeline), (epoch, 1, vec![]));
            // What is large is fetched by who wants it.
            let large = "x".repeat(2000);
            assert_eq!(store(&server, &to, &large), [(epoch, 2)]);
            assert_eq!(goim.pushed().body.len(), 2000);
            assert_eq!(notified(&mut full, timeline), (epoch, 2, vec![]));
            assert_eq!(notified(&mut bare, timeline), (epoch, 2, vec![]));
            let reply = sync(&mut full, timeline, epoch, 1, 0);
            assert_eq!(reply.messages, [(2, large)]);
        }
        // A transient message is one for all of them.
        server.push_room(1000, &room, "passing");
        for client in [&mut goim, &mut full, &mut bare] {
            client.expect_push(1000, "passing");
            client.expect_nothing();
        }
    }
}

#[test]
fn a_session_syncs_what_it_lacks_in_pages_and_is_notified_of_gaps() {
    let place = Place::new();
    let settings = place
        .settings()
        .set("timelines.retention_overrides", "short: 5 messages")
        .set("timelines.retention_interval", "50ms");
    let server = Server::start(&settings);
    let mid = member();
    let timeline = format!("mid://{mid}");
    let mut epoch = 0;
    for number in 1..=10 {
        epoch = store(&server, &json!({ "mids": [mid] }), &number.to_string())[0].0;
    }
    let mut client = syncing(&server, Transport::Tcp, mid, json!({}));
    for (from, limit, expected, more) in
        [(0, 3, 1..=3, true), (3, 3, 4..=6, true), (8, 3, 9..=10, false), (0, 0, 1..=10, false)]
    {
        let reply = sync(&mut client, &timeline, epoch, from, limit);
        assert_eq!(reply.seqs(), expected.collect::<Vec<_>>());
        assert_eq!(
            (reply.epoch, reply.latest, reply.more, reply.gap, reply.after),
            (epoch, 10, more, false, from)
        );
    }
    let at_the_end = sync(&mut client, &timeline, epoch, 10, 0);
    assert_eq!((at_the_end.messages, at_the_end.more, at_the_end.gap), (vec![], false, false));
    // Another epoch, ahead of the end: there is a gap, and all stored messages follow.
    for (epoch_known, seq) in [(epoch + 1, 3), (epoch, 11)] {
        let reply = sync(&mut client, &timeline, epoch_known, seq, 0);
        assert_eq!((reply.gap, reply.after, reply.epoch), (true, 0, epoch));
        assert_eq!(reply.seqs(), (1..=10).collect::<Vec<_>>());
    }
    // Nothing was ever there.
    let room = unique("live://r");
    let empty = sync(&mut client, &room, 0, 0, 0);
    assert_eq!((empty.epoch, empty.latest, empty.gap, empty.messages), (0, 0, false, vec![]));
    assert!(sync(&mut client, &room, 7, 7, 0).gap, "what was known is gone");
    // Old messages are removed; the position of a client that was offline is a gap then.
    let room = unique("short://r");
    for number in 1..=9 {
        epoch = store(&server, &json!({ "room": room }), &number.to_string())[0].0;
    }
    eventually("old messages go", || sync(&mut client, &room, epoch, 3, 0).gap);
    let reply = sync(&mut client, &room, epoch, 2, 0);
    assert_eq!((reply.gap, reply.after, reply.seqs()), (true, 4, vec![5, 6, 7, 8, 9]));
    let reply = sync(&mut client, &room, epoch, 4, 0);
    assert_eq!((reply.gap, reply.seqs()), (false, vec![5, 6, 7, 8, 9]), "nothing is missing behind 4");
}

#[test]
fn positions_in_the_token_make_coming_back_one_round_trip() {
    let server = Keeping::start();
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let inbox = format!("mid://{mid}");
        let to_inbox = json!({ "mids": [mid] });
        let inbox_epoch = store(&server, &to_inbox, "a")[0].0;
        store(&server, &to_inbox, "b");
        let room_epoch = store(&server, &json!({ "room": room }), "c")[0].0;
        let positions = json!({
            &inbox: { "epoch": inbox_epoch, "seq": 1 },
            &room: { "epoch": room_epoch, "seq": 1 },
            "mid://1": { "epoch": 1, "seq": 1 },
            "nonsense": { "epoch": 1, "seq": 1 },
        });
        let mut client = syncing(&server, transport, mid, json!({ "resume": positions }));
        let mut replies: Vec<Reply> = (0..2)
            .map(|_| {
                let packet = client.packet();
                assert_eq!((packet.op, packet.seq), (SYNC_REPLY, 0));
                Reply::read(&packet.body)
            })
            .collect();
        replies.sort_by_key(|reply| reply.timeline == inbox);
        assert_eq!((replies[0].timeline.as_str(), &replies[0].messages), (room.as_str(), &vec![]));
        assert_eq!(replies[1].messages, [(2, "b".to_owned())]);
        client.expect_nothing();
    }
}

#[test]
fn no_member_reads_what_belongs_to_others() {
    let server = Keeping::start();
    let (mid, other) = (member(), member());
    store(&server, &json!({ "mids": [other] }), "secret");
    let mut client = syncing(&server, Transport::Ws, mid, json!({}));
    let of_other = format!("mid://{other}");
    expect_failure(&client.ask(&sync_request(&of_other, 0, 0, 0)), SYNC, 3512);
    let ack = Writer::default().bytes(1, &of_other).number(2, 1).done();
    expect_failure(&client.ask(&Packet::new(ACK, 5, ack)), ACK, 3512);
    for body in [&b"\xff"[..], b"", b"\x0a\x03abc"] {
        expect_failure(&client.ask(&Packet::new(SYNC, 5, body)), SYNC, 3512);
    }
    client.expect_nothing();
    // A client of goim that sends such an operation gets goim's empty echo.
    let who = json!({ "mid": mid, "key": unique("k"), "accepts": [] }).to_string();
    let (mut goim, _) = Client::present(&server, Transport::Tcp, who);
    goim.send(&sync_request(&format!("mid://{mid}"), 0, 0, 0));
    goim.expect(&Packet::new(SYNC, 77, ""));
    let status = |target: &str| server.get(target).status;
    assert_eq!(status(&format!("/v1/sync?timeline=mid://{other}&mid={mid}")), 403);
    assert_eq!(status(&format!("/v1/sync?timeline=mid://{other}&mid={other}")), 200);
    assert_eq!(status("/v1/sync?timeline=nonsense&mid=7"), 400);
    // Who is believed must be on this machine, and speak for himself.
    let target = format!("/v1/sync?timeline=mid://{mid}&mid={mid}");
    let by_proxy = server.request("GET", &target, &[("x-forwarded-for", "192.0.2.1")], b"");
    assert!(by_proxy.status == 403 && by_proxy.text().contains("allow_remote"), "{}", by_proxy.text());
    assert_eq!(status("/v1/sync?mid=7"), 400);
}

#[test]
fn clients_that_sync_learn_that_notifications_were_lost() {
    let server = Keeping::start();
    for transport in BOTH {
        let mut client = syncing(&server, transport, member(), json!({}));
        let who = json!({ "mid": member(), "key": unique("k"), "accepts": [1000] }).to_string();
        let (mut goim, _) = Client::present(&server, transport, who);
        // What job sends when it has lost something.
        assert_eq!(server.request("POST", "/goim/push/all?operation=20", &[], b"").json()["code"], 0);
        let notification = client.pushed();
        assert_eq!((notification.op, notification.body.as_slice()), (NOTIFY, &b""[..]));
        goim.expect_nothing();
    }
}

fn send(to: &str, body: &str, client_id: &str) -> Packet {
    let writer = Writer::default().bytes(1, to).number(2, 1000).bytes(3, body);
    let writer = if client_id.is_empty() { writer } else { writer.bytes(4, client_id) };
    Packet::new(4, 9, writer.done())
}

#[test]
fn members_send_to_their_rooms_once() {
    let server =
        Keeping::start_with(|settings| settings.set("logic.timelines.send.allowed", "live://*: 1000"));
    for transport in BOTH {
        let (mid, room) = (member(), unique("live://r"));
        let mut sender = syncing(&server, transport, mid, json!({ "room_id": room }));
        let mut other = syncing(&server, transport, member(), json!({ "rooms": [room] }));
        let sent = |client: &mut Client, packet: &Packet| {
            let mut replies = [client.ask(packet), client.packet()];
            // The notification of a client's own message may arrive before its reply.
            replies.sort_by_key(|packet| packet.op);
            assert_eq!((replies[0].op, replies[0].seq, replies[1].op), (5, 9, NOTIFY));
            let reply = Fields::read(&replies[0].body);
            (reply.message(1).number(2), reply.number(2) == 1)
        };
        assert_eq!(sent(&mut sender, &send(&room, "one", "id-1")), (1, false));
        let (epoch, seq, messages) = notified(&mut other, &room);
        assert_eq!((seq, messages), (1, vec![(1, "one".to_owned())]));
        assert_eq!(sent(&mut sender, &send(&room, "one again", "id-1")), (1, true));
        assert_eq!(notified(&mut other, &room), (epoch, 1, vec![]), "whoever has missed the word hears it");
        assert_eq!(sent(&mut sender, &send(&room, "two", "")), (2, false));
        assert_eq!(notified(&mut other, &room), (epoch, 2, vec![(2, "two".to_owned())]));
        assert_eq!(
            sync(&mut other, &room, epoch, 0, 0).messages,
            [(1, "one".to_owned()), (2, "two".to_owned())].into_iter().collect::<Vec<_>>()
        );
        // The same name of another member is another message.
        let mut third = syncing(&server, transport, member(), json!({ "rooms": [room] }));
        assert_eq!(sent(&mut third, &send(&room, "three", "id-1")), (3, false));
        // Elsewhere the backend decides, and here it is not asked.
        let mut outsider = syncing(&server, transport, member(), json!({}));
        for to in [room.as_str(), "mid://5", "nonsense"] {
            expect_failure(&outsider.ask(&send(to, "x", "")), 4, 3512);
        }
        outsider.expect_nothing();
    }
}

#[test]
fn cursors_give_unread_counts_and_where_a_new_device_begins() {
    let server = Keeping::start();
    let mid = member();
    let timeline = format!("mid://{mid}");
    for body in ["a", "b", "c", "d"] {
        store(&server, &json!({ "mids": [mid] }), body);
    }
    let mut client = syncing(&server, Transport::Tcp, mid, json!({}));
    let mut acknowledge = |seq| {
        let reply =
            client.ask(&Packet::new(ACK, 3, Writer::default().bytes(1, &timeline).number(2, seq).done()));
        assert_eq!((reply.op, reply.seq), (24, 3));
        let reply = Fields::read(&reply.body);
        (reply.number(2), reply.number(3))
    };
    assert_eq!(acknowledge(2), (2, 2));
    assert_eq!(acknowledge(1), (2, 2), "a cursor never goes back");
    assert_eq!(sync(&mut client, &timeline, 0, 0, 0).seqs(), [3, 4], "a new device begins behind it");
    let unread =
        || server.get(&format!("/v1/unread?timelines={timeline}&timelines=live://none&mid={mid}")).json();
    let counts = |answer: &Value| {
        let of = |place: usize| answer["data"][place]["unread"].as_u64().unwrap();
        (of(0), of(1))
    };
    assert_eq!(counts(&unread()), (2, 0), "{}", unread());
    let answer =
        json_request(&server, &format!("/v1/ack?mid={mid}"), &json!({ "timeline": timeline, "seq": 99 }));
    assert_eq!(answer["data"], json!({ "timeline": timeline, "seq": 4, "unread": 0 }), "{answer}");
    assert_eq!(counts(&unread()), (0, 0));
}

#[test]
fn history_is_read_backwards_and_a_deleted_message_leaves_its_position() {
    let server = Keeping::start();
    let room = unique("live://r");
    for number in 1..=7 {
        store(&server, &json!({ "room": room }), &number.to_string());
    }
    let page = |before: u64| {
        server.get(&format!("/v1/history?timeline={room}&limit=3&before={before}")).json()["data"].clone()
    };
    let seqs = |page: &Value| -> Vec<u64> {
        page["messages"].as_array().unwrap().iter().map(|message| message["seq"].as_u64().unwrap()).collect()
    };
    let (newest, middle, oldest) = (page(0), page(5), page(2));
    assert_eq!((seqs(&newest), &newest["more"]), (vec![5, 6, 7], &json!(true)));
    assert_eq!((seqs(&middle), &middle["more"]), (vec![2, 3, 4], &json!(true)));
    assert_eq!((seqs(&oldest), &oldest["more"]), (vec![1], &json!(false)));
    assert_eq!((&newest["messages"][0]["body"], &newest["messages"][0]["sender"]), (&json!("5"), &json!(0)));
    let delete = |seq: u64| {
        json_request(&server, "/v1/messages/delete", &json!({ "timeline": room, "seq": seq }))["data"]["deleted"].clone()
    };
    assert_eq!((delete(6), delete(6), delete(99)), (json!(true), json!(false), json!(false)));
    let after = page(0);
    assert_eq!(seqs(&after), [5, 6, 7]);
    assert_eq!((&after["messages"][1]["deleted"], after["messages"][1].get("body")), (&json!(true), None));
}

#[test]
fn a_request_over_http_waits_for_messages() {
    let server = Keeping::start();
    let mid = member();
    let timeline = format!("mid://{mid}");
    let epoch = store(&server, &json!({ "mids": [mid] }), "first")[0].0;
    let target = format!("/v1/sync?timeline={timeline}&mid={mid}&epoch={epoch}&seq=1");
    let at_once = server.get(&target).json();
    assert_eq!((&at_once["code"], &at_once["data"]["messages"]), (&json!(0), &json!([])));
    let waited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get(&format!("{target}&wait=20s")).json());
        // Whether it waits already does not matter: it gets the message either way.
        std::thread::sleep(std::time::Duration::from_millis(100));
        store(&server, &json!({ "mids": [mid] }), "second");
        waiting.join().unwrap()
    });
    let messages = &waited["data"]["messages"];
    assert_eq!((&messages[0]["seq"], &messages[0]["body"]), (&json!(2), &json!("second")), "{waited}");
    let short = std::time::Instant::now();
    assert_eq!(
        server.get(&format!("{target}0&wait=200ms")).json()["data"]["gap"],
        json!(true),
        "seq 10 is ahead"
    );
    assert_eq!(
        server.get(&format!("/v1/sync?timeline={timeline}&mid={mid}&epoch={epoch}&seq=2&wait=200ms")).json()
            ["data"]["messages"],
        json!([])
    );
    assert!(short.elapsed() >= std::time::Duration::from_millis(200));
    // As the packet that a connection would have carried.
    let headers = [("accept", "application/octet-stream")];
    let answer = server.request("GET", &target, &headers, b"");
    let (packet, length) = Packet::decode(&answer.body).unwrap();
    assert_eq!((packet.op, length), (SYNC_REPLY, answer.body.len()));
    assert_eq!(Reply::read(&packet.body).messages, [(2, "second".to_owned())]);
    assert_eq!(server.get(&format!("{target}&wait=soon")).status, 400);
}

#[test]
fn a_stream_of_events_resumes_where_it_was() {
    use std::io::{BufRead as _, BufReader, Write as _};
    let server = Keeping::start();
    let mid = member();
    let timeline = format!("mid://{mid}");
    store(&server, &json!({ "mids": [mid] }), "first");
    let open = |last: &str| {
        let mut stream = std::net::TcpStream::connect(server.addrs.http).unwrap();
        stream.set_read_timeout(Some(harness::DEADLINE)).unwrap();
        let more = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
        write!(
            stream,
            "GET /v1/sync?timeline={timeline}&mid={mid} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{more}\r\n"
        )
        .unwrap();
        BufReader::new(stream).lines()
    };
    let event = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| {
        let mut id = String::new();
        loop {
            let line = lines.next().expect("the stream goes on").unwrap();
            if let Some(found) = line.strip_prefix("id: ") {
                id = found.to_owned();
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).unwrap();
                let bodies =
                    data["messages"].as_array().unwrap().iter().map(|message| message["body"].clone());
                return (id, bodies.collect::<Vec<_>>());
            }
        }
    };
    let mut lines = open("");
    let (first, bodies) = event(&mut lines);
    assert_eq!(bodies, ["first"]);
    store(&server, &json!({ "mids": [mid] }), "second");
    assert_eq!(event(&mut lines).1, ["second"]);
    drop(lines);
    let mut lines = open(&first);
    assert_eq!(event(&mut lines).1, ["second"], "it goes on behind what was seen");
}

#[test]
fn a_publisher_that_tries_again_with_its_key_publishes_once() {
    let server = Keeping::start();
    let (mids, room) = ([member(), member()], unique("live://r"));
    let publish = |to: &Value, body: &str| {
        let message = json!({
            "to": to, "operation": 1000, "body": body, "delivery": "stored", "idempotency_key": "order-7",
        });
        let answer = json_request(&server, "/v1/push", &json!({ "messages": [message] }));
        let placed = answer["positions"][0].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
        placed
            .iter()
            .map(|placed| (placed["seq"].as_u64().unwrap(), placed["duplicate"] == true))
            .collect::<Vec<_>>()
    };
    for to in [json!({ "mids": mids }), json!({ "room": room })] {
        let count = if to.get("mids").is_some() { 2 } else { 1 };
        assert_eq!(publish(&to, "once"), vec![(1, false); count]);
        assert_eq!(publish(&to, "twice"), vec![(1, true); count]);
    }
    // goim's routes have it in the query.
    let (kind, id) = room.split_once("://").unwrap();
    let target =
        format!("/goim/push/room?operation=1000&type={kind}&room={id}&delivery=stored&idempotency_key=x");
    let place = |answer: &Value| answer["data"]["positions"][0].clone();
    let first = server.post(&target, "a").json();
    assert_eq!((&place(&first)["seq"], &place(&first)["duplicate"]), (&json!(2), &json!(false)), "{first}");
    assert_eq!(place(&server.post(&target, "a").json())["duplicate"], json!(true));
    let mid = mids[0];
    let answer = server
        .post(&format!("/goim/push/mids?operation=1000&mids={mid}&mids={mid}&delivery=stored"), "b")
        .json();
    assert_eq!(answer["data"]["positions"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(place(&answer)["seq"], json!(2));
}

#[test]
fn what_cannot_be_stored_is_refused_with_a_reason() {
    let server = Keeping::start();
    let stored = |to: Value| json!({ "to": to, "operation": 1000, "body": "x", "delivery": "stored" });
    let transient = json!({ "to": { "room": "live://1" }, "operation": 1000, "body": "x" });
    let long_key = json!({
        "to": { "room": "live://1" }, "operation": 1, "body": "x", "delivery": "stored", "idempotency_key": "x".repeat(129),
    });
    let large = json!({ "to": { "room": "live://1" }, "operation": 1, "body": "x".repeat(1_000_000), "delivery": "stored" });
    let odd = json!({ "to": { "room": "live://1" }, "operation": 1, "body": "x", "delivery": "maybe" });
    for (messages, printed) in [
        (
            json!([stored(json!({ "keys": ["k"] }))]),
            "messages[0]: delivery: only messages to mids and to a room",
        ),
        (json!([stored(json!({ "all": true }))]), "only messages to mids and to a room"),
        (json!([stored(json!({ "room": "live://1" })), transient]), "messages[1]: delivery: all messages"),
        (json!([stored(json!({ "room": "mid://7" }))]), "is the type of inboxes"),
        (json!([long_key]), "idempotency_key: must have 1 to 128 bytes"),
        (json!([large]), "makes a record of"),
        (json!([odd]), "delivery: must be `transient` or `stored`"),
    ] {
        let answer = json_request(&server, "/v1/push", &json!({ "messages": messages }));
        let message = answer["message"].as_str().unwrap();
        assert!(answer["code"] == -400 && message.contains(printed), "{printed}: {answer}");
    }
    for target in [
        "/goim/push/keys?operation=1&keys=k&delivery=stored",
        "/goim/push/all?operation=1&delivery=stored",
        "/goim/push/room?operation=1&type=mid&room=7&delivery=stored",
        "/goim/push/room?operation=1&type=live&room=7&delivery=maybe",
    ] {
        assert_eq!(server.post(target, "x").status, 400, "{target}");
    }
    assert_eq!(sync_status(&server, "live://1"), 0, "nothing was kept");
}

/// The newest sequence of a room.
fn sync_status(server: &Server, room: &str) -> u64 {
    server.get(&format!("/v1/sync?timeline={room}&mid=1")).json()["data"]["latest"].as_u64().unwrap()
}

#[test]
fn without_a_store_nothing_is_promised() {
    let server = harness::shared();
    let message =
        json!({ "to": { "room": "live://1" }, "operation": 1000, "body": "x", "delivery": "stored" });
    let answer = json_request(server, "/v1/push", &json!({ "messages": [message] }));
    assert_eq!(answer["code"], json!(-501));
    assert!(answer["message"].as_str().unwrap().contains("timelines.folder"), "{answer}");
    let mid = member();
    let mut client = syncing(server, Transport::Tcp, mid, json!({}));
    expect_failure(&client.ask(&sync_request(&format!("mid://{mid}"), 0, 0, 0)), SYNC, 3512);
}

#[test]
fn messages_survive_a_restart() {
    let place = Place::new();
    let mid = member();
    let to = json!({ "mids": [mid] });
    let server = Server::start(&place.settings());
    let [(epoch, 1)] = store(&server, &to, "before")[..] else { panic!() };
    drop(server);
    eventually("another process can have it", || place.is_free());
    let server = Server::start(&place.settings());
    assert_eq!(store(&server, &to, "after"), [(epoch, 2)]);
    let mut client = syncing(&server, Transport::Tcp, mid, json!({}));
    let reply = sync(&mut client, &format!("mid://{mid}"), epoch, 0, 0);
    assert_eq!(reply.messages, [(1, "before".to_owned()), (2, "after".to_owned())]);
    assert!(!reply.gap);
}

#[test]
fn notifications_that_wait_for_a_full_socket_are_merged() {
    let server = Keeping::start();
    let (mid, room) = (member(), unique("live://r"));
    let timeline = format!("mid://{mid}");
    // It reads nothing compressed, or what fills its socket would be small.
    let mut client = syncing(&server, Transport::Tcp, mid, json!({ "room_id": room, "protover": 1 }));
    let figure = |name: &str| {
        let text = server.comet_metrics();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    // It does not read: what is sent to it fills its socket.
    eventually("its socket is full", || {
        server.push_room(1000, &room, vec![b'x'; 500_000]);
        figure("goim_comet_sessions_blocked") > 0.0
    });
    let mut epoch = 0;
    for number in 0..50 {
        epoch = store(&server, &json!({ "mids": [mid] }), &number.to_string())[0].0;
    }
    eventually("the words have come to comet", || figure("goim_comet_notifications_coalesced_total") >= 50.0);
    loop {
        let packet = client.packet();
        if packet.op == NOTIFY {
            let fields = Fields::read(&packet.body);
            let latest = fields.message(2);
            assert_eq!((fields.text(1), latest.number(1), latest.number(2)), (timeline.clone(), epoch, 50));
            break;
        }
    }
    client.expect_nothing();
    assert_eq!(sync(&mut client, &timeline, epoch, 0, 0).messages.len(), 50);
}

#[test]
fn offline_members_are_reported_once_for_each_message() {
    let backend = Backend::start(|_| Answer::status(503, ""));
    let place = Place::new();
    let settings = place.settings();
    let settings =
        settings.set("timelines.offline_url", &backend.url("/away")).set("timelines.offline_secret", "hook");
    let server = Server::start(&settings);
    let (here, away) = (member(), member());
    let mut client = syncing(&server, Transport::Tcp, here, json!({}));
    let publish = |body: &str, key: &str| {
        let message = json!({
            "to": { "mids": [here, away] }, "operation": 1000, "body": body, "delivery": "stored", "idempotency_key": key,
        });
        let answer = json_request(&server, "/v1/push", &json!({ "messages": [message] }));
        assert_eq!(answer["code"], json!(0), "{answer}");
        answer["positions"][0][1]["epoch"].clone()
    };
    let epoch = publish("first", "1");
    publish("first", "1");
    // Who is offline in a room is for the backend to find out.
    store(&server, &json!({ "room": unique("live://r") }), "to a room");
    publish("second", "2");
    // What the backend did not accept is sent again.
    eventually("the backend was asked", || !backend.asked_at("/away").is_empty());
    backend.answers(|_| Answer::ok(""));
    let told = || -> Vec<Value> {
        let all = backend.asked_at("/away");
        let last = all.iter().map(|asked| {
            assert_eq!(asked.header("authorization"), Some("Bearer hook"));
            asked.json()["offline"].as_array().unwrap().clone()
        });
        let mut seen = std::collections::BTreeMap::new();
        last.flatten().for_each(|member| drop(seen.insert(member["id"].to_string(), member)));
        seen.into_values().collect()
    };
    eventually("both messages are told of", || told().len() == 2);
    for (member, (seq, body)) in told().iter().zip([(1, "first"), (2, "second")]) {
        let expected = json!({
            "id": format!("{away}-{epoch}-{seq}"), "mid": away, "timeline": format!("mid://{away}"), "epoch": epoch, "seq": seq,
            "sender": 0, "operation": 1000, "time_ms": member["time_ms"], "body": body,
        });
        assert_eq!(member, &expected);
    }
    // A client that has left is offline from then on, and one that has connected is not.
    client.finish();
    let mut back = syncing(&server, Transport::Ws, away, json!({}));
    eventually("the session has gone", || {
        publish("probe", &unique("probe"));
        told().iter().any(|member| member["mid"] == json!(here))
    });
    back.packet();
    let before = told().iter().filter(|member| member["mid"] == json!(away)).count();
    publish("third", "3");
    eventually("the other is told of", || told().iter().any(|member| member["body"] == "third"));
    assert_eq!(told().iter().filter(|member| member["mid"] == json!(away)).count(), before);
}
