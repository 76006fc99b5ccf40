//! Both ends of a connection in virtual time, over a link that splits and joins the bytes anywhere.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use bytes::Bytes;
use goim_wire::PacketBuf;
use goim_wire::batch::BatchBuilder;
use proptest::prelude::*;

use super::*;
use crate::{
    CloseReason, EncodedPush, Established, OutboxPool, QueueLimit, ServerRules, ServerSession,
    SlowConsumerPolicy, Step,
};

const START: Millis = Millis(1_000);
const TOKEN: &[u8] = br#"{"mid":1}"#;
const LIMIT: QueueLimit = QueueLimit { bytes_max: usize::MAX, policy: SlowConsumerPolicy::Close };

fn masks(seed: u64) -> Masks {
    let mut state = seed | 1;
    Box::new(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state as u32).to_be_bytes()
    })
}

fn opening(transport: Transport) -> Opening<'static> {
    match transport {
        Transport::Stream => Opening::Stream,
        Transport::WebSocket => Opening::WebSocket { host: "h", path: "/sub", headers: &[("Cookie", "a=b")] },
    }
}

/// An event of a client, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ClientEvent {
    Authenticated(Vec<u8>),
    Reply(Sequence, PacketBuf),
    Failed(Sequence, Vec<u8>),
    Online(i32),
    Push(PacketBuf),
    Compressed(Version, Vec<u8>),
    Unmatched(PacketBuf),
    Disconnect(Option<u16>, ReconnectPolicy),
}

/// Passes one piece to the client, which must consume all of it.
fn feed(client: &mut ClientSession, now: Millis, piece: &[u8]) -> (Vec<ClientEvent>, Result<(), Ended>) {
    let mut piece = piece.to_vec();
    let (mut at, mut events) = (0, Vec::new());
    loop {
        events.push(match client.step(now, &mut piece, &mut at) {
            Err(ended) => return (events, Err(ended)),
            Ok(ClientStep::Idle) => break,
            Ok(ClientStep::Handled) => continue,
            Ok(ClientStep::Authenticated { reply }) => ClientEvent::Authenticated(reply.to_vec()),
            Ok(ClientStep::Reply { request, packet }) => ClientEvent::Reply(request, packet.to_owned()),
            Ok(ClientStep::Failed { request, error }) => ClientEvent::Failed(request, error.to_vec()),
            Ok(ClientStep::Online { count }) => ClientEvent::Online(count),
            Ok(ClientStep::Push(packet)) => ClientEvent::Push(packet.to_owned()),
            Ok(ClientStep::Compressed { version, body }) => {
                // "Inflated" means reversed here.
                let run = body.iter().rev().copied().collect();
                let compressed = ClientEvent::Compressed(version, body.to_vec());
                client.take_run(run);
                compressed
            }
            Ok(ClientStep::Unmatched(packet)) => ClientEvent::Unmatched(packet.to_owned()),
            Ok(ClientStep::Disconnect { code, reconnect, .. }) => ClientEvent::Disconnect(code, reconnect),
        });
    }
    assert_eq!(at, piece.len(), "input left over");
    (events, Ok(()))
}

/// A server that accepts every token, reports 7 sessions online and answers backend packets with
/// their body.
struct Server {
    rules: ServerRules,
    pool: OutboxPool,
    session: ServerSession,
    token: Vec<u8>,
    negotiated: bool,
    rooms: Vec<Vec<u8>>,
    heartbeats: usize,
}

impl Server {
    fn new(transport: Transport) -> Self {
        let websocket = websocket::Rules {
            role: websocket::Role::Server,
            lenient: false,
            frame_bytes_max: 8192,
            message_bytes_max: 8192,
        };
        let rules = ServerRules {
            framing: FramingRules {
                body_bytes_max: 4096,
                head_bytes_max: 8192,
                path: "/sub".to_string(),
                deflate: false,
                websocket,
            },
            handshake_timeout: Duration::from_secs(5),
            reply_bytes_max: usize::MAX,
        };
        let session = ServerSession::new(transport, &rules, START);
        let pool = OutboxPool::new(1);
        Self { rules, pool, session, token: Vec::new(), negotiated: false, rooms: Vec::new(), heartbeats: 0 }
    }

    fn feed(&mut self, now: Millis, piece: &[u8]) -> Result<(), CloseReason> {
        let mut piece = piece.to_vec();
        let mut at = 0;
        loop {
            match self.session.step(&self.rules, &mut self.pool, now, &mut piece, &mut at)? {
                Step::Idle => break,
                // The rules here do not negotiate permessage-deflate.
                Step::Handled { .. } | Step::Inflate { .. } => {}
                Step::Authenticate { token } => {
                    self.token = token.to_vec();
                    let established = Established {
                        accepts: &[],
                        heartbeat: Duration::from_secs(480),
                        protover: self.negotiated.then_some(Version::GOIM),
                        reply: if self.negotiated { br#"{"code":0}"# } else { b"" },
                    };
                    self.session.authenticated(&mut self.pool, now, &established);
                }
                Step::Heartbeat { version, sequence } => {
                    self.heartbeats += 1;
                    self.session.reply_heartbeat(&mut self.pool, version, sequence, 7);
                }
                Step::ChangeRoom { room } => self.rooms.push(room.to_vec()),
                Step::Rooms { .. } | Step::Refresh { .. } => {
                    self.session.reply_control(&mut self.pool, br#"{"code":0}"#);
                }
                Step::Upstream { packet } => {
                    let body = packet.body.to_vec();
                    self.session.reply_upstream(&mut self.pool, None, &body);
                }
            }
        }
        assert_eq!(at, piece.len(), "input left over");
        Ok(())
    }

    fn output(&mut self) -> Vec<u8> {
        let bytes: Vec<u8> = self.session.outbox().pieces().flatten().copied().collect();
        self.session.written(&mut self.pool, bytes.len());
        bytes
    }

    fn push(&mut self, packet: &PacketBuf) {
        self.session.push(&mut self.pool, &EncodedPush::new(packet.clone()), LIMIT);
    }
}

/// Both ends. Bytes are delivered in pieces with the sizes of `cuts`, in turn.
struct Link {
    client: ClientSession,
    server: Server,
    cuts: Vec<usize>,
    next_cut: usize,
    events: Vec<ClientEvent>,
}

impl Link {
    fn new(transport: Transport, cuts: Vec<usize>) -> Self {
        Self::with(transport, cuts, ClientRules::default())
    }

    fn with(transport: Transport, cuts: Vec<usize>, rules: ClientRules) -> Self {
        let client = ClientSession::new(Arc::new(rules), opening(transport), TOKEN.to_vec(), masks(7), START);
        Self { client, server: Server::new(transport), cuts, next_cut: 0, events: Vec::new() }
    }

    fn open(transport: Transport, cuts: Vec<usize>) -> Self {
        let mut link = Self::new(transport, cuts);
        link.run(START);
        assert_eq!(link.take(), [ClientEvent::Authenticated(Vec::new())]);
        link
    }

    fn cut<'a>(&mut self, bytes: &mut &'a [u8]) -> &'a [u8] {
        let len = self.cuts[self.next_cut % self.cuts.len()].clamp(1, bytes.len());
        self.next_cut += 1;
        let (piece, rest) = bytes.split_at(len);
        *bytes = rest;
        piece
    }

    /// Delivers bytes in both directions until none is left.
    fn run(&mut self, now: Millis) {
        loop {
            let up = self.client.output().to_vec();
            self.client.written(up.len());
            let mut rest = up.as_slice();
            while !rest.is_empty() {
                let piece = self.cut(&mut rest);
                self.server.feed(now, piece).unwrap();
            }
            let down = self.server.output();
            let mut rest = down.as_slice();
            while !rest.is_empty() {
                let piece = self.cut(&mut rest);
                let (events, result) = feed(&mut self.client, now, piece);
                self.events.extend(events);
                result.unwrap();
            }
            if up.is_empty() && down.is_empty() {
                return;
            }
        }
    }

    fn take(&mut self) -> Vec<ClientEvent> {
        core::mem::take(&mut self.events)
    }
}

fn packet(operation: i32, sequence: Sequence, body: &[u8]) -> PacketBuf {
    let (version, operation) = (Version::GOIM, Operation(operation));
    PacketBuf { version, operation, sequence, body: Bytes::copy_from_slice(body) }
}

/// An action on a connection.
#[derive(Debug, Clone)]
enum Action {
    Request(i32, Vec<u8>),
    Push(i32, Vec<u8>),
    Batch(Vec<Vec<u8>>),
    Carry,
}

fn action() -> impl Strategy<Value = Action> {
    let body = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (prop::sample::select(vec![2, 4, 12, 14, 16, 1000, 1001]), body()).prop_map(|(op, body)| {
            let listed = matches!(op, 14 | 16);
            Action::Request(op, if listed { b"1000,1001".to_vec() } else { body })
        }),
        (1000..1010, body()).prop_map(|(op, body)| Action::Push(op, body)),
        prop::collection::vec(body(), 0..5).prop_map(Action::Batch),
        Just(Action::Carry),
    ]
}

/// Does `action` on the link and returns the expected events of the client, replies and pushes
/// apart.
fn act(link: &mut Link, action: Action, replies: &mut Vec<ClientEvent>, pushes: &mut Vec<ClientEvent>) {
    match action {
        Action::Carry => link.run(START),
        Action::Request(op, body) => {
            let Ok(request) = link.client.request(Version::GOIM, Operation(op), &body) else {
                assert!(link.client.requests_len() == 64, "refused without a reason");
                return;
            };
            let (op, body) = match op {
                2 => (3, 7_i32.to_be_bytes().to_vec()),
                12 | 14 | 16 => (op + 1, body),
                _ => (op, body),
            };
            replies.push(ClientEvent::Reply(request, packet(op, request, &body)));
        }
        Action::Push(op, body) => {
            let push = packet(op, Sequence::NONE, &body);
            link.server.push(&push);
            pushes.push(ClientEvent::Push(push));
        }
        Action::Batch(bodies) => {
            let mut batch = BatchBuilder::new();
            for body in &bodies {
                let push = packet(1000, Sequence::NONE, body);
                batch.push(push.as_packet());
                pushes.push(ClientEvent::Push(push));
            }
            link.server.push(&batch.finish());
        }
    }
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_events(
        websocket: bool,
        cuts in prop::collection::vec(1_usize..200, 1..20),
        actions in prop::collection::vec(action(), 0..60),
    ) {
        let transport = if websocket { Transport::WebSocket } else { Transport::Stream };
        let mut link = Link::open(transport, cuts);
        prop_assert_eq!(link.server.token.as_slice(), TOKEN);
        let (mut replies, mut pushes) = (Vec::new(), Vec::new());
        for action in actions {
            act(&mut link, action, &mut replies, &mut pushes);
        }
        link.run(START);
        let (events_pushes, events_replies): (Vec<_>, Vec<_>) =
            link.take().into_iter().partition(|events| matches!(events, ClientEvent::Push(_)));
        prop_assert_eq!(events_replies, replies);
        prop_assert_eq!(events_pushes, pushes);
        prop_assert_eq!(link.client.requests_len(), 0);
        prop_assert!(link.client.output().is_empty());
    }

    #[test]
    fn no_input_makes_it_panic(
        websocket: bool,
        open: bool,
        input in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let transport = if websocket { Transport::WebSocket } else { Transport::Stream };
        let mut link = if open { Link::open(transport, vec![9]) } else { Link::new(transport, vec![9]) };
        for piece in input.chunks(13) {
            if feed(&mut link.client, START, piece).1.is_err() {
                prop_assert_eq!(link.client.deadline(), Millis::NEVER);
                break;
            }
        }
    }
}

fn both(test: impl Fn(Transport)) {
    test(Transport::Stream);
    test(Transport::WebSocket);
}

#[test]
fn heartbeats_are_sent_on_time_and_keep_both_ends_alive() {
    both(|transport| {
        let mut link = Link::open(transport, vec![3]);
        let mut now = START;
        for beat in 1..=5 {
            assert_eq!(now.until(link.client.deadline()), Duration::from_secs(240));
            now = link.client.deadline();
            link.client.handle_timeout(Millis(now.0 - 1)).unwrap();
            assert!(link.client.output().is_empty(), "too early");
            link.client.handle_timeout(now).unwrap();
            link.run(now);
            assert_eq!(link.server.heartbeats, beat);
            assert_eq!(link.take(), [ClientEvent::Online(7)]);
            assert_eq!(link.server.session.expired(now.after(Duration::from_secs(240))), None);
        }
    });
}

#[test]
fn a_silent_server_is_dead_after_the_timeout_and_not_before() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    let sent = link.client.deadline();
    link.client.handle_timeout(sent).unwrap();
    let dead = sent.after(Duration::from_secs(15));
    assert_eq!(link.client.deadline(), dead);
    link.client.handle_timeout(Millis(dead.0 - 1)).unwrap();
    assert_eq!(link.client.handle_timeout(dead), Err(Ended::HeartbeatLost));
    assert_eq!(link.client.deadline(), Millis::NEVER);
    assert_eq!(link.client.request(Version::GOIM, Operation(4), b""), Err(RequestError::NotOpen));
}

#[test]
fn a_late_reply_and_a_driver_that_does_not_read_are_no_dead_connection() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    let sent = link.client.deadline();
    link.client.handle_timeout(sent).unwrap();
    let later = sent.after(Duration::from_secs(14));
    link.server.push(&packet(1000, Sequence::NONE, b"x"));
    let bytes = link.server.output();
    feed(&mut link.client, later, &bytes).1.unwrap();
    assert_eq!(link.client.deadline(), later.after(Duration::from_secs(15)));

    link.client.set_reading(false, later);
    let much_later = later.after(Duration::from_secs(200));
    link.client.handle_timeout(much_later).unwrap();
    link.client.set_reading(true, much_later);
    link.client.handle_timeout(much_later).unwrap();
    assert_eq!(link.client.deadline(), much_later.after(Duration::from_secs(15)));
    link.run(much_later);
    assert_eq!(link.take(), [ClientEvent::Online(7)]);
}

#[test]
fn a_shorter_interval_brings_the_next_heartbeat_forward() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    link.client.set_heartbeat_interval(Duration::from_secs(20), START);
    assert_eq!(START.until(link.client.deadline()), Duration::from_secs(20));
}

#[test]
fn without_an_auth_reply_the_handshake_ends_in_time() {
    both(|transport| {
        let mut link = Link::new(transport, vec![100]);
        let deadline = link.client.deadline();
        assert_eq!(START.until(deadline), Duration::from_secs(10));
        assert_eq!(link.client.handle_timeout(deadline), Err(Ended::HandshakeTimeout));
    });
}

#[test]
fn the_token_waits_for_the_upgrade_and_is_not_in_debug_output() {
    let link = Link::new(Transport::WebSocket, vec![100]);
    let request = String::from_utf8(link.client.output().to_vec()).unwrap();
    assert!(request.starts_with("GET /sub HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("Cookie: a=b\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n"), "{request}");
    assert!(!alloc::format!("{:?}", link.client).contains("mid"));
}

#[test]
fn a_refused_upgrade_ends_the_session() {
    let mut link = Link::new(Transport::WebSocket, vec![100]);
    let (_, result) = feed(&mut link.client, START, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(result, Err(Ended::Framing(FramingError::Upgrade { .. }))), "{result:?}");
}

#[test]
fn a_slow_upgrade_answer_with_frames_glued_on_loses_nothing() {
    // Everything from the server is received together, after the response to the upgrade.
    let mut link = Link::new(Transport::WebSocket, vec![usize::MAX]);
    link.run(START);
    assert_eq!(link.take(), [ClientEvent::Authenticated(Vec::new())]);
}

#[test]
fn requests_are_bounded_and_replies_find_them_in_any_order() {
    let rules = ClientRules { requests_max: 3, ..ClientRules::default() };
    let mut link = Link::with(Transport::Stream, vec![100], rules);
    link.run(START);
    link.take();
    let mut request = |op| link.client.request(Version::GOIM, Operation(op), b"");
    let (first, second, third) = (request(4).unwrap(), request(1000).unwrap(), request(12).unwrap());
    assert_eq!(request(1000), Err(RequestError::TooMany { limit: 3 }));
    assert!(!link.client.takes_requests());
    let mut bytes = Vec::new();
    let replies = [packet(13, third, b""), packet(25, second, b"{}"), packet(5, first, b"position")];
    for reply in &replies {
        reply.as_packet().encode(&mut bytes);
    }
    let (events, _) = feed(&mut link.client, START, &bytes);
    let expect = [
        ClientEvent::Reply(third, replies[0].clone()),
        ClientEvent::Failed(second, b"{}".to_vec()),
        ClientEvent::Reply(first, replies[2].clone()),
    ];
    assert_eq!(events, expect);
    assert!(link.client.takes_requests());
}

#[test]
fn unmatched_packets_are_steps_and_not_errors() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    let check = |link: &mut Link, packet: PacketBuf, expect: fn(PacketBuf) -> ClientEvent| {
        let bytes = packet.to_message_bytes();
        assert_eq!(feed(&mut link.client, START, &bytes), (vec![expect(packet)], Ok(())));
    };
    check(&mut link, packet(13, Sequence(99), b"room"), ClientEvent::Unmatched);
    check(&mut link, packet(8, Sequence(1), b""), ClientEvent::Unmatched);
    check(&mut link, packet(25, Sequence(99), b"{}"), ClientEvent::Unmatched);
    check(&mut link, packet(4, Sequence(99), b""), ClientEvent::Unmatched);
    check(&mut link, packet(3, Sequence(1), b"odd length"), ClientEvent::Unmatched);
    check(&mut link, packet(20, Sequence::NONE, b"notify"), ClientEvent::Push);
    check(&mut link, packet(1000, Sequence(99), b"a push may have a mark"), ClientEvent::Push);
    check(&mut link, packet(-7, Sequence::NONE, b""), ClientEvent::Push);
}

#[test]
fn bodies_and_output_are_bounded() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    let too_long = link.client.request(Version::GOIM, Operation(4), &[0; 4097]);
    assert_eq!(too_long, Err(RequestError::BodyTooLong { len: 4097, limit: 4096 }));

    let rules = ClientRules { output_bytes_max: 6000, ..ClientRules::default() };
    let mut link = Link::with(Transport::Stream, vec![100], rules);
    link.run(START);
    link.client.request(Version::GOIM, Operation(4), &[0; 4096]).unwrap();
    let full = link.client.request(Version::GOIM, Operation(4), &[0; 4096]);
    assert_eq!(full, Err(RequestError::OutputFull { waiting: 4112 }));
    link.client.written(3000);
    link.client.request(Version::GOIM, Operation(4), &[0; 4096]).unwrap();
    assert_eq!(link.client.output().len(), 4112 - 3000 + 4112);
}

#[test]
fn a_length_above_the_limit_ends_the_session_before_the_body() {
    let mut link = Link::open(Transport::Stream, vec![100]);
    let huge = [0x7f, 0xff, 0xff, 0xff, 0, 16, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0];
    let (_, result) = feed(&mut link.client, START, &huge);
    assert!(matches!(result, Err(Ended::Framing(FramingError::Packet(DecodeError::TooLong { .. })))));
    assert_eq!(feed(&mut link.client, START, b"").1, Ok(()), "a session that is over only idles");
}

#[test]
fn a_batch_with_garbage_inside_ends_the_session_after_its_good_packets() {
    let mut link = Link::open(Transport::WebSocket, vec![100]);
    let good = packet(1000, Sequence::NONE, b"good");
    let mut body = good.to_message_bytes().to_vec();
    body.extend_from_slice(b"no packet");
    let batch = packet(9, Sequence::NONE, &body).to_message_bytes();
    let mut bytes = Vec::new();
    websocket::encode_frame(&mut bytes, Opcode::Binary, &batch, None);
    let (events, result) = feed(&mut link.client, START, &bytes);
    assert_eq!(events, [ClientEvent::Push(good)]);
    assert!(matches!(result, Err(Ended::Framing(FramingError::Packet(_)))), "{result:?}");
}

#[test]
fn a_negotiated_client_gets_the_reason_and_the_reconnect_policy() {
    both(|transport| {
        let mut link = Link::new(transport, vec![5]);
        link.server.negotiated = true;
        link.run(START);
        assert_eq!(link.take(), [ClientEvent::Authenticated(br#"{"code":0}"#.to_vec())]);
        let notice = br#"{"code":3500,"reason":"superseded"}"#;
        link.server.session.close(&mut link.server.pool, CloseReason::Superseded, notice);
        let bytes = link.server.output();
        let (events, result) = feed(&mut link.client, START, &bytes);
        assert_eq!(events, [ClientEvent::Disconnect(Some(3500), ReconnectPolicy::Never)]);
        let closed = if transport == Transport::WebSocket { Err(Ended::Closed) } else { Ok(()) };
        assert_eq!(result, closed);
    });
}

#[test]
fn pings_are_answered_and_a_close_is_a_close_frame() {
    let mut link = Link::open(Transport::WebSocket, vec![100]);
    feed(&mut link.client, START, &[0x89, 2, b'h', b'i']).1.unwrap();
    let pong = link.client.output().to_vec();
    assert_eq!((pong[0], pong[1]), (0x8a, 0x82));
    link.client.written(pong.len());
    link.client.close();
    let close = link.client.output().to_vec();
    assert_eq!((close[0], close[1]), (0x88, 0x82));
    link.client.close();
    assert_eq!(link.client.output().len(), close.len(), "one close frame is enough");
    assert_eq!(link.server.feed(START, &close), Err(CloseReason::PeerClosed));
}

#[test]
fn a_run_that_is_compressed_is_taken_apart_when_it_is_inflated() {
    for transport in [Transport::Stream, Transport::WebSocket] {
        let now = Millis(0);
        let mut server = Server::new(transport);
        server.negotiated = true;
        let rules = Arc::new(ClientRules::default());
        let mut client = ClientSession::new(rules, opening(transport), b"token".to_vec(), masks(7), now);
        for _ in 0..3 {
            let sent = client.output().to_vec();
            client.written(sent.len());
            server.feed(now, &sent).unwrap();
            let (_, ended) = feed(&mut client, now, &server.output());
            ended.unwrap();
        }
        let inner =
            [PacketBuf::push(Operation(1000), "one".into()), PacketBuf::push(Operation(1001), "two".into())];
        let mut run = Vec::new();
        inner.iter().for_each(|packet| packet.as_packet().encode(&mut run));
        run.reverse();
        let packet = PacketBuf { version: Version(3), ..PacketBuf::push(Operation::RAW, run.clone().into()) };
        server.session.push(&mut server.pool, &EncodedPush::whole(packet), LIMIT);
        let (events, ended) = feed(&mut client, now, &server.output());
        ended.unwrap();
        let expected = [
            ClientEvent::Compressed(Version(3), run),
            ClientEvent::Push(inner[0].clone()),
            ClientEvent::Push(inner[1].clone()),
        ];
        assert_eq!(events, expected, "{transport:?}");
    }
}
