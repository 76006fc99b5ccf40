//! What a comet tells others from time to time: that it is there, its load, its rooms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{CometNode, NodeDirectory, OnlineReport, RoomCounts};

use crate::shard::Shared;

/// Reports until dropped. A failure is logged once, and the report made again at the next turn.
pub(crate) async fn run(shared: Arc<Shared>, nodes: Arc<dyn NodeDirectory>) {
    let mut well = true;
    loop {
        let began = Instant::now();
        let result = report(&shared, nodes.as_ref()).await;
        match &result {
            Err(error) if well => tracing::warn!(%error, "the comet could not report; it goes on trying"),
            Ok(()) if !well => tracing::info!("the comet reports again"),
            _ => {}
        }
        well = result.is_ok();
        // A map of very many rooms takes its time; reporting must not become the comet's main work.
        let pause = shared.config.report_interval.max(began.elapsed() * 100);
        tokio::time::sleep(pause.max(Duration::from_millis(10))).await;
    }
}

async fn report(shared: &Shared, nodes: &dyn NodeDirectory) -> Result<(), String> {
    nodes.announce(describe(shared)).await.map_err(|error| error.to_string())?;
    let rooms: RoomCounts = Arc::new(shared.census.here());
    let report = OnlineReport { server: shared.server.clone(), rooms: rooms.clone() };
    let totals = shared.logic.renew_online(report).await.map_err(|error| error.to_string())?;
    shared.census.learn(&totals, &rooms);
    Ok(())
}

/// This comet as others see it.
pub(crate) fn describe(shared: &Shared) -> CometNode {
    let node = &shared.config.node;
    CometNode {
        server: shared.server.clone(),
        region: node.region.clone(),
        zone: node.zone.clone(),
        env: node.env.clone(),
        rpc_addrs: node.rpc_addr.iter().map(|addr| format!("grpc://{addr}")).collect(),
        public_addrs: node.public_addrs.clone(),
        weight: node.weight,
        offline: node.offline,
        connections: shared.addresses.connections() as u64,
        addresses: shared.addresses.addresses() as u64,
        latest_timestamp: 0,
    }
}
