//! Everything that `goim serve` can be told: the roles' configurations put together, and what the process adds.
//!
//! A value of this type has been read but not judged: [`Config::check`] says what does not fit together. How values get
//! here from a file, the environment and the command line is the backend of [`crate::settings`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use goim_adapters::memory::PushLogConfig;
use goim_ports::{Secret, ServiceUrl, VersionRow, VersionTable};

use crate::machine;

/// What one process runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sockets, sessions, fan-out. An empty `comet.node.server` stands for the machine's host name.
    pub comet: goim_comet::Config,
    /// Identity, directories, the push API.
    pub logic: goim_logic::Config,
    /// Hand-over to comets.
    pub job: goim_job::Config,
    /// The push log between logic and job. `record_bytes_max` is taken from `logic.push`.
    pub push_log: PushLogConfig,
    /// What versions of packets mean. `comet.versions` and `logic.versions` are taken from here.
    pub versions: VersionsConfig,
    /// What happens to sessions, for a backend that wants to know. `comet.events.enabled` follows it.
    pub events: EventsConfig,
    /// Where messages are kept, and for how long.
    pub timelines: TimelinesConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// The gRPC listeners.
    pub rpc: RpcConfig,
    /// How the roles find each other when each is a process of its own.
    pub cluster: ClusterConfig,
    /// The push log of a cluster.
    pub kafka: KafkaConfig,
    /// The directories of a cluster.
    pub redis: RedisConfig,
    /// What the process says about itself.
    pub log: LogConfig,
}

/// Where messages are kept, and for how long.
#[derive(Debug, Clone)]
pub struct TimelinesConfig {
    /// A folder of this machine. Default none.
    pub folder: Option<PathBuf>,
    /// PostgreSQL, which any number of logics share. Default none; without either messages are pushed and not kept.
    pub postgres: Option<Secret>,
    /// Where members are told of who have no session when a message is stored for them. Default none.
    pub offline_url: Option<ServiceUrl>,
    /// For HTTP: presented as `Authorization: Bearer`. Default none.
    pub offline_secret: Option<Secret>,
    /// Messages of a timeline that are kept at most. Default 10,000.
    pub messages_max: u64,
    /// How long they are. Default 30 days.
    pub age_max: Duration,
    /// Bytes of their bodies. Default 64 MiB.
    pub bytes_max: u64,
    /// Other rules for some kinds of timelines. Default none.
    pub retention_overrides: Vec<KindRule>,
    /// How long a name (client id, idempotency key) stands for its message, at least. Default 24 h.
    pub duplicate_window: Duration,
    /// Messages that may wait to be written; more are refused. Default 100,000.
    pub pending_messages_max: usize,
    /// Bytes of them. Default 64 MiB.
    pub pending_bytes_max: usize,
    /// Memory for what is read again and again. Default 64 MiB.
    pub cache_bytes: u64,
    /// Timelines of which the end is known without a look at the disk, at least. Default 1,000,000.
    pub head_cache_entries: usize,
    /// Time between two passes that remove what is not to be kept any longer. Default 60 s.
    pub retention_interval: Duration,
}

/// How long messages of one kind of timelines are kept, where that differs: `live: 1000 messages, 1h, 8MiB`, any part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindRule {
    /// The part of the name before `://`; `mid` is the inboxes.
    pub kind: String,
    /// As [`TimelinesConfig::messages_max`].
    pub messages_max: Option<u64>,
    /// As [`TimelinesConfig::age_max`].
    pub age_max: Option<Duration>,
    /// As [`TimelinesConfig::bytes_max`].
    pub bytes_max: Option<u64>,
}

/// How the processes of a cluster find each other, and where those that have no API show their figures.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Where the list of comets is, and with discovery that of logics. Default [`Directory::Redis`].
    pub directory: Directory,
    /// Comets, for [`Directory::List`]. Default none.
    pub comets: Vec<String>,
    /// Discovery servers, for [`Directory::Discovery`]. Default none.
    pub discovery: Vec<String>,
    /// What a process is called on discovery. Default its own name: that of a comet, else the machine's with the role's behind it.
    pub discovery_host: Option<String>,
    /// Where comets reach this logic, for discovery. Default where it listens.
    pub logic_addr: Option<SocketAddr>,
    /// Where comets find logics. Default `grpc://127.0.0.1:3119`.
    pub logic: Vec<String>,
    /// How long a comet is listed that says nothing. Default 10 s. Must be several of `comet.report_interval`.
    pub lease: Duration,
    /// How often the list of comets is read. Default 1 s.
    pub refresh: Duration,
    /// How long the sum of the rooms' counts is used before it is made anew. Default 5 s.
    pub room_counts_ttl: Duration,
    /// Operator's pages of `goim comet`. Default `0.0.0.0:3100`.
    pub comet_admin_listen: SocketAddr,
    /// Operator's pages of `goim job`. Default `0.0.0.0:3120`.
    pub job_admin_listen: SocketAddr,
}

/// The push log on Kafka; what is not here has its default in `goim_adapters::kafka`.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// Some brokers. Default `127.0.0.1:9092`.
    pub brokers: Vec<String>,
    /// The topic. Default `goim-push-topic`, as goim.
    pub topic: String,
    /// The consumer group of the jobs. Default `goim-push-group-job`, as goim.
    pub group: String,
    /// What this job is called in the group; no other may be called so. Default empty: as
    /// `comet.node.server`. `none`: it has no name.
    pub instance_id: String,
    /// Where a group begins that has committed nothing. Default [`AutoOffsetReset::Latest`], as goim.
    pub auto_offset_reset: AutoOffsetReset,
    /// Where records go that are no pushes. Default none: they are dropped, counted and logged.
    pub dead_letter_topic: Option<String>,
    /// How long a record is tried before its publisher is told that it may or may not be in the log. Default 10 s.
    pub delivery_timeout: Duration,
    /// How long a job may be silent before its partitions go to others. Default 10 s.
    pub session_timeout: Duration,
    /// How often offsets are committed. Default 1 s.
    pub commit_interval: Duration,
    /// Properties of librdkafka. Default none.
    pub properties: BTreeMap<String, Secret>,
}

/// Where the list of comets is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// On Redis, where each comet keeps its record alive.
    Redis,
    /// In the settings or in DNS; each address is asked which comet is there.
    List,
    /// On a bilibili/discovery server, beside goim's own processes.
    Discovery,
}

/// Where a group begins that has committed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoOffsetReset {
    /// With what is pushed from now on.
    Latest,
    /// With what the topic still has.
    Earliest,
}

/// The directories on Redis. One server, unless a cluster or Sentinels are named.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// One server. Default `redis://127.0.0.1:6379`.
    pub url: ServiceUrl,
    /// Nodes of a cluster. Default none.
    pub cluster: Vec<ServiceUrl>,
    /// Sentinels. Default none.
    pub sentinels: Vec<ServiceUrl>,
    /// What the Sentinels call the master. Default `mymaster`.
    pub master: String,
    /// PEM file of who signed Redis's certificate. Default `None`: those whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that Redis may ask for. Default `None`.
    pub cert_file: Option<PathBuf>,
    /// Its key. Default `None`.
    pub key_file: Option<PathBuf>,
    /// How long a record lives that nobody touches. Default 30 min, as goim.
    pub session_ttl: Duration,
    /// How long a command may take. Default 2 s.
    pub deadline: Duration,
    /// How long comets may take to enter their sessions again after a loss. Default 6 s.
    pub recovery_grace: Duration,
}

/// What happens to sessions, for a backend that wants to know.
#[derive(Debug, Clone, Default)]
pub struct EventsConfig {
    /// `http://`, `https://` or `kafka://topic`. Default none: nobody wants to.
    pub url: Option<ServiceUrl>,
    /// For HTTP: presented as `Authorization: Bearer`. Default none.
    pub secret: Option<Secret>,
}

/// What versions of packets mean.
#[derive(Debug, Clone)]
pub struct VersionsConfig {
    /// Default the four rows that everybody has.
    pub rows: Vec<VersionRow>,
}

impl Default for VersionsConfig {
    fn default() -> Self {
        Self { rows: VersionTable::default().rows().to_vec() }
    }
}

/// Where the push API, the node list and the operator's pages are served.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Default `0.0.0.0:3111`. Port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Where goim's gRPC services are served, for processes of a cluster. They have no protection of their own, so that by
/// default only this machine reaches them.
#[derive(Debug, Clone)]
pub struct RpcConfig {
    /// `goim.comet.Comet`, which job calls. Default `127.0.0.1:3109`; `None` leaves it closed.
    pub comet: Option<SocketAddr>,
    /// `goim.logic.Logic`, which comets call. Default `127.0.0.1:3119`; `None` leaves it closed.
    pub logic: Option<SocketAddr>,
    /// How connections of other nodes are kept.
    pub server: goim_adapters::grpc::ServerConfig,
}

/// The log on standard error.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// What is worth a line: `error`, `warn`, `info`, `debug`, `trace`, or directives by module such as
    /// `info,goim_comet=debug`. Default `info`.
    pub level: String,
    /// How a line looks. Default [`LogFormat::Pretty`].
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line, for collectors.
    Json,
}

impl Config {
    /// Fills in what depends on the machine, and what follows from another setting.
    pub(crate) fn complete(&mut self) {
        if self.comet.node.server.as_str().is_empty() {
            self.comet.node.server = machine::host_name().into();
        }
        self.push_log.record_bytes_max = self.logic.push.record_bytes_max;
        self.comet.events.enabled = self.events.url.is_some();
        // `check` has seen to it that it is one.
        if let Ok(table) = VersionTable::new(self.versions.rows.clone()) {
            self.comet.versions = table.clone();
            self.logic.versions = table;
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut comet = goim_comet::Config::default();
        comet.node.server = "".into();
        Self {
            comet,
            logic: goim_logic::Config::default(),
            job: goim_job::Config::default(),
            push_log: PushLogConfig::default(),
            versions: VersionsConfig::default(),
            events: EventsConfig::default(),
            timelines: TimelinesConfig::default(),
            http: HttpConfig::default(),
            rpc: RpcConfig::default(),
            cluster: ClusterConfig::default(),
            kafka: KafkaConfig::default(),
            redis: RedisConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 3111)) }
    }
}

impl Default for RpcConfig {
    fn default() -> Self {
        let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Self { comet: local(3109), logic: local(3119), server: goim_adapters::grpc::ServerConfig::default() }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            directory: Directory::Redis,
            comets: Vec::new(),
            discovery: Vec::new(),
            discovery_host: None,
            logic_addr: None,
            logic: vec!["grpc://127.0.0.1:3119".to_owned()],
            lease: Duration::from_secs(10),
            refresh: Duration::from_secs(1),
            room_counts_ttl: Duration::from_secs(5),
            comet_admin_listen: everywhere(3100),
            job_admin_listen: everywhere(3120),
        }
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            topic: "goim-push-topic".to_owned(),
            group: "goim-push-group-job".to_owned(),
            auto_offset_reset: AutoOffsetReset::Latest,
            instance_id: String::new(),
            dead_letter_topic: None,
            delivery_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(10),
            commit_interval: Duration::from_secs(1),
            properties: BTreeMap::new(),
        }
    }
}

impl Default for TimelinesConfig {
    fn default() -> Self {
        Self {
            folder: None,
            postgres: None,
            offline_url: None,
            offline_secret: None,
            messages_max: 10_000,
            age_max: Duration::from_secs(30 * 24 * 60 * 60),
            bytes_max: 64 << 20,
            retention_overrides: Vec::new(),
            duplicate_window: Duration::from_secs(24 * 60 * 60),
            pending_messages_max: 100_000,
            pending_bytes_max: 64 << 20,
            cache_bytes: 64 << 20,
            head_cache_entries: 1_000_000,
            retention_interval: Duration::from_secs(60),
        }
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".into(),
            cluster: Vec::new(),
            sentinels: Vec::new(),
            master: "mymaster".to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            session_ttl: Duration::from_secs(30 * 60),
            deadline: Duration::from_secs(2),
            recovery_grace: Duration::from_secs(6),
        }
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "redis",
            Self::List => "list",
            Self::Discovery => "discovery",
        })
    }
}

impl FromStr for Directory {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "redis" => Ok(Self::Redis),
            "list" => Ok(Self::List),
            "discovery" => Ok(Self::Discovery),
            _ => Err(()),
        }
    }
}

impl fmt::Display for AutoOffsetReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latest => "latest",
            Self::Earliest => "earliest",
        })
    }
}

impl FromStr for AutoOffsetReset {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "latest" => Ok(Self::Latest),
            "earliest" => Ok(Self::Earliest),
            _ => Err(()),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Pretty }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}
