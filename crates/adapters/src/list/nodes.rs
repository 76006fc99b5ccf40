//! The list of comets by asking each address which comet is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{Call, CometNode, CometPort, NodeDirectory, NodeError, ServerId};
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::addresses::Addresses;
use crate::grpc::{ClientConfig, GrpcComet};

/// Times of a list that is asked.
#[derive(Debug, Clone, Copy)]
pub struct ListedNodesConfig {
    /// How long a comet is listed that does not answer. Default 10 s.
    pub lease: Duration,
    /// How often each is asked, and how long it has to answer. Default 1 s.
    pub refresh: Duration,
}

/// The comets that answer at some addresses.
pub struct ListedNodes {
    comets: Arc<RwLock<Arc<Vec<CometNode>>>>,
    _poll_task: AbortOnDropHandle<()>,
}

impl ListedNodes {
    /// Asks each address once, and goes on doing so. Must be called inside a tokio runtime.
    pub async fn start(addresses: Addresses, config: ListedNodesConfig) -> Self {
        let comets = Arc::<RwLock<Arc<Vec<CometNode>>>>::default();
        let mut asked = Asked { addresses, config, known: HashMap::new(), comets: Arc::clone(&comets) };
        asked.once().await;
        let poll_task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(config.refresh).await;
                asked.once().await;
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

struct Asked {
    addresses: Addresses,
    config: ListedNodesConfig,
    known: HashMap<String, Known>,
    comets: Arc<RwLock<Arc<Vec<CometNode>>>>,
}

/// What is known of an address.
struct Known {
    comet: Option<GrpcComet>,
    node: Option<CometNode>,
    answered: Option<Instant>,
}

impl Asked {
    async fn once(&mut self) {
        let addresses = self.addresses.now();
        self.known.retain(|address, _| addresses.contains(address));
        let mut answers = JoinSet::new();
        for address in addresses.iter() {
            let config = ClientConfig { call_timeout: self.config.refresh, ..ClientConfig::default() };
            let known = self.known.entry(address.clone()).or_insert_with(|| Known {
                comet: GrpcComet::new(address, config)
                    .inspect_err(|error| tracing::warn!(%error, "an address of the list is left out"))
                    .ok(),
                node: None,
                answered: None,
            });
            let Some(comet) = known.comet.clone() else { continue };
            let address = address.clone();
            answers.spawn(async move { (address, comet.describe().await) });
        }
        while let Some(answer) = answers.join_next().await {
            let Ok((address, answer)) = answer else { continue };
            let Some(known) = self.known.get_mut(&address) else { continue };
            match answer {
                Ok(node) => known.answers(CometNode { rpc_addrs: vec![address], ..node }),
                Err(error) => tracing::debug!(address, %error, "no comet says that it is there"),
            }
        }
        self.tell();
    }

    fn tell(&mut self) {
        let lease = self.config.lease;
        let is_there = |known: &&Known| known.answered.is_some_and(|at| at.elapsed() < lease);
        let there = self.known.values().filter(is_there).filter_map(|known| known.node.clone());
        let mut comets: Vec<CometNode> = there.collect();
        // Of two that say they are the same, the later started: an address may have gone to
        // another.
        comets.sort_by(|a, b| {
            (a.server.as_str(), b.latest_timestamp).cmp(&(b.server.as_str(), a.latest_timestamp))
        });
        comets.dedup_by(|later, first| later.server == first.server);
        let mut told = self.comets.write();
        if **told != comets {
            *told = Arc::new(comets);
        }
    }
}

impl Known {
    fn answers(&mut self, mut node: CometNode) {
        let before = self.node.take();
        node.latest_timestamp = match before {
            Some(before)
                if before == (CometNode { latest_timestamp: before.latest_timestamp, ..node.clone() }) =>
            {
                before.latest_timestamp
            }
            _ => now(),
        };
        (self.node, self.answered) = (Some(node), Some(Instant::now()));
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Nobody announces itself: who is on the list is asked.
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
