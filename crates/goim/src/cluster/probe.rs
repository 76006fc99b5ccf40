//! Asks a comet whether it is alive, over the gRPC service that pushes use.

use std::sync::Arc;
use std::time::Duration;

use goim_adapters::grpc::{ClientConfig, GrpcComet};
use goim_adapters::redis::CometProbe;
use goim_ports::{Call, CometError, CometNode, CometPort};

/// The maximum time for the answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the probe. Each call opens a connection: probes are rare, and a connection on which
/// pushes are stuck proves nothing.
pub(super) fn answers() -> CometProbe {
    Arc::new(|node: &CometNode| {
        let config = ClientConfig { call_timeout: TIMEOUT, ..ClientConfig::default() };
        let address = node.rpc_addrs.first();
        let Some(Ok(comet)) = address.map(|address| GrpcComet::new(address, config)) else {
            return Call::Ready(false);
        };
        let server = node.server.clone();
        Call::pending(async move {
            match comet.describe().await {
                // Another comet may have the address now.
                Ok(described) => described.server == server,
                // One of goim's own, or an older one, which does not know the call.
                Err(CometError::Unsupported | CometError::Invalid(_) | CometError::Busy { .. }) => true,
                Err(CometError::Unavailable(_) | CometError::Timeout) => false,
            }
        })
    })
}
