//! The comets that a client should use, and what else it needs to connect.

use std::sync::Arc;

use goim_ports::{CometNode, NodeDirectory};

use crate::balancer::Balancer;
use crate::config::{Backoff, Config, NodeInfoConfig};

/// The maximum number of comets in an answer.
const NODES_MAX: usize = 5;

/// The answer of `/goim/nodes/weighted` and of goim v2's RPC `Nodes`.
#[derive(Debug, Clone, PartialEq)]
pub struct NodesReply {
    /// The address to use when no node can be reached.
    pub domain: String,
    /// The TCP port of every node.
    pub tcp_port: u16,
    /// The WebSocket port of every node.
    pub ws_port: u16,
    /// The port for WebSocket over TLS of every node.
    pub wss_port: u16,
    /// The heartbeat interval in whole seconds.
    pub heartbeat: i32,
    /// Host names or addresses, the best first; never empty.
    pub nodes: Vec<String>,
    /// How to reconnect after a loss.
    pub backoff: Backoff,
    /// The number of heartbeats that may be missing before the session ends.
    pub heartbeat_max: i32,
}

/// Selects comets for clients.
pub(crate) struct NodeSelector {
    directory: Arc<dyn NodeDirectory>,
    balancer: Balancer,
    config: NodeInfoConfig,
    backoff: Backoff,
    /// The region of every client. As in goim v2 a client's province is not derived from its
    /// address: it is `""`, and so is the region, unless a region has that province.
    client_region: String,
}

impl NodeSelector {
    pub(crate) fn new(directory: Arc<dyn NodeDirectory>, config: &Config) -> Self {
        let claims = |provinces: &[String]| provinces.iter().any(String::is_empty);
        let region = config.regions.iter().find(|(_, provinces)| claims(provinces));
        Self {
            directory,
            balancer: Balancer::default(),
            config: config.node.clone(),
            backoff: config.backoff,
            client_region: region.map(|(region, _)| region.clone()).unwrap_or_default(),
        }
    }

    /// Returns all comets of the directory.
    pub(crate) fn comets(&self) -> Arc<Vec<CometNode>> {
        self.directory.comets()
    }

    pub(crate) fn select(&self, platform: &str) -> NodesReply {
        let config = &self.config;
        let mut nodes = Vec::new();
        let offered = self.balancer.choose(&self.comets(), &self.client_region, config.region_weight);
        for comet in offered.iter().take(NODES_MAX) {
            if platform == "web" {
                nodes.push([comet.server.as_str(), &config.host_domain].concat());
            } else {
                nodes.extend(comet.public_addrs.iter().filter(|addr| !addr.is_empty()).cloned());
            }
        }
        if nodes.is_empty() {
            nodes.push(config.default_domain.clone());
        }
        NodesReply {
            domain: config.default_domain.clone(),
            tcp_port: config.tcp_port,
            ws_port: config.ws_port,
            wss_port: config.wss_port,
            heartbeat: i32::try_from(config.heartbeat.as_secs()).unwrap_or(i32::MAX),
            nodes,
            backoff: self.backoff,
            heartbeat_max: i32::try_from(config.heartbeat_max).unwrap_or(i32::MAX),
        }
    }
}
