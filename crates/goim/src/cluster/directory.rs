//! How the processes of a cluster find each other: the directory that the settings name, behind what the roles need of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::discovery::{self, Discovery, DiscoveryConfig, DiscoveryNodes};
use goim_adapters::grpc::{LogicAddresses, check_address};
use goim_adapters::list::{Addresses, ListedNodes, ListedNodesConfig};
use goim_adapters::redis::{RedisNodes, RedisNodesConfig, RedisStore};
use goim_ports::NodeDirectory;
use tokio::sync::watch;

use super::answering::answers;
use super::{StartError, engines};
use crate::{Config, Directory as Kind};

/// How often names are looked up. Services come and go within seconds, and name servers keep answers for about that long.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5);
/// How often is looked whether comets had the time to announce themselves.
const ANNOUNCEMENT_PAUSE: Duration = Duration::from_millis(100);

/// Who looks.
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
    /// How often what this process has said was lost, where that can be known.
    pub(super) losses: Option<watch::Receiver<u64>>,
    /// The connection to Redis, where the list is there.
    pub(super) store: Option<RedisStore>,
    discovery: Option<Arc<Discovery>>,
}

/// Says what no waiting mends, before anything is waited for.
pub(super) fn check_settings(config: &Config, role: Role) -> Result<(), StartError> {
    let kind = config.cluster.directory;
    if kind == Kind::List && role != Role::Comet {
        listed_comets(config)?;
    }
    if kind != Kind::Discovery && role == Role::Comet {
        listed_logics(config)?;
    }
    Ok(())
}

/// Opens the directory that the settings name. `store` is a connection to Redis that there is anyway.
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
            let times = RedisNodesConfig { lease: config.cluster.lease, refresh: config.cluster.refresh };
            let nodes = Arc::new(RedisNodes::start(store.clone(), times, Some(answers())).await?);
            let losses = Some(nodes.losses());
            Ok(Directory { nodes, losses, store: Some(store), discovery: None })
        }
        Kind::List => {
            let comets = if role == Role::Comet { Vec::new() } else { listed_comets(config)? };
            let addresses = Addresses::start(comets, LOOKUP_INTERVAL).await;
            let times = ListedNodesConfig { lease: config.cluster.lease, refresh: config.cluster.refresh };
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

fn listed_comets(config: &Config) -> Result<Vec<String>, StartError> {
    if config.cluster.comets.is_empty() {
        return Err(StartError::NoComet);
    }
    config.cluster.comets.iter().try_for_each(|address| check(address)).map_err(StartError::Comets)?;
    Ok(config.cluster.comets.clone())
}

fn listed_logics(config: &Config) -> Result<(), StartError> {
    if config.cluster.logic.is_empty() {
        return Err(StartError::NoLogic);
    }
    config.cluster.logic.iter().try_for_each(|address| check(address)).map_err(StartError::Logic)
}

/// Names are looked up later; what stands before the port is theirs.
fn check(address: &str) -> Result<(), goim_adapters::grpc::AddressError> {
    check_address(&address.replacen("dns://", "grpc://", 1))
}

fn discovery_config(config: &Config, role: Role) -> DiscoveryConfig {
    let node = &config.comet.node;
    let host = config.cluster.discovery_host.clone().filter(|_| role != Role::Comet);
    let host = host.unwrap_or_else(|| match role {
        // By this name its sessions are found.
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
    /// Waits until comets have had the time to put themselves on a list that Redis has lost, or has
    /// never had. A job that reads before would drop what is for comets that it does not know yet.
    ///
    /// # Cancel safety
    /// Dropping the future does no harm.
    pub(super) async fn comets_have_announced_themselves(&self, config: &Config) {
        let Some(store) = &self.store else { return };
        // A comet whose Redis has come back needs an announcement or two.
        let announcing = config.comet.report_interval * 3 + config.cluster.refresh;
        let announcing = announcing.min(config.cluster.lease);
        let began = Instant::now();
        // When nobody writes into it at all there is nobody to wait for.
        while store.epoch_age().unwrap_or(began.elapsed()) < announcing {
            tokio::time::sleep(config.cluster.refresh.min(ANNOUNCEMENT_PAUSE)).await;
        }
    }

    /// The logics, for a comet.
    pub(super) async fn logics(&self, config: &Config) -> Result<LogicAddresses, StartError> {
        if let Some(discovery) = self.discovery.clone() {
            return Ok(Arc::new(move || discovery.logics()));
        }
        listed_logics(config)?;
        let addresses = Addresses::start(config.cluster.logic.clone(), LOOKUP_INTERVAL).await;
        Ok(Arc::new(move || addresses.now()))
    }

    /// Says that a logic is here, where logics are found that way.
    pub(super) async fn announce_logic(
        &self,
        config: &Config,
        rpc: Option<std::net::SocketAddr>,
    ) -> Result<(), StartError> {
        let (Some(discovery), Some(rpc)) = (&self.discovery, rpc) else { return Ok(()) };
        let addr = match config.cluster.logic_addr {
            Some(addr) => addr,
            None if rpc.ip().is_unspecified() => return Err(StartError::NoLogicAddress),
            None => rpc,
        };
        Ok(discovery.register_logic(format!("grpc://{addr}"), config.comet.node.weight).await?)
    }

    /// Says farewell, where somebody would wait for it.
    pub(super) async fn leave(&self) {
        if let Some(discovery) = &self.discovery {
            discovery.leave().await;
        }
    }
}
