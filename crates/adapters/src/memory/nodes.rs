//! The list of comets, for comets in this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use goim_ports::{Call, CometNode, NodeDirectory, NodeError, ServerId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A node directory in memory.
#[derive(Debug)]
pub struct MemoryNodes {
    lease: Duration,
    state: Mutex<NodesState>,
}

#[derive(Debug, Default)]
struct NodesState {
    nodes: BTreeMap<ServerId, Node>,
    snapshot: Option<Arc<Vec<CometNode>>>,
    /// The latest assigned timestamp. Each new one is larger, also when the clock is set back.
    timestamp: i64,
}

#[derive(Debug)]
struct Node {
    node: CometNode,
    announced: Instant,
}

impl Default for MemoryNodes {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryNodes {
    /// Creates an empty list. A comet that does not announce itself for 90 s is removed, as by
    /// goim's discovery.
    #[must_use]
    pub fn new() -> Self {
        Self::with_lease(Duration::from_secs(90))
    }

    /// Creates an empty list with another lease. It should be several report intervals.
    #[must_use]
    pub fn with_lease(lease: Duration) -> Self {
        Self { lease, state: Mutex::default() }
    }
}

impl NodesState {
    fn announce(&mut self, mut node: CometNode, now: Instant) {
        if let Some(known) = self.nodes.get_mut(&node.server) {
            node.latest_timestamp = known.node.latest_timestamp;
            if node == known.node {
                known.announced = now;
                return;
            }
        }
        self.timestamp = nanos_since_1970().max(self.timestamp.saturating_add(1));
        node.latest_timestamp = self.timestamp;
        self.nodes.insert(node.server.clone(), Node { node, announced: now });
        self.snapshot = None;
    }

    fn withdraw(&mut self, server: &ServerId) {
        if self.nodes.remove(server).is_some() {
            self.snapshot = None;
        }
    }

    fn comets(&mut self, now: Instant, lease: Duration) -> Arc<Vec<CometNode>> {
        let known = self.nodes.len();
        self.nodes.retain(|_, node| now.saturating_duration_since(node.announced) <= lease);
        if self.nodes.len() != known {
            self.snapshot = None;
        }
        let list = || Arc::new(self.nodes.values().map(|node| node.node.clone()).collect());
        Arc::clone(self.snapshot.get_or_insert_with(list))
    }
}

fn nanos_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl NodeDirectory for MemoryNodes {
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>> {
        self.state.lock().announce(node, Instant::now());
        Call::Ready(Ok(()))
    }

    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>> {
        self.state.lock().withdraw(&server);
        Call::Ready(Ok(()))
    }

    fn comets(&self) -> Arc<Vec<CometNode>> {
        self.state.lock().comets(Instant::now(), self.lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        conformance::nodes(async || MemoryNodes::new()).await;
        let lease = Duration::from_secs(90);
        conformance::nodes_expire(async || MemoryNodes::with_lease(lease), lease, tokio::time::advance).await;
    }

    #[tokio::test]
    async fn the_list_is_shared_until_it_changes() {
        let nodes = MemoryNodes::new();
        nodes.announce(conformance::node("a")).await.unwrap();
        let first = nodes.comets();
        nodes.announce(conformance::node("a")).await.unwrap();
        assert!(Arc::ptr_eq(&first, &nodes.comets()));
    }
}
