//! The list of comets on discovery.
//!
//! Changes by this process are listed immediately, others when the server reports them. A comet
//! with unreadable metadata is listed as offline: job must reach it, logic must not send clients to
//! it, as in goim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use goim_ports::{Call, CometNode, NodeDirectory, NodeError, ServerId};
use parking_lot::{Mutex, MutexGuard};

use super::COMET;
use super::config::DiscoveryError;
use super::instance::Instance;
use super::register::Metadata;
use super::watch::{Discovery, grpc_addr};

/// Metadata fields whose changes are sent immediately.
const URGENT: [&str; 3] = ["weight", "offline", "addrs"];

/// The list of comets over a [`Discovery`].
#[derive(Debug)]
pub struct DiscoveryNodes {
    shared: Arc<NodesShared>,
}

#[derive(Debug)]
struct NodesShared {
    discovery: Arc<Discovery>,
    state: Mutex<NodesState>,
}

#[derive(Debug, Default)]
struct NodesState {
    /// This process's changes: an announced comet, or `None` for a withdrawn one.
    own: BTreeMap<ServerId, Option<CometNode>>,
    /// The instances that `list` was computed from.
    instances: Arc<Vec<Instance>>,
    list: Arc<Vec<CometNode>>,
    is_stale: bool,
}

impl DiscoveryNodes {
    /// Creates the list over `discovery`. On a comet, which watches logics, it holds only this
    /// comet.
    #[must_use]
    pub fn new(discovery: Arc<Discovery>) -> Self {
        Self { shared: Arc::new(NodesShared { discovery, state: Mutex::default() }) }
    }
}

impl NodesShared {
    async fn announce(&self, mut node: CometNode) -> Result<(), DiscoveryError> {
        let metadata = metadata_of(&node);
        if !self.discovery.registrations.has(COMET).await {
            let addr = node.rpc_addrs.first().cloned().unwrap_or_default();
            // goim's logic ignores a comet until it has counts.
            let mut first = metadata.clone();
            first.remove("conn_count");
            first.remove("ip_count");
            self.discovery.registrations.register(COMET, addr, first).await?;
        }
        self.discovery.registrations.set(COMET, metadata, &URGENT).await?;
        let mut state = self.state();
        let known = state.own.get(&node.server).and_then(Option::as_ref);
        let is_same = |known: &&CometNode| {
            **known == CometNode { latest_timestamp: known.latest_timestamp, ..node.clone() }
        };
        node.latest_timestamp = match known {
            Some(known) if is_same(&known) => known.latest_timestamp,
            Some(known) => now().max(known.latest_timestamp + 1),
            None => now(),
        };
        state.own.insert(node.server.clone(), Some(node));
        state.is_stale = true;
        Ok(())
    }

    async fn withdraw(&self, server: ServerId) -> Result<(), DiscoveryError> {
        if server.as_str() == self.discovery.client.config().host {
            self.discovery.registrations.cancel(COMET).await?;
        }
        let mut state = self.state();
        state.own.insert(server, None);
        state.is_stale = true;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, NodesState> {
        self.state.lock()
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        let instances = self.discovery.instances.borrow().clone();
        let mut state = self.state();
        if state.is_stale || !Arc::ptr_eq(&instances, &state.instances) {
            state.list = Arc::new(list(&instances, &state.own));
            (state.instances, state.is_stale) = (instances, false);
        }
        Arc::clone(&state.list)
    }
}

fn list(instances: &[Instance], own: &BTreeMap<ServerId, Option<CometNode>>) -> Vec<CometNode> {
    let instances = instances.iter().filter_map(node_of).map(|node| (node.server.clone(), node));
    let mut all: BTreeMap<ServerId, CometNode> = instances.collect();
    for (server, node) in own {
        match node {
            Some(node) => drop(all.insert(server.clone(), node.clone())),
            None => drop(all.remove(server)),
        }
    }
    all.into_values().collect()
}

/// Returns `None` for an instance without a gRPC address.
fn node_of(instance: &Instance) -> Option<CometNode> {
    let addr = grpc_addr(instance)?;
    let metadata = instance.metadata.clone().unwrap_or_default();
    let text = |name: &str| metadata.get(name).map_or("", String::as_str);
    let numbers = || -> Option<(bool, u64, u64)> {
        Some((
            text("offline").parse().ok()?,
            text("conn_count").parse().ok()?,
            text("ip_count").parse().ok()?,
        ))
    };
    let (offline, connections, addresses) = numbers().unwrap_or((true, 0, 0));
    Some(CometNode {
        server: instance.hostname.as_str().into(),
        region: instance.region.clone(),
        zone: instance.zone.clone(),
        env: instance.env.clone(),
        rpc_addrs: vec![addr],
        public_addrs: text("addrs").split(',').filter(|addr| !addr.is_empty()).map(str::to_owned).collect(),
        weight: text("weight").parse().unwrap_or(0),
        offline,
        connections,
        addresses,
        latest_timestamp: instance.latest_timestamp,
    })
}

fn metadata_of(node: &CometNode) -> Metadata {
    BTreeMap::from([
        ("addrs", node.public_addrs.join(",")),
        ("conn_count", node.connections.to_string()),
        ("ip_count", node.addresses.to_string()),
        ("offline", node.offline.to_string()),
        ("weight", node.weight.to_string()),
    ])
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[allow(clippy::needless_pass_by_value)]
fn unavailable(error: DiscoveryError) -> NodeError {
    NodeError::Unavailable(error.to_string())
}

impl NodeDirectory for DiscoveryNodes {
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move { shared.announce(node).await.map_err(unavailable) })
    }

    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move { shared.withdraw(server).await.map_err(unavailable) })
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        self.shared.comets()
    }
}
