//! The roles as processes of their own: the same as in `goim serve`, composed with the engines of a cluster.
//!
//! Composition and nothing else. comet knows logics and announces itself in the list of comets;
//! logic keeps sessions and counts on Redis and writes the push log on Kafka; job reads it and
//! reaches the comets of the list. Everything is checked and bound before anything is waited for,
//! and reached before anything runs.

mod answering;
mod comet;
mod directory;
mod engines;
mod job;
mod logic;
mod metrics;
mod pages;
mod sweep;

use std::future::Future;
use std::pin::Pin;

use goim_adapters::discovery::DiscoveryError;
use goim_adapters::grpc::AddressError;
use goim_adapters::kafka::{GroupError, KafkaError};
use goim_adapters::redis::{RedisError, RedisStore};
use goim_ports::NodeError;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use comet::start as start_comet;
pub(crate) use engines::kafka;
pub use job::start as start_job;
pub use logic::start as start_logic;

use crate::operate::Operation;
use crate::serve;
use crate::settings::ConfigError;
use crate::wait::Passing;

/// Why a role does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is impossible.
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
    /// The address of a logic.
    #[error("cluster.logic: {0}")]
    Logic(AddressError),
    /// The address of a comet.
    #[error("cluster.comets: {0}")]
    Comets(AddressError),
    /// cluster.comets is empty, and the directory is a list.
    #[error(
        "cluster.comets names no comet: give it the addresses of some, such as [\"grpc://10.0.0.1:3109\"], or dns://name:port"
    )]
    NoComet,
    /// A discovery server.
    #[error("{0}\n  see the settings cluster.discovery and comet.node.zone and env")]
    Discovery(#[from] DiscoveryError),
    /// Comets could not reach the logic.
    #[error(
        "rpc.logic is every address of this machine: say with cluster.logic_addr under which one comets reach this logic, or let \
         rpc.logic be one that they reach"
    )]
    NoLogicAddress,
    /// cluster.logic is empty.
    #[error(
        "cluster.logic names no logic: give it the addresses of some, such as [\"grpc://10.0.0.2:3119\"]"
    )]
    NoLogic,
    /// Jobs could not reach the comet.
    #[error(
        "rpc.comet is {0}: say with comet.node.rpc_addr under which address jobs reach this comet, or let rpc.comet be one that \
         they reach"
    )]
    NoRpcAddress(&'static str),
}

/// Why a role that was up cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// Starting it again does not help.
    #[error("{0}")]
    Misconfigured(String),
    /// Another start may.
    #[error("{0}")]
    Ended(String),
}

impl Passing for StartError {
    fn waits_for(&self) -> Option<String> {
        match self {
            Self::Serve(error) => error.waits_for(),
            Self::Redis(RedisError::Unavailable { reason, .. }) => {
                Some(format!("redis: it does not answer: {reason}"))
            }
            Self::Kafka(
                KafkaError::Unavailable { reason, .. }
                | KafkaError::Group(GroupError::Unavailable { reason, .. }),
            ) => Some(format!("kafka: the brokers do not answer: {reason}")),
            Self::Nodes(NodeError::Unavailable(_)) => {
                Some("the list of comets: it cannot be read or written; the log says why".to_owned())
            }
            Self::Discovery(DiscoveryError::Unavailable { reason, .. }) => {
                Some(format!("discovery: no server answers: {reason}"))
            }
            _ => None,
        }
    }
}

/// Not ready while Redis is in trouble: nobody could be entered.
fn depends_on_redis(operation: &Operation, store: &RedisStore) {
    let store = store.clone();
    operation.depends_on(move || store.fault().map(|fault| fault.to_string()));
}

type Stop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that is ended with this, unless it is taken out.
struct Endless(Option<JoinHandle<()>>);

impl Endless {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(task)))
    }

    /// The task, which goes on.
    fn into_task(mut self) -> Option<JoinHandle<()>> {
        self.0.take()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A running role. Dropping it stops it without waiting for anything; [`Running::drain`] stops it gently.
pub struct Running {
    /// Which it is.
    pub role: &'static str,
    /// What it says of itself when it is up: names and values.
    pub lines: Vec<(&'static str, String)>,
    reload: Box<dyn Fn() + Send + Sync>,
    stop: Box<dyn FnOnce() -> Stop + Send + Sync>,
    /// Why it cannot go on, when that is so.
    failed: watch::Receiver<Option<RoleError>>,
}

/// For a role that goes on until it is told to stop.
fn never() -> watch::Receiver<Option<RoleError>> {
    watch::channel(None).1
}

impl Running {
    /// Looks at files that may have changed.
    pub fn reload(&self) {
        (self.reload)();
    }

    /// Waits until it cannot go on by itself, and says why; mostly for ever. It still has to be
    /// drained.
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

    /// Stops gently. What was accepted is handed over or stays in the log.
    ///
    /// # Cancel safety
    /// Dropping the future stops at once.
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
    /// What it says of itself under this name.
    #[must_use]
    pub fn line(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(of, _)| *of == name).map(|(_, value)| value.as_str())
    }
}
