//! A client of either transport, byte by byte.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{self, Frame};
use super::hex::show;
use super::{DEADLINE, Packet, Server, number, unique};

/// How a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Packets back to back.
    Tcp,
    /// One packet in each binary message.
    Ws,
}

/// Both, for tests of what they share.
pub const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Ws];

/// The upgrade request of RFC 6455's example, and the answer to it.
pub const UPGRADE: &str = "GET /sub HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/// The four lines that answer [`UPGRADE`].
pub const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The sequence of the request with which a client shows that nothing else arrived.
const MARK: i32 = 0x4d41_524b;
/// Of the backend, and no route's: the echo is empty for clients of every kind.
const MARK_OPERATION: i32 = i32::MAX - 1;

/// A client's identity.
#[derive(Debug, Clone)]
pub struct Who {
    /// The member.
    pub mid: i64,
    /// The session.
    pub key: String,
    /// The room, or nothing.
    pub room: String,
    /// The operations.
    pub accepts: Vec<i32>,
}

impl Who {
    /// A member that no other test knows, in no room, who accepts operation 1000.
    pub fn new() -> Self {
        Self { mid: i64::from(number()), key: unique("k"), room: String::new(), accepts: vec![1000] }
    }

    /// The same in this room.
    pub fn room(mut self, room: &str) -> Self {
        self.room = room.to_owned();
        self
    }

    /// The same with these operations.
    pub fn accepts(mut self, accepts: &[i32]) -> Self {
        self.accepts = accepts.to_vec();
        self
    }

    /// The token.
    pub fn token(&self) -> String {
        serde_json::json!({
            "mid": self.mid, "key": self.key, "room_id": self.room, "platform": "test", "accepts": self.accepts
        })
        .to_string()
    }

    /// The auth packet.
    pub fn auth(&self) -> Packet {
        Packet::new(7, 1, self.token())
    }
}

/// A connection.
pub struct Client {
    stream: TcpStream,
    transport: Transport,
    received: Vec<u8>,
    unwrapped: VecDeque<Packet>,
}

impl Client {
    /// A connected socket with nothing sent.
    pub fn plain(addr: SocketAddr, transport: Transport) -> Self {
        Self::new(TcpStream::connect(addr).expect("the server accepts"), transport)
    }

    fn new(stream: TcpStream, transport: Transport) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, transport, received: Vec::new(), unwrapped: VecDeque::new() }
    }

    /// A socket to the listener of `transport`, without the upgrade.
    pub fn connect(server: &Server, transport: Transport) -> Self {
        Self::plain(server.client_addr(transport), transport)
    }

    /// A connection on which packets can be sent: upgraded, not authenticated.
    pub fn open(server: &Server, transport: Transport) -> Self {
        Self::open_at(server.client_addr(transport), transport)
    }

    /// The same at an address.
    pub fn open_at(addr: SocketAddr, transport: Transport) -> Self {
        Self::over(TcpStream::connect(addr).expect("the server accepts"), transport)
    }

    /// The same over a socket that is connected already.
    pub fn over(stream: TcpStream, transport: Transport) -> Self {
        let mut client = Self::new(stream, transport);
        if transport == Transport::Ws {
            client.send_bytes(UPGRADE.as_bytes());
            client.expect_bytes(SWITCHED.as_bytes());
        }
        client
    }

    /// An authenticated session.
    pub fn login(server: &Server, transport: Transport, who: &Who) -> Self {
        Self::login_at(server.client_addr(transport), transport, who)
    }

    /// The same at an address.
    pub fn login_at(addr: SocketAddr, transport: Transport, who: &Who) -> Self {
        let mut client = Self::open_at(addr, transport);
        client.send(&who.auth());
        client.expect(&Packet::new(8, 1, ""));
        client
    }

    /// The transport.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The socket, for what this type does not do.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Presents this as the body of the auth packet, and returns the first packet; `None` when the
    /// server closes.
    pub fn present(server: &Server, transport: Transport, token: impl AsRef<[u8]>) -> (Self, Option<Packet>) {
        let mut client = Self::open(server, transport);
        client.send(&Packet::new(7, 1, token));
        let arrived = client.packet_or_end();
        (client, arrived)
    }

    /// The next packet; `None` when the server closes before one has arrived. A close frame is an
    /// end.
    pub fn packet_or_end(&mut self) -> Option<Packet> {
        let started = Instant::now();
        let there = |received: &[u8], transport| match transport {
            Transport::Tcp => Packet::is_complete(received),
            Transport::Ws => frame::is_complete(received),
        };
        while !there(&self.received, self.transport) {
            match self.fill(DEADLINE.saturating_sub(started.elapsed())) {
                Some(0) => return None,
                Some(_) => {}
                None => panic!("{:?}: neither a packet nor an end", self.transport),
            }
        }
        if self.transport == Transport::Ws && self.received[0] == 0x88 {
            return None;
        }
        Some(self.packet())
    }

    /// Bytes as they are. That the server has closed meanwhile is not an error here.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Err(error) if !has_left(error.kind()) => panic!("cannot send {} bytes: {error}", bytes.len()),
            _ => {}
        }
    }

    /// One packet.
    pub fn send(&mut self, packet: &Packet) {
        let bytes = self.wrap(&packet.encode());
        self.send_bytes(&bytes);
    }

    /// Several packets in one write.
    pub fn send_together(&mut self, packets: &[Packet]) {
        let bytes: Vec<u8> = packets.iter().flat_map(|packet| self.wrap(&packet.encode())).collect();
        self.send_bytes(&bytes);
    }

    /// Bytes that are meant to be a packet: bare on TCP, one masked binary message on WebSocket.
    pub fn send_as_packet(&mut self, bytes: &[u8]) {
        let bytes = self.wrap(bytes);
        self.send_bytes(&bytes);
    }

    fn wrap(&self, packet: &[u8]) -> Vec<u8> {
        match self.transport {
            Transport::Tcp => packet.to_vec(),
            Transport::Ws => frame::masked(frame::BINARY, packet),
        }
    }

    /// Half-closes: no more will be sent.
    pub fn finish(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).ok();
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        self.fill_until(|received| received.len() >= length);
        self.received.drain(..length).collect()
    }

    /// The next bytes must be these.
    pub fn expect_bytes(&mut self, expected: &[u8]) {
        let arrived = self.take(expected.len());
        assert!(
            arrived == expected,
            "{:?}: expected {}, came {}",
            self.transport,
            show(expected),
            show(&arrived)
        );
    }

    /// The next WebSocket frame, of the form in which servers must send.
    pub fn frame(&mut self) -> Frame {
        assert_eq!(self.transport, Transport::Ws);
        self.fill_until(frame::is_complete);
        let (frame, length) = frame::decode(&self.received).unwrap();
        self.received.drain(..length);
        assert!(!frame.masked && frame.shortest, "no frame of a server: {frame:?}");
        frame
    }

    /// The next packet as the transport shows it: over WebSocket, operation 9 with packets inside
    /// is one.
    pub fn packet(&mut self) -> Packet {
        assert!(self.unwrapped.is_empty(), "packets of a batch were not looked at: {:?}", self.unwrapped);
        match self.transport {
            Transport::Tcp => {
                self.fill_until(Packet::is_complete);
                let (packet, length) = Packet::decode(&self.received).unwrap();
                self.received.drain(..length);
                packet
            }
            Transport::Ws => {
                let frame = self.frame();
                assert_eq!(frame.first, frame::BINARY, "a packet comes in one binary message: {frame:?}");
                let (packet, length) = Packet::decode(&frame.payload).expect("a message holds a packet");
                assert_eq!(length, frame.payload.len(), "a message holds one packet");
                packet
            }
        }
    }

    /// The next pushed packet. Over WebSocket it must have arrived inside operation 9.
    pub fn pushed(&mut self) -> Packet {
        if self.transport == Transport::Tcp {
            return self.packet();
        }
        if self.unwrapped.is_empty() {
            let batch = self.packet();
            assert_eq!(
                (batch.ver, batch.op, batch.seq),
                (1, 9, 0),
                "a push over WebSocket is wrapped: {batch:?}"
            );
            self.unwrapped = Packet::decode_all(&batch.body).into();
            assert!(!self.unwrapped.is_empty(), "an empty batch");
        }
        self.unwrapped.pop_front().unwrap()
    }

    /// The next packet, unwrapped if it arrived inside operation 9.
    pub fn pushed_or_notification(&mut self) -> Packet {
        let packet = self.packet();
        if packet.op == 9 {
            self.unwrapped = Packet::decode_all(&packet.body).into();
            return self.unwrapped.pop_front().unwrap();
        }
        packet
    }

    /// The next pushed packet must be this operation with this body, version 1 and sequence 0.
    pub fn expect_push(&mut self, op: i32, body: impl AsRef<[u8]>) {
        assert_eq!(self.pushed(), Packet::new(op, 0, body), "{:?}", self.transport);
    }

    /// The next packet must be this one.
    pub fn expect(&mut self, expected: &Packet) {
        assert_eq!(self.packet(), *expected, "{:?}", self.transport);
    }

    /// Sends a packet and takes the answer.
    pub fn ask(&mut self, packet: &Packet) -> Packet {
        self.send(packet);
        self.packet()
    }

    /// A heartbeat; the answer is the online count of the room.
    pub fn heartbeat(&mut self) -> u32 {
        let reply = self.ask(&Packet::new(2, MARK, ""));
        assert_eq!((reply.ver, reply.op, reply.seq, reply.body.len()), (1, 3, MARK, 4), "{reply:?}");
        u32::from_be_bytes(reply.body.try_into().unwrap())
    }

    /// Everything that arrived was read: the reply to a request is the next thing.
    pub fn expect_nothing(&mut self) {
        let mark = Packet::new(MARK_OPERATION, MARK, "");
        assert_eq!(self.ask(&mark), mark, "{:?}", self.transport);
    }

    /// Reads everything until the echo of this packet. False when the connection ends before.
    pub fn answers(&mut self, mark: &Packet) -> bool {
        let echo = Packet { body: Vec::new(), ..mark.clone() }.encode();
        let started = Instant::now();
        loop {
            if self.received.windows(echo.len()).any(|bytes| bytes == echo) {
                self.received.clear();
                return true;
            }
            assert!(started.elapsed() < DEADLINE, "{:?}: neither an answer nor an end", self.transport);
            match self.fill(DEADLINE) {
                Some(0) => return false,
                Some(_) => {}
                None => panic!("{:?}: neither an answer nor an end", self.transport),
            }
        }
    }

    /// True when something that contains these bytes arrives within a fifth of a second; whatever
    /// arrived is read then.
    pub fn receives(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let (bytes, started) = (bytes.as_ref(), Instant::now());
        loop {
            if self.received.windows(bytes.len()).any(|window| window == bytes) {
                self.received.clear();
                return true;
            }
            let Some(left) = Duration::from_millis(200).checked_sub(started.elapsed()) else { return false };
            if self.fill(left) == Some(0) {
                return false;
            }
        }
    }

    /// The server closes, and sends nothing before it does.
    pub fn expect_closed(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "{:?}: bytes before the end: {}", self.transport, show(&rest));
    }

    /// The server closes; over WebSocket it may send one close frame before it does.
    pub fn expect_closed_politely(&mut self) {
        let rest = self.rest();
        let polite = self.transport == Transport::Ws
            && matches!(frame::decode(&rest), Some((ref frame, length))
                if frame.first == 0x88 && !frame.masked && frame.payload.len() <= 125 && length == rest.len());
        assert!(rest.is_empty() || polite, "{:?}: bytes before the end: {}", self.transport, show(&rest));
    }

    /// Everything up to the end of the connection, which must follow.
    pub fn rest(&mut self) -> Vec<u8> {
        self.rest_within(DEADLINE).expect("the server closes the connection")
    }

    /// Everything up to the end of the connection, or `None` when it does not end in time.
    pub fn rest_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        let started = Instant::now();
        loop {
            match self.fill(time.checked_sub(started.elapsed())?) {
                Some(0) => return Some(std::mem::take(&mut self.received)),
                Some(_) => {}
                None => return None,
            }
        }
    }

    fn fill_until(&mut self, enough: impl Fn(&[u8]) -> bool) {
        let started = Instant::now();
        while !enough(&self.received) {
            let left = DEADLINE.saturating_sub(started.elapsed());
            match self.fill(left.max(Duration::from_millis(1))) {
                Some(0) => panic!("{:?}: closed after {}", self.transport, show(&self.received)),
                Some(_) => {}
                None => panic!("{:?}: only {} within {DEADLINE:?}", self.transport, show(&self.received)),
            }
        }
    }

    /// Reads once: `None` when the time has passed, zero at the end of the connection.
    fn fill(&mut self, time: Duration) -> Option<usize> {
        let mut buffer = [0; 64 * 1024];
        self.stream.set_read_timeout(Some(time.max(Duration::from_millis(1)))).unwrap();
        match self.stream.read(&mut buffer) {
            Ok(read) => {
                self.received.extend(&buffer[..read]);
                Some(read)
            }
            Err(error) if has_left(error.kind()) => Some(0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(time),
            Err(error) => panic!("cannot read: {error}"),
        }
    }
}

fn has_left(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}
