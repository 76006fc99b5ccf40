//! The frames and handshakes of `testdata/wire`, which were written from RFC 6455 and goim's rules.

use goim_websocket::{FrameError, Kind, Opcode, Role, Rules, encode_frame, frame_head, handshake};
use serde_json::{Value, json};

use crate::golden_file::{captured, entries, hex, load, size_or};
use crate::invariants::{End, Seen, read, write};

fn seen(value: &Value) -> Seen {
    if let Some(kind) = value["message"].as_str() {
        let kind = if kind == "text" { Kind::Text } else { Kind::Binary };
        return Seen::Message(kind, hex(&value["payload"]));
    }
    if value.get("ping").is_some() {
        return Seen::Ping(hex(&value["ping"]));
    }
    if value.get("pong").is_some() {
        return Seen::Pong(hex(&value["pong"]));
    }
    let code = value["close"].as_u64().map(|code| code.try_into().unwrap());
    Seen::Close(code, hex(&value["reason"]))
}

fn name_of(error: FrameError) -> &'static str {
    match error {
        FrameError::ReservedBit => "reserved_bit",
        FrameError::ReservedOpcode(_) => "reserved_opcode",
        FrameError::NotMasked => "not_masked",
        FrameError::Masked => "masked",
        FrameError::LengthTopBit => "length_top_bit",
        FrameError::LengthNotShortest(_) => "length_not_shortest",
        FrameError::ControlTooLong => "control_too_long",
        FrameError::ControlFragmented => "control_fragmented",
        FrameError::NothingToContinue => "nothing_to_continue",
        FrameError::MessageInterleaved => "message_interleaved",
        FrameError::FrameTooLong { .. } => "frame_too_long",
        FrameError::MessageTooLong { .. } => "message_too_long",
        FrameError::NotUtf8 => "not_utf8",
        FrameError::CloseCutShort => "close_cut_short",
        FrameError::CloseCode(_) => "close_code",
    }
}

/// The outcome as the golden file has it, for the parts other than events.
fn ending(end: End) -> Value {
    match end {
        End::Failed(error) => json!({ "error": name_of(error), "close_code": error.close_code() }),
        End::Used { whole: false } => json!({ "kept": true }),
        End::Used { whole: true } | End::Closed => json!({}),
    }
}

#[test]
fn frames_are_read() {
    for entry in entries(&load("frames.json"), "reads") {
        let bytes = hex(&entry["bytes"]);
        let role = if entry["from"] == "client" { Role::Server } else { Role::Client };
        for lenient in [false, true] {
            let mode = if lenient && entry.get("lenient").is_some() { "lenient" } else { "strict" };
            let rules = Rules {
                role,
                lenient,
                frame_bytes_max: size_or(&entry["frame_bytes_max"], 1 << 20),
                message_bytes_max: size_or(&entry["message_bytes_max"], 1 << 20),
            };
            let mut expected = entry[mode].as_object().unwrap().clone();
            let events: Vec<_> = entries_or_none(&expected.remove("events").unwrap()).map(seen).collect();
            for piece in [bytes.len().max(1), 1, 2, 3, 5, 13] {
                let pieces: Vec<_> = bytes.chunks(piece).map(<[u8]>::len).collect();
                let what = format!("{}, lenient {lenient}, in pieces of {piece}", entry["name"]);
                let (read, end) = read(&bytes, &pieces, &rules);
                assert_eq!(read, events, "{what}");
                assert_eq!(ending(end), Value::Object(expected.clone()), "{what}");
            }
        }
    }
}

fn entries_or_none(list: &Value) -> std::slice::Iter<'_, Value> {
    list.as_array().expect("a list of events").iter()
}

#[test]
fn frames_are_written() {
    for entry in entries(&load("frames.json"), "writes") {
        let opcode = match entry["opcode"].as_str().unwrap() {
            "continuation" => Opcode::Continuation,
            "text" => Opcode::Text,
            "binary" => Opcode::Binary,
            "close" => Opcode::Close,
            "ping" => Opcode::Ping,
            "pong" => Opcode::Pong,
            other => panic!("opcode {other}"),
        };
        let mask = entry["mask"].as_str().map(|_| hex(&entry["mask"]).try_into().unwrap());
        let payload = hex(&entry["payload"]);
        let mut out = b"before".to_vec();
        encode_frame(&mut out, opcode, &payload, mask);
        let written = out.strip_prefix(b"before").expect("what was there is kept");
        assert!(written == hex(&entry["bytes"]), "{}", entry["name"]);
        let head = frame_head(opcode, payload.len(), mask);
        assert_eq!(written.len(), head.len() + payload.len(), "{}", entry["name"]);
        assert!(written.starts_with(&head), "{}", entry["name"]);
    }
}

#[test]
fn responses_are_written() {
    for entry in entries(&load("handshakes.json"), "responses") {
        let response = handshake::response(entry["key"].as_str().unwrap());
        assert_eq!(String::from_utf8(response).unwrap(), entry["response"].as_str().unwrap());
    }
}

fn handshake_error(error: &handshake::HandshakeError) -> &'static str {
    use handshake::HandshakeError as E;
    match error {
        E::HeadTooLong(_) => "head_too_long",
        E::NotHttp(_) => "not_http",
        E::WrongPath { .. } => "wrong_path",
        E::NotGet => "not_get",
        E::WrongVersion => "wrong_version",
        E::NoUpgrade => "no_upgrade",
        E::NoConnectionUpgrade => "no_connection_upgrade",
        E::NoKey => "no_key",
        E::Status(_) => "status",
        E::WrongAccept => "wrong_accept",
        E::UnaskedExtension => "unasked_extension",
    }
}

#[test]
fn requests_are_read() {
    for entry in entries(&load("handshakes.json"), "requests") {
        let bytes = entry["request"].as_str().unwrap().as_bytes();
        let outcome = match handshake::read_request(bytes, "/sub", 8192) {
            Ok(None) => json!({ "incomplete": true }),
            Ok(Some((upgrade, used))) => json!({
                "upgrade": {"key": upgrade.key, "cookie": upgrade.cookie, "user_agent": upgrade.user_agent},
                "used": used,
            }),
            Err(error) => {
                let refusal = String::from_utf8(handshake::refusal(&error)).unwrap();
                let status: u16 = refusal["HTTP/1.1 ".len()..][..3].parse().unwrap();
                json!({ "error": handshake_error(&error), "status": status })
            }
        };
        let mut expected = entry.as_object().unwrap().clone();
        expected.retain(|member, _| !matches!(member.as_str(), "name" | "note" | "request"));
        assert_eq!(outcome, Value::Object(expected), "{}", entry["name"]);
    }
}

#[test]
fn answers_are_read() {
    for entry in entries(&load("handshakes.json"), "answers") {
        let key = entry["key"].as_str().unwrap();
        let outcome =
            match handshake::read_response(entry["response"].as_str().unwrap().as_bytes(), key, 8192) {
                Ok(None) => json!({ "incomplete": true }),
                Ok(Some(used)) => json!({ "used": used }),
                Err(error) => json!({ "error": handshake_error(&error) }),
            };
        let mut expected = entry.as_object().unwrap().clone();
        expected.retain(|member, _| !matches!(member.as_str(), "name" | "note" | "key" | "response"));
        assert_eq!(outcome, Value::Object(expected), "{}", entry["name"]);
    }
}

#[test]
fn a_request_is_written() {
    let key = handshake::key_from(*b"the sample nonce");
    assert_eq!(key, "dGhlIHNhbXBsZSBub25jZQ==", "the nonce of RFC 6455");
    let request = handshake::request("example.com:3102", "/sub", &key, &[("Cookie", "a=1"), ("X-Id", "7")]);
    assert_eq!(
        String::from_utf8(request).unwrap(),
        "GET /sub HTTP/1.1\r\nHost: example.com:3102\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCookie: a=1\r\nX-Id: 7\r\n\r\n"
    );
    let injected = handshake::request("h\r\nX: y", "/sub", &key, &[("Cookie", "a\r\n\r\nGET / HTTP/1.1")]);
    let text = String::from_utf8(injected).unwrap();
    assert_eq!(text.lines().count(), 8, "a value brought a line of its own: {text}");
}

#[test]
fn a_refusal_names_the_expected_value() {
    let refusal = |request: &[u8]| {
        let error = handshake::read_request(request, "/sub", 8192).unwrap_err();
        String::from_utf8(handshake::refusal(&error)).unwrap()
    };
    assert_eq!(
        refusal(b"GET /ws HTTP/1.1\r\n\r\n"),
        "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: 25\r\n\r\nthe WebSocket is at /sub\n"
    );
    let old = refusal(b"GET /sub HTTP/1.1\r\nSec-WebSocket-Version: 8\r\n\r\n");
    assert!(old.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{old}");
    assert!(refusal(b"PUT /sub HTTP/1.1\r\n\r\n").contains("\r\nAllow: GET\r\n"));
}

#[test]
fn what_goim_sent_is_read_and_written_the_same() {
    let rules =
        Rules { role: Role::Client, lenient: false, frame_bytes_max: 1 << 20, message_bytes_max: 1 << 20 };
    let mut events_seen = 0;
    for (name, bytes) in captured("ws") {
        let (events, end) = read(&bytes, &[bytes.len()], &rules);
        assert_eq!(end, End::Used { whole: true }, "{name}");
        let mut written = Vec::new();
        for event in &events {
            write(&mut written, event, None);
        }
        assert_eq!(written, bytes, "{name}");
        events_seen += events.len();
    }
    assert!(events_seen > 100, "only {events_seen} events were captured");
}
