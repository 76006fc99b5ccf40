//! The backend's requests about sessions: who is in a room, and ending sessions; and sessions in
//! many rooms.

use crate::harness;
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use serde_json::{Value, json};

struct Session {
    client: Client,
    key: String,
    mid: u32,
}

fn login(server: &Server, transport: Transport, negotiated: bool, rooms: &[&str]) -> Session {
    let (mid, key) = (number(), unique("k"));
    let mut body =
        json!({ "mid": mid, "key": key, "accepts": [1000], "room_id": rooms.first().unwrap_or(&"") });
    if negotiated {
        body["protover"] = json!(1);
        body["rooms"] = json!(rooms);
    }
    let (client, reply) = Client::present(server, transport, body.to_string());
    assert_eq!(reply.expect("a session").op, 8);
    Session { client, key, mid }
}

fn end(server: &Server, order: &Value) {
    let answer = server.post("/v1/sessions/end", order.to_string());
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"code":0,"message":""}"#), "{order}");
}

/// The session ends; a negotiated client receives the code.
#[track_caller]
fn check_ended(session: &mut Session, told: Option<u64>) {
    let notice = session.client.packet_or_end();
    match told {
        None => assert_eq!(notice, None, "a client of goim sees the end only"),
        Some(code) => {
            let notice = notice.expect("a negotiated client is told");
            let body: Value = serde_json::from_slice(&notice.body).unwrap();
            assert_eq!((notice.op, &body["code"]), (6, &json!(code)), "{body}");
            assert_eq!(session.client.packet_or_end(), None);
        }
    }
}

#[test]
fn sessions_are_ended_by_key_member_and_room() {
    let server = Server::start(&Settings::new());
    for transport in BOTH {
        let room = unique("live://r");
        let mut stays = login(&server, transport, true, &[]);
        for (reason, code) in [(None, 3505), (Some("kicked"), 3505), (Some("revoked"), 3208)] {
            let mut sessions: Vec<(bool, Session)> = [false, true, false, true, false, true]
                .map(|negotiated| (negotiated, login(&server, transport, negotiated, &[&room])))
                .into();
            let order = |of: Value| match reason {
                None => json!({ "of": of }),
                Some(reason) => json!({ "of": of, "reason": reason }),
            };
            let keys: Vec<&str> = sessions[..2].iter().map(|(_, session)| session.key.as_str()).collect();
            end(&server, &order(json!({ "keys": keys })));
            let mids: Vec<u32> = sessions[2..4].iter().map(|(_, session)| session.mid).collect();
            end(&server, &order(json!({ "mids": mids })));
            for (negotiated, session) in &mut sessions[..4] {
                check_ended(session, negotiated.then_some(code));
            }
            for (_, session) in &mut sessions[4..] {
                session.client.heartbeat();
            }
            end(&server, &order(json!({ "room": room })));
            for (negotiated, session) in &mut sessions[4..] {
                check_ended(session, negotiated.then_some(code));
            }
        }
        stays.client.heartbeat();
        server.push_keys(1000, &[&stays.key], "still here");
        stays.client.expect_push(1000, "still here");
    }
}

#[test]
fn wrong_orders_are_named() {
    let server = harness::shared();
    for (order, expected) in [
        ("", "expected an object with `of`"),
        ("[]", "expected an object with `of`"),
        ("{}", "missing field `of`"),
        (r#"{"of":{"all":true}}"#, "of: must name keys, mids or a room"),
        (r#"{"of":{"keys":[]}}"#, "keys: must name at least one key"),
        (r#"{"of":{"mids":[0]}}"#, "mids: must name at least one member"),
        (r#"{"of":{"room":"x"}}"#, "room: must be type://id"),
        (r#"{"of":{"keys":["a"]},"reason":"rude"}"#, "reason: must be `kicked` or `revoked`"),
        (r#"{"of":{"keys":["a"]},"when":1}"#, "unknown field `when`"),
    ] {
        let answer = server.post("/v1/sessions/end", order);
        assert_eq!(answer.status, 400, "{order}");
        assert!(answer.text().contains(expected), "{order}: {}", answer.text());
    }
}

#[test]
fn a_room_has_its_members() {
    let server = Server::start(&Settings::new());
    let name = unique("r");
    let room = format!("live://{name}");
    let mut sessions: Vec<Session> =
        (0..7).map(|nth| login(&server, BOTH[nth % 2], nth % 3 == 0, &[&room])).collect();
    let ask = |limit: usize| -> Value {
        let answer = server.get(&format!("/v1/rooms/members?type=live&room={name}&limit={limit}"));
        serde_json::from_str::<Value>(&answer.text()).unwrap()["data"].clone()
    };
    let all = ask(100);
    assert_eq!(all["count"], json!(7));
    let mut listed: Vec<(u64, String)> = all["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member["mid"].as_u64().unwrap(), member["key"].as_str().unwrap().to_owned()))
        .collect();
    listed.sort();
    let mut expected: Vec<(u64, String)> =
        sessions.iter().map(|session| (u64::from(session.mid), session.key.clone())).collect();
    expected.sort();
    assert_eq!(listed, expected);
    let some = ask(3);
    assert_eq!((&some["count"], some["members"].as_array().unwrap().len()), (&json!(7), 3));
    sessions.truncate(2);
    eventually("who has left is no longer there", || ask(100)["count"] == json!(2));
    for wrong in ["limit=0", "limit=10001", "limit=-1"] {
        let answer = server.get(&format!("/v1/rooms/members?type=live&room={name}&{wrong}"));
        assert!(answer.text().contains("\"code\":-400"), "{wrong}: {}", answer.text());
    }
}

fn ask_rooms(client: &mut Client, op: i32, rooms: &Value) -> Value {
    let answer = client.ask(&Packet::new(op, 9, rooms.to_string()));
    assert_eq!((answer.op, answer.seq), (op + 1, 9), "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap()
}

#[test]
fn a_negotiated_session_is_in_many_rooms() {
    let server = Server::start(&Settings::new().set("comet.limits.rooms_max", "5"));
    for transport in BOTH {
        let rooms: Vec<String> = (0..7).map(|_| unique("live://r")).collect();
        let [a, b, c, d, e, f, g] = [0, 1, 2, 3, 4, 5, 6].map(|nth: usize| rooms[nth].as_str());
        let mut session = login(&server, transport, true, &[a, b]);
        let client = &mut session.client;
        let push = |room: &str, body: &str| server.push_room(1000, room, body);
        for room in [a, b] {
            push(room, room);
            client.expect_push(1000, room);
        }
        // Twice is once.
        assert_eq!(
            ask_rooms(client, 26, &json!([c, d, a, c])),
            json!({ "code": 0, "joined": [c, d, a, c], "refused": [] })
        );
        for room in [a, b, c, d] {
            push(room, room);
            client.expect_push(1000, room);
        }
        assert_eq!(ask_rooms(client, 28, &json!([b, e])), json!({ "code": 0, "left": [b] }));
        push(b, "to nobody");
        assert_eq!(
            ask_rooms(client, 26, &json!([e, ""])),
            json!({ "code": 0, "joined": [e], "refused": [""] })
        );
        push(e, "hello");
        client.expect_push(1000, "hello");
        // One more than allowed: those before it are joined.
        let refused = client.ask(&Packet::new(26, 9, json!([f, g]).to_string()));
        let body: Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!((refused.op, &body["code"], &body["op"]), (25, &json!(3511), &json!(26)), "{body}");
        for wrong in ["", "{}", "[1]", "live://1"] {
            let refused = client.ask(&Packet::new(26, 9, wrong));
            let body: Value = serde_json::from_slice(&refused.body).unwrap();
            assert_eq!((refused.op, &body["code"]), (25, &json!(3510)), "{wrong}");
        }
        // The one room of goim moves; into one of the others it moves too.
        assert_eq!(client.ask(&Packet::new(12, 9, c)).op, 13);
        push(a, "left");
        push(c, "moved");
        client.expect_push(1000, "moved");
        assert_eq!(client.ask(&Packet::new(12, 9, "")).op, 13);
        push(c, "left");
        push(d, "still here");
        client.expect_push(1000, "still here");
        drop(session);
        for room in &rooms {
            let name = room.strip_prefix("live://").unwrap();
            eventually("nobody is there any more", || {
                server
                    .get(&format!("/v1/rooms/members?type=live&room={name}&limit=1"))
                    .text()
                    .contains("\"count\":0")
            });
        }
    }
}

#[test]
fn many_sessions_in_many_rooms_leave_in_any_order() {
    let server = Server::start(&Settings::new());
    let rooms: Vec<String> = (0..8).map(|_| unique("live://r")).collect();
    let all: Vec<&str> = rooms.iter().map(String::as_str).collect();
    let mut sessions: Vec<Session> =
        (0..12).map(|nth| login(&server, BOTH[nth % 2], true, &all[nth % 3..])).collect();
    for (nth, session) in sessions.iter_mut().enumerate() {
        ask_rooms(&mut session.client, 28, &json!([all[3 + nth % 5]]));
    }
    drop(sessions.drain(2..7));
    for (place, room) in rooms.iter().enumerate() {
        let text = format!("to {room}");
        server.push_room(1000, room, &text);
        for (left, session) in sessions.iter_mut().enumerate() {
            let nth = if left < 2 { left } else { left + 5 };
            let is_in = place >= nth % 3 && place != 3 + nth % 5;
            if is_in {
                session.client.expect_push(1000, &text);
            }
        }
    }
    sessions.iter_mut().for_each(|session| session.client.expect_nothing());
}

#[test]
fn a_member_is_on_as_many_devices_as_it_may_be() {
    // Which of these stay when they connect one after the other: key and platform.
    let devices = [("a", "web"), ("b", "ios"), ("c", "web"), ("d", "ios"), ("e", "")];
    for (policy, stay) in [
        ("all", "abcde"),
        ("newest", "e"),
        ("one-per-platform", "cde"),
        ("at-most 1", "e"),
        ("at-most 3", "cde"),
    ] {
        let server = Server::start(&Settings::new().set("logic.identity.devices", policy));
        for transport in BOTH {
            let mid = number();
            let mut sessions = Vec::new();
            for (name, platform) in devices {
                let body = json!({ "mid": mid, "key": unique(name), "platform": platform, "protover": 1 });
                let (client, reply) = Client::present(&server, transport, body.to_string());
                assert_eq!(reply.expect("a session").op, 8);
                sessions.push((name, client));
            }
            // Anonymous sessions may be on any number of devices.
            let mut nobody = [(); 3].map(|()| login_anonymous(&server, transport));
            for (name, client) in &mut sessions {
                if stay.contains(*name) {
                    client.heartbeat();
                    continue;
                }
                let told = client.packet_or_end().expect("a negotiated client is told");
                let body: Value = serde_json::from_slice(&told.body).unwrap();
                assert_eq!((told.op, &body["code"]), (6, &json!(3506)), "{policy} {name}");
            }
            nobody.iter_mut().for_each(|client| {
                client.heartbeat();
            });
            // One that has left makes room.
            let (name, _) = sessions.pop().unwrap();
            assert_eq!(name, "e");
        }
    }
}

fn login_anonymous(server: &Server, transport: Transport) -> Client {
    let (client, reply) = Client::present(server, transport, r#"{"protover":1}"#);
    assert_eq!(reply.expect("a session").op, 8);
    client
}
