//! Where the nodes of a cluster find each other.

use std::sync::Arc;

use crate::{Call, ServerId};

/// A comet as others see it: goim's discovery instance with its metadata as fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CometNode {
    /// The comet's name.
    pub server: ServerId,
    /// Region, for example `sh`; may be empty.
    pub region: String,
    /// Zone inside the region, for example `sh001`; may be empty.
    pub zone: String,
    /// Deployment environment, for example `dev`; may be empty.
    pub env: String,
    /// Where its RPC is reached, as `grpc://host:port`.
    pub rpc_addrs: Vec<String>,
    /// Where clients reach it: host names or addresses, no port.
    pub public_addrs: Vec<String>,
    /// Share of new clients relative to other comets.
    pub weight: i32,
    /// True when it takes no new clients.
    pub offline: bool,
    /// Connections held.
    pub connections: u64,
    /// Distinct client addresses among them.
    pub addresses: u64,
    /// When this record last changed, in nanoseconds since 1970. Set by the directory.
    pub latest_timestamp: i64,
}

/// The list of comets.
pub trait NodeDirectory: Send + Sync {
    /// Enters a comet or replaces its record. A comet repeats this at its report interval; one that stops is dropped
    /// after a time that the directory knows.
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>>;

    /// Takes a comet off the list.
    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>>;

    /// The comets known at this moment. Cheap: a snapshot that is kept up to date behind the call.
    fn comets(&self) -> Arc<Vec<CometNode>>;
}

/// Why the node directory did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// It could not be reached in time.
    #[error("node directory not available: {0}")]
    Unavailable(String),
}
