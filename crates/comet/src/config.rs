//! The settings of a comet, with the reasons for the defaults. Sizes are bytes.
//!
//! Nothing is read from files or the environment here: the binary composes this with its own
//! settings and rejects bad values before a port opens.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goim_compression::Levels;
use goim_ports::{CometNode, ServerId, VersionTable};
use goim_session::SlowConsumerPolicy;
use goim_settings::{Faults, Format, Input, Value, settings};

use crate::listener::Listeners;

const fn nonzero(number: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(number - 1)
}

settings! {
    /// Comet: the connections of clients.
    #[derive(Debug, Clone)]
    pub struct Config {
        #[setting(group)]
        pub node: NodeConfig,
        #[setting(group)]
        pub listen: ListenConfig,
        #[setting(group)]
        pub tls: TlsConfig,
        #[setting(group)]
        pub limits: LimitsConfig,
        #[setting(group)]
        pub send: SendConfig,
        #[setting(group)]
        pub sync: SyncConfig,
        #[setting(group)]
        pub compression: CompressionConfig,
        #[setting(group)]
        pub events: EventsConfig,
        #[setting(group)]
        pub recovery: RecoveryConfig,
        #[setting(group)]
        pub drain: DrainConfig,
        /// The number of threads that own connections. Not set: one per core.
        #[setting(example = "4")]
        pub shards: Option<NonZeroUsize> = None,
        /// How often the comet reports its rooms and its load. The comet stretches the interval
        /// when a report takes more than a hundredth of it.
        #[setting(above_zero)]
        pub report_interval: Duration = Duration::from_secs(1),
        /// The meaning of packet versions; the same in all comets and logics.
        #[setting(derived)]
        pub versions: VersionTable = VersionTable::default(),
    }
    check = check_together;
}

settings! {
    /// The identity of this comet in its cluster.
    #[derive(Debug, Clone)]
    pub struct NodeConfig {
        /// The name of the comet, unique in its cluster. Sessions are registered under it. Not set:
        /// the host name.
        #[setting(example = "comet-1")]
        pub server: ServerId = ServerId::from("localhost"),
        /// The region, for example "sh".
        pub region: String = String::new(),
        /// The zone inside the region, for example "sh001". A job with a zone delivers to comets of
        /// that zone only, as goim's does; a job without one delivers to all.
        pub zone: String = String::new(),
        /// The deployment environment, for example "dev".
        pub env: String = String::new(),
        /// The share of new clients relative to other comets.
        #[setting(at_least = 0)]
        pub weight: i32 = 10,
        /// If true, the node list sends no new clients here.
        pub offline: bool = false,
        /// Host names or addresses, without port, under which clients reach this comet.
        pub public_addrs: Vec<String> = Vec::new(),
        /// The address under which other processes reach this comet's gRPC service, for the node
        /// list. Not set: the address it listens on.
        #[setting(example = "10.0.0.7:3109")]
        pub rpc_addr: Option<SocketAddr> = None,
    }
}

impl NodeConfig {
    /// The entry of this comet in the node list, without any load.
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

settings! {
    /// The listeners for clients. Each is a list of addresses; an empty list closes that listener.
    /// Port 0 picks a free port.
    #[derive(Debug, Clone)]
    pub struct ListenConfig {
        #[setting(flatten)]
        pub addrs: Listeners,
        /// The type of the rooms of danmaku clients, which name rooms by number only. With "live",
        /// room 1000 is live://1000.
        pub danmaku_room_type: String = "live".to_owned(),
        /// The only request target that is upgraded to WebSocket.
        #[setting(check = check_path)]
        pub websocket_path: String = "/sub".to_owned(),
        /// Accepts permessage-deflate where a client offers it, as browsers do. It is for clients
        /// that read no compressed version. Bodies from comet.compression.threshold_bytes on are
        /// compressed, once per message: neither side keeps a context between messages.
        pub websocket_deflate: bool = false,
        /// Accepts what goim accepts of old clients: text frames, unmasked frames, oversized
        /// control frames. If false, RFC 6455 is enforced strictly.
        pub websocket_lenient: bool = true,
        /// The maximum number of connections waiting to be accepted, per listener and shard. The
        /// kernel's somaxconn caps it.
        #[setting(at_least = 1)]
        pub backlog: i32 = 4096,
    }
}

settings! {
    /// Certificate and private key, PEM files. Without them the TLS listeners stay closed.
    #[derive(Debug, Clone)]
    pub struct TlsConfig {
        /// The file with the certificate chain, leaf first.
        #[setting(example = "/etc/goim/tls.crt")]
        pub cert_file: Option<PathBuf> = None,
        /// The file with the private key: PKCS#8, PKCS#1 or SEC1.
        #[setting(example = "/etc/goim/tls.key")]
        pub key_file: Option<PathBuf> = None,
        /// How often the files are checked for changes. New connections get a changed pair.
        #[setting(above_zero)]
        pub reload_interval: Duration = Duration::from_secs(30),
    }
    check = check_pair;
}

impl TlsConfig {
    /// These files.
    #[must_use]
    pub fn new(cert_file: PathBuf, key_file: PathBuf) -> Self {
        Self { cert_file: Some(cert_file), key_file: Some(key_file), ..Self::default() }
    }

    /// True if a certificate is configured.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.files().is_some()
    }

    /// Both files, if both are named.
    pub(crate) fn files(&self) -> Option<(&Path, &Path)> {
        self.cert_file.as_deref().zip(self.key_file.as_deref())
    }

    /// Reads both files and tests them as a pair, as a start does.
    ///
    /// # Errors
    /// What is wrong, with the file that it is about. No error if no files are named.
    pub fn check_files(&self) -> Result<(), String> {
        let Some((cert_file, key_file)) = self.files() else { return Ok(()) };
        let store = crate::tls::CertificateStore::load(cert_file, key_file);
        store.map(drop).map_err(|error| error.to_string())
    }
}

settings! {
    /// Limits per client and in total. A client that exceeds one is disconnected, and counted by
    /// reason.
    #[derive(Debug, Clone)]
    pub struct LimitsConfig {
        /// The maximum number of connections. The process's limit of open files caps it too.
        #[setting(at_least = 1)]
        pub connections_max: usize = 1_000_000,
        /// The maximum number of connections of one address. Not set: no limit, because whole
        /// offices and carriers share one.
        #[setting(example = "1000")]
        pub connections_per_address_max: Option<NonZeroU32> = None,
        /// The maximum number of new connections per second and shard. Not set: no limit.
        #[setting(example = "5000")]
        pub accepts_per_second_max: Option<NonZeroU32> = None,
        /// The maximum time from accept to the end of authentication. The default is goim's.
        #[setting(above_zero)]
        pub handshake_timeout: Duration = Duration::from_secs(5),
        /// The maximum size of the WebSocket upgrade request. Requests of browsers need 256 B and
        /// more.
        #[setting(bytes, at_least = 256)]
        pub request_head_bytes_max: usize = 8 * 1024,
        /// The maximum size of the body of an inbound packet. The default is goim's.
        #[setting(bytes)]
        pub body_bytes_max: usize = goim_wire::INBOUND_BODY_MAX,
        /// The maximum rate of inbound packets of one client, on average. Packets above it are read
        /// later, not refused. Not set: no limit.
        #[setting(example = "50")]
        pub packets_per_second_max: Option<NonZeroU32> = None,
        /// The maximum number of rooms of one session; a client of goim is in one.
        pub rooms_max: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999),
        /// The number of inbound packets that may arrive at once before packets_per_second_max
        /// applies.
        pub packets_burst: NonZeroU32 = nonzero(100),
    }
}

settings! {
    /// How packets are sent.
    #[derive(Debug, Clone)]
    pub struct SendConfig {
        /// The maximum number of bytes queued for one session whose socket is full. The worst-case
        /// memory is this times the sessions that do not read; a higher value rides out longer
        /// stalls of mobile clients at that cost. The packet at the front does not count, whatever
        /// its size.
        #[setting(bytes)]
        pub queue_bytes_max: usize = 1024 * 1024,
        /// The policy for a packet that finds the queue full, by operation or range; the first
        /// match counts. Policies: drop-newest, drop-oldest, close. For example ["1000..1999
        /// drop-oldest", "4 close"].
        #[setting(format = PolicyFormat)]
        pub slow_consumer: Vec<(RangeInclusive<i32>, SlowConsumerPolicy)> = Vec::new(),
        /// The policy for operations that slow_consumer does not name. The default is goim's.
        #[setting(format = PolicyFormat)]
        pub slow_consumer_default: SlowConsumerPolicy = SlowConsumerPolicy::DropNewest,
        /// The bytes that the kernel buffers beyond what is in flight (TCP_NOTSENT_LOWAT). This
        /// bounds the kernel's memory for a client that does not read at about 130 KB instead of 4
        /// MB.
        #[setting(bytes)]
        pub notsent_lowat_bytes: u32 = 16 * 1024,
        /// The maximum number of commands queued for one shard; beyond it, the caller waits. It
        /// bounds commands that have no receivers: all others are bounded by queued_sends_max.
        #[setting(at_least = 1)]
        pub queued_commands_max: usize = 16_384,
        /// The maximum number of sends that the commands of one shard cause, until they are
        /// flushed; beyond it, the caller waits. The default is about a tenth of a second of work,
        /// which is the longest time that a message waits here. A push to keys counts once per KiB
        /// and key, and also while all its receivers read but have more than 64 KiB queued (1 s at
        /// most). A push to a room or to all counts once per receiver, for a third of the bound at
        /// most, until the receiver turns out to have other messages in flight; then it counts by
        /// its bytes only. It also counts once per 4 KiB of its total.
        pub queued_sends_max: NonZeroU32 = nonzero(30_000),
        /// The maximum number of concurrent broadcasts with a speed.
        #[setting(at_least = 1)]
        pub paced_broadcasts_max: usize = 64,
    }
}

settings! {
    /// How sessions that sync learn of stored messages.
    #[derive(Debug, Clone)]
    pub struct SyncConfig {
        /// The maximum size of a stored message's body that is sent along with its notification,
        /// for sessions that want it: this saves a round trip. 0: no body is.
        #[setting(bytes)]
        pub inline_bytes_max: usize = 1024,
    }
}

settings! {
    /// Compression of bodies for clients whose protover names a compressing version, once per
    /// message and version.
    #[derive(Debug, Clone)]
    pub struct CompressionConfig {
        /// Whether large bodies are compressed for clients that can read them. If false, bodies are
        /// sent as they are. Bodies of clients are decompressed either way.
        pub enabled: bool = true,
        /// The minimum size of a body that is compressed.
        #[setting(bytes)]
        pub threshold_bytes: usize = 512,
        /// The maximum size of a client's body after decompression. A larger one closes the
        /// connection.
        #[setting(bytes)]
        pub inflated_bytes_max: usize = 64 * 1024,
        #[setting(group)]
        pub levels: LevelsConfig,
    }
}

settings! {
    /// Compression levels: higher ones take more time and give smaller bodies.
    #[derive(Debug, Clone, Copy)]
    pub struct LevelsConfig {
        /// 1 to 9.
        #[setting(range = 1..=9)]
        pub zlib: u32 = Levels::default().zlib,
        /// 0 to 11. Above 5 the time grows much faster than the size shrinks.
        #[setting(range = 0..=11)]
        pub brotli: u32 = Levels::default().brotli,
        /// 1 to 19.
        #[setting(range = 1..=19)]
        pub zstd: i32 = Levels::default().zstd,
    }
}

impl From<LevelsConfig> for Levels {
    fn from(LevelsConfig { zlib, brotli, zstd }: LevelsConfig) -> Self {
        Self { zlib, brotli, zstd }
    }
}

settings! {
    /// Session events that are sent to logic, and from there to events.url.
    #[derive(Debug, Clone)]
    pub struct EventsConfig {
        /// Whether events are sent at all.
        #[setting(derived)]
        pub enabled: bool = false,
        /// How often events are sent.
        #[setting(above_zero)]
        pub interval: Duration = Duration::from_millis(200),
        /// The maximum number of events in one call.
        pub batch_max: NonZeroUsize = NonZeroUsize::MIN.saturating_add(499),
        /// The maximum number of events queued while logic does not take them; further ones are
        /// dropped and counted. The default takes about 30 MB.
        pub queued_max: usize = 100_000,
    }
}

settings! {
    /// Sessions that have missed messages because the comet was considered dead and was not: it was
    /// frozen or cut off for so long that its sessions were removed, or that a job dropped messages
    /// for it. Those that sync are asked to sync again.
    #[derive(Debug, Clone)]
    pub struct RecoveryConfig {
        /// Whether sessions that do not sync are closed with code 3006 (goim's clients see the end
        /// of the connection), so that they reconnect and know that they may have missed messages.
        pub end_sessions: bool = true,
        /// The maximum number of sessions per second that are closed or asked to sync. The closed
        /// ones reconnect immediately.
        pub sessions_per_second: NonZeroU32 = nonzero(1_000),
    }
}

settings! {
    /// How sessions are closed when the process is asked to stop (SIGTERM).
    #[derive(Debug, Clone)]
    pub struct DrainConfig {
        /// The number of sessions per second that are asked to reconnect elsewhere.
        pub sessions_per_second: NonZeroU32 = nonzero(1_000),
        /// The time after which the remaining sessions are closed immediately.
        pub timeout: Duration = Duration::from_secs(30),
        /// The maximum time that a negotiated client is asked to wait before it reconnects. Each
        /// client gets a random part of it.
        pub reconnect_delay_max: Duration = Duration::from_secs(3),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    let is_path = path.starts_with('/') && !path.contains(char::is_whitespace);
    if is_path { Ok(()) } else { Err("must be a path such as /sub") }
}

fn check_pair(tls: &TlsConfig, faults: &mut Faults) {
    faults.add_if(
        tls.cert_file.is_some() && tls.key_file.is_none(),
        "cert_file",
        "must be set together with key_file",
    );
    faults.add_if(
        tls.key_file.is_some() && tls.cert_file.is_none(),
        "key_file",
        "must be set together with cert_file",
    );
}

fn check_together(config: &Config, faults: &mut Faults) {
    check_listeners(config, faults);
    faults.add_if(
        config.compression.inflated_bytes_max < config.limits.body_bytes_max,
        "compression.inflated_bytes_max",
        "must not be less than comet.limits.body_bytes_max",
    );
    let packet = config.limits.body_bytes_max.saturating_add(goim_wire::HEADER_LEN);
    faults.add_if(
        config.send.queue_bytes_max < packet,
        "send.queue_bytes_max",
        format!("must be at least one packet ({packet} B: comet.limits.body_bytes_max and the header)"),
    );
}

fn check_listeners(config: &Config, faults: &mut Faults) {
    let (listen, usual) = (&config.listen.addrs, Listeners::default());
    let is_open = |tls: bool| listen.iter().any(|(kind, addrs)| kind.is_tls() == tls && !addrs.is_empty());
    if config.tls.is_set() {
        faults.add_if(
            !is_open(true),
            "tls.cert_file",
            "needs a listener: comet.listen.tcp_tls and comet.listen.websocket_tls are both empty",
        );
        return;
    }
    for (kind, addrs) in listen.iter().filter(|(kind, _)| kind.is_tls()) {
        // The default address stays closed without a certificate; any other was set on purpose.
        let is_meant = !addrs.is_empty() && *addrs != usual[kind];
        let key = format!("listen.{}", kind.name());
        faults.add_if(is_meant, &key, "needs comet.tls.cert_file and comet.tls.key_file");
    }
    faults.add_if(
        !is_open(false) && !config.tls.is_set(),
        "listen.tcp",
        "must not be empty when comet.listen.websocket is empty and there is no certificate: no client could connect",
    );
}

/// How policies for slow consumers are written: `close`, and with operations `1000..1999
/// drop-oldest`.
pub(crate) enum PolicyFormat {}

impl PolicyFormat {
    fn read_policy(text: &str) -> Option<SlowConsumerPolicy> {
        Some(match text.trim() {
            "drop-newest" => SlowConsumerPolicy::DropNewest,
            "drop-oldest" => SlowConsumerPolicy::DropOldest,
            "close" => SlowConsumerPolicy::Close,
            _ => return None,
        })
    }

    const fn policy_name(policy: SlowConsumerPolicy) -> &'static str {
        match policy {
            SlowConsumerPolicy::DropNewest => "drop-newest",
            SlowConsumerPolicy::DropOldest => "drop-oldest",
            SlowConsumerPolicy::Close => "close",
        }
    }

    fn read_rule(text: &str) -> Option<(RangeInclusive<i32>, SlowConsumerPolicy)> {
        let (range, policy) = text.trim().split_once(' ')?;
        let (first, last) = range.split_once("..").unwrap_or((range, range));
        let range: RangeInclusive<i32> = first.parse().ok()?..=last.parse().ok()?;
        (!range.is_empty()).then_some((range, Self::read_policy(policy)?))
    }
}

impl Format<SlowConsumerPolicy> for PolicyFormat {
    fn expected() -> String {
        "`drop-newest`, `drop-oldest` or `close`".to_owned()
    }

    fn read(input: Input<'_>) -> Option<SlowConsumerPolicy> {
        Self::read_policy(&input.read::<String>()?)
    }

    fn show(policy: &SlowConsumerPolicy) -> Option<Value> {
        Some(Self::policy_name(*policy).into())
    }
}

impl Format<Vec<(RangeInclusive<i32>, SlowConsumerPolicy)>> for PolicyFormat {
    fn expected() -> String {
        "a list (in text: separated by `,`), each item an operation or a range of them and a policy, such as \
         `1000..1999 drop-oldest`"
            .to_owned()
    }

    fn read(input: Input<'_>) -> Option<Vec<(RangeInclusive<i32>, SlowConsumerPolicy)>> {
        input.read::<Vec<String>>()?.iter().map(|rule| Self::read_rule(rule)).collect()
    }

    fn show(rules: &Vec<(RangeInclusive<i32>, SlowConsumerPolicy)>) -> Option<Value> {
        let show = |(range, policy): &(RangeInclusive<i32>, SlowConsumerPolicy)| {
            let (first, last, policy) = (range.start(), range.end(), Self::policy_name(*policy));
            let range = if first == last { first.to_string() } else { format!("{first}..{last}") };
            Value::Text(format!("{range} {policy}"))
        };
        Some(Value::List(rules.iter().map(show).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_slow_consumers() {
        let shown = |text| <PolicyFormat as Format<Vec<_>>>::show(&PolicyFormat::read(Input::Text(text))?);
        let list = |items: &[&str]| Some(Value::List(items.iter().map(|item| Value::from(*item)).collect()));
        assert_eq!(shown("4 close, 1000..1999 drop-oldest"), list(&["4 close", "1000..1999 drop-oldest"]));
        assert_eq!(shown("-3..-1 drop-newest"), list(&["-3..-1 drop-newest"]));
        assert_eq!(shown("2..1 close"), None);
        assert_eq!(shown("4"), None);
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Faults::of("comet", &Config::default()), []);
    }

    #[test]
    fn every_fault_is_found() {
        let mut config = Config::default();
        config.node.weight = -1;
        config.limits.handshake_timeout = Duration::ZERO;
        config.compression.levels.zstd = 20;
        config.send.queue_bytes_max = 1024;
        let faults: Vec<_> = Faults::of("comet", &config).into_iter().map(|fault| fault.key).collect();
        let expected = [
            "comet.node.weight",
            "comet.limits.handshake_timeout",
            "comet.compression.levels.zstd",
            "comet.send.queue_bytes_max",
        ];
        assert_eq!(faults, expected);
    }
}
