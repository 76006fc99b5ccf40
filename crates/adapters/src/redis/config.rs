//! What an operator can set of Redis, with the reasons for the defaults.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a connection to Redis, whatever is kept there.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// Where it is. Default one server, `redis://127.0.0.1:6379`.
    pub place: RedisPlace,
    /// How long a record of a session or a room lives when nobody touches it. Default 30 min, as goim's `redis.session_ttl`. Must be
    /// more than twice the time between two heartbeats of a comet to logic (10 min), or sessions are lost in between.
    pub session_ttl: Duration,
    /// How long a command may take, a new connection included. Default 2 s.
    pub deadline: Duration,
    /// How long comets may take to enter their sessions again when Redis has lost what it had: until then a push to somebody who is
    /// not found is refused, not answered as if he were not there. Default 6 s: a shard of a comet enters 5,000 a second, after a
    /// second at most.
    pub recovery_grace: Duration,
    /// How long nobody is taken for absent after Redis could not be read or written, so that comets
    /// can enter their sessions again. Default 10 s; must be no less than a comet's lease.
    pub settling: Duration,
    /// How often a small write finds out whether Redis takes any. Default 1 s.
    pub check_interval: Duration,
    /// Commands that may be out at once; more wait. Default 4,096.
    pub commands_max: usize,
    /// What TLS needs where addresses begin with `rediss://`.
    pub tls: RedisTls,
}

/// Files of TLS towards Redis, PEM. Read once, when the connection is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Who signed Redis's certificate. Default `None`: those whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain and key of this process, where Redis asks for them, as it does by default. Default `None`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where Redis is. Shown without passwords.
#[derive(Clone, PartialEq, Eq)]
pub enum RedisPlace {
    /// One server, as `redis://[user:password@]host:port[/database]`; `rediss://` inside TLS.
    Single(String),
    /// A cluster, by some of its nodes.
    Cluster(Vec<String>),
    /// What Sentinels call their master, by some of the Sentinels.
    Sentinel {
        /// The Sentinels, all with the same user and password, all `rediss://` or none.
        sentinels: Vec<String>,
        /// The name of the master.
        master: String,
        /// As what to come to the master: of this address only the scheme, user, password and database count, since the Sentinels know
        /// where it is.
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
