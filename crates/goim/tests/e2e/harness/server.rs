//! The whole system in this process, on ports that the system chooses.
//!
//! With `TEST_CLUSTER=1` it is a cluster of one comet, one logic and one job over a real Redis and
//! a real Kafka, and the same tests must pass.

use std::net::SocketAddr;
use std::sync::{LazyLock, OnceLock};

use goim::serve::Running;
use goim::settings::{Sources, load};
use goim_comet::ListenerKind;
use tokio::runtime::Runtime;

use super::Transport;
use super::cluster::Cluster;
use super::http::{Http, Response, escape};

/// What a test wants different from the defaults: pairs as `--set` takes them.
#[derive(Debug, Clone)]
pub struct Settings(pub Vec<String>);

impl Settings {
    /// Free ports on the loopback interface, the identity of the captured cluster, and reports so
    /// frequent that counts are current when a test asks.
    pub fn new() -> Self {
        let fixed = [
            "comet.listen.tcp=127.0.0.1:0",
            "comet.listen.websocket=127.0.0.1:0",
            "comet.listen.websocket_tls=",
            "comet.report_interval=50ms",
            "comet.node.server=h1",
            "comet.node.region=sh",
            "comet.node.zone=sh001",
            "comet.node.env=dev",
            "comet.node.public_addrs=127.0.0.1",
            "comet.shards=2",
            "http.listen=127.0.0.1:0",
            "rpc.comet=127.0.0.1:0",
            "rpc.logic=127.0.0.1:0",
        ];
        Self(fixed.map(str::to_owned).to_vec())
    }

    /// One more setting; a later value of a key wins.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.0.retain(|pair| !pair.starts_with(&format!("{key}=")));
        self.0.push(format!("{key}={value}"));
        self
    }

    /// Closes who has not authenticated after this time.
    pub fn handshake_timeout(self, time: &str) -> Self {
        self.set("comet.limits.handshake_timeout", time)
    }

    /// Closes who has sent no heartbeat for `beat` times `times`.
    pub fn heartbeat(self, beat: &str, times: u32) -> Self {
        self.set("logic.node.heartbeat", beat).set("logic.node.heartbeat_max", &times.to_string())
    }

    /// As the process reads them.
    pub fn config(&self) -> goim::Config {
        let sources = Sources { file: None, environment: Vec::new(), set: self.0.clone() };
        load(&sources).unwrap_or_else(|error| panic!("{error}")).config
    }

    /// Takes no new clients by way of the node list.
    pub fn offline(self) -> Self {
        self.set("comet.node.offline", "true")
    }
}

/// A running system. It stops when this is dropped.
pub struct Server {
    /// Where it listens.
    pub addrs: Addrs,
    running: What,
}

/// What it is.
enum What {
    /// It runs in another process.
    Elsewhere,
    One(#[expect(dead_code, reason = "it stops when this is dropped")] Box<Running>),
    Cluster(Box<Cluster>),
}

/// Where a system listens.
#[derive(Debug, Clone, Copy)]
pub struct Addrs {
    /// Clients over TCP.
    pub tcp: SocketAddr,
    /// Clients over WebSocket.
    pub websocket: SocketAddr,
    /// The HTTP API.
    pub http: SocketAddr,
    /// gRPC of comet.
    pub comet_rpc: SocketAddr,
    /// gRPC of logic.
    pub logic_rpc: SocketAddr,
}

/// Where all systems of one test binary run. Its threads are not the tests' threads, which block.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

/// The server that the tests of one binary share.
pub fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::start(&Settings::new()))
}

/// The runtime that the systems of this process run in, for clients that need one.
pub fn runtime() -> &'static Runtime {
    &RUNTIME
}

impl Server {
    /// Starts a system.
    pub fn start(settings: &Settings) -> Self {
        if std::env::var_os("TEST_CLUSTER").is_some() {
            let cluster = Cluster::start(settings);
            return Self { addrs: cluster.addrs, running: What::Cluster(Box::new(cluster)) };
        }
        let config = settings.config();
        let running = RUNTIME.block_on(goim::serve::start(config)).unwrap_or_else(|error| panic!("{error}"));
        let addrs = running.addrs();
        let addrs = Addrs {
            tcp: addrs.clients[ListenerKind::Tcp][0],
            websocket: addrs.clients[ListenerKind::Websocket][0],
            http: addrs.http,
            comet_rpc: addrs.comet_rpc.expect("comet's gRPC is on"),
            logic_rpc: addrs.logic_rpc.expect("logic's gRPC is on"),
        };
        Self { addrs, running: What::One(Box::new(running)) }
    }

    /// A system that runs in another process.
    pub fn at(addrs: Addrs) -> Self {
        Self { addrs, running: What::Elsewhere }
    }

    /// The listener for a transport.
    pub fn client_addr(&self, transport: Transport) -> SocketAddr {
        match transport {
            Transport::Tcp => self.addrs.tcp,
            Transport::Ws => self.addrs.websocket,
        }
    }

    /// A request to the HTTP API on a new connection.
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        Http::connect(self.addrs.http).request(method, target, headers, body)
    }

    /// The same without a body or headers.
    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    /// The same with a body.
    pub fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.request("POST", target, &[], body.as_ref())
    }

    /// The figures of comet, as Prometheus reads them.
    pub fn comet_metrics(&self) -> String {
        match &self.running {
            What::Cluster(cluster) => cluster.comet_metrics(),
            What::One(_) | What::Elsewhere => self.get("/metrics").text(),
        }
    }

    /// A push that must be accepted.
    pub fn push(&self, target: &str, body: impl AsRef<[u8]>) {
        let answer = self.post(target, body);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"code":0,"message":""}"#), "{target}");
    }

    /// A push to sessions.
    pub fn push_keys(&self, op: i32, keys: &[&str], body: impl AsRef<[u8]>) {
        let keys: String = keys.iter().map(|key| format!("&keys={}", escape(key))).collect();
        self.push(&format!("/goim/push/keys?operation={op}{keys}"), body);
    }

    /// A push to members.
    pub fn push_mids(&self, op: i32, mids: &[i64], body: impl AsRef<[u8]>) {
        let mids: String = mids.iter().map(|mid| format!("&mids={mid}")).collect();
        self.push(&format!("/goim/push/mids?operation={op}{mids}"), body);
    }

    /// A push to a room, given as `type://room`.
    pub fn push_room(&self, op: i32, room: &str, body: impl AsRef<[u8]>) {
        let (kind, name) = room.split_once("://").expect("type://room");
        let (kind, name) = (escape(kind), escape(name));
        self.push(&format!("/goim/push/room?operation={op}&type={kind}&room={name}"), body);
    }

    /// A push to all.
    pub fn push_all(&self, op: i32, body: impl AsRef<[u8]>) {
        self.push(&format!("/goim/push/all?operation={op}"), body);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _inside = RUNTIME.enter();
        self.running = What::Elsewhere;
    }
}
