//! The directory of a cluster's nodes.

use std::sync::Arc;

use crate::{Call, ServerId};

/// A comet as other nodes see it: goim's discovery instance with its metadata as fields.
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
    /// RPC addresses, as `grpc://host:port`.
    pub rpc_addrs: Vec<String>,
    /// Host names or addresses for clients, without ports.
    pub public_addrs: Vec<String>,
    /// The share of new clients relative to other comets.
    pub weight: i32,
    /// Whether it accepts no new clients.
    pub offline: bool,
    /// Open connections.
    pub connections: u64,
    /// Distinct client addresses.
    pub addresses: u64,
    /// When this record last changed, in nanoseconds since 1970. Set by the directory.
    pub latest_timestamp: i64,
}

/// The list of comets.
pub trait NodeDirectory: Send + Sync {
    /// Adds a comet or replaces its record. A comet repeats this at its report interval; the
    /// directory drops a comet that stops, after a time that depends on the directory.
    fn announce(&self, node: CometNode) -> Call<Result<(), NodeError>>;

    /// Removes a comet from the list.
    fn withdraw(&self, server: ServerId) -> Call<Result<(), NodeError>>;

    /// Returns the current list of comets. Cheap: a snapshot that is updated in the background.
    fn comets(&self) -> Arc<Vec<CometNode>>;
}

/// Why the node directory failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// It could not be reached in time.
    #[error("node directory not available: {0}")]
    Unavailable(String),
}
