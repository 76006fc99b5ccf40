//! goim's gRPC services of this process's roles, for processes of a cluster.

use std::sync::Arc;

use goim_adapters::grpc::{self, Backoff, NodesFn, NodesReply, Routes, ServerConfig};
use goim_logic::Logic;
use tokio_util::sync::CancellationToken;

use super::bind::Bound;

/// Serves until `stop` is cancelled. A server that ends earlier is a bug here or in the system; the
/// process continues, since its clients do not need the server.
pub(crate) async fn serve(
    name: &'static str,
    bound: Bound,
    config: ServerConfig,
    services: Routes,
    stop: CancellationToken,
) {
    if let Err(error) = grpc::serve(bound.listener, config, services, stop.cancelled_owned()).await {
        tracing::error!(%error, service = name, "a gRPC server ended");
    }
}

/// Answers `Nodes` as the HTTP API answers `/goim/nodes/weighted`.
pub(crate) fn nodes(logic: Arc<Logic>) -> NodesFn {
    Arc::new(move |platform, _client_ip| {
        let reply = logic.weighted_nodes(platform);
        NodesReply {
            domain: reply.domain,
            tcp_port: reply.tcp_port.into(),
            ws_port: reply.ws_port.into(),
            wss_port: reply.wss_port.into(),
            heartbeat: reply.heartbeat,
            nodes: reply.nodes,
            backoff: Some(Backoff {
                max_delay: reply.backoff.max_delay,
                base_delay: reply.backoff.base_delay,
                factor: reply.backoff.factor,
                jitter: reply.backoff.jitter,
            }),
            heartbeat_max: reply.heartbeat_max,
        }
    })
}
