//! The gateway: sockets, sessions, rooms, fan-out. No business, no storage.

mod config;
#[allow(dead_code, unused_imports)] // Until the shards use it.
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use goim_ports::{CometPort, LogicPort, NodeDirectory};

pub use config::{
    Config, DrainConfig, LimitsConfig, ListenConfig, NodeConfig, SendConfig, SlowConsumerPolicy, TlsConfig,
};

/// What a comet needs of others.
pub struct Dependencies {
    /// Who decides about tokens and takes business packets.
    pub logic: Arc<dyn LogicPort>,
    /// Where the comet announces itself.
    pub nodes: Arc<dyn NodeDirectory>,
    /// Where pending calls and periodic work run.
    pub runtime: tokio::runtime::Handle,
}

/// The addresses that a comet really listens on, in the order of its configuration.
#[derive(Debug, Clone, Default)]
pub struct ListenAddrs {
    /// Plain TCP.
    pub tcp: Vec<SocketAddr>,
    /// TCP inside TLS.
    pub tcp_tls: Vec<SocketAddr>,
    /// WebSocket.
    pub websocket: Vec<SocketAddr>,
    /// WebSocket inside TLS.
    pub websocket_tls: Vec<SocketAddr>,
}

/// Why a comet did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// The address as configured.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The certificate or the key cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// A thread or a poll could not be made.
    #[error("cannot start a shard: {0}")]
    Shard(std::io::Error),
}

/// A running comet.
pub struct Comet {
    addrs: ListenAddrs,
}

impl Comet {
    /// Opens the listeners and starts the shards.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: Config, needs: Dependencies) -> Result<Self, StartError> {
        let _ = (config, needs);
        Ok(Self { addrs: ListenAddrs::default() })
    }

    /// Where it listens.
    #[must_use]
    pub fn addrs(&self) -> &ListenAddrs {
        &self.addrs
    }

    /// The way for job.
    #[must_use]
    pub fn port(&self) -> Arc<dyn CometPort> {
        unimplemented!("the shards are being built")
    }

    /// Adds this comet's metrics to `registry`.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        let _ = registry;
    }

    /// Leaves the node directory, stops accepting, tells sessions to go at the configured pace, and returns when the
    /// comet is empty or the deadline has passed. Sessions' records are gone then. Later calls return at once.
    pub async fn drain(&self) {}
}
