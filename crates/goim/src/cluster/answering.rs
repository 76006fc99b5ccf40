//! Asking a comet itself whether it is there, by the way that pushes take.

use std::sync::Arc;
use std::time::Duration;

use goim_adapters::grpc::{ClientConfig, GrpcComet};
use goim_adapters::redis::Answers;
use goim_ports::{Call, CometError, CometNode, CometPort};

/// How long a comet may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// The question. Each has a connection of its own: it is asked of few, and a connection that pushes
/// wait on says nothing.
pub(super) fn answers() -> Answers {
    Arc::new(|node: &CometNode| {
        let config = ClientConfig { call_timeout: DEADLINE, ..ClientConfig::default() };
        let address = node.rpc_addrs.first();
        let Some(Ok(comet)) = address.map(|address| GrpcComet::new(address, config)) else {
            return Call::Ready(false);
        };
        let server = node.server.clone();
        Call::pending(async move {
            match comet.describe().await {
                // Another may have the address now.
                Ok(described) => described.server == server,
                // One of goim's own, or an older one, which does not know the question.
                Err(CometError::Unsupported | CometError::Invalid(_) | CometError::Busy { .. }) => true,
                Err(CometError::Unavailable(_) | CometError::Timeout) => false,
            }
        })
    })
}
