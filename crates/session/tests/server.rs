//! The server's end of a connection, with virtual time: what goim's clients rely on.

use std::time::Duration;

use bytes::Bytes;
use goim_session::{
    Admission, CloseReason, EncodedPush, Established, FramingRules, Millis, OutboxPool, QueueLimit,
    ServerRules, ServerSession, SlowConsumerPolicy, Step, Transport, websocket_rules,
};
use goim_wire::{Operation, Packet, PacketBuf, Sequence, Version};

/// A step that the session has asked its driver for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Token(Vec<u8>),
    Heartbeat,
    Room(Vec<u8>),
    Upstream(i32, Vec<u8>),
    Rooms(bool, Vec<u8>),
    Refresh(Vec<u8>),
}

/// A driver without sockets. It answers tokens and packets immediately by default.
struct Driver {
    session: ServerSession,
    rules: ServerRules,
    pool: OutboxPool,
    now: Millis,
    asked: Vec<Asked>,
    /// Input that the session did not read.
    rest: Vec<u8>,
    answers: bool,
    online: u32,
}

impl Driver {
    fn new(transport: Transport) -> Self {
        let rules = ServerRules {
            framing: FramingRules {
                body_bytes_max: 4096,
                head_bytes_max: 8192,
                path: "/sub".into(),
                deflate: false,
                websocket: websocket_rules(true, 8192),
            },
            handshake_timeout: Duration::from_secs(5),
            reply_bytes_max: 64,
        };
        let session = ServerSession::new(transport, &rules, Millis(0));
        let pool = OutboxPool::new(4);
        Self { session, rules, pool, now: Millis(0), asked: vec![], rest: vec![], answers: true, online: 1 }
    }

    /// A byte stream, authenticated, with operations 1000 and 1001 and a heartbeat of 8 minutes.
    fn open() -> Self {
        let mut driver = Self::new(Transport::Stream);
        driver.feed(&packet(7, 1, b"token")).expect("a good packet");
        assert_eq!(driver.output(), packet(8, 1, b""));
        driver.asked.clear();
        driver
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), CloseReason> {
        self.rest.extend_from_slice(bytes);
        let mut input = std::mem::take(&mut self.rest);
        let mut at = 0;
        let result = loop {
            match self.session.step(&self.rules, &mut self.pool, self.now, &mut input, &mut at) {
                Ok(Step::Idle) => break Ok(()),
                Ok(Step::Handled { .. }) => {}
                Ok(Step::Authenticate { token }) => {
                    self.asked.push(Asked::Token(token.to_vec()));
                    if self.answers {
                        self.authenticate(None);
                    }
                }
                Ok(Step::Heartbeat { version, sequence }) => {
                    self.asked.push(Asked::Heartbeat);
                    self.session.reply_heartbeat(&mut self.pool, version, sequence, self.online);
                }
                Ok(Step::ChangeRoom { room }) => self.asked.push(Asked::Room(room.to_vec())),
                Ok(Step::Rooms { join, rooms }) => {
                    self.asked.push(Asked::Rooms(join, rooms.to_vec()));
                    self.session.reply_control(&mut self.pool, b"{}");
                }
                Ok(Step::Refresh { token }) => {
                    self.asked.push(Asked::Refresh(token.to_vec()));
                    if self.answers {
                        self.session.reply_error(&mut self.pool, |_| b"no".to_vec());
                    }
                }
                // The rules here do not negotiate permessage-deflate.
                Ok(Step::Inflate { .. }) => {}
                Ok(Step::Upstream { packet }) => {
                    self.asked.push(Asked::Upstream(packet.operation.0, packet.body.to_vec()));
                    if self.answers {
                        self.session.reply_upstream(&mut self.pool, None, b"");
                    }
                }
                Err(reason) => break Err(reason),
            }
        };
        self.rest = input[at..].to_vec();
        result
    }

    fn authenticate(&mut self, protover: Option<Version>) {
        let accepts = [Operation(1000), Operation(1001)];
        let established =
            Established { accepts: &accepts, heartbeat: Duration::from_secs(480), protover, reply: b"" };
        self.session.authenticated(&mut self.pool, self.now, &established);
    }

    fn output(&mut self) -> Vec<u8> {
        let bytes: Vec<u8> = self.session.outbox().pieces().flatten().copied().collect();
        self.session.written(&mut self.pool, bytes.len());
        bytes
    }
}

fn packet(operation: i32, sequence: i32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (version, operation, sequence) = (Version(1), Operation(operation), Sequence(sequence));
    Packet { version, operation, sequence, body }.encode(&mut out);
    out
}

fn count(sequence: i32, online: i32) -> Vec<u8> {
    packet(3, sequence, &online.to_be_bytes())
}

const UPGRADE: &[u8] = b"GET /sub HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nCookie: a=b\r\n\r\n";

#[test]
fn each_request_has_one_reply() {
    let cases: &[(&str, Vec<u8>, Vec<u8>, Vec<Asked>)] = &[
        ("heartbeat", packet(2, 5, b""), count(5, 1), vec![Asked::Heartbeat]),
        ("heartbeat with a body", packet(2, 5, b"abc"), count(5, 1), vec![Asked::Heartbeat]),
        (
            "room",
            packet(12, 6, b"live://2"),
            packet(13, 6, b"live://2"),
            vec![Asked::Room(b"live://2".into())],
        ),
        ("leaving", packet(12, 6, b""), packet(13, 6, b""), vec![Asked::Room(vec![])]),
        ("subscribe", packet(14, 7, b"1,2"), packet(15, 7, b"1,2"), vec![]),
        ("subscribe nonsense", packet(14, 7, b"1, 2"), packet(15, 7, b"1, 2"), vec![]),
        ("unsubscribe", packet(16, 8, b"1"), packet(17, 8, b"1"), vec![]),
        ("message", packet(4, 9, b"hey"), packet(4, 9, b""), vec![Asked::Upstream(4, b"hey".into())]),
        ("backend", packet(1000, 10, b"x"), packet(1000, 10, b""), vec![Asked::Upstream(1000, b"x".into())]),
        ("auth again", packet(7, 11, b"t"), packet(7, 11, b""), vec![Asked::Upstream(7, b"t".into())]),
        ("a heartbeat reply", packet(3, 12, b""), packet(3, 12, b""), vec![Asked::Upstream(3, vec![])]),
        ("negative operation", packet(-5, 13, b""), packet(-5, 13, b""), vec![Asked::Upstream(-5, vec![])]),
        ("a batch on a stream", packet(9, 14, b""), vec![], vec![Asked::Upstream(9, vec![])]),
    ];
    for (name, input, output, asked) in cases {
        let mut driver = Driver::open();
        driver.feed(input).unwrap();
        assert_eq!((driver.output(), &driver.asked), (output.clone(), asked), "{name}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_in_any_chunks() {
    let requests = [
        packet(2, 1, b""),
        packet(1000, 2, b"x"),
        packet(14, 3, b"7"),
        packet(12, 4, b"r"),
        packet(2, 5, b""),
    ];
    let replies = [count(1, 1), packet(1000, 2, b""), packet(15, 3, b"7"), packet(13, 4, b"r"), count(5, 1)];
    let input = requests.concat();
    for chunk in 1..=input.len() {
        let mut driver = Driver::open();
        let mut output = Vec::new();
        for piece in input.chunks(chunk) {
            driver.feed(piece).unwrap();
            output.extend(driver.output());
            // Too many replies were queued; now there is space.
            driver.feed(b"").unwrap();
            output.extend(driver.output());
        }
        assert_eq!(output, replies.concat(), "chunks of {chunk}");
    }
}

#[test]
fn before_authentication_all_but_the_token_is_dropped_without_a_word() {
    let mut driver = Driver::new(Transport::Stream);
    driver.feed(&[packet(2, 1, b""), packet(1000, 2, b"x"), packet(12, 3, b"r")].concat()).unwrap();
    assert_eq!((driver.output(), driver.asked.len()), (vec![], 0));
    driver.feed(&packet(7, 4, b"t")).unwrap();
    assert_eq!(driver.output(), packet(8, 4, b""));
}

#[test]
fn version_and_sequence_of_the_auth_reply_are_those_of_the_request() {
    let mut driver = Driver::new(Transport::Stream);
    let mut out = Vec::new();
    let request =
        Packet { version: Version(-1), operation: Operation::AUTH, sequence: Sequence(-1), body: b"t" };
    request.encode(&mut out);
    driver.feed(&out).unwrap();
    assert_eq!(driver.output()[6..8], [0xff, 0xff]);
}

#[test]
fn violations_close_without_a_packet() {
    let header = |packet_len: u32, header_len: u16| {
        [&packet_len.to_be_bytes()[..], &header_len.to_be_bytes(), &[0, 1, 0, 0, 0, 2, 0, 0, 0, 1]].concat()
    };
    for (name, bytes) in [
        ("too long", header(4113, 16)),
        ("too short", header(15, 16)),
        ("nothing", header(0, 16)),
        ("negative", header(0xffff_ffff, 16)),
        ("the lowest", header(0x8000_0000, 16)),
        ("header length", header(16, 20)),
    ] {
        let mut driver = Driver::open();
        assert_eq!(driver.feed(&bytes), Err(CloseReason::BadPacket), "{name}");
        driver.session.close(&mut driver.pool, CloseReason::BadPacket, b"{}");
        assert_eq!(driver.output(), b"", "{name}");
    }
}

#[test]
fn while_an_answer_is_outstanding_nothing_more_is_taken() {
    let mut driver = Driver::open();
    driver.answers = false;
    driver.feed(&[packet(1000, 1, b"a"), packet(2, 2, b"")].concat()).unwrap();
    assert_eq!(driver.asked, [Asked::Upstream(1000, b"a".into())]);
    assert!(!driver.session.wants_input(&driver.rules));
    assert_eq!(driver.session.reply_upstream(&mut driver.pool, None, b"answer"), Some(Operation(1000)));
    driver.feed(b"").unwrap();
    assert_eq!(driver.output(), [packet(1000, 1, b"answer"), count(2, 1)].concat());
}

#[test]
fn replies_that_are_not_read_stop_the_input_and_none_is_lost() {
    let mut driver = Driver::open();
    let requests: Vec<u8> = (0..100).flat_map(|sequence| packet(2, sequence, b"")).collect();
    driver.feed(&requests).unwrap();
    assert!(!driver.session.wants_input(&driver.rules));
    assert!(driver.session.outbox().reply_bytes() <= 64 + 20);
    let mut output = Vec::new();
    while !driver.session.outbox().is_empty() {
        output.extend(driver.output());
        driver.feed(b"").unwrap();
    }
    assert_eq!(output, (0..100).flat_map(|sequence| count(sequence, 1)).collect::<Vec<u8>>());
}

#[test]
fn only_a_heartbeat_moves_the_deadline() {
    let mut driver = Driver::open();
    let armed = driver.session.deadline();
    assert_eq!(armed, Millis(480_000));
    driver.now = Millis(1_000);
    for other in [packet(4, 1, b""), packet(14, 2, b"1"), packet(12, 3, b"r")] {
        driver.feed(&other).unwrap();
        assert_eq!(driver.session.deadline(), armed);
    }
    driver.feed(&packet(2, 4, b"")).unwrap();
    assert_eq!(driver.session.deadline(), Millis(481_000));
    assert_eq!(driver.session.expired(Millis(480_999)), None);
    assert_eq!(driver.session.expired(Millis(481_000)), Some(CloseReason::HeartbeatTimeout));
}

#[test]
fn packets_before_authentication_do_not_extend_the_handshake() {
    let mut driver = Driver::new(Transport::Stream);
    driver.now = Millis(4_900);
    driver.feed(&packet(2, 1, b"")).unwrap();
    assert_eq!(driver.session.expired(Millis(5_000)), Some(CloseReason::HandshakeTimeout));
}

#[test]
fn subscriptions_are_a_set() {
    let mut driver = Driver::open();
    let steps: &[(i32, &[u8], &[i32], &[i32])] = &[
        (14, b"+1003,-5,01004,1003,0", &[1000, 1003, -5, 1004, 0], &[77]),
        (16, b"1004,77", &[1003, -5, 0], &[1004]),
        (14, b"1,x", &[1003], &[1]),
        (16, b"1003,", &[1003], &[]),
    ];
    for (operation, body, wanted, unwanted) in steps {
        driver.feed(&packet(*operation, 1, body)).unwrap();
        for operation in *wanted {
            assert!(driver.session.accepts(Operation(*operation)), "{operation}");
        }
        for operation in *unwanted {
            assert!(!driver.session.accepts(Operation(*operation)), "{operation}");
        }
    }
}

#[test]
fn subscriptions_without_end_cost_a_bounded_list() {
    let mut driver = Driver::open();
    for first in (2000..20_000).step_by(500) {
        let list: Vec<String> = (first..first + 500).map(|operation: i32| operation.to_string()).collect();
        driver.feed(&packet(14, 1, list.join(",").as_bytes())).unwrap();
        assert!(!driver.output().is_empty(), "the request is answered all the same");
    }
    let taken = (0..20_000).filter(|operation| driver.session.accepts(Operation(*operation))).count();
    assert_eq!(taken, goim_session::SUBSCRIPTIONS_MAX);
    assert!(driver.session.accepts(Operation(1000)), "what was there first stays");
    driver.feed(&packet(16, 1, b"1000,1001")).unwrap();
    driver.feed(&packet(14, 1, b"77")).unwrap();
    assert!(driver.session.accepts(Operation(77)), "there is room again");
}

#[test]
fn a_push_is_bare_on_a_stream_and_wrapped_on_websocket() {
    let inner = packet(1000, 0, b"hello");
    let push = EncodedPush::new(PacketBuf::push(Operation::RAW, Bytes::from(inner.clone())));
    assert_eq!(push.bytes(Transport::Stream).as_ref(), &inner);
    let expected = [&[0x82, 0x25][..], &packet(9, 0, &inner)].concat();
    assert_eq!(push.bytes(Transport::WebSocket).as_ref(), &expected);
}

#[test]
fn an_encoded_push_has_one_form_for_each_transport_and_gives_its_packet_back() {
    let batch = Bytes::from(packet(1000, 0, b"hello"));
    for packet in [
        PacketBuf::push(Operation(1000), Bytes::from_static(b"x")),
        PacketBuf::push(Operation(1000), Bytes::new()),
        PacketBuf::push(Operation::RAW, batch.clone()),
        PacketBuf { version: Version(3), operation: Operation::RAW, sequence: Sequence(7), body: batch },
        PacketBuf {
            version: Version(3),
            operation: Operation(8),
            sequence: Sequence(-7),
            body: Bytes::from_static(b"y"),
        },
        PacketBuf::push(Operation(5), Bytes::from(vec![b'z'; 70_000])),
    ] {
        let push = EncodedPush::new(packet.clone());
        for push in [&push, &push.for_another_thread()] {
            assert_eq!(push.bytes(Transport::Stream)[..], packet.to_stream_bytes()[..], "{packet:?}");
            let message = packet.to_message_bytes();
            assert!(push.bytes(Transport::WebSocket).ends_with(&message), "{packet:?}");
            let head = push.len(Transport::WebSocket) - message.len();
            assert_eq!(head, if message.len() < 126 { 2 } else { 10 }, "{packet:?}");
        }
        assert_eq!(push.into_packet(), packet);
    }
}

#[test]
fn websocket_from_upgrade_to_push() {
    for cut in [1, 7, 100, 10_000] {
        let mut driver = Driver::new(Transport::WebSocket);
        let mut auth = Vec::new();
        goim_websocket::encode_frame(
            &mut auth,
            goim_websocket::Opcode::Binary,
            &packet(7, 1, b"t"),
            Some([1, 2, 3, 4]),
        );
        let input = [UPGRADE, &auth].concat();
        let mut output = Vec::new();
        for piece in input.chunks(cut) {
            driver.feed(piece).unwrap();
            output.extend(driver.output());
        }
        // The response to the upgrade had to be read before the token was accepted.
        driver.feed(b"").unwrap();
        output.extend(driver.output());
        assert_eq!(driver.session.take_facts().cookie, "a=b");
        let text = String::from_utf8_lossy(&output);
        assert!(text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"), "{text}");
        assert!(output.ends_with(&[&[0x82, 16][..], &packet(8, 1, b"")].concat()), "cut {cut}");
    }
}

#[test]
fn a_ping_is_answered_immediately_and_does_not_keep_the_session_alive() {
    let mut driver = Driver::new(Transport::WebSocket);
    driver.feed(UPGRADE).unwrap();
    driver.output();
    let before = driver.session.deadline();
    driver.now = Millis(10);
    driver.feed(&[0x89, 0x02, b'h', b'i']).unwrap();
    assert_eq!(driver.output(), [0x8a, 0x02, b'h', b'i']);
    assert_eq!(driver.session.deadline(), before);
}

#[test]
fn a_bad_upgrade_gets_a_response_with_the_error() {
    let mut driver = Driver::new(Transport::WebSocket);
    assert_eq!(driver.feed(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"), Err(CloseReason::BadUpgrade));
    assert!(driver.output().starts_with(b"HTTP/1.1 404"));
}

#[test]
fn a_negotiated_client_gets_the_reason_a_goim_client_does_not() {
    for (protover, told) in [(None, false), (Some(Version(1)), true)] {
        let mut driver = Driver::new(Transport::Stream);
        driver.answers = false;
        driver.feed(&packet(7, 1, b"t")).unwrap();
        driver.authenticate(protover);
        driver.output();
        driver.session.close(&mut driver.pool, CloseReason::Draining, b"{\"code\":3002}");
        let expected = if told { packet(6, 0, b"{\"code\":3002}") } else { vec![] };
        assert_eq!(driver.output(), expected);
        assert!(!driver.session.wants_input(&driver.rules));
    }
}

#[test]
fn nothing_is_pushed_to_who_is_not_open() {
    let push = EncodedPush::new(PacketBuf::push(Operation(1000), Bytes::from_static(b"x")));
    let limit = QueueLimit { bytes_max: 100, policy: SlowConsumerPolicy::DropNewest };
    let mut driver = Driver::new(Transport::Stream);
    assert_eq!(driver.session.push(&mut driver.pool, &push, limit), Admission::DroppedNewest);
    let mut driver = Driver::open();
    assert_eq!(driver.session.push(&mut driver.pool, &push, limit), Admission::Queued);
    driver.session.close(&mut driver.pool, CloseReason::Superseded, b"{}");
    assert_eq!(driver.session.push(&mut driver.pool, &push, limit), Admission::DroppedNewest);
    // What was queued before is still sent.
    assert_eq!(driver.output(), packet(1000, 0, b"x"));
}

#[test]
fn an_open_session_is_small_and_owns_no_heap() {
    assert!(size_of::<ServerSession>() <= 104, "{}", size_of::<ServerSession>());
}

#[test]
fn rooms_and_new_tokens_are_for_extended_clients() {
    let mut driver = Driver::new(Transport::Stream);
    driver.answers = false;
    driver.feed(&packet(7, 1, b"token")).unwrap();
    driver.authenticate(Some(Version(1)));
    driver.output();
    driver.asked.clear();
    driver
        .feed(&[packet(26, 2, b"[]"), packet(28, 3, b"[1]"), packet(30, 4, b"t"), packet(2, 5, b"")].concat())
        .unwrap();
    assert_eq!(driver.output(), [packet(27, 2, b"{}"), packet(29, 3, b"{}")].concat());
    let expected = [
        Asked::Rooms(true, b"[]".to_vec()),
        Asked::Rooms(false, b"[1]".to_vec()),
        Asked::Refresh(b"t".to_vec()),
    ];
    assert_eq!(driver.asked, expected, "nothing more is taken until the token is decided about");
    assert_eq!(
        driver.session.reply_error(&mut driver.pool, |operation| operation.to_string().into_bytes()),
        Some(Operation(30))
    );
    driver.feed(b"").unwrap();
    assert_eq!(driver.output(), [packet(25, 4, b"30"), packet(3, 5, &[0, 0, 0, 1])].concat());

    // To goim all of them are packets for the backend.
    let mut driver = Driver::open();
    driver.feed(&[packet(26, 2, b"[]"), packet(28, 3, b"[]"), packet(30, 4, b"t")].concat()).unwrap();
    assert_eq!(driver.output(), [packet(26, 2, b""), packet(28, 3, b""), packet(30, 4, b"")].concat());
}

#[test]
fn a_refused_client_gets_the_reason_if_it_is_negotiated() {
    for (negotiated, expected) in [(true, packet(6, 0, b"why")), (false, Vec::new())] {
        let mut driver = Driver::new(Transport::Stream);
        driver.answers = false;
        driver.feed(&packet(7, 1, b"token")).unwrap();
        if negotiated {
            driver.session.mark_negotiated();
        }
        driver.session.close(&mut driver.pool, CloseReason::TokenExpired, b"why");
        assert_eq!(driver.output(), expected, "{negotiated}");
    }
}
