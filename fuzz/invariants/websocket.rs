//! Invariants of arbitrary bytes that are decoded as WebSocket frames or handshakes. The fuzz
//! target `websocket` and the tests of `websocket` run these checks.
//!
//! Panics if an invariant does not hold.

use goim_websocket::{
    Event, FrameError, Kind, Opcode, Reader, Role, Rules, close_payload, encode_frame, handshake,
};

/// Maximum size of the reader's state of an unfinished frame, in bytes.
const NOTES_MAX: usize = 256;

/// An event that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Message(Kind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, Vec<u8>),
}

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With a close frame.
    Closed,
    Failed(FrameError),
    /// With the end of the input; `whole` if no frame and no message was truncated.
    Used {
        whole: bool,
    },
}

/// Runs all checks. The first four bytes choose the rules and the pieces, the rest is decoded.
pub(crate) fn check(data: &[u8]) {
    let Some((control, bytes)) = data.split_first_chunk::<4>() else { return };
    let seed = u32::from_be_bytes(*control);
    let limits = [(1, 4), (125, 200), (8192, 65536), (1 << 20, 1 << 20)][usize::from(control[0] & 3)];
    let rules = Rules {
        role: if control[0] & 4 == 0 { Role::Server } else { Role::Client },
        lenient: control[0] & 8 != 0,
        frame_bytes_max: limits.0,
        message_bytes_max: limits.1,
    };
    check_frames(bytes, &rules, seed);
    check_handshake(bytes, usize::from(u16::from_be_bytes([control[2], control[3]])), seed);
}

/// Any pieces give the same result, and decoded events can be encoded and decoded again.
pub(crate) fn check_frames(bytes: &[u8], rules: &Rules, seed: u32) {
    check_frames_of(Reader::new, bytes, rules, seed);
    check_frames_of(Reader::deflating, bytes, rules, seed);
}

fn check_frames_of(reader: fn() -> Reader, bytes: &[u8], rules: &Rules, seed: u32) {
    let read = |bytes: &[u8], pieces: &[usize], rules: &Rules| read_by(reader(), bytes, pieces, rules);
    let (events, end) = read(bytes, &[bytes.len()], rules);
    let pieces = crate::pieces::cut(bytes.len(), seed);
    assert_eq!(read(bytes, &pieces, rules), (events.clone(), end), "in pieces of {pieces:?}");
    let single = vec![1; bytes.len()];
    assert_eq!(read(bytes, &single, rules), (events.clone(), end), "byte by byte");
    if let End::Failed(error) = end {
        assert!(matches!(error.close_code(), 1002 | 1007 | 1009));
    }

    let mask = match rules.role {
        Role::Server => Some(seed.to_be_bytes()),
        Role::Client => None,
    };
    let mut written = Vec::new();
    for event in &events {
        write(&mut written, event, mask);
    }
    // A message may have arrived in fragments within the limit of a frame, and is encoded as one
    // frame.
    let roomy = Rules { frame_bytes_max: rules.frame_bytes_max.max(rules.message_bytes_max), ..*rules };
    let (again, _) = read(&written, &[written.len()], &roomy);
    assert_eq!(again, events, "not the same when written again");
}

/// Passes `bytes` to a reader in pieces of the given lengths.
pub(crate) fn read(bytes: &[u8], pieces: &[usize], rules: &Rules) -> (Vec<Seen>, End) {
    read_by(Reader::new(), bytes, pieces, rules)
}

fn read_by(mut reader: Reader, bytes: &[u8], pieces: &[usize], rules: &Rules) -> (Vec<Seen>, End) {
    let mut events = Vec::new();
    let mut start = 0;
    for piece in pieces {
        let mut input = bytes[start..start + piece].to_vec();
        start += piece;
        let mut at = 0;
        loop {
            match reader.next(rules, &mut input, &mut at) {
                Ok(Some(event)) => events.push(own(event, rules)),
                Ok(None) => break,
                Err(error) => return (events, End::Failed(error)),
            }
            if matches!(events.last(), Some(Seen::Close(..))) {
                return (events, End::Closed);
            }
        }
        assert_eq!(at, input.len(), "input left over");
        let stored_max = NOTES_MAX + rules.frame_bytes_max + rules.message_bytes_max;
        assert!(reader.heap_bytes() <= stored_max, "{} bytes stored", reader.heap_bytes());
        assert!(!reader.is_empty() || reader.heap_bytes() == 0, "an idle reader owns memory");
    }
    (events, End::Used { whole: reader.is_empty() })
}

fn own(event: Event<'_>, rules: &Rules) -> Seen {
    let (seen, len_max) = match event {
        Event::Message { kind, payload } => {
            assert!(rules.lenient || kind != Kind::Text || std::str::from_utf8(payload).is_ok());
            (Seen::Message(kind, payload.to_vec()), rules.message_bytes_max)
        }
        Event::Ping(payload) => (Seen::Ping(payload.to_vec()), rules.frame_bytes_max),
        Event::Pong(payload) => (Seen::Pong(payload.to_vec()), rules.frame_bytes_max),
        Event::Close { code, reason } => (Seen::Close(code, reason.to_vec()), rules.frame_bytes_max),
    };
    let len = match &seen {
        Seen::Message(_, payload) | Seen::Ping(payload) | Seen::Pong(payload) => payload.len(),
        Seen::Close(code, reason) => code.map_or(0, |_| 2) + reason.len(),
    };
    assert!(len <= len_max, "{len} bytes, the limit is {len_max}");
    seen
}

/// Encodes one event as one frame.
pub(crate) fn write(out: &mut Vec<u8>, event: &Seen, mask: Option<[u8; 4]>) {
    match event {
        Seen::Message(Kind::Text, payload) => encode_frame(out, Opcode::Text, payload, mask),
        Seen::Message(Kind::Binary, payload) => encode_frame(out, Opcode::Binary, payload, mask),
        Seen::Message(Kind::Deflated, payload) => {
            let from = out.len();
            encode_frame(out, Opcode::Binary, payload, mask);
            out[from] |= 0x40;
        }
        Seen::Ping(payload) => encode_frame(out, Opcode::Ping, payload, mask),
        Seen::Pong(payload) => encode_frame(out, Opcode::Pong, payload, mask),
        Seen::Close(code, reason) => {
            let mut payload = code.map(|code| close_payload(code, "")).unwrap_or_default();
            payload.extend_from_slice(reason);
            encode_frame(out, Opcode::Close, &payload, mask);
        }
    }
}

/// A head that is decoded from all of `bytes` is decoded from any part that contains it, and from
/// no shorter one; an error stays with more bytes.
pub(crate) fn check_handshake(bytes: &[u8], head_bytes_max: usize, seed: u32) {
    let requested = handshake::read_request(bytes, "/sub", head_bytes_max);
    let key = handshake::key_from([7; 16]);
    let answered = handshake::read_response(bytes, &key, head_bytes_max);
    let mut end = 0;
    for piece in crate::pieces::cut(bytes.len(), seed) {
        let part = &bytes[..end];
        end += piece;
        let of_part = handshake::read_request(part, "/sub", head_bytes_max);
        if of_part != Ok(None) {
            assert_eq!(of_part, requested, "the first {} bytes", part.len());
        }
        let of_part = handshake::read_response(part, &key, head_bytes_max);
        if of_part != Ok(None) {
            assert_eq!(of_part, answered, "the first {} bytes", part.len());
        }
    }
    match &requested {
        Ok(Some((upgrade, used))) => {
            assert!(*used <= bytes.len() && *used <= head_bytes_max);
            let cut = handshake::read_request(&bytes[..used - 1], "/sub", head_bytes_max);
            assert_eq!(cut, Ok(None), "complete without its last byte");
            let response = handshake::response(&upgrade.key);
            let read = handshake::read_response(&response, &upgrade.key, 8192);
            assert_eq!(read, Ok(Some(response.len())), "our own answer is refused");
        }
        Ok(None) => assert!(bytes.len() < head_bytes_max, "nothing decided beyond the limit"),
        Err(error) => check_refusal(&handshake::refusal(error)),
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        check_request(text, &key);
    }
}

/// A refusal is a complete response: a status, then a body of the announced length.
fn check_refusal(refusal: &[u8]) {
    let text = std::str::from_utf8(refusal).expect("a refusal is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a refusal has a head");
    assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(len, Some(body.len().to_string().as_str()));
}

/// Whatever the values of our request, it stays one request with these headers.
fn check_request(text: &str, key: &str) {
    let request = handshake::request(text, "/sub", key, &[("Cookie", text)]);
    let read = handshake::read_request(&request, "/sub", usize::MAX);
    let Ok(Some((upgrade, used))) = read else { panic!("our own request is refused: {read:?}") };
    assert_eq!(used, request.len());
    assert_eq!(upgrade.key, key);
    let cookie: String = text.chars().filter(|c| !c.is_control()).collect();
    assert_eq!(upgrade.cookie, cookie.trim_matches(' '));
}
