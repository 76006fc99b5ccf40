//! Versions of packets: each session receives the body that it reads, compressed where that is
//! negotiated; compressed packets are read, and a decompression bomb is not.

use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, unique};
use serde_json::{Value, json};

const ROWS: &str = "0 = schema 1, identity; 1 = schema 1, identity; 2 = schema 1, zlib; 3 = schema 1, brotli; 4 = schema 2, identity; \
                    5 = schema 3, zstd";

fn settings() -> Settings {
    Settings::new().set("versions.rows", ROWS)
}

/// A session with this protover, in a room; `None` is a client of goim.
fn login(server: &Server, transport: Transport, protover: Option<i64>, key: &str, room: &str) -> Client {
    let mut body = json!({ "key": key, "room_id": room, "accepts": [1000] });
    if let Some(protover) = protover {
        body["protover"] = json!(protover);
    }
    let (client, reply) = Client::present(server, transport, body.to_string());
    let reply = reply.expect("a session");
    match protover {
        None => assert_eq!(reply, Packet::new(8, 1, "")),
        Some(protover) => {
            let reply: Value = serde_json::from_slice(&reply.body).unwrap();
            assert_eq!((&reply["code"], &reply["protover"]), (&json!(0), &json!(protover.min(5))), "{reply}");
        }
    }
    client
}

fn inflate(version: i16, body: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut out = Vec::new();
    match version {
        2 => flate2::read::ZlibDecoder::new(body).read_to_end(&mut out).map(drop).unwrap(),
        3 => brotli::Decompressor::new(body, 4096).read_to_end(&mut out).map(drop).unwrap(),
        5 => out = zstd::decode_all(body).unwrap(),
        _ => out = body.to_vec(),
    }
    out
}

/// The next push: the version outside, where it arrived in a wrapper, and the packet in it.
fn pushed(client: &mut Client) -> (Option<i16>, Packet) {
    let packet = client.packet();
    if packet.op != 9 {
        return (None, packet);
    }
    let mut inner = Packet::decode_all(&inflate(packet.ver, &packet.body));
    assert_eq!(inner.len(), 1);
    (Some(packet.ver), inner.remove(0))
}

fn push(server: &Server, to: &Value, bodies: &Value) {
    let message = json!({ "messages": [{ "to": to, "operation": 1000, "bodies": bodies }] }).to_string();
    let headers = [("content-type", "application/json")];
    let answer = server.request("POST", "/v1/push", &headers, message.as_bytes());
    assert_eq!(answer.text(), r#"{"code":0,"message":"","accepted":1}"#);
}

const PROTOVERS: [Option<i64>; 7] = [None, Some(1), Some(2), Some(3), Some(4), Some(5), Some(9)];

#[test]
fn a_message_in_three_schemas_reaches_each_session_in_its_own() {
    let server = Server::start(&settings());
    let three = "three ".repeat(200);
    let bodies = json!([
        { "schema": 3, "body": three }, { "schema": 1, "body": "one" }, { "schema": 2, "body_base64": "dHdv" },
    ]);
    for transport in BOTH {
        let room = unique("live://r");
        let mut sessions: Vec<(Option<i64>, String, Client)> = PROTOVERS
            .iter()
            .map(|protover| {
                let key = unique("k");
                let client = login(&server, transport, *protover, &key, &room);
                (*protover, key, client)
            })
            .collect();
        let keys: Vec<&str> = sessions.iter().map(|(_, key, _)| key.as_str()).collect();
        let kinds = [json!({ "keys": keys }), json!({ "room": room }), json!({ "all": true })];
        for to in &kinds {
            push(&server, to, &bodies);
            for (protover, _, client) in &mut sessions {
                let (_, packet) = pushed(client);
                let (version, expected) = match protover {
                    None | Some(1..=3) => (1, "one"),
                    Some(4) => (4, "two"),
                    Some(_) => (5, three.as_str()),
                };
                let body = String::from_utf8(inflate(packet.ver, &packet.body)).unwrap();
                assert_eq!(
                    (packet.op, packet.ver, body.as_str()),
                    (1000, version, expected),
                    "{transport:?} {protover:?} {to}"
                );
            }
        }
        // Without a body in the first schema, who reads no other gets nothing.
        push(&server, &kinds[1], &json!([{ "schema": 2, "body": "new" }]));
        for (protover, _, client) in &mut sessions {
            match protover {
                Some(4..) => assert_eq!(pushed(client).1.body, b"new"),
                _ => client.expect_nothing(),
            }
        }
    }
}

#[test]
fn large_bodies_are_compressed_only_for_sessions_that_read_it() {
    let server = Server::start(&settings());
    let large = r#"{"text":"the same again"}"#.repeat(80);
    for transport in BOTH {
        let room = unique("live://r");
        let mut sessions: Vec<(Option<i64>, Client)> = PROTOVERS
            .iter()
            .map(|protover| (*protover, login(&server, transport, *protover, &unique("k"), &room)))
            .collect();
        server.push_room(1000, &room, &large);
        for (protover, client) in &mut sessions {
            let (outer, packet) = pushed(client);
            let bare = if transport == Transport::Tcp { None } else { Some(1) };
            let expected = match protover {
                None | Some(1) => bare,
                Some(2) => Some(2),
                Some(3 | 4) => Some(3),
                Some(_) => Some(5),
            };
            assert_eq!(
                (outer, packet),
                (expected, Packet::new(1000, 0, &large)),
                "{transport:?} {protover:?}"
            );
        }
        server.push_room(1000, &room, "small");
        for (protover, client) in &mut sessions {
            let (outer, packet) = pushed(client);
            assert_eq!((outer.unwrap_or(1), packet), (1, Packet::new(1000, 0, "small")), "{protover:?}");
        }
    }
}

/// A packet whose body is compressed as its version states.
fn compressed(version: i16, sequence: i32, body: &[u8]) -> Packet {
    use std::io::Write as _;
    let body = match version {
        2 => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(body).unwrap();
            encoder.finish().unwrap()
        }
        3 => {
            let mut out = Vec::new();
            brotli::CompressorWriter::new(&mut out, 4096, 9, 22).write_all(body).unwrap();
            out
        }
        _ => zstd::encode_all(body, 9).unwrap(),
    };
    Packet { ver: version, ..Packet::new(2000, sequence, body) }
}

#[test]
fn a_bomb_ends_its_connection_and_costs_little() {
    let server = Server::start(&settings().set("comet.limits.body_bytes_max", "16 KiB"));
    let bomb = vec![0; 10 << 20];
    let (mut other, _) = Client::present(&server, Transport::Tcp, "{}");
    for transport in BOTH {
        for version in [2, 3, 5] {
            let packet = compressed(version, 7, &bomb);
            assert!(packet.body.len() < 16 << 10, "{version}: {}", packet.body.len());
            let mut client = login(&server, transport, Some(5), &unique("k"), "");
            client.send(&packet);
            let notice = client.packet_or_end().expect("a negotiated client is told");
            let told: Value = serde_json::from_slice(&notice.body).unwrap();
            assert_eq!((notice.op, &told["code"]), (6, &json!(3507)), "{transport:?} {version}");
            assert_eq!(client.packet_or_end(), None);

            let mut client = login(&server, transport, Some(5), &unique("k"), "");
            client.send(&Packet { ver: version, ..Packet::new(2000, 7, "no stream") });
            let told: Value = serde_json::from_slice(&client.packet_or_end().unwrap().body).unwrap();
            assert_eq!(told["code"], json!(3508), "{transport:?} {version}");

            // A goim v2 client may send any version: it is ignored.
            let (mut plain, _) = Client::present(&server, transport, "{}");
            assert_eq!(plain.ask(&packet), Packet { body: Vec::new(), ..packet.clone() });
            // What is small enough is read.
            let mut client = login(&server, transport, Some(5), &unique("k"), "");
            let fine = compressed(version, 8, &[b'x'; 2000]);
            assert_eq!(client.ask(&fine), Packet { body: Vec::new(), ..fine });
        }
        let mut client = login(&server, transport, Some(5), &unique("k"), "");
        let refused = client.ask(&Packet { ver: 77, ..Packet::new(2000, 9, "x") });
        let told: Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!(
            (refused.op, refused.seq, &told["code"], &told["op"]),
            (25, 9, &json!(3510), &json!(2000))
        );
    }
    other.heartbeat();
}

#[test]
fn clients_and_servers_are_upgraded_in_any_order() {
    // Which server, which client, the protover that they agree on, and which of the two bodies the
    // client receives. The new server has one schema more than the old one; a new client asks for
    // it.
    let old = Server::start(&Settings::new());
    let new = Server::start(&settings());
    let bodies = json!([{ "schema": 1, "body": "old form" }, { "schema": 2, "body": "new form" }]);
    let cases = [
        ("old server, old client", &old, None, None, "old form"),
        ("old server, new client", &old, Some(4), Some(3), "old form"),
        ("new server, old client", &new, None, None, "old form"),
        ("new server, client of between", &new, Some(3), Some(3), "old form"),
        ("new server, new client", &new, Some(4), Some(4), "new form"),
        ("new server, newer client", &new, Some(40), Some(5), "new form"),
    ];
    for (what, server, protover, agreed, expected) in cases {
        for transport in BOTH {
            let key = unique("k");
            let mut body = json!({ "key": key, "accepts": [1000] });
            if let Some(protover) = protover {
                body["protover"] = json!(protover);
            }
            let (mut client, reply) = Client::present(server, transport, body.to_string());
            let reply: Option<Value> = serde_json::from_slice(&reply.unwrap().body).ok();
            assert_eq!(reply.map(|reply| reply["protover"].as_i64().unwrap()), agreed, "{what}");
            push(server, &json!({ "keys": [key] }), &bodies);
            assert_eq!(pushed(&mut client).1.body, expected.as_bytes(), "{what}");
            client.heartbeat();
        }
    }
}

#[test]
fn the_table_is_served_to_clients() {
    let server = Server::start(&settings());
    let answer = server.get("/v1/protocol");
    let answer: Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!(answer["data"]["protover"], json!(5));
    let rows = answer["data"]["versions"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    assert_eq!(rows[5], json!({ "version": 5, "schema": 3, "encoding": "zstd" }));
}

#[test]
fn wrong_bodies_are_named() {
    let server = Server::start(&settings());
    let cases = [
        (json!([]), "bodies: must have 1 to 16 elements"),
        (json!([{ "schema": 0, "body": "x" }]), "bodies[0]: schema: must be above zero and unique"),
        (
            json!([{ "schema": 2, "body": "x" }, { "schema": 2, "body": "y" }]),
            "bodies[1]: schema: must be above zero and unique",
        ),
        (json!([{ "schema": 2 }]), "bodies[0]: body: is missing"),
        (json!([{ "schema": 2, "body_base64": "?" }]), "bodies[0]: body_base64: must be base64"),
    ];
    for (bodies, expected) in cases {
        let message = json!({ "messages": [{ "to": { "all": true }, "operation": 1000, "bodies": bodies }] })
            .to_string();
        let answer =
            server.request("POST", "/v1/push", &[("content-type", "application/json")], message.as_bytes());
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(expected), "{bodies}: {}", answer.text());
    }
    eventually("the server goes on", || server.get("/readyz").status == 200);
}
