//! What logic receives of a client's packets, and what a client sees while logic is unavailable:
//! rows 17 and 18 of the conformance table.
//!
//! In one process logic cannot be stopped alone. These tests give a real comet, with real sockets,
//! a logic that records calls and can answer as an unreachable one does.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{BOTH, Client, Packet, Transport, eventually, unique};
use goim_comet::{Comet, Config, Dependencies, ListenerKind};
use goim_ports::{
    Accepted, Call, CometNode, ConnectError, ConnectRequest, LogicError, LogicPort, Mid, NodeDirectory,
    NodeError, OnlineReport, OnlineTotals, Operation, RoomId, ServerId, SessionKey, SessionRef, Upstream,
};

/// Accepts every client as member 123 in `live://1000`, unless it is unavailable.
#[derive(Default)]
struct Recorder {
    away: AtomicBool,
    received: Mutex<Vec<Upstream>>,
    disconnected: Mutex<Vec<SessionRef>>,
}

impl Recorder {
    fn answer<T: Send + 'static>(&self, answer: T) -> Call<Result<T, LogicError>> {
        if !self.away.load(Ordering::SeqCst) {
            return Call::Ready(Ok(answer));
        }
        // As over the network: not at once.
        Call::pending(async { Err(LogicError::Unavailable("no connection".to_owned())) })
    }
}

impl LogicPort for Recorder {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        assert!(request.token.starts_with(b"{"), "the token arrives as it was sent");
        if self.away.load(Ordering::SeqCst) {
            return Call::pending(async { Err(ConnectError::unavailable("no connection")) });
        }
        Call::Ready(Ok(Accepted {
            mid: Mid(123),
            key: SessionKey::from(unique("key")),
            room: Some(RoomId::from("live://1000")),
            accepts: vec![Operation(1000)],
            heartbeat: Duration::from_secs(480),
            rooms: Vec::new(),
            scope: None,
            expires_at: None,
            protover: None,
            syncing: None,
        }))
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        self.disconnected.lock().unwrap().push(session);
        self.answer(true)
    }

    fn heartbeat(&self, _: SessionRef) -> Call<Result<(), LogicError>> {
        self.answer(())
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        self.answer(OnlineTotals { rooms: report.rooms, generation: None })
    }

    fn receive(&self, upstream: Upstream) -> Call<Result<bytes::Bytes, LogicError>> {
        self.received.lock().unwrap().push(upstream);
        self.answer(bytes::Bytes::new())
    }
}

struct NoDirectory;

impl NodeDirectory for NoDirectory {
    fn announce(&self, _: CometNode) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, _: ServerId) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::default()
    }
}

struct Setup {
    logic: Arc<Recorder>,
    comet: Comet,
    _runtime: tokio::runtime::Runtime,
}

impl Setup {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let logic = Arc::new(Recorder::default());
        let mut config = Config::default();
        let any = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        config.listen.addrs[ListenerKind::Tcp] = any.clone();
        config.listen.addrs[ListenerKind::Websocket] = any;
        config.listen.addrs[ListenerKind::WebsocketTls] = Vec::new();
        let needs = Dependencies {
            logic: logic.clone(),
            nodes: Arc::new(NoDirectory),
            runtime: runtime.handle().clone(),
        };
        let comet = Comet::start(config, needs).expect("a comet on free ports");
        Self { logic, comet, _runtime: runtime }
    }

    fn open(&self, transport: Transport) -> Client {
        let addrs = self.comet.addrs();
        let kind = if transport == Transport::Tcp { ListenerKind::Tcp } else { ListenerKind::Websocket };
        Client::open_at(addrs[kind][0], transport)
    }

    fn login(&self, transport: Transport) -> Client {
        let mut client = self.open(transport);
        client.send(&Packet::new(7, 1, "{}"));
        client.expect(&Packet::new(8, 1, ""));
        client
    }
}

#[test]
fn row_017_a_message_is_sent_to_logic_and_echoed_without_its_body() {
    let setup = Setup::start();
    for transport in BOTH {
        let mut client = setup.login(transport);
        client.send(&Packet::new(4, 9, "hey"));
        client.expect(&Packet::new(4, 9, ""));
        client.send(&Packet { ver: 3, op: -5, seq: -1, body: vec![0xff; 4096] });
        client.expect(&Packet { ver: 3, op: -5, seq: -1, body: Vec::new() });
        // What is comet's own backend does not go there.
        for op in [2, 12, 14, 16] {
            client.send(&Packet::new(op, 1, ""));
            client.packet();
        }
        let received = std::mem::take(&mut *setup.logic.received.lock().unwrap());
        let seen: Vec<_> = received
            .iter()
            .map(|upstream| {
                let packet = Packet::decode_all(&upstream.packet.to_message_bytes()).remove(0);
                (upstream.mid.0, packet)
            })
            .collect();
        let second = Packet { ver: 3, op: -5, seq: -1, body: vec![0xff; 4096] };
        assert_eq!(seen, [(123, Packet::new(4, 9, "hey")), (123, second)]);
    }
}

#[test]
fn row_018_sessions_live_on_and_strangers_are_closed_while_logic_is_unavailable() {
    let setup = Setup::start();
    for transport in BOTH {
        setup.logic.away.store(false, Ordering::SeqCst);
        let mut client = setup.login(transport);
        setup.logic.away.store(true, Ordering::SeqCst);
        client.send(&Packet::new(1000, 10, "x"));
        client.expect(&Packet::new(1000, 10, ""));
        assert!(client.heartbeat() >= 1);
        client.expect_nothing();
        let mut stranger = setup.open(transport);
        stranger.send(&Packet::new(7, 1, "{}"));
        stranger.expect_closed();
        // Logic is back: all works as before.
        setup.logic.away.store(false, Ordering::SeqCst);
        setup.login(transport).expect_nothing();
        client.expect_nothing();
    }
}

#[test]
fn each_end_of_a_session_is_reported_to_logic_once() {
    let setup = Setup::start();
    for transport in BOTH {
        let sessions = [0; 3].map(|_| setup.login(transport));
        drop(sessions);
        let ended = || setup.logic.disconnected.lock().unwrap().len();
        eventually("three ends", || ended() == 3);
        let mut last = setup.login(transport);
        last.expect_nothing();
        drop(last);
        eventually("a fourth end", || ended() == 4);
        setup.logic.disconnected.lock().unwrap().clear();
    }
}
