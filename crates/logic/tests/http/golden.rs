//! Replays the answers of goim v2's own processes: status, body, content type, location.
//!
//! The file is `testdata/goim-v2/http.json`. Before an entry the world is put into the state of
//! goim v2's cluster; where the answer shows that state (instances, counts, errors of Redis and
//! Kafka), it is read from the answer. [`FIXED`] lists the entries whose answer the conformance
//! table corrects.

use goim_ports::{AppendError, CometNode, ServerId};
use serde_json::Value;

use crate::world::{Fault, Server, comet};

/// Entries with another answer than goim v2's, by row and target: status, body.
const FIXED: &[(&str, &str, u16, &str)] = &[
    // goim v2 panics.
    (
        "row 60",
        "/goim/online/top?type=live&limit=-1",
        400,
        r#"{"code":-400,"message":"limit must not be negative: -1"}"#,
    ),
    // goim v2 takes the type for any prefix of a room's id.
    ("row 98", "/goim/online/top?type=teb6a2&limit=3", 200, r#"{"code":0,"message":"","data":[]}"#),
];

/// Rooms that had sessions while the entries were captured.
const ROOMS: &[(&str, u32)] =
    &[("teb6a23://a", 3), ("teb6a23://b", 2), ("teb6a23://c", 1), ("neb6a23://1", 3), ("other://a", 9)];

#[tokio::test]
async fn rows_7_to_115_goims_own_answers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/http.json");
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(entries.len(), 127);
    let mut fixed = 0;
    for entry in &entries {
        fixed += usize::from(replay(entry).await);
    }
    assert_eq!(fixed, FIXED.len());
}

/// Replays one entry on a fresh server. Returns whether the entry is in [`FIXED`].
async fn replay(entry: &Value) -> bool {
    let text = |name: &str| entry[name].as_str().unwrap();
    let (name, method, target) = (text("name"), text("method"), text("path"));
    let server = Server::start().await;
    prepare(&server, entry);

    let headers: Vec<(&str, &str)> = entry["request_headers"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect();
    let body = bytes(text("request_body_hex"));
    let response = server.connect().await.request(method, target, &headers, &body).await;

    if let Some((.., status, body)) = FIXED.iter().find(|(row, path, ..)| (*row, *path) == (name, target)) {
        assert_eq!(response.status_and_body(), (*status, *body), "{name} {target}");
        return true;
    }
    let expected_status = u16::try_from(entry["status"].as_u64().unwrap()).unwrap();
    assert_eq!(response.status_and_body(), (expected_status, text("body")), "{name} {method} {target}");
    for header in ["content-type", "location"] {
        let expected = entry["response_headers"][header].as_str();
        assert_eq!(response.header(header), expected, "{name} {method} {target}: {header}");
    }
    false
}

/// Puts the world into the state that the entry was captured in.
fn prepare(server: &Server, entry: &Value) {
    let name = entry["name"].as_str().unwrap();
    let expected: Value = serde_json::from_str(entry["body"].as_str().unwrap()).unwrap_or_default();
    let data = &expected["data"];
    server.world.set_rooms(ROOMS);
    if let Some(instances) = data.as_array().filter(|_| entry["path"] == "/goim/nodes/instances") {
        server.world.set_comets(instances.iter().map(instance).collect());
    }
    match name.split(' ').nth(1).unwrap() {
        "99" => server.world.set_comets(vec![comet("h1", 6), comet("h2", 1)]),
        "102" if data["nodes"].is_array() => server.world.set_comets(vec![comet("h1", 6)]),
        "110" => {
            let text = expected["message"].as_str().unwrap().to_owned();
            server.world.state().directory_fault = Fault::Error(text);
        }
        "111" => {
            let text = expected["message"].as_str().unwrap().to_owned();
            server.world.enter(15_428_131_318, "k-eb6a23-318", "h1");
            server.world.state().append_error = Some(AppendError::Unavailable(text));
        }
        _ => {}
    }
}

/// The comet that goim v2 shows as this instance.
fn instance(shown: &Value) -> CometNode {
    let text = |name: &str| shown[name].as_str().unwrap().to_owned();
    let metadata = |name: &str| shown["metadata"][name].as_str().unwrap();
    CometNode {
        server: ServerId::from(text("hostname")),
        region: text("region"),
        zone: text("zone"),
        env: text("env"),
        rpc_addrs: shown["addrs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap().to_owned())
            .collect(),
        public_addrs: metadata("addrs").split(',').map(str::to_owned).collect(),
        weight: metadata("weight").parse().unwrap(),
        offline: metadata("offline").parse().unwrap(),
        connections: metadata("conn_count").parse().unwrap(),
        addresses: metadata("ip_count").parse().unwrap(),
        latest_timestamp: shown["latest_timestamp"].as_i64().unwrap(),
    }
}

/// Decodes hex, where `(78)*4096` is 4096 bytes 78.
fn bytes(hex: &str) -> Vec<u8> {
    let plain = |hex: &str| -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    };
    let Some((before, rest)) = hex.split_once('(') else { return plain(hex) };
    let (unit, rest) = rest.split_once(")*").unwrap();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (count, after) = rest.split_at(end);
    [plain(before), plain(unit).repeat(count.parse().unwrap()), bytes(after)].concat()
}
