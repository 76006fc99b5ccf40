//! The settings of Redis, with the reasons for the defaults.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of the connections to Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Where Redis is. Default one server, `redis://127.0.0.1:6379`.
    pub place: RedisPlace,
    /// How long an entry of a session or a room lives without being renewed. Default 30 min, as
    /// goim. It must be more than twice the time between two heartbeats of a comet to logic (10
    /// min), or sessions expire in between.
    pub session_ttl: Duration,
    /// The maximum duration of a command, a new connection included. Default 2 s.
    pub deadline: Duration,
    /// After data loss, how long pushes to unknown keys fail while comets register their sessions
    /// again. Default 6 s: a shard of a comet registers 5,000 sessions per second, beginning within
    /// a second.
    pub recovery_grace: Duration,
    /// How long no session is considered absent after Redis could not be read or written, so that
    /// comets can register their sessions again. Default 10 s; at least a comet's lease.
    pub settling: Duration,
    /// How often a small write tests whether Redis accepts writes. Default 1 s.
    pub check_interval: Duration,
    /// The maximum number of commands in flight; further ones wait. Default 4,096.
    pub commands_max: usize,
    /// Files for URLs that begin with `rediss://`.
    pub tls: RedisTls,
}

/// Files for TLS towards Redis, PEM. They are read once, when the connection is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// The CA certificate of Redis. Default `None`: the CAs that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain and key of this process, where Redis requires them, as it does by default.
    /// Default `None`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where Redis is. It is printed without passwords.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisPlace {
    /// One server: `redis://[user:password@]host:port[/database]`; `rediss://` for TLS.
    Single(String),
    /// A cluster, by some of its nodes.
    Cluster(Vec<String>),
    /// The master of some Sentinels.
    Sentinel {
        /// The Sentinels, all with the same user and password, all `rediss://` or none.
        sentinels: Vec<String>,
        /// The name of the master.
        master: String,
        /// The URL whose scheme, user, password and database are used at the master; the Sentinels
        /// know its address.
        sign_in: String,
    },
}

impl std::fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            place: RedisPlace::Single("redis://127.0.0.1:6379".to_owned()),
            session_ttl: Duration::from_secs(30 * 60),
            deadline: Duration::from_secs(2),
            recovery_grace: Duration::from_secs(6),
            settling: Duration::from_secs(10),
            check_interval: Duration::from_secs(1),
            commands_max: 4_096,
            tls: RedisTls::default(),
        }
    }
}
