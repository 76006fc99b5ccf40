//! goim's gRPC services in front of this process's roles, for processes of a cluster.

use std::future::Future;
use std::sync::Arc;

use goim_adapters::grpc::{self, Backoff, NodesFn, NodesReply, Routes, ServerConfig};
use goim_logic::Logic;

use super::bind::Bound;

/// Serves until `shutdown` is done. A server that ends before has hit a bug of ours or of the system; the rest of the process
/// goes on, since its clients do not need it.
pub(crate) async fn serve(
    name: &'static str,
    bound: Bound,
    config: ServerConfig,
    services: Routes,
    shutdown: impl Future<Output = ()> + Send,
) {
    if let Err(error) = grpc::serve(bound.listener, config, services, shutdown).await {
        tracing::error!(%error, service = name, "a gRPC server has ended");
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
