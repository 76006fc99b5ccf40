//! How the processes of a cluster find each other: the directory that the settings name, as the
//! roles need it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::discovery::{self, Discovery, DiscoveryConfig, DiscoveryNodes};
use goim_adapters::grpc::LogicAddresses;
use goim_adapters::list::{Addresses, ListedNodes, ListedNodesConfig};
use goim_adapters::redis::{RedisNodes, RedisNodesConfig, RedisStore};
use goim_ports::NodeDirectory;
use tokio::sync::watch;

use super::probe::answers;
use super::{StartError, engines};
use crate::{Config, Directory as Kind};

/// How often DNS names are resolved. Services change within seconds, and name servers cache answers
/// for about that long.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);
/// Between two checks whether comets had the time to announce themselves.
const ANNOUNCEMENT_PAUSE: Duration = Duration::from_millis(100);

/// The role of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Comet,
    Logic,
    Job,
}

/// The directory of one process.
pub(super) struct Directory {
    /// The comets.
    pub(super) nodes: Arc<dyn NodeDirectory>,
    /// The number of times that the directory has lost its entries, where that can be detected.
    pub(super) losses: Option<watch::Receiver<u64>>,
    /// The connection to Redis, if the list is on Redis.
    pub(super) store: Option<RedisStore>,
    discovery: Option<Arc<Discovery>>,
}

/// Opens the directory that the settings name. `store` is a connection to Redis that exists
/// already.
pub(super) async fn open(
    config: &Config,
    role: Role,
    store: Option<RedisStore>,
) -> Result<Directory, StartError> {
    match config.cluster.directory {
        Kind::Redis => {
            let store = match store {
                Some(store) => store,
                None => engines::redis(config).await?,
            };
            let times =
                RedisNodesConfig { lease: config.cluster.lease, refresh: config.cluster.refresh_interval };
            let nodes = Arc::new(RedisNodes::start(store.clone(), times, Some(answers())).await?);
            let losses = Some(nodes.losses());
            Ok(Directory { nodes, losses, store: Some(store), discovery: None })
        }
        Kind::List => {
            let comets = if role == Role::Comet { Vec::new() } else { config.cluster.comets.clone() };
            let addresses = Addresses::start(comets, LOOKUP_INTERVAL).await;
            let times =
                ListedNodesConfig { lease: config.cluster.lease, refresh: config.cluster.refresh_interval };
            let nodes = Arc::new(ListedNodes::start(addresses, times).await);
            Ok(Directory { nodes, losses: None, store: None, discovery: None })
        }
        Kind::Discovery => {
            let app = if role == Role::Comet { discovery::LOGIC } else { discovery::COMET };
            let discovery = Arc::new(Discovery::start(discovery_config(config, role), app).await?);
            let nodes = Arc::new(DiscoveryNodes::new(Arc::clone(&discovery)));
            Ok(Directory { nodes, losses: None, store: None, discovery: Some(discovery) })
        }
    }
}

fn discovery_config(config: &Config, role: Role) -> DiscoveryConfig {
    let node = &config.comet.node;
    let host = config.cluster.discovery_host.clone().filter(|_| role != Role::Comet);
    let host = host.unwrap_or_else(|| match role {
        // Its sessions are registered under this name.
        Role::Comet => node.server.to_string(),
        Role::Logic => format!("{}-logic", node.server),
        Role::Job => format!("{}-job", node.server),
    });
    DiscoveryConfig {
        seeds: config.cluster.discovery.clone(),
        region: node.region.clone(),
        zone: node.zone.clone(),
        env: node.env.clone(),
        host,
        ..DiscoveryConfig::default()
    }
}

impl Directory {
    /// Waits until comets have had the time to add themselves to a list that Redis has lost, or has
    /// never had. A job that reads earlier would drop messages for comets that it does not know
    /// yet.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(super) async fn comets_have_announced_themselves(&self, config: &Config) {
        let Some(store) = &self.store else { return };
        // After Redis returns, a comet needs one or two announcements.
        let announcing = config.comet.report_interval * 3 + config.cluster.refresh_interval;
        let announcing = announcing.min(config.cluster.lease);
        let began = Instant::now();
        // If no process ever writes to it, there is no comet to wait for.
        while store.epoch_age().unwrap_or(began.elapsed()) < announcing {
            tokio::time::sleep(config.cluster.refresh_interval.min(ANNOUNCEMENT_PAUSE)).await;
        }
    }

    /// The logics, for a comet.
    pub(super) async fn logics(&self, config: &Config) -> LogicAddresses {
        if let Some(discovery) = self.discovery.clone() {
            return Arc::new(move || discovery.logics());
        }
        let addresses = Addresses::start(config.cluster.logic.clone(), LOOKUP_INTERVAL).await;
        Arc::new(move || addresses.now())
    }

    /// Registers this logic, if the directory lists logics.
    pub(super) async fn announce_logic(
        &self,
        config: &Config,
        rpc: Option<std::net::SocketAddr>,
    ) -> Result<(), StartError> {
        let (Some(discovery), Some(rpc)) = (&self.discovery, rpc) else { return Ok(()) };
        let addr = config.cluster.logic_addr.unwrap_or(rpc);
        Ok(discovery.register_logic(format!("grpc://{addr}"), config.comet.node.weight).await?)
    }

    /// Removes the registration, if the directory would wait for its lease.
    pub(super) async fn leave(&self) {
        if let Some(discovery) = &self.discovery {
            discovery.leave().await;
        }
    }
}
