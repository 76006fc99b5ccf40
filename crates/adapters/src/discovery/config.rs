//! The settings of discovery, and its errors.

use std::time::Duration;

/// Settings of a process's registration on a discovery server.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    /// `host:port` of some discovery servers, which name the others. Default none.
    pub seeds: Vec<String>,
    /// Region of this process, for example `sh`.
    pub region: String,
    /// Zone of this process, for example `sh001`. Servers require one.
    pub zone: String,
    /// Deployment environment, for example `dev`. Servers require one, and list only processes with
    /// the same.
    pub env: String,
    /// The name of this process. It must be unique: a server sends a change to only one process of
    /// a name. The sessions of a comet are registered under it.
    pub host: String,
    /// How often a registration is renewed. Default 30 s, as goim; servers remove a process that is
    /// silent for 90 s.
    pub renew: Duration,
    /// How often the load of a comet is sent. Default 10 s, as goim. Other changes are sent
    /// immediately.
    pub set: Duration,
    /// The maximum duration of one request. Default 40 s: a poll without changes takes 30 s.
    pub request_deadline: Duration,
    /// The delay after a failed request. Default 1 s, as goim.
    pub pause: Duration,
    /// The maximum time for the first response at startup. Default 10 s.
    pub start_deadline: Duration,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        let (region, zone, env, host) = Default::default();
        Self {
            seeds: Vec::new(),
            region,
            zone,
            env,
            host,
            renew: Duration::from_secs(30),
            set: Duration::from_secs(10),
            request_deadline: Duration::from_secs(40),
            pause: Duration::from_secs(1),
            start_deadline: Duration::from_secs(10),
        }
    }
}

/// Why a call to discovery failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// No server is named.
    #[error("no discovery server is named")]
    NoSeeds,
    /// A server's address is not usable.
    #[error("`{0}` is not the address of a discovery server; it should look like host:port")]
    Address(String),
    /// No server has answered in time.
    #[error("discovery {servers} does not answer: {reason}")]
    Unavailable {
        /// The servers that were tried.
        servers: String,
        /// The last error.
        reason: String,
    },
    /// A server has rejected the request.
    #[error("discovery answers {0}{hint}", hint = hint(*.0))]
    Refused(i64),
    /// The response cannot be parsed.
    #[error("discovery's response cannot be parsed: {0}")]
    Unreadable(String),
}

fn hint(code: i64) -> &'static str {
    match code {
        -400 => " (bad parameter: are zone and env set?)",
        -404 => " (nothing found)",
        -409 => " (conflict)",
        _ => "",
    }
}
