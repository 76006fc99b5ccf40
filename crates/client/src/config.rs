//! What an application decides about its connection, with the reasons for the defaults.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use goim_session::ClientRules;
use goim_wire::VersionTable;

use crate::{Auth, Backoff, Endpoint, NodeSource, SyncConfig};

/// Where to connect.
#[derive(Debug, Clone)]
pub enum Target {
    /// These, tried in order. When none answers, the backoff decides when the first is tried again.
    Endpoints(Vec<Endpoint>),
    /// What the node list says, asked anew before each round of attempts. When logic does not answer, the last list
    /// is used.
    Nodes(NodeSource),
}

impl From<Endpoint> for Target {
    fn from(endpoint: Endpoint) -> Self {
        Self::Endpoints(vec![endpoint])
    }
}

impl From<Vec<Endpoint>> for Target {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        Self::Endpoints(endpoints)
    }
}

impl From<NodeSource> for Target {
    fn from(source: NodeSource) -> Self {
        Self::Nodes(source)
    }
}

/// Which certificates vouch for a server. There is no way to accept any: a test signs its own and gives it here.
#[derive(Debug, Clone, Default)]
pub enum TlsRoots {
    /// Those of the operating system, read once when the client is made.
    #[default]
    System,
    /// Only these: one or more certificates in PEM.
    Pem(Vec<u8>),
}

/// Header lines of HTTP. Their values may be credentials: `Debug` shows the names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Adds a line.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.push((name.into(), value.into()));
        self
    }

    pub(crate) fn as_pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Everything that a client can be told. Begin with [`ClientConfig::new`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Where to connect.
    pub target: Target,
    /// How to authenticate.
    pub auth: Auth,
    /// Time between two heartbeats. `None` (default): what the node list says, else 4 min, goim's default. A server
    /// that tells its own limit (extended auth reply) gets heartbeats at half of it, if that is more often.
    pub heartbeat_interval: Option<Duration>,
    /// A heartbeat is unanswered, and nothing else comes in, for this long: the connection is given up. Default 15 s.
    pub heartbeat_timeout: Duration,
    /// For one endpoint: from the name's resolution to the auth reply. Default 10 s.
    pub connect_timeout: Duration,
    /// From the call of a request to its reply. Default 10 s.
    pub request_timeout: Duration,
    /// Delays between attempts. `None` (default): what the node list says, else [`Backoff::default`].
    pub backoff: Option<Backoff>,
    /// Certificates that are trusted by `tls` and `wss` endpoints. Default: the system's.
    pub tls_roots: TlsRoots,
    /// Header lines for the upgrade request of `ws` and `wss` endpoints, for example a cookie. Default none.
    pub websocket_headers: Headers,
    /// What versions of packets mean; the server has the same table, at `/v1/protocol`. Default the rows that everybody has. Bodies
    /// that are compressed come to the application inflated, with the version that the row says of them.
    pub versions: VersionTable,
    /// Largest inbound body in bytes. Default 64 MiB, see [`ClientRules::BODY_BYTES_MAX`].
    pub inbound_body_bytes_max: usize,
    /// Largest outbound body in bytes, the token included. Default 4096: goim's server ends a connection over more.
    pub outbound_body_bytes_max: usize,
    /// Requests that may wait for replies at once; further calls wait for their turn. Default 64.
    pub requests_max: NonZeroUsize,
    /// Events that may wait for the application. Default 256. With the queue full nothing is read from the socket:
    /// the server then holds back, and by its own policy drops pushes or ends the session. Worst-case memory is this
    /// times the largest push.
    pub events_max: NonZeroUsize,
    /// The timelines that are followed. Default none: then messages in timelines come as plain pushes.
    pub sync: Option<SyncConfig>,
}

impl ClientConfig {
    /// A configuration with defaults for everything else.
    pub fn new(target: impl Into<Target>, auth: impl Into<Auth>) -> Self {
        let rules = ClientRules::default();
        Self {
            target: target.into(),
            auth: auth.into(),
            heartbeat_interval: None,
            heartbeat_timeout: rules.heartbeat_timeout,
            connect_timeout: rules.handshake_timeout,
            request_timeout: Duration::from_secs(10),
            backoff: None,
            tls_roots: TlsRoots::default(),
            websocket_headers: Headers::default(),
            versions: VersionTable::default(),
            inbound_body_bytes_max: ClientRules::BODY_BYTES_MAX,
            outbound_body_bytes_max: rules.request_body_bytes_max,
            requests_max: NonZeroUsize::new(rules.requests_max).unwrap_or(NonZeroUsize::MIN),
            events_max: const { NonZeroUsize::new(256).expect("256 is not zero") },
            sync: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if matches!(&self.target, Target::Endpoints(endpoints) if endpoints.is_empty()) {
            return Err(ConfigError::NoEndpoints);
        }
        let times = [
            ("heartbeat_interval", self.heartbeat_interval.unwrap_or(Duration::MAX)),
            ("heartbeat_timeout", self.heartbeat_timeout),
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("backoff.base_delay", self.backoff.unwrap_or_default().base_delay),
        ];
        match times.into_iter().find(|(_, time)| time.is_zero()) {
            Some((name, _)) => Err(ConfigError::Zero(name)),
            None => Ok(()),
        }
    }

    pub(crate) fn uses_tls(&self) -> bool {
        match &self.target {
            Target::Endpoints(endpoints) => endpoints.iter().any(|endpoint| endpoint.scheme().is_tls()),
            Target::Nodes(source) => source.scheme.is_tls(),
        }
    }

    /// The rules of a session, with this time between heartbeats.
    pub(crate) fn rules(&self, heartbeat_interval: Duration) -> ClientRules {
        let mut rules = ClientRules::new(self.inbound_body_bytes_max);
        rules.handshake_timeout = self.connect_timeout;
        rules.heartbeat_interval = heartbeat_interval;
        rules.heartbeat_timeout = self.heartbeat_timeout;
        rules.requests_max = self.requests_max.get();
        rules.request_body_bytes_max = self.outbound_body_bytes_max;
        rules
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nothing to connect to.
    #[error("no endpoint is given")]
    NoEndpoints,
    /// This must be longer than nothing.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// The trusted certificates cannot be used.
    #[error("trusted certificates: {0}")]
    BadRoots(String),
}
