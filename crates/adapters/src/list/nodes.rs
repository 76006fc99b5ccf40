//! The list of comets, by polling each address.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{Call, CometNode, CometPort, NodeDirectory, NodeError, ServerId};
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::addresses::Addresses;
use crate::grpc::{ClientConfig, GrpcComet};

/// The timings of a polled list.
#[derive(Debug, Clone, Copy)]
pub struct ListedNodesConfig {
    /// How long a comet that does not respond stays listed. Default 10 s.
    pub lease: Duration,
    /// The poll interval, and the timeout of a poll. Default 1 s.
    pub refresh: Duration,
}

/// The comets that respond at a list of addresses.
pub struct ListedNodes {
    comets: Arc<RwLock<Arc<Vec<CometNode>>>>,
    _poll_task: AbortOnDropHandle<()>,
}

impl ListedNodes {
    /// Polls each address once, and then periodically. Must be called inside a tokio runtime.
    pub async fn start(addresses: Addresses, config: ListedNodesConfig) -> Self {
        let comets = Arc::<RwLock<Arc<Vec<CometNode>>>>::default();
        let mut poller = Poller { addresses, config, known: HashMap::new(), comets: Arc::clone(&comets) };
        poller.poll_once().await;
        let poll_task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(config.refresh).await;
                poller.poll_once().await;
            }
        });
        Self { comets, _poll_task: AbortOnDropHandle::new(poll_task) }
    }
}

impl std::fmt::Debug for ListedNodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListedNodes").field("comets", &self.comets()).finish_non_exhaustive()
    }
}

struct Poller {
    addresses: Addresses,
    config: ListedNodesConfig,
    known: HashMap<String, ListedAddress>,
    comets: Arc<RwLock<Arc<Vec<CometNode>>>>,
}

/// The state of one address.
struct ListedAddress {
    comet: Option<GrpcComet>,
    node: Option<CometNode>,
    answered_at: Option<Instant>,
}

impl Poller {
    async fn poll_once(&mut self) {
        let addresses = self.addresses.now();
        self.known.retain(|address, _| addresses.contains(address));
        let mut answers = JoinSet::new();
        for address in addresses.iter() {
            let config = ClientConfig { call_timeout: self.config.refresh, ..ClientConfig::default() };
            let known = self.known.entry(address.clone()).or_insert_with(|| ListedAddress {
                comet: GrpcComet::new(address, config)
                    .inspect_err(|error| tracing::warn!(%error, "skipping an invalid address of the list"))
                    .ok(),
                node: None,
                answered_at: None,
            });
            let Some(comet) = known.comet.clone() else { continue };
            let address = address.clone();
            answers.spawn(async move { (address, comet.describe().await) });
        }
        while let Some(answer) = answers.join_next().await {
            let Ok((address, answer)) = answer else { continue };
            let Some(known) = self.known.get_mut(&address) else { continue };
            match answer {
                Ok(node) => known.update(CometNode { rpc_addrs: vec![address], ..node }),
                Err(error) => tracing::debug!(address, %error, "no comet responds"),
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        let lease = self.config.lease;
        let is_there = |known: &&ListedAddress| known.answered_at.is_some_and(|at| at.elapsed() < lease);
        let there = self.known.values().filter(is_there).filter_map(|known| known.node.clone());
        let mut comets: Vec<CometNode> = there.collect();
        // Of two comets with the same name keep the one started later: the other's address may have
        // been reused.
        comets.sort_by(|a, b| {
            (a.server.as_str(), b.latest_timestamp).cmp(&(b.server.as_str(), a.latest_timestamp))
        });
        comets.dedup_by(|later, first| later.server == first.server);
        let mut published = self.comets.write();
        if **published != comets {
            *published = Arc::new(comets);
        }
    }
}

impl ListedAddress {
    fn update(&mut self, mut node: CometNode) {
        let before = self.node.take();
        node.latest_timestamp = match before {
            Some(before)
                if before == (CometNode { latest_timestamp: before.latest_timestamp, ..node.clone() }) =>
            {
                before.latest_timestamp
            }
            _ => now(),
        };
        (self.node, self.answered_at) = (Some(node), Some(Instant::now()));
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Announcements are ignored: the list is polled.
impl NodeDirectory for ListedNodes {
    fn announce(&self, _: CometNode) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, _: ServerId) -> Call<Result<(), NodeError>> {
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        Arc::clone(&self.comets.read())
    }
}
