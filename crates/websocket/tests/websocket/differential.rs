//! The same frames into this codec and into `tungstenite`, strictly by RFC 6455: both must return
//! the same events and fail at the same frame.
//!
//! Known differences, which are excluded or mapped: `tungstenite` accepts lengths that are not in
//! their shortest form (not generated), treats close code 1014 as reserved (not generated), and
//! turns an invalid close code into a close with code 1002 (counted as an error here). It reports
//! invalid text only when the frame is complete, this codec as soon as the bytes are received.

use std::io::{self, Read, Write};

use goim_websocket::{Kind, Opcode, Role, Rules, encode_frame};
use proptest::prelude::*;
use proptest::sample::Index;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use crate::invariants::{End, Seen, read};
use crate::pieces;

/// Input in pieces, then the end of the stream; output is discarded.
struct Pieces {
    bytes: Vec<u8>,
    lens: Vec<usize>,
    next: usize,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(len) = self.lens.get_mut(self.next) else { return Err(io::ErrorKind::WouldBlock.into()) };
        let taken = to.len().min(*len);
        to[..taken].copy_from_slice(&self.bytes[self.at..self.at + taken]);
        self.at += taken;
        *len -= taken;
        if *len == 0 {
            self.next += 1;
        }
        Ok(taken)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Closed,
    Failed,
    Used,
}

fn theirs(bytes: &[u8], lens: &[usize], role: Role) -> (Vec<Seen>, Ending) {
    let role = match role {
        Role::Server => tungstenite::protocol::Role::Server,
        Role::Client => tungstenite::protocol::Role::Client,
    };
    let stream = Pieces { bytes: bytes.to_vec(), lens: lens.to_vec(), next: 0, at: 0 };
    let config = WebSocketConfig::default().max_frame_size(Some(1 << 20)).max_message_size(Some(1 << 20));
    let mut socket = WebSocket::from_raw_socket(stream, role, Some(config));
    let mut events = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => events.push(Seen::Message(Kind::Text, text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => events.push(Seen::Message(Kind::Binary, bytes.to_vec())),
            Ok(Message::Ping(payload)) => events.push(Seen::Ping(payload.to_vec())),
            Ok(Message::Pong(payload)) => events.push(Seen::Pong(payload.to_vec())),
            Ok(Message::Close(Some(close))) if close.reason.as_str() == "Protocol violation" => {
                return (events, Ending::Failed);
            }
            Ok(Message::Close(close)) => {
                events.push(match close {
                    Some(close) => Seen::Close(Some(close.code.into()), close.reason.as_bytes().to_vec()),
                    None => Seen::Close(None, Vec::new()),
                });
                return (events, Ending::Closed);
            }
            Ok(Message::Frame(_)) => unreachable!("only given when asked for"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (events, Ending::Used);
            }
            Err(_) => return (events, Ending::Failed),
        }
    }
}

fn ours(bytes: &[u8], lens: &[usize], role: Role) -> (Vec<Seen>, Ending) {
    let rules = Rules { role, lenient: false, frame_bytes_max: 1 << 20, message_bytes_max: 1 << 20 };
    let (events, end) = read(bytes, lens, &rules);
    let ending = match end {
        End::Closed => Ending::Closed,
        End::Failed(_) => Ending::Failed,
        End::Used { .. } => Ending::Used,
    };
    (events, ending)
}

/// One frame, valid or invalid.
#[derive(Debug, Clone)]
struct Frame {
    first: u8,
    wrong_masking: bool,
    payload: Vec<u8>,
}

impl Frame {
    fn encode(&self, out: &mut Vec<u8>, role: Role, mask: [u8; 4]) {
        let masked = (role == Role::Server) != self.wrong_masking;
        let start = out.len();
        encode_frame(out, Opcode::Binary, &self.payload, masked.then_some(mask));
        out[start] = self.first;
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "\\PC{0,12}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 65530..65540),
    ]
}

/// A valid message: split anywhere, inside characters too, with pings and pongs between the
/// fragments.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    let cuts = prop::collection::vec(any::<Index>(), 0..3);
    let controls = prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..126)), 0..2);
    (any::<bool>(), bytes(), cuts, controls).prop_map(|(text, whole, cuts, controls)| {
        let frame = |first, payload| Frame { first, wrong_masking: false, payload };
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
        ends.sort_unstable();
        let mut frames = Vec::new();
        let mut opcode = if text { 1 } else { 2 };
        let mut start = 0;
        for end in ends {
            frames.push(frame(opcode, whole[start..end].to_vec()));
            for (ping, payload) in &controls {
                frames.push(frame(if *ping { 0x89 } else { 0x8a }, payload.clone()));
            }
            opcode = 0;
            start = end;
        }
        frames.push(frame(0x80 | opcode, whole[start..].to_vec()));
        frames
    })
}

/// A frame of any kind, mostly an invalid one.
fn stray() -> impl Strategy<Value = Vec<Frame>> {
    (any::<u8>(), prop::bool::weighted(0.2), bytes()).prop_map(|(first, wrong_masking, payload)| {
        // Reserved bits would hide all other errors if they were as likely.
        let first = if first & 0x30 == 0x30 { first } else { first & 0x8f };
        vec![Frame { first, wrong_masking, payload }]
    })
}

fn close() -> impl Strategy<Value = Vec<Frame>> {
    let code = prop_oneof![990_u16..1020, 1990_u16..2010, 2990_u16..3010, 4990_u16..5010, any::<u16>()];
    let code = code.prop_filter("the two differ on 1014", |code| *code != 1014);
    let payload = prop_oneof![
        1 => Just(Vec::new()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
        6 => (code, prop_oneof!["\\PC{0,10}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..9)])
            .prop_map(|(code, reason)| [code.to_be_bytes().to_vec(), reason].concat()),
    ];
    payload.prop_map(|payload| vec![Frame { first: 0x88, wrong_masking: false, payload }])
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let part = prop_oneof![10 => message(), 2 => stray(), 1 => close()];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn both_see_the_same(
        frames in frames(),
        server in any::<bool>(),
        mask in any::<[u8; 4]>(),
        cut_off in prop_oneof![3 => Just(0_usize), 1 => 0..12_usize],
        seed in any::<u32>(),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes, role, mask);
        }
        let cut = &bytes[..bytes.len().saturating_sub(cut_off)];
        let lens = pieces::cut(cut.len(), seed);
        let ours = ours(cut, &lens, role);
        let mut theirs = theirs(cut, &lens, role);
        if ours.1 == Ending::Failed && theirs.1 == Ending::Used {
            // This codec reports invalid text before its frame is complete, `tungstenite` after.
            theirs = self::theirs(&bytes, &[bytes.len()], role);
        }
        prop_assert_eq!(ours, theirs);
    }
}
