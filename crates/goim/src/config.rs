//! The configuration of a process: the roles' settings put together, and those of the process
//! itself.
//!
//! A value of this type was read but not checked: [`Config::check`] does that. [`crate::settings`]
//! reads files, the environment and the command line.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use goim_adapters::grpc::ServerConfig;
use goim_adapters::memory::PushLogConfig;
use goim_ports::{Secret, ServiceUrl, VersionRow, VersionTable};
use goim_settings::{
    SettingType, Value, choice_setting, format_duration, format_size, parse_duration, parse_size, settings,
};

use crate::{check, machine};

settings! {
    /// Everything that one process runs with.
    #[derive(Debug, Clone)]
    pub struct Config {
        #[setting(group)]
        pub versions: VersionsConfig,
        #[setting(group)]
        pub events: EventsConfig,
        #[setting(group)]
        pub timelines: TimelinesConfig,
        #[setting(group)]
        pub http: HttpConfig,
        #[setting(group)]
        pub rpc: RpcConfig,
        #[setting(group)]
        pub push_log: PushLogConfig,
        #[setting(group)]
        pub cluster: ClusterConfig,
        #[setting(group)]
        pub kafka: KafkaConfig,
        #[setting(group)]
        pub redis: RedisConfig,
        #[setting(group)]
        pub log: LogConfig,
        #[setting(group)]
        pub comet: goim_comet::Config = comet(),
        #[setting(group)]
        pub logic: goim_logic::Config,
        #[setting(group)]
        pub job: goim_job::Config,
    }
    check = check::combinations;
}

/// The comet's settings with no name: [`Config::complete`] fills in the host name.
fn comet() -> goim_comet::Config {
    let mut comet = goim_comet::Config::default();
    comet.node.server = "".into();
    comet
}

settings! {
    /// The meaning of packet versions: the schema of a body, and its encoding. A negotiated client
    /// sends the highest version that it reads (protover).
    #[derive(Debug, Clone)]
    pub struct VersionsConfig {
        /// The table of versions. Add rows such as "4 = schema 2, identity" and "5 = schema 2,
        /// zstd", and never change or remove one. All comets and logics must have the same; clients
        /// read it at /v1/protocol. In text, rows are separated by ;.
        #[setting(check = check::rows)]
        pub rows: Vec<VersionRow> = VersionTable::default().rows().to_vec(),
    }
}

settings! {
    /// Session events for the backend: connect, disconnect, join, leave, in batches. Each is
    /// delivered at least once, with an id that identifies repetitions. All roles must have the
    /// same settings.
    #[derive(Debug, Clone)]
    pub struct EventsConfig {
        /// The destination of events: http:// or https:// (a POST of {"events": [...]}; any 2xx
        /// response accepts them) or kafka://topic (one JSON record each). Not set: there are no
        /// events.
        #[setting(example = "http://127.0.0.1:8000/sessions", check = check::destination)]
        pub url: Option<ServiceUrl> = None,
        /// Sent as `Authorization: Bearer` over HTTP.
        #[setting(secret, example = "the-secret-of-this-hook")]
        pub secret: Option<Secret> = None,
    }
}

settings! {
    /// Stored messages (delivery=stored): the inbox of each member and the timeline of each room.
    /// Members sync them over their connections and over HTTP.
    #[derive(Debug, Clone)]
    pub struct TimelinesConfig {
        /// The directory of this machine that stores them; it is created if necessary, and belongs
        /// to one process at a time. Without this and timelines.postgres, messages are pushed and
        /// not stored.
        #[setting(example = "/var/lib/goim/timelines")]
        pub folder: Option<PathBuf> = None,
        /// The PostgreSQL database that stores them instead, shared by any number of logics:
        /// postgres://user:password@host:port/database. Tables are created if necessary.
        #[setting(secret, example = "postgres://goim@127.0.0.1:5432/goim")]
        pub postgres: Option<Secret> = None,
        /// The destination of notifications for members without a session when a message is stored
        /// for them, for mobile push: http:// or https:// (a POST of {"offline": [...]}; any 2xx
        /// response accepts them) or kafka://topic (one JSON record each). Not set: there are none.
        #[setting(example = "https://push.example.com/offline", check = check::destination)]
        pub offline_url: Option<ServiceUrl> = None,
        /// Sent as `Authorization: Bearer` over HTTP.
        #[setting(secret, example = "the-secret-of-this-hook")]
        pub offline_secret: Option<Secret> = None,
        /// The maximum number of messages of a timeline. The oldest are removed first.
        pub messages_max: u64 = 10_000,
        /// The maximum age of a message.
        pub age_max: Duration = Duration::from_secs(30 * 24 * 60 * 60),
        /// The maximum size of a timeline's bodies. The newest message stays, whatever its size.
        #[setting(bytes)]
        pub bytes_max: u64 = 64 << 20,
        /// Other limits for some kinds of timelines, such as ["live: 1000 messages, 1h, 8MiB",
        /// "mid: 720h"]. The kind is the part of the name before ://; inboxes are of the kind mid.
        /// In text, rules are separated by ;.
        pub retention_overrides: Vec<RetentionOverride> = Vec::new(),
        /// The minimum time for which a client id or an idempotency key identifies its message; the
        /// maximum is twice that.
        pub duplicate_window: Duration = Duration::from_secs(24 * 60 * 60),
        /// The maximum number of messages that wait to be written. Further ones are rejected with
        /// 429.
        pub pending_messages_max: usize = 100_000,
        /// The maximum size of these messages.
        #[setting(bytes)]
        pub pending_bytes_max: usize = 64 << 20,
        /// The size of the cache of data that is read repeatedly from the directory.
        #[setting(bytes)]
        pub cache_bytes: u64 = 64 << 20,
        /// The number of entries in the cache of latest sequence numbers, for timelines in a
        /// directory; up to twice as many are cached, about 100 B each.
        pub head_cache_entries: usize = 1_000_000,
        /// The time between two passes that remove expired messages. A pass takes a tenth of a core
        /// at most.
        pub retention_interval: Duration = Duration::from_secs(60),
    }
}

/// Other limits for the timelines of one kind: `live: 1000 messages, 1h, 8MiB`, any part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionOverride {
    /// The part of the name before `://`; inboxes are of the kind `mid`.
    pub kind: String,
    /// As [`TimelinesConfig::messages_max`].
    pub messages_max: Option<u64>,
    /// As [`TimelinesConfig::age_max`].
    pub age_max: Option<Duration>,
    /// As [`TimelinesConfig::bytes_max`].
    pub bytes_max: Option<u64>,
}

impl SettingType for RetentionOverride {
    // There are commas inside.
    const SEPARATOR: char = ';';

    fn expected() -> String {
        "a rule such as `live: 1000 messages, 1h, 8MiB`, any part of it".to_owned()
    }

    fn from_text(text: &str) -> Option<Self> {
        let (kind, parts) = text.split_once(':')?;
        let mut rule =
            Self { kind: kind.trim().to_owned(), messages_max: None, age_max: None, bytes_max: None };
        for part in parts.split(',').map(str::trim) {
            let is_new = if let Some(count) = part.strip_suffix("messages") {
                rule.messages_max.replace(count.trim().replace('_', "").parse().ok()?).is_none()
            } else if let Some(age) = parse_duration(part) {
                rule.age_max.replace(age).is_none()
            } else {
                rule.bytes_max.replace(parse_size(part)?).is_none()
            };
            if !is_new {
                return None;
            }
        }
        (!rule.kind.is_empty()).then_some(rule)
    }

    fn to_value(&self) -> Option<Value> {
        let count = self.messages_max.map(|count| format!("{count} messages"));
        let (age, bytes) = (self.age_max.map(format_duration), self.bytes_max.map(format_size));
        let parts: Vec<String> = [count, age, bytes].into_iter().flatten().collect();
        Some(Value::Text(format!("{}: {}", self.kind, parts.join(", "))))
    }
}

settings! {
    /// The HTTP API, the node list, and the admin endpoints: /metrics, /healthz, /readyz,
    /// /openapi.json.
    #[derive(Debug, Clone)]
    pub struct HttpConfig {
        /// The address of the HTTP listener. Port 0 picks a free port.
        pub listen: SocketAddr = everywhere(3111),
    }
}

settings! {
    /// goim's gRPC services. They have no authentication: make them reachable from other machines
    /// only in a network that you trust.
    #[derive(Debug, Clone)]
    pub struct RpcConfig {
        /// The address of goim.comet.Comet, which job calls. "none" closes it.
        #[setting(example = "127.0.0.1:3109")]
        pub comet: Option<SocketAddr> = Some(local(3109)),
        /// The address of goim.logic.Logic, which comets call. "none" closes it.
        #[setting(example = "127.0.0.1:3119")]
        pub logic: Option<SocketAddr> = Some(local(3119)),
        #[setting(group)]
        pub server: ServerConfig,
    }
}

settings! {
    /// `goim comet`, `goim logic` and `goim job` as separate processes: how they find each other.
    /// `goim serve` needs none of this.
    #[derive(Debug, Clone)]
    pub struct ClusterConfig {
        /// The directory of comets. "redis": each comet renews an entry on Redis. "list": every
        /// address of cluster.comets is queried. "discovery": a bilibili/discovery server, which
        /// also lists logics, for use beside goim's own processes.
        pub directory: Directory = Directory::Redis,
        /// The addresses of comets, for the directory "list": grpc://host:port, or dns://name:port
        /// for every address that DNS has for a name.
        pub comets: Vec<String> = Vec::new(),
        /// HOST:PORT of discovery servers, for the directory "discovery". Region, zone and env are
        /// those of comet.node, in every role.
        pub discovery: Vec<String> = Vec::new(),
        /// The name of this process on discovery; it must be unique. Not set: comet.node.server,
        /// with the suffix -logic or -job for these roles.
        #[setting(example = "logic-1")]
        pub discovery_host: Option<String> = None,
        /// The address under which comets reach this logic, for the directory "discovery". Not set:
        /// the address that rpc.logic listens on.
        #[setting(example = "10.0.0.2:3119")]
        pub logic_addr: Option<SocketAddr> = None,
        /// The addresses of logics, for comets, unless the directory is "discovery":
        /// grpc://host:port, or dns://name:port for every address that DNS has for a name. Calls
        /// are distributed round-robin, and move to another logic when one does not answer.
        pub logic: Vec<String> = vec!["grpc://127.0.0.1:3119".to_owned()],
        /// How long a silent comet stays listed; then its sessions are removed. It should be
        /// several times comet.report_interval. Discovery has its own lease.
        pub lease: Duration = Duration::from_secs(10),
        /// How often the list of comets is read.
        pub refresh_interval: Duration = Duration::from_secs(1),
        /// How long the sum of the rooms' counts over all comets is cached.
        pub room_counts_ttl: Duration = Duration::from_secs(5),
        /// The address of the admin endpoints of `goim comet`: /metrics, /healthz and /readyz. Port
        /// 0 picks a free port.
        pub comet_admin_listen: SocketAddr = everywhere(3100),
        /// The same for `goim job`.
        pub job_admin_listen: SocketAddr = everywhere(3120),
    }
}

/// Where the list of comets is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// On Redis, where each comet renews its entry.
    Redis,
    /// In the settings or in DNS; each address is queried.
    List,
    /// On a bilibili/discovery server, beside goim's own processes.
    Discovery,
}

choice_setting! {
    Directory { "redis" => Redis, "list" => List, "discovery" => Discovery } "`redis`, `list` or `discovery`"
}

settings! {
    /// The push log of a cluster: logic writes to it, job reads it. Topic, keys and values are
    /// goim's.
    #[derive(Debug, Clone)]
    pub struct KafkaConfig {
        /// HOST:PORT of some brokers; they name the others.
        pub brokers: Vec<String> = vec!["127.0.0.1:9092".to_owned()],
        /// The topic; it must exist, unless the brokers create topics automatically.
        pub topic: String = "goim-push-topic".to_owned(),
        /// The consumer group of the jobs. goim's Go jobs must not be in it:
        /// docs/migrating-from-goim.md.
        pub group: String = "goim-push-group-job".to_owned(),
        /// The name of this job in the group (group.instance.id); it must be unique. A job that
        /// returns within kafka.session_timeout continues with its partitions immediately, without
        /// a rebalance. Empty: the same as comet.node.server, which defaults to the host name.
        /// "none": no name; the job leaves the group when it stops, and each return causes a
        /// rebalance.
        pub instance_id: String = String::new(),
        /// Where a group starts that has committed no offset: "latest", as goim, or "earliest". The
        /// offset is committed before the first job joins. Partitions that are added later, and a
        /// topic that is recreated, are read from their beginning.
        pub auto_offset_reset: AutoOffsetReset = AutoOffsetReset::Latest,
        /// The topic for records that are not pushes. "none": they are logged, counted and dropped.
        #[setting(example = "goim-dead-letters")]
        pub dead_letter_topic: Option<String> = None,
        /// How long a push is retried before its publisher learns that it may or may not be in the
        /// log. The default is longer than a broker takes to elect another leader.
        pub delivery_timeout: Duration = Duration::from_secs(10),
        /// How long a job may be silent before its partitions move to others. It is the longest
        /// delay after a job fails or is stopped for good. goim has 30s.
        pub session_timeout: Duration = Duration::from_secs(10),
        /// How often offsets are committed. Records since the last commit are repeated after a
        /// crash.
        pub commit_interval: Duration = Duration::from_secs(1),
        /// Properties of librdkafka that have no setting here, such as { "client.rack" = "z1" } or,
        /// in a binary built with the feature kafka-tls, { "security.protocol" = "SASL_SSL",
        /// "sasl.mechanism" = "SCRAM-SHA-512", "sasl.username" = "goim", "sasl.password" = "..." }.
        /// Properties that order and durability depend on cannot be changed.
        #[setting(secret)]
        pub properties: BTreeMap<String, Secret> = BTreeMap::new(),
    }
}

/// Where a group starts that has committed no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoOffsetReset {
    /// At the end: only new pushes are read.
    Latest,
    /// At the oldest record of the topic.
    Earliest,
}

choice_setting! {
    AutoOffsetReset { "latest" => Latest, "earliest" => Earliest } "`latest` or `earliest`"
}

settings! {
    /// The directories of a cluster: sessions, room counts, the list of comets. Keys are goim's.
    #[derive(Debug, Clone)]
    pub struct RedisConfig {
        /// The URL of one server: redis://[user:password@]host:port[/database], or rediss:// for
        /// TLS. With Sentinels, which know the address, its scheme, user, password and database are
        /// used at the master.
        #[setting(secret)]
        pub url: ServiceUrl = "redis://127.0.0.1:6379".into(),
        /// The URLs of some nodes of a Redis cluster, in place of one server.
        #[setting(secret)]
        pub cluster: Vec<ServiceUrl> = Vec::new(),
        /// The URLs of some Sentinels, in place of one server.
        #[setting(secret)]
        pub sentinels: Vec<ServiceUrl> = Vec::new(),
        /// The name of the master at the Sentinels.
        pub master: String = "mymaster".to_owned(),
        /// The file with the CA certificate of Redis, PEM, for URLs with rediss://. Not set: the
        /// CAs that the system trusts.
        #[setting(example = "/etc/goim/redis-ca.pem")]
        pub ca_file: Option<PathBuf> = None,
        /// The file with this process's certificate, which Redis requires unless it has
        /// "tls-auth-clients no".
        #[setting(example = "/etc/goim/redis.crt")]
        pub cert_file: Option<PathBuf> = None,
        /// The file with the private key of this certificate: PKCS#8, PKCS#1 or SEC1.
        #[setting(example = "/etc/goim/redis.key")]
        pub key_file: Option<PathBuf> = None,
        /// How long a session's entry lives without being renewed. It must be more than twice the
        /// time between a session's heartbeats to logic. The default is goim's.
        pub session_ttl: Duration = Duration::from_secs(30 * 60),
        /// The maximum duration of a command, a new connection included.
        pub command_timeout: Duration = Duration::from_secs(2),
        /// After Redis data loss, how long pushes to unknown keys fail while comets register their
        /// sessions again. A comet registers 5,000 sessions per second and shard.
        pub recovery_grace: Duration = Duration::from_secs(6),
    }
}

settings! {
    /// The log on standard error.
    #[derive(Debug, Clone)]
    pub struct LogConfig {
        /// The level: error, warn, info, debug, trace, or directives by module:
        /// "info,goim_comet=debug".
        #[setting(check = check::log_level)]
        pub level: String = "info".to_owned(),
        /// The format: "pretty" for people, "json" for collectors (one object per line).
        pub format: LogFormat = LogFormat::Pretty,
    }
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line, for collectors.
    Json,
}

choice_setting! {
    LogFormat { "pretty" => Pretty, "json" => Json } "`pretty` or `json`"
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
}

impl Config {
    /// Fills in what depends on the machine, and what follows from another setting.
    pub(crate) fn complete(&mut self) {
        if self.comet.node.server.as_str().is_empty() {
            self.comet.node.server = machine::host_name().into();
        }
        self.push_log.record_bytes_max = self.logic.push.record_bytes_max;
        self.comet.events.enabled = self.events.url.is_some();
        // A table that is not valid is a fault of the check before.
        if let Ok(table) = VersionTable::new(self.versions.rows.clone()) {
            self.comet.versions = table.clone();
            self.logic.versions = table;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_of_retention() {
        let shown = |text| RetentionOverride::from_text(text)?.to_value();
        let good =
            [("live: 1000 messages, 1h, 8MiB", "live: 1000 messages, 1h, 8 MiB"), ("mid:720h", "mid: 720h")];
        for (text, expected) in good {
            assert_eq!(shown(text), Some(Value::from(expected)));
        }
        for text in ["live", ": 1h", "live: 1h, 2h", "live: many"] {
            assert_eq!(shown(text), None, "{text}");
        }
    }
}
