//! What an operator can set of discovery, and why it cannot be used.

use std::time::Duration;

/// Settings of a process's place on a discovery server.
#[derive(Debug, Clone)]
pub struct DiscoveryConfig {
    /// `host:port` of some discovery servers. More are found by them. Default none.
    pub seeds: Vec<String>,
    /// Region of this process, for example `sh`.
    pub region: String,
    /// Zone of this process, for example `sh001`. Servers want one.
    pub zone: String,
    /// Deployment environment, for example `dev`. Servers want one, and know only who has the same.
    pub env: String,
    /// Name of this process. Must be its own: the server hands news for one name to whoever of that name asks first. A comet's is
    /// what its sessions are found by.
    pub host: String,
    /// How often a registration is renewed. Default 30 s, as goim; servers drop who is silent for 90 s.
    pub renew: Duration,
    /// How often the load of a comet is told. Default 10 s, as goim. Other changes are told at once.
    pub set: Duration,
    /// How long one request may take. Default 40 s: a poll without news takes 30.
    pub request_deadline: Duration,
    /// Pause after a request that failed. Default 1 s, as goim.
    pub pause: Duration,
    /// How long the first answer may take when the process starts. Default 10 s.
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

/// Why discovery did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// No server is named.
    #[error("no discovery server is named")]
    NoSeeds,
    /// A server's address is none.
    #[error("`{0}` is not the address of a discovery server; it should look like host:port")]
    Address(String),
    /// None of the servers has answered in time.
    #[error("discovery {servers} does not answer: {reason}")]
    Unavailable {
        /// Who was asked.
        servers: String,
        /// What went wrong last.
        reason: String,
    },
    /// A server has answered that it will not.
    #[error("discovery answers {0}{hint}", hint = hint(*.0))]
    Refused(i64),
    /// The answer makes no sense.
    #[error("discovery's answer cannot be read: {0}")]
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
