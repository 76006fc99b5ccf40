//! A comet alone: logic and the node list are recorders, so that tests can see and delay what comet
//! asks of them. Clients are blocking sockets that read with a deadline.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_comet::{Comet, Config, Dependencies, ListenerKind};
use goim_ports::{
    Accepted, Call, CometNode, ConnectError, ConnectRequest, Generation, LogicError, LogicPort, Mid,
    NodeDirectory, NodeError, OnlineReport, OnlineTotals, Operation, Payload, RoomCounts, ServerId,
    SessionKey, SessionRef, Upstream, Version,
};

/// How long a test waits for an expected event.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Logic that accepts `key[@room][!][~]`: `!` is a negotiated client, `~` one that syncs, `no` is
/// refused. Has a session directory like the real one, so that lost records are noticed.
#[derive(Default)]
pub struct Recorder {
    /// Answers are sent later, from another thread.
    pub slow: AtomicBool,
    pub directory: Mutex<HashMap<String, i64>>,
    pub touched: Mutex<Vec<String>>,
    pub reports: Mutex<Vec<RoomCounts>>,
    pub nodes: Mutex<Vec<CometNode>>,
    pub withdrawn: AtomicBool,
    /// The room counts that the cluster reports.
    pub totals: Mutex<RoomCounts>,
    /// The generation of the session directory.
    pub generation: Mutex<Option<Generation>>,
}

impl Recorder {
    fn answer<T: Send + 'static>(&self, value: T) -> Call<T> {
        if !self.slow.load(Ordering::SeqCst) {
            return Call::Ready(value);
        }
        Call::pending(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            value
        })
    }
}

impl LogicPort for Recorder {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        let token = String::from_utf8_lossy(&request.token).into_owned();
        if token == "no" {
            return self.answer(Err(ConnectError::refused("the token is no")));
        }
        let syncs = token.ends_with('~');
        let token = token.trim_end_matches('~').to_owned();
        let negotiated = syncs || token.ends_with('!');
        let (key, room) = match token.trim_end_matches('!').split_once('@') {
            Some((key, room)) => (key.to_owned(), Some(room.to_owned())),
            None => (token.trim_end_matches('!').to_owned(), None),
        };
        self.directory.lock().expect("lock").insert(key.clone(), 1);
        self.answer(Ok(Accepted {
            mid: Mid(1),
            key: key.into(),
            room: room.map(Into::into),
            accepts: vec![Operation(1000), Operation(1001)],
            heartbeat: Duration::from_secs(60),
            rooms: Vec::new(),
            scope: None,
            expires_at: None,
            protover: negotiated.then_some(Version(1)),
            syncing: syncs.then(goim_ports::SyncOptions::default),
        }))
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        let had = self.directory.lock().expect("lock").remove(session.key.as_str()).is_some();
        self.answer(Ok(had))
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        self.directory.lock().expect("lock").insert(session.key.as_str().to_owned(), 1);
        self.touched.lock().expect("lock").push(session.key.as_str().to_owned());
        self.answer(Ok(()))
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        self.reports.lock().expect("lock").push(report.rooms);
        let rooms = self.totals.lock().expect("lock").clone();
        let generation = self.generation.lock().expect("lock").clone();
        self.answer(Ok(OnlineTotals { rooms, generation }))
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let body = upstream.packet.body;
        self.answer(if body == "fail" { Err(LogicError::Failed("as asked".into())) } else { Ok(body) })
    }
}

impl NodeDirectory for Recorder {
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>> {
        self.nodes.lock().expect("lock").push(node);
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, _: ServerId) -> Call<Result<(), NodeError>> {
        self.withdrawn.store(true, Ordering::SeqCst);
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::default()
    }
}

/// A running comet with its recorder.
pub struct Server {
    pub comet: Comet,
    pub world: Arc<Recorder>,
    pub runtime: tokio::runtime::Runtime,
}

/// Starts a comet on free ports of the loopback interface.
pub fn start(change: impl FnOnce(&mut Config)) -> Server {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let free: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut config = Config { report_interval: Duration::from_millis(20), ..Config::default() };
    config.listen.addrs[ListenerKind::Tcp] = vec![free];
    config.listen.addrs[ListenerKind::Websocket] = vec![free];
    config.listen.addrs[ListenerKind::WebsocketTls] = vec![];
    config.shards = std::num::NonZeroUsize::new(2);
    change(&mut config);
    let world = Arc::new(Recorder::default());
    let needs =
        Dependencies { logic: world.clone(), nodes: world.clone(), runtime: runtime.handle().clone() };
    let comet = Comet::start(config, needs).expect("the comet starts");
    Server { comet, world, runtime }
}

impl Server {
    pub fn client(&self) -> Client {
        Client::connect(self.comet.addrs()[ListenerKind::Tcp][0])
    }

    /// Returns a client that has authenticated with this token.
    pub fn session(&self, token: &str) -> Client {
        let mut client = self.client();
        client.authenticate(token);
        client
    }

    pub fn metrics(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.comet.register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("metrics encode");
        text
    }

    /// Returns the value of the metric whose line begins with `name`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }

    pub fn push(&self, keys: &[&str], operation: i32, body: &[u8]) {
        let push = goim_ports::KeyPush {
            keys: keys.iter().map(|key| SessionKey::from(*key)).collect(),
            operation: Operation(operation),
            payload: Payload::plain(goim_ports::PacketBuf::push(
                Operation(operation),
                Bytes::copy_from_slice(body),
            )),
            accepted_at: None,
        };
        let call = self.comet.port().push(push);
        self.runtime.block_on(async { call.await }).expect("the comet takes a push");
    }

    pub fn push_room(&self, room: &str, body: &[u8]) {
        self.push_room_packet(room, 1000, body);
    }

    /// Pushes to a room as job does: a batch has the operation of its first packet.
    pub fn push_room_packet(&self, room: &str, operation: i32, body: &[u8]) {
        let packet = goim_ports::PacketBuf::push(Operation(operation), Bytes::copy_from_slice(body));
        let push = goim_ports::RoomPush {
            room: room.into(),
            operation: packet.carried_operation(),
            payload: Payload::plain(packet),
            accepted_at: None,
        };
        let call = self.comet.port().push_room(push);
        self.runtime.block_on(async { call.await }).expect("the comet takes a push");
    }

    pub fn broadcast(&self, body: &[u8], speed: Option<u32>) {
        let broadcast = goim_ports::Broadcast {
            operation: Operation(1000),
            payload: Payload::plain(goim_ports::PacketBuf::push(
                Operation(1000),
                Bytes::copy_from_slice(body),
            )),
            speed: speed.and_then(std::num::NonZeroU32::new),
            accepted_at: None,
        };
        let call = self.comet.port().broadcast(broadcast);
        self.runtime.block_on(async { call.await }).expect("the comet takes a broadcast");
    }
}

/// A client: a socket and the bytes that it has not consumed.
pub struct Client {
    pub socket: TcpStream,
    held: Vec<u8>,
}

/// A packet as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub operation: i32,
    pub sequence: i32,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).expect("the comet accepts");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        socket.set_nodelay(true).expect("an option can be set");
        Self { socket, held: Vec::new() }
    }

    pub fn authenticate(&mut self, token: &str) {
        self.send(7, 1, token.as_bytes());
        assert_eq!(self.read().operation, 8, "{token}");
    }

    pub fn send(&mut self, operation: i32, sequence: i32, body: &[u8]) {
        self.socket.write_all(&packet(operation, sequence, body)).expect("the comet reads");
    }

    /// Returns the next packet; panics when none is received in time.
    pub fn read(&mut self) -> Got {
        self.try_read(TIMEOUT).expect("a packet within the test's patience")
    }

    /// Returns the next packet, or `None` when the connection ends or nothing is received within
    /// `wait`.
    pub fn try_read(&mut self, wait: Duration) -> Option<Got> {
        let until = Instant::now() + wait;
        loop {
            if let Some(got) = self.take() {
                return Some(got);
            }
            let mut buffer = [0; 65536];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.held.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
            if Instant::now() > until {
                return self.take();
            }
        }
    }

    fn take(&mut self) -> Option<Got> {
        let number = |at: usize| {
            self.held.get(at..at + 4).map(|four| i32::from_be_bytes(four.try_into().expect("four")))
        };
        let len = usize::try_from(number(0)?).expect("a length");
        if self.held.len() < len.max(16) {
            return None;
        }
        let got = Got { operation: number(8)?, sequence: number(12)?, body: self.held[16..len].to_vec() };
        self.held.drain(..len);
        Some(got)
    }

    /// True when the server ends the connection in time; packets before that are dropped.
    pub fn ends(&mut self) -> bool {
        let until = Instant::now() + TIMEOUT;
        let mut buffer = [0; 65536];
        while Instant::now() < until {
            match self.socket.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return true,
            }
        }
        false
    }
}

/// Encodes a packet from the specification, not with the code under test.
pub fn packet(operation: i32, sequence: i32, body: &[u8]) -> Vec<u8> {
    let len = i32::try_from(body.len() + 16).expect("a length");
    [&len.to_be_bytes()[..], &[0, 16, 0, 1], &operation.to_be_bytes(), &sequence.to_be_bytes(), body].concat()
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < until, "{what} was not true within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
