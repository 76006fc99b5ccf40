//! The configuration of a client, with the reasons for the defaults.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use goim_session::ClientRules;
use goim_wire::VersionTable;

use crate::{Auth, Backoff, Client, Endpoint, NodeSource, SyncConfig};

/// Where to connect.
#[derive(Debug, Clone)]
pub enum Target {
    /// These endpoints, tried in order. If none responds, the client waits and starts again.
    Endpoints(Vec<Endpoint>),
    /// The nodes of the node list, which is requested before each attempt. While logic does not
    /// respond, the last list is used.
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

/// The certificates that are trusted. There is no option to accept any certificate: a test signs
/// its own and passes it here.
#[derive(Debug, Clone, Default)]
pub enum TlsRoots {
    /// The certificates of the operating system, read once when the client is created.
    #[default]
    System,
    /// Only these: one or more certificates in PEM format.
    Pem(Vec<u8>),
}

/// HTTP headers. Values may be credentials, so `Debug` shows only the names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Adds a header.
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

/// The configuration of a client. Start with [`ClientConfig::new`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Where to connect.
    pub target: Target,
    /// How to authenticate.
    pub auth: Auth,
    /// The time between heartbeats. `None` (default): the node list's value, else 4 min, goim's
    /// default. If the auth reply contains the server's limit, the interval is at most half of it.
    pub heartbeat_interval: Option<Duration>,
    /// The time after an unanswered heartbeat without any input after which the connection is
    /// considered lost. Default 15 s.
    pub heartbeat_timeout: Duration,
    /// The time for one endpoint, from name resolution to the auth reply. Default 10 s.
    pub connect_timeout: Duration,
    /// The time from a call to its reply. Default 10 s.
    pub request_timeout: Duration,
    /// The delays between attempts. `None` (default): the node list's values, else
    /// [`Backoff::default`]. A delay that the server asks for when it disconnects replaces them.
    pub backoff: Option<Backoff>,
    /// The certificates that are trusted for `tls` and `wss` endpoints and for an `https` node
    /// list. Default: the system's.
    pub tls_roots: TlsRoots,
    /// Headers of the upgrade request to `ws` and `wss` endpoints, for example a cookie. Default
    /// none.
    pub websocket_headers: Headers,
    /// The schemas and encodings of packet versions. The server publishes its table at
    /// `/v1/protocol`. Default: the rows that every server has. Compressed bodies are decompressed
    /// for the application, which sees the uncompressed version of the same schema.
    pub versions: VersionTable,
    /// The largest inbound body in bytes. Default 64 MiB, see [`ClientRules::BODY_BYTES_MAX`].
    pub inbound_body_bytes_max: usize,
    /// The largest outbound body in bytes, including the token. Default 4096: the server closes a
    /// connection that sends more.
    pub outbound_body_bytes_max: usize,
    /// The maximum number of requests in flight. Further calls wait. Default 64.
    pub requests_max: NonZeroUsize,
    /// The length of the event queue. Default 256. While it is full, the socket is not read, and
    /// the server queues pushes, drops them or closes the session, according to its own policy.
    /// Worst-case memory is this times the largest push.
    pub events_max: NonZeroUsize,
    /// The timelines to sync. Default none: stored messages are then plain pushes.
    pub sync: Option<SyncConfig>,
}

impl ClientConfig {
    /// Returns a configuration with defaults for everything else.
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
        if let Some(sync) = &self.sync
            && sync.timelines.len() > Client::TIMELINES_MAX
        {
            return Err(ConfigError::TooManyTimelines { limit: Client::TIMELINES_MAX });
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
            Target::Nodes(source) => source.scheme.is_tls() || source.uses_https(),
        }
    }

    /// Returns the rules of a session with this heartbeat interval.
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

/// An invalid configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The list of endpoints is empty.
    #[error("no endpoint")]
    NoEndpoints,
    /// This duration must not be zero.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// [`crate::SyncConfig::timelines`] is too long.
    #[error("more than {limit} timelines")]
    TooManyTimelines {
        /// See [`Client::TIMELINES_MAX`].
        limit: usize,
    },
    /// The trusted certificates cannot be used.
    #[error("trusted certificates: {0}")]
    BadRoots(String),
}
