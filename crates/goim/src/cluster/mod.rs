//! The roles as separate processes: the same as in `goim serve`, composed with the engines of a
//! cluster.
//!
//! comet knows logics and announces itself in the list of comets; logic stores sessions and counts
//! on Redis and writes the push log on Kafka; job reads it and reaches the comets of the list.
//! Everything is checked and bound before anything is waited for, and reached before anything runs.

mod admin;
mod comet;
mod directory;
mod engines;
mod job;
mod logic;
mod metrics;
mod probe;
mod sweep;

use std::future::Future;
use std::pin::Pin;

use goim_adapters::discovery::DiscoveryError;
use goim_adapters::kafka::{GroupError, KafkaError};
use goim_adapters::redis::{RedisError, RedisStore};
use goim_ports::NodeError;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use comet::start as start_comet;
pub(crate) use engines::kafka;
pub use job::start as start_job;
pub use logic::start as start_logic;

use crate::admin::ServerState;
use crate::serve;
use crate::settings::ConfigError;
use crate::wait::Transient;

/// Why a role does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// As in one process: an address, a certificate.
    #[error(transparent)]
    Serve(#[from] serve::StartError),
    /// Kafka.
    #[error("{0}\n  see the settings kafka.*")]
    Kafka(#[from] KafkaError),
    /// Redis.
    #[error("{0}\n  see the settings redis.*")]
    Redis(#[from] RedisError),
    /// The list of comets.
    #[error("{0}\n  see the settings cluster.directory and redis.*")]
    Nodes(#[from] NodeError),
    /// A discovery server.
    #[error("{0}\n  see the settings cluster.discovery and comet.node.zone and env")]
    Discovery(#[from] DiscoveryError),
}

/// Why a running role cannot continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// A restart does not help.
    #[error("{0}")]
    Misconfigured(String),
    /// A restart may help.
    #[error("{0}")]
    Ended(String),
}

impl Transient for StartError {
    fn waiting_for(&self) -> Option<String> {
        match self {
            Self::Serve(error) => error.waiting_for(),
            Self::Redis(RedisError::Unavailable { reason, .. }) => {
                Some(format!("redis: it does not answer: {reason}"))
            }
            Self::Kafka(
                KafkaError::Unavailable { reason, .. }
                | KafkaError::Group(GroupError::Unavailable { reason, .. }),
            ) => Some(format!("kafka: the brokers do not answer: {reason}")),
            Self::Nodes(NodeError::Unavailable(_)) => {
                Some("the list of comets: it cannot be read or written; the log has the reason".to_owned())
            }
            Self::Discovery(DiscoveryError::Unavailable { reason, .. }) => {
                Some(format!("discovery: no server answers: {reason}"))
            }
            _ => None,
        }
    }
}

/// Makes the process not ready while Redis is in trouble, because no session could be registered.
fn add_redis_condition(state: &ServerState, store: &RedisStore) {
    let store = store.clone();
    state.add_condition(move || store.fault().map(|fault| fault.to_string()));
}

/// Spawns a task that is aborted when the handle is dropped.
fn spawn_scoped(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A running role. Dropping it stops it without waiting; [`Running::drain`] stops it gracefully.
pub struct Running {
    /// Its name.
    pub role: &'static str,
    /// What it prints when it is up: names and values.
    pub lines: Vec<(&'static str, String)>,
    reload: Box<dyn Fn() + Send + Sync>,
    stop: Box<dyn FnOnce() -> Stop + Send + Sync>,
    /// Why it cannot continue, once that is so.
    failed: watch::Receiver<Option<RoleError>>,
}

/// For a role that runs until it is asked to stop.
fn never() -> watch::Receiver<Option<RoleError>> {
    watch::channel(None).1
}

impl Running {
    /// Reloads files that may have changed.
    pub fn reload(&self) {
        (self.reload)();
    }

    /// Waits until the role cannot continue, and returns why; usually forever. The role must still
    /// be drained.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn failed(&self) -> RoleError {
        let mut failed = self.failed.clone();
        let reason = failed.wait_for(Option::is_some).await.ok().and_then(|reason| (*reason).clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Stops gracefully. Accepted pushes are delivered or stay in the log.
    ///
    /// # Cancel safety
    /// Dropping the future stops immediately.
    pub async fn drain(self) {
        (self.stop)().await;
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("role", &self.role)
            .field("lines", &self.lines)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// The value that it prints under this name.
    #[must_use]
    pub fn line(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(of, _)| *of == name).map(|(_, value)| value.as_str())
    }
}
