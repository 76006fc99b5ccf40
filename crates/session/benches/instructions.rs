//! Hot paths without sockets, each run a given number of times: `instructions PATH TIMES`; without
//! arguments, prints their names. `scripts/instruction-counts.sh` counts and compares. A path does
//! the same work each time and creates its input once: the difference between two runs is the path
//! alone.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a script: it prints, and must not go on"
)]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use goim_session::{
    EncodedPush, Established, FramingRules, Millis, Outbox, OutboxPool, QueueLimit, ServerRules,
    ServerSession, SlowConsumerPolicy, Step, Transport, websocket_rules,
};
use goim_wire::{Operation, Packet, PacketBuf, Sequence, StreamDecoder, Version};

const PATHS: &[(&str, fn(u32))] = &[
    ("decode", decode),
    ("encode", encode),
    ("encode-push", encode_push),
    ("heartbeat-stream", heartbeat_stream),
    ("heartbeat-websocket", heartbeat_websocket),
    ("authenticate", authenticate),
    ("stage-flush-one", stage_flush::<1>),
    ("stage-flush-twenty", stage_flush::<20>),
];

const LIMIT: QueueLimit = QueueLimit { bytes_max: 64 * 1024, policy: SlowConsumerPolicy::DropNewest };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [name, times] = arguments.as_slice() else {
        PATHS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, path) = PATHS.iter().find(|(known, _)| known == name).expect("a path of the list");
    path(times.parse().expect("how many times, as a number"));
}

fn packet(operation: i32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Packet { version: Version(1), operation: Operation(operation), sequence: Sequence(1), body }
        .encode(&mut out);
    out
}

fn decode(times: u32) {
    let input = packet(1000, &[b'x'; 84]);
    let mut decoder = StreamDecoder::new();
    for _ in 0..times {
        black_box(decoder.next(black_box(&input), &mut 0, 4096).unwrap());
    }
}

fn encode(times: u32) {
    let body = [b'x'; 84];
    let mut out = Vec::with_capacity(128);
    for _ in 0..times {
        out.clear();
        let (operation, sequence) = (Operation(1000), Sequence(1));
        black_box(Packet { version: Version(1), operation, sequence, body: black_box(&body) })
            .encode(&mut out);
        black_box(&out);
    }
}

fn push() -> PacketBuf {
    PacketBuf::push(Operation(1000), Bytes::from_static(&[b'x'; 64]))
}

fn encode_push(times: u32) {
    let packet = push();
    for _ in 0..times {
        let push = EncodedPush::new(black_box(packet.clone()));
        black_box(push.bytes(Transport::WebSocket));
    }
}

/// Queues `COUNT` pushes and writes all of them together.
fn stage_flush<const COUNT: usize>(times: u32) {
    let (push, mut pool, mut outbox) = (EncodedPush::new(push()), OutboxPool::new(4), Outbox::new());
    for _ in 0..times {
        for _ in 0..COUNT {
            black_box(outbox.push(&mut pool, push.bytes(Transport::Stream), LIMIT));
        }
        let len = outbox.only_piece().map_or_else(|| outbox.pieces().map(<[u8]>::len).sum(), <[u8]>::len);
        outbox.advance(&mut pool, black_box(len));
    }
}

struct Driver {
    session: ServerSession,
    rules: ServerRules,
    pool: OutboxPool,
}

impl Driver {
    fn new(transport: Transport) -> Self {
        let websocket = websocket_rules(true, 8192);
        let framing = FramingRules {
            body_bytes_max: 4096,
            head_bytes_max: 8192,
            path: "/sub".into(),
            deflate: false,
            websocket,
        };
        let rules =
            ServerRules { framing, handshake_timeout: Duration::from_secs(5), reply_bytes_max: 16 * 1024 };
        Self { session: ServerSession::new(transport, &rules, Millis(0)), rules, pool: OutboxPool::new(4) }
    }

    /// Handles all of `input`, answers its requests, writes the replies and returns their size.
    fn feed(&mut self, input: &mut [u8]) -> usize {
        let mut at = 0;
        loop {
            match self.session.step(&self.rules, &mut self.pool, Millis(0), input, &mut at).unwrap() {
                Step::Idle => break,
                Step::Authenticate { .. } => {
                    let accepts = [Operation(1000), Operation(1001), Operation(1002)];
                    let heartbeat = Duration::from_secs(480);
                    let established =
                        Established { accepts: &accepts, heartbeat, protover: None, reply: b"" };
                    self.session.authenticated(&mut self.pool, Millis(0), &established);
                }
                Step::Heartbeat { version, sequence } => {
                    self.session.reply_heartbeat(&mut self.pool, version, sequence, 1);
                }
                _ => {}
            }
        }
        let len = self.session.outbox().pieces().map(<[u8]>::len).sum();
        self.session.written(&mut self.pool, len);
        len
    }
}

fn authenticate(times: u32) {
    let token =
        packet(7, br#"{"mid":123,"room_id":"live://1000","platform":"web","accepts":[1000,1001,1002]}"#);
    let mut driver = Driver::new(Transport::Stream);
    let mut input = Vec::with_capacity(256);
    for _ in 0..times {
        driver.session = ServerSession::new(Transport::Stream, &driver.rules, Millis(0));
        input.clear();
        input.extend_from_slice(&token);
        assert!(driver.feed(&mut input) > 0, "a token is answered");
    }
}

fn heartbeats(mut driver: Driver, beat: &[u8], times: u32) {
    let mut input = Vec::with_capacity(256);
    for _ in 0..times {
        // Frames are unmasked in place, so each run needs a new copy.
        input.clear();
        input.extend_from_slice(beat);
        assert!(driver.feed(&mut input) > 0, "a heartbeat is answered");
    }
}

fn heartbeat_stream(times: u32) {
    let mut driver = Driver::new(Transport::Stream);
    driver.feed(&mut packet(7, b"token"));
    heartbeats(driver, &packet(2, b""), times);
}

fn heartbeat_websocket(times: u32) {
    let mut driver = Driver::new(Transport::WebSocket);
    driver.feed(
        &mut b"GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec(),
    );
    driver.feed(&mut masked(&packet(7, b"token")));
    heartbeats(driver, &masked(&packet(2, b"")), times);
}

/// Returns a binary message of up to 125 bytes in one frame, as a client sends it.
fn masked(message: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x82, 0x80 | u8::try_from(message.len()).unwrap()];
    frame.extend_from_slice(&mask);
    frame.extend(message.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
