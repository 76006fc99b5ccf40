//! The dialogues of `testdata/wire/dialogues.json`: what clients send and what they receive, packet
//! by packet.

use crate::harness::hex::hex;
use crate::harness::{BOTH, Client, Packet, Server, Settings};
use serde_json::Value;

fn packet(step: &Value) -> Packet {
    let number = |name: &str| i32::try_from(step[name].as_i64().unwrap()).unwrap();
    let body = match step["hex"].as_str() {
        Some(digits) => hex(digits),
        None => step["text"].as_str().unwrap().as_bytes().to_vec(),
    };
    let ver = i16::try_from(number("version")).unwrap();
    Packet { ver, ..Packet::new(number("operation"), number("sequence"), body) }
}

/// The same, but for members of JSON that are expected to be `*`: those may have any value.
fn is_as_expected(got: &Packet, expected: &Packet) -> bool {
    if (got.ver, got.op, got.seq) != (expected.ver, expected.op, expected.seq) {
        return false;
    }
    let json = |body: &[u8]| serde_json::from_slice::<Value>(body).ok().filter(Value::is_object);
    let (Some(mut got_body), Some(expected_body)) = (json(&got.body), json(&expected.body)) else {
        return got.body == expected.body;
    };
    for (name, value) in expected_body.as_object().unwrap() {
        if value == "*" && got_body.get(name).is_some() {
            got_body[name] = value.clone();
        }
    }
    got_body == expected_body
}

#[test]
fn all_go_as_they_are_written() {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/wire/dialogues.json"));
    let file: Value = serde_json::from_slice(&file.unwrap()).unwrap();
    let server = Server::start(&Settings::new());
    for transport in BOTH {
        for dialogue in file["dialogues"].as_array().unwrap() {
            let name = &dialogue["name"];
            let mut client = Client::open(&server, transport);
            for step in dialogue["steps"].as_array().unwrap() {
                let expected = packet(step);
                if step["from"] == "client" {
                    client.send(&expected);
                    continue;
                }
                let got = client.packet();
                assert!(is_as_expected(&got, &expected), "{name}: {got:?} for {expected:?}, {transport:?}");
            }
            client.finish();
            client.rest();
        }
    }
}
