//! The captures of goim's own processes, `testdata/goim-v2`, parsed into steps.
//!
//! The README beside the data documents the format. Two long texts are cut off in it and are
//! completed here.

use serde_json::Value;

use super::hex::readings;
use super::{Packet, Transport, frame, hex};

/// One connection of a client.
#[derive(Debug, Clone)]
pub struct Connection {
    /// For example `row 30 tcp #2`.
    pub name: String,
    /// The listener.
    pub transport: Transport,
    /// The upgrade of [`super::client::UPGRADE`] precedes the first step.
    pub upgraded: bool,
    /// What happened, in order.
    pub steps: Vec<Step>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The client sent this.
    Send(Vec<u8>),
    /// The server sent this.
    Receive(Vec<u8>),
    /// The server closed.
    Closed,
    /// The client closed.
    Close,
    /// An HTTP request to logic in between.
    Http(Request),
}

/// A request to logic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The body, chunked where the request was.
    pub body: Vec<u8>,
}

/// A request to logic with its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// For example `row 53`.
    pub name: String,
    /// The request.
    pub request: Request,
    /// Its headers besides Host and Content-Length.
    pub headers: Vec<(String, String)>,
    /// The status of the answer.
    pub status: u16,
    /// Its headers besides Date and Content-Length.
    pub answer_headers: Vec<(String, String)>,
    /// Its body.
    pub answer: String,
}

impl Connection {
    /// The name without its number: connections of a group ran at the same time.
    pub fn group(&self) -> &str {
        self.name.split(" #").next().unwrap()
    }

    /// The row of the table of conformance; 0 for the upgrade by itself.
    pub fn row(&self) -> u32 {
        row(&self.name)
    }
}

/// The number in `row 30 tcp #2`.
pub fn row(name: &str) -> u32 {
    name.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn load(file: &str) -> Vec<Value> {
    let path = format!("{}/../../testdata/goim-v2/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `frames.json`.
pub fn connections() -> Vec<Connection> {
    load("frames.json").iter().map(connection).collect()
}

fn connection(entry: &Value) -> Connection {
    let name = text(entry, "name");
    let upgraded = entry["after"] == "upgrade";
    // Rows about the upgrade itself have a socket to the WebSocket listener and nothing sent
    // before.
    let to_ws = entry["transport"] == "ws" || matches!(row(&name), 39 | 40 | 41 | 86 | 87);
    let mut sent = entry["send"].as_array().unwrap().iter();
    let mut received = entry["receive"].as_array().unwrap().iter();
    let steps = entry["order"].as_array().unwrap().iter().map(|step| match step.as_str().unwrap() {
        "send" => Step::Send(bytes(sent.next().unwrap(), upgraded)),
        "receive" => Step::Receive(bytes(received.next().unwrap(), upgraded)),
        "closed" => Step::Closed,
        "close" => Step::Close,
        request => Step::Http(parse_request(&name, request)),
    });
    let steps = steps.collect();
    assert!(sent.next().is_none() && received.next().is_none(), "{name}: its order names all bytes");
    Connection { name, transport: if to_ws { Transport::Ws } else { Transport::Tcp }, upgraded, steps }
}

/// The reading of a repeated unit that makes whole packets, whole frames, or a whole request.
fn bytes(value: &Value, frames: bool) -> Vec<u8> {
    let text = value.as_str().unwrap();
    if !text.contains('(') {
        return hex(text);
    }
    let all = readings(text);
    let whole = |bytes: &Vec<u8>| if frames { frame::is_whole(bytes) } else { is_packets(bytes) };
    let request = |bytes: &Vec<u8>| bytes.ends_with(b"\r\n\r\n") && bytes.is_ascii() && !bytes.contains(&0);
    let mut fitting: Vec<_> = all.iter().filter(|bytes| whole(bytes)).collect();
    if fitting.is_empty() {
        fitting = all.iter().filter(|bytes| request(bytes)).collect();
    }
    assert_eq!(fitting.len(), 1, "one reading makes sense: {text:.80}");
    fitting[0].clone()
}

fn is_packets(mut bytes: &[u8]) -> bool {
    while bytes.len() >= 16 {
        let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        if length < 16 || length > bytes.len() {
            return false;
        }
        bytes = &bytes[length..];
    }
    bytes.is_empty()
}

fn parse_request(name: &str, text: &str) -> Request {
    let (line, body) = text.split_once(" with body ").unwrap_or((text, ""));
    let (method, target) = line.split_once(' ').unwrap();
    let body = match body.strip_suffix('…') {
        Some(begin) => {
            let all: Vec<u8> = (0..=255).collect();
            assert!(row(name) == 92 && all.starts_with(&hex(begin)), "{name}: a body that is cut off");
            all
        }
        None => readings(body).into_iter().next().unwrap(),
    };
    let target = match target.strip_suffix('…') {
        Some(begin) => {
            let all = format!("/goim/push/room?operation=1000&type=k&room={}", "r".repeat(1990));
            assert!(row(name) == 106 && all.starts_with(begin), "{name}: a path that is cut off");
            return Request { method: method.to_owned(), target: all, body: b"x".to_vec() };
        }
        None => target.to_owned(),
    };
    Request { method: method.to_owned(), target, body }
}

/// `http.json`.
pub fn exchanges() -> Vec<Exchange> {
    load("http.json").iter().map(exchange).collect()
}

fn exchange(entry: &Value) -> Exchange {
    let headers = |field: &str| {
        let object = entry[field].as_object().unwrap();
        object.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
    };
    let body = readings(entry["request_body_hex"].as_str().unwrap());
    Exchange {
        name: text(entry, "name"),
        request: Request {
            method: text(entry, "method"),
            target: text(entry, "path"),
            body: body[0].clone(),
        },
        headers: headers("request_headers"),
        status: u16::try_from(entry["status"].as_u64().unwrap()).unwrap(),
        answer_headers: headers("response_headers"),
        answer: text(entry, "body"),
    }
}

fn text(entry: &Value, field: &str) -> String {
    entry[field].as_str().unwrap_or_else(|| panic!("{field} in {entry}")).to_owned()
}

/// The packets in what a server sent, out of their frames and batches.
pub fn packets(bytes: &[u8], frames: bool) -> Vec<Packet> {
    if !frames {
        return Packet::decode_all(bytes);
    }
    let (mut rest, mut packets) = (bytes, Vec::new());
    while let Some((frame, length)) = frame::decode(rest) {
        rest = &rest[length..];
        if frame.first != frame::BINARY {
            continue;
        }
        for packet in Packet::decode_all(&frame.payload) {
            if packet.op == 9 {
                packets.extend(Packet::decode_all(&packet.body))
            } else {
                packets.push(packet)
            }
        }
    }
    assert!(rest.is_empty(), "frames that are not whole");
    packets
}
