//! The comets of a node directory, as job reaches them.
//!
//! A client is created when its comet is first listed, and is used as long as the comet has the
//! same address.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goim_ports::{CometNode, CometPool, CometPort, NodeDirectory, ServerId};

use super::channel::ClientConfig;
use super::comet_client::GrpcComet;

/// The comets that a node directory lists.
pub struct GrpcComets {
    nodes: Arc<dyn NodeDirectory>,
    /// The zone; empty for all zones.
    zone: String,
    config: ClientConfig,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The node list of `comets`.
    list: Arc<Vec<CometNode>>,
    comets: HashMap<ServerId, (String, Arc<dyn CometPort>)>,
}

impl GrpcComets {
    /// Creates the pool of the comets in `nodes`: all, or only those of `zone` if it is not empty,
    /// as in goim's job. Jobs of other zones push to the others.
    #[must_use]
    pub fn new(nodes: Arc<dyn NodeDirectory>, zone: String, config: ClientConfig) -> Self {
        Self { nodes, zone, config, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        let list = self.nodes.comets();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.list, &list) {
            known.learn(list, &self.zone, &self.config);
        }
        known
    }
}

impl Known {
    fn learn(&mut self, list: Arc<Vec<CometNode>>, zone: &str, config: &ClientConfig) {
        let mut before = std::mem::take(&mut self.comets);
        for node in list.iter().filter(|node| zone.is_empty() || node.zone == zone) {
            let Some(address) = node.rpc_addrs.first() else { continue };
            let kept = before.remove(&node.server).filter(|(at, _)| at == address);
            let comet = match kept {
                Some((_, comet)) => comet,
                None => match GrpcComet::new(address, config.clone()) {
                    Ok(comet) => {
                        tracing::info!(server = %node.server, address, "a comet was added");
                        Arc::new(comet) as Arc<dyn CometPort>
                    }
                    Err(error) => {
                        tracing::warn!(server = %node.server, %error, "a comet cannot be reached");
                        continue;
                    }
                },
            };
            self.comets.insert(node.server.clone(), (address.clone(), comet));
        }
        for server in before.into_keys().filter(|server| !self.comets.contains_key(server)) {
            tracing::info!(%server, "a comet was removed");
        }
        self.list = list;
    }
}

impl fmt::Debug for GrpcComets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.known().comets.keys()).finish()
    }
}

impl CometPool for GrpcComets {
    fn get(&self, server: &ServerId) -> Option<Arc<dyn CometPort>> {
        self.known().comets.get(server).map(|(_, comet)| Arc::clone(comet))
    }

    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)> {
        let known = self.known();
        known.comets.iter().map(|(server, (_, comet))| (server.clone(), Arc::clone(comet))).collect()
    }
}
