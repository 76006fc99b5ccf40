//! The role itself: its parts and what it holds between requests.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use goim_ports::{
    CometPool, DeviceDirectory, EventSink, HttpClient, NodeDirectory, PushLog, RoomDirectory,
    SessionDirectory, TimelineStore,
};
use prometheus_client::registry::Registry;

use crate::config::{Config, IdentityMethod, NodeInfoConfig};
use crate::devices::Devices;
use crate::handler::Handlers;
use crate::identity::{Identity, KeyError};
use crate::metrics::Metrics;
use crate::nodes::NodeSelector;
use crate::online::OnlineCounts;
use crate::push_writer::PushWriter;
use crate::session_ends::SessionEnds;
use crate::timelines::{self, Timelines};

/// The ports that logic needs.
#[derive(Clone)]
pub struct Dependencies {
    /// Which comet holds which session.
    pub sessions: Arc<dyn SessionDirectory>,
    /// How many sessions each room has.
    pub rooms: Arc<dyn RoomDirectory>,
    /// The devices of members.
    pub devices: Arc<dyn DeviceDirectory>,
    /// The list of comets.
    pub nodes: Arc<dyn NodeDirectory>,
    /// Where accepted pushes are appended.
    pub push_log: Arc<dyn PushLog>,
    /// The comets, for what only they know.
    pub comets: Arc<dyn CometPool>,
    /// The HTTP client for webhooks and key sets.
    pub http: Arc<dyn HttpClient>,
    /// The timeline store, if messages can be stored.
    pub timelines: Option<Arc<dyn TimelineStore>>,
}

impl fmt::Debug for Dependencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dependencies").finish_non_exhaustive()
    }
}

/// The role `logic`. Shared by comet's calls and by the HTTP API.
pub struct Logic {
    pub(crate) config: Config,
    pub(crate) sessions: Arc<dyn SessionDirectory>,
    pub(crate) online: OnlineCounts,
    pub(crate) nodes: NodeSelector,
    pub(crate) push_writer: PushWriter,
    pub(crate) session_ends: SessionEnds,
    pub(crate) comets: Arc<dyn CometPool>,
    pub(crate) http: Arc<dyn HttpClient>,
    pub(crate) identity: Identity,
    pub(crate) devices: Devices,
    pub(crate) event_sink: OnceLock<Arc<dyn EventSink>>,
    pub(crate) handlers: Handlers,
    pub(crate) timelines: Option<Arc<Timelines>>,
    pub(crate) metrics: Metrics,
}

/// Who may push over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushProtection {
    /// Requests with one of this many API keys.
    ApiKeys(usize),
    /// Requests from this machine, because no API key is configured.
    LoopbackOnly,
}

impl fmt::Display for PushProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKeys(1) => f.write_str("pushes need the API key"),
            Self::ApiKeys(count) => write!(f, "pushes need one of {count} API keys"),
            Self::LoopbackOnly => {
                f.write_str("pushes are taken from this machine only (logic.http.api_keys is not set)")
            }
        }
    }
}

impl Logic {
    /// Builds a logic. Spawns no task and opens no connection.
    ///
    /// `config` should have passed its [checks](goim_settings::Settings::check).
    ///
    /// # Errors
    /// [`KeyError`] when a key for signed tokens cannot be read.
    pub fn new(config: Config, dependencies: Dependencies) -> Result<Arc<Self>, KeyError> {
        let Dependencies { sessions, rooms, devices, nodes, push_log, comets, http, timelines } =
            dependencies;
        let (heartbeat, protover_max) = (session_heartbeat(&config.node), config.versions.highest());
        let identity = Identity::new(&config.identity, heartbeat, protover_max, &http)?;
        let metrics = Metrics::default();
        let timeout = config.directory_timeout;
        let devices = Devices::new(
            config.identity.devices,
            devices,
            Arc::clone(&sessions),
            Arc::clone(&push_log),
            timeout,
        );
        let timelines = timelines.map(|store| {
            Timelines::new(timelines::TimelineParts {
                store,
                push_log: Arc::clone(&push_log),
                sessions: Arc::clone(&sessions),
                http: Arc::clone(&http),
                versions: config.versions.clone(),
                config: config.timelines.clone(),
                push: config.push.clone(),
                directory_timeout: timeout,
            })
        });
        Ok(Arc::new(Self {
            devices,
            timelines,
            event_sink: OnceLock::new(),
            online: OnlineCounts::new(rooms, timeout, metrics.stale_counts.clone()),
            nodes: NodeSelector::new(nodes, &config),
            push_writer: PushWriter::new(push_log, config.push.clone(), &metrics),
            session_ends: SessionEnds::new(Arc::clone(&sessions), timeout),
            sessions,
            comets,
            http,
            identity,
            handlers: Handlers::default(),
            metrics,
            config,
        }))
    }

    /// Adds logic's metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        if let Some(timelines) = &self.timelines {
            timelines.register(registry);
        }
    }

    /// The handlers of upstream packets. Register handlers here.
    #[must_use]
    pub fn handlers(&self) -> &Handlers {
        &self.handlers
    }

    /// How clients are authenticated, for the start-up message.
    #[must_use]
    pub fn identity(&self) -> &'static str {
        match self.config.identity.method {
            IdentityMethod::Open => {
                "open: clients are not authenticated; for development and trusted networks"
            }
            IdentityMethod::Jwt => "jwt: clients present tokens that are signed with a known key",
            IdentityMethod::Webhook => "webhook: your backend authenticates every client",
        }
    }

    /// Returns why no client can be authenticated yet: the key set has never been fetched. `None`
    /// when it can.
    #[must_use]
    pub fn identity_not_ready(&self) -> Option<String> {
        self.identity.not_ready().map(|reason| format!("identity: {reason}"))
    }

    /// Fetches what authentication needs. Returns true when it is complete.
    ///
    /// # Cancel safety
    /// Dropping the future is safe; the call can be repeated.
    pub async fn prepare_identity(&self) -> bool {
        self.identity.prepare().await
    }

    /// Who may push over HTTP, for the start-up message.
    #[must_use]
    pub fn push_protection(&self) -> PushProtection {
        match self.config.http.api_keys.len() {
            0 => PushProtection::LoopbackOnly,
            count => PushProtection::ApiKeys(count),
        }
    }
}

impl fmt::Debug for Logic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logic").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A session ends after this time without a heartbeat: the interval times the number that may be
/// missing.
fn session_heartbeat(node: &NodeInfoConfig) -> Duration {
    node.heartbeat.saturating_mul(node.heartbeat_max)
}
