//! Which comets a client should go to, and everything else that it has to know to connect.

use goim_ports::CometNode;

use crate::{Backoff, Logic};

/// How many comets a client is told of.
const NODES_MAX: usize = 5;

/// What a client is told: the answer of `/goim/nodes/weighted` and of goim's RPC `Nodes`.
#[derive(Debug, Clone, PartialEq)]
pub struct NodesReply {
    /// Where to go when no node can be reached.
    pub domain: String,
    /// TCP port of every node.
    pub tcp_port: u16,
    /// WebSocket port of every node.
    pub ws_port: u16,
    /// Port for WebSocket inside TLS of every node.
    pub wss_port: u16,
    /// How often to send a heartbeat, in whole seconds.
    pub heartbeat: i32,
    /// Host names or addresses, the best first; never empty.
    pub nodes: Vec<String>,
    /// How to come back after a loss.
    pub backoff: Backoff,
    /// How many heartbeats may be missing before the session ends.
    pub heartbeat_max: i32,
}

impl Logic {
    /// The comets that a client on `platform` should go to. `web` gets domains, for the sake of certificates; every
    /// other platform gets the comets' public addresses.
    ///
    /// Each call counts as one client more on the comet that it names first, until that comet reports.
    #[must_use]
    pub fn weighted_nodes(&self, platform: &str) -> NodesReply {
        let config = &self.config;
        let mut nodes = Vec::new();
        let offered =
            self.balancer.choose(&self.nodes.comets(), self.client_region(), config.node.region_weight);
        for comet in offered.iter().take(NODES_MAX) {
            if platform == "web" {
                nodes.push([comet.server.as_str(), &config.node.host_domain].concat());
            } else {
                nodes.extend(comet.public_addrs.iter().filter(|addr| !addr.is_empty()).cloned());
            }
        }
        if nodes.is_empty() {
            nodes.push(config.node.default_domain.clone());
        }
        NodesReply {
            domain: config.node.default_domain.clone(),
            tcp_port: config.node.tcp_port,
            ws_port: config.node.ws_port,
            wss_port: config.node.wss_port,
            heartbeat: i32::try_from(config.node.heartbeat.as_secs()).unwrap_or(i32::MAX),
            nodes,
            backoff: config.backoff,
            heartbeat_max: i32::try_from(config.node.heartbeat_max).unwrap_or(i32::MAX),
        }
    }

    /// The comets that take clients, in the order of the directory.
    #[must_use]
    pub fn instances(&self) -> Vec<CometNode> {
        self.nodes.comets().iter().filter(|comet| !comet.offline).cloned().collect()
    }

    /// A client's region. Where a client is cannot be told from its address, here as little as in goim: its province
    /// is `""`, and unless a region claims that one, so is its region.
    fn client_region(&self) -> &str {
        let claims = |provinces: &Vec<String>| provinces.iter().any(String::is_empty);
        self.config.regions.iter().find(|(_, provinces)| claims(provinces)).map_or("", |(region, _)| region)
    }
}
