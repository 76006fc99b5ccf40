//! What an operator can set of a comet, with the reasons for the defaults.
//!
//! Nothing here is read from files or the environment: the binary composes this from its own configuration and
//! refuses bad values before a port opens. Sizes are bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use goim_compression::Levels;
use goim_ports::{CometNode, ServerId, VersionTable};
use goim_session::SlowConsumerPolicy;

/// Everything that a comet can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who this comet is in its cluster.
    pub node: NodeConfig,
    /// Threads that own connections. `None`: one per core.
    pub shards: Option<NonZeroUsize>,
    /// Where clients connect.
    pub listen: ListenConfig,
    /// Certificate and key; `None` leaves the TLS listeners closed.
    pub tls: Option<TlsConfig>,
    /// What one client, and all together, may use.
    pub limits: LimitsConfig,
    /// How packets leave.
    pub send: SendConfig,
    /// What versions of packets mean. Default goim's and the two that everybody has.
    pub versions: VersionTable,
    /// When bodies are compressed, and how.
    pub compression: CompressionConfig,
    /// What sessions are told of messages in timelines.
    pub sync: SyncConfig,
    /// What happens to sessions, told to logic.
    pub events: EventsConfig,
    /// How often the comet reports its rooms and its load. Default 1 s; stretched by itself when a report takes more
    /// than a hundredth of it.
    pub report_interval: Duration,
    /// Sessions that have missed messages.
    pub recovery: RecoveryConfig,
    /// How sessions are told to go when the comet stops.
    pub drain: DrainConfig,
}

/// Who this comet is.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Name of the comet, unique in its cluster. Sessions are found by it.
    pub server: ServerId,
    /// Region, for example `sh`.
    pub region: String,
    /// Zone inside the region, for example `sh001`.
    pub zone: String,
    /// Deployment environment, for example `dev`.
    pub env: String,
    /// Share of new clients relative to other comets. Default 10.
    pub weight: i32,
    /// Takes no new clients by way of the node list. Default false.
    pub offline: bool,
    /// Names or addresses under which clients reach this comet. Default none.
    pub public_addrs: Vec<String>,
    /// Where this comet's RPC is reached, for the node list.
    pub rpc_addr: Option<SocketAddr>,
}

impl NodeConfig {
    /// The comet as others see it, without anybody on it.
    #[must_use]
    pub fn described(&self) -> CometNode {
        CometNode {
            server: self.server.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            env: self.env.clone(),
            rpc_addrs: self.rpc_addr.iter().map(|addr| format!("grpc://{addr}")).collect(),
            public_addrs: self.public_addrs.clone(),
            weight: self.weight,
            offline: self.offline,
            connections: 0,
            addresses: 0,
            latest_timestamp: 0,
        }
    }
}

/// The listeners. Port 0 takes a free one.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Plain TCP. Default `127.0.0.1:3101`.
    pub tcp: Vec<SocketAddr>,
    /// TCP inside TLS. Default none.
    pub tcp_tls: Vec<SocketAddr>,
    /// WebSocket. Default `127.0.0.1:3102`.
    pub websocket: Vec<SocketAddr>,
    /// WebSocket inside TLS. Default `127.0.0.1:3103`; open only when a certificate is configured.
    pub websocket_tls: Vec<SocketAddr>,
    /// Plain TCP for clients that speak the dialect of live danmaku. Default none.
    pub danmaku_tcp: Vec<SocketAddr>,
    /// TCP inside TLS for them. Default none.
    pub danmaku_tcp_tls: Vec<SocketAddr>,
    /// WebSocket for them. Default none.
    pub danmaku_websocket: Vec<SocketAddr>,
    /// WebSocket inside TLS for them. Default none.
    pub danmaku_websocket_tls: Vec<SocketAddr>,
    /// Their rooms are numbers; this is the type in front. Default `live`: room 1000 is `live://1000`.
    pub danmaku_room_type: String,
    /// The only request target that is upgraded. Default `/sub`.
    pub websocket_path: String,
    /// Accepts what goim accepts of old clients: text frames, unmasked frames, oversized control frames. Default
    /// true. Off, the codec is strict.
    pub websocket_lenient: bool,
    /// Takes permessage-deflate where a client offers it, as browsers do. Default false. Neither side keeps anything from one message to the
    /// next: a message to many is compressed once.
    pub websocket_deflate: bool,
    /// Connections waiting to be accepted, per listener and shard. Default 4096; the kernel's `somaxconn` caps it.
    pub backlog: i32,
}

/// Certificate chain and private key, PEM files. Both are read again when they change.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Certificate chain, leaf first.
    pub cert_file: PathBuf,
    /// Private key: PKCS#8, PKCS#1 or SEC1.
    pub key_file: PathBuf,
    /// How often the files are looked at. Default 30 s.
    pub reload_interval: Duration,
}

/// Limits on clients. A client that breaks one is disconnected, and counted by reason.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Connections in all. Default 1,000,000; the process's limit of descriptors caps it.
    pub connections_max: usize,
    /// Connections from one address. `None` (default): no limit, since whole offices and carriers share one.
    pub connections_per_address_max: Option<NonZeroU32>,
    /// New connections a second and shard. `None` (default): as fast as they come.
    pub accepts_per_second_max: Option<NonZeroU32>,
    /// From accept to the end of authentication. Default 5 s, as in goim.
    pub handshake_timeout: Duration,
    /// The upgrade request, in bytes. Default 8 KiB.
    pub request_head_bytes_max: usize,
    /// Body of an inbound packet, in bytes. Default 4096, as in goim.
    pub body_bytes_max: usize,
    /// Inbound packets a second, on average. `None` (default): no limit. One above it is read later, not refused.
    pub packets_per_second_max: Option<NonZeroU32>,
    /// Rooms that one session may be in. Default 1000.
    pub rooms_max: NonZeroUsize,
    /// Inbound packets that may come at once before `packets_per_second_max` applies. Default 100.
    pub packets_burst: NonZeroU32,
}

/// What happens to sessions, told to logic.
#[derive(Debug, Clone)]
pub struct EventsConfig {
    /// Default off: nobody wants to know.
    pub enabled: bool,
    /// How often events are told. Default 200 ms.
    pub interval: Duration,
    /// Events told at once. Default 500.
    pub batch_max: NonZeroUsize,
    /// Events that wait while logic, or whoever it tells, does not take them. More are dropped. Default 100,000, some 30 MB.
    pub waiting_max: usize,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            interval: Duration::from_millis(200),
            batch_max: NonZeroUsize::MIN.saturating_add(499),
            waiting_max: 100_000,
        }
    }
}

/// When bodies are compressed, and how. Only what an negotiated client reads is: its `protover` says so.
#[derive(Debug, Clone)]
pub struct CompressionConfig {
    /// Off, bodies leave as they are; those that come in are inflated all the same. Default on.
    pub enabled: bool,
    /// Smaller bodies leave as they are. Default 512 bytes.
    pub threshold_bytes: usize,
    /// How hard is tried.
    pub levels: Levels,
    /// What a body that comes in may grow to. Default 64 KiB. A larger one ends the connection.
    pub inflated_bytes_max: usize,
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self { enabled: true, threshold_bytes: 512, levels: Levels::default(), inflated_bytes_max: 64 * 1024 }
    }
}

/// What sessions are told of messages in timelines.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// Bodies up to this go along with the word that they are there, for sessions that want it: a round trip less. Default 1 KiB; zero:
    /// none does.
    pub inline_bytes_max: usize,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self { inline_bytes_max: 1024 }
    }
}

/// How packets leave.
#[derive(Debug, Clone)]
pub struct SendConfig {
    /// Bytes that wait for one session whose socket is full. Default 1 MiB. The packet at the front does
    /// not count, whatever its size. Worst-case memory is this times the sessions that do not read.
    pub queue_bytes_max: usize,
    /// What happens to a packet that finds the queue full, by range of its operation; the first range that holds it
    /// counts. Default none.
    pub slow_consumer: Vec<(RangeInclusive<i32>, SlowConsumerPolicy)>,
    /// What happens in ranges that `slow_consumer` does not name. Default [`SlowConsumerPolicy::DropNewest`], as goim.
    pub slow_consumer_default: SlowConsumerPolicy,
    /// Bytes that the kernel takes beyond what is on the wire (`TCP_NOTSENT_LOWAT`). Default 16 KiB: bounds the
    /// kernel's memory for a client that does not read at about 130 KB instead of 4 MB.
    pub notsent_lowat_bytes: u32,
    /// Commands that wait for one shard. Default 16,384: what is behind a bound of sends is bounded already; this is for what takes memory
    /// though it leads nowhere. Full, the caller waits.
    pub queued_commands_max: usize,
    /// Sends to sessions that commands of one shard lead to, counted until they are flushed. Default 30,000: some
    /// tenth of a second of work, which is what a message may wait here. A push to keys counts once for each KiB and key, and
    /// while all its receivers read but have more than 64 KiB waiting (1 s at most). A push to a room or to all counts once for
    /// each receiver, for a third of the bound at most, until it is seen that something is on its way to the receiver anyway, and
    /// once for each 4 KiB that it is in all. Full, the caller waits.
    pub queued_sends_max: NonZeroU32,
    /// Broadcasts with a speed that may be under way at once. Default 64.
    pub paced_broadcasts_max: usize,
}

/// What happens to sessions that have missed messages, since the comet was taken for dead: frozen or cut off for so long that its sessions
/// were swept, or that a job has dropped messages for it.
#[derive(Debug, Clone)]
pub struct RecoveryConfig {
    /// Sessions that do not sync are ended, so that they come back and know that they may have missed something. Those that sync are told to
    /// look, whatever this says. Default true.
    pub end_sessions: bool,
    /// Sessions a second that are ended or told to look. Default 1,000: they come back at once, and all of them at once would be a crowd.
    pub sessions_per_second: NonZeroU32,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self { end_sessions: true, sessions_per_second: NonZeroU32::MIN.saturating_add(999) }
    }
}

/// Stopping gently.
#[derive(Debug, Clone)]
pub struct DrainConfig {
    /// Sessions a second that are told to go. Default 1,000.
    pub sessions_per_second: NonZeroU32,
    /// After this much time the rest is closed at once. Default 30 s.
    pub deadline: Duration,
    /// What an negotiated client is told to wait at most before it comes back, drawn evenly. Default 3 s.
    pub reconnect_delay_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeConfig::default(),
            shards: None,
            listen: ListenConfig::default(),
            tls: None,
            limits: LimitsConfig::default(),
            send: SendConfig::default(),
            versions: VersionTable::default(),
            compression: CompressionConfig::default(),
            sync: SyncConfig::default(),
            events: EventsConfig::default(),
            report_interval: Duration::from_secs(1),
            recovery: RecoveryConfig::default(),
            drain: DrainConfig::default(),
        }
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            server: ServerId::from("localhost"),
            region: String::new(),
            zone: String::new(),
            env: String::new(),
            weight: 10,
            offline: false,
            public_addrs: Vec::new(),
            rpc_addr: None,
        }
    }
}

fn any(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            tcp: any(3101),
            tcp_tls: Vec::new(),
            websocket: any(3102),
            websocket_tls: any(3103),
            danmaku_tcp: Vec::new(),
            danmaku_tcp_tls: Vec::new(),
            danmaku_websocket: Vec::new(),
            danmaku_websocket_tls: Vec::new(),
            danmaku_room_type: "live".to_owned(),
            websocket_path: "/sub".to_owned(),
            websocket_lenient: true,
            websocket_deflate: false,
            backlog: 4096,
        }
    }
}

impl TlsConfig {
    /// These files, looked at every 30 s.
    #[must_use]
    pub fn new(cert_file: PathBuf, key_file: PathBuf) -> Self {
        Self { cert_file, key_file, reload_interval: Duration::from_secs(30) }
    }

    /// Reads both files and tries them as a pair, as a start does.
    ///
    /// # Errors
    /// What is wrong, with the file that it is about.
    pub fn check(&self) -> Result<(), String> {
        crate::tls::CertificateStore::load(&self.cert_file, &self.key_file)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: 1_000_000,
            connections_per_address_max: None,
            accepts_per_second_max: None,
            handshake_timeout: Duration::from_secs(5),
            request_head_bytes_max: 8 * 1024,
            body_bytes_max: goim_wire::INBOUND_BODY_MAX,
            packets_per_second_max: None,
            rooms_max: NonZeroUsize::MIN.saturating_add(999),
            packets_burst: NonZeroU32::MIN.saturating_add(99),
        }
    }
}

impl Default for SendConfig {
    fn default() -> Self {
        Self {
            queue_bytes_max: 1024 * 1024,
            slow_consumer: Vec::new(),
            slow_consumer_default: SlowConsumerPolicy::DropNewest,
            notsent_lowat_bytes: 16 * 1024,
            queued_commands_max: 16_384,
            queued_sends_max: NonZeroU32::MIN.saturating_add(29_999),
            paced_broadcasts_max: 64,
        }
    }
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            sessions_per_second: NonZeroU32::MIN.saturating_add(999),
            deadline: Duration::from_secs(30),
            reconnect_delay_max: Duration::from_secs(3),
        }
    }
}
