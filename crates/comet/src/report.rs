//! What a comet tells others from time to time: that it is there, its load, its rooms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{CometNode, NodeDirectory, OnlineReport, RoomCounts};

use crate::shard::Shared;

/// Says until dropped that the comet is there. Apart from the rooms: a lease must not end because a logic is slow.
pub(crate) async fn announce(shared: Arc<Shared>, nodes: Arc<dyn NodeDirectory>) {
    let mut word = Word::new("announce itself");
    loop {
        word.ends(nodes.announce(describe(&shared)).await);
        tokio::time::sleep(shared.config.report_interval.max(INTERVAL_MIN)).await;
    }
}

/// Reports the rooms until dropped. `confirm` has all sessions entered in the directory again.
pub(crate) async fn run(shared: Arc<Shared>, confirm: impl Fn()) {
    let mut generation = None;
    let mut word = Word::new("report its rooms");
    let mut taken = Instant::now();
    loop {
        let began = Instant::now();
        let rooms: RoomCounts = Arc::new(shared.census.here());
        let mut worked = began.elapsed();
        let report = OnlineReport { server: shared.server.clone(), rooms: rooms.clone() };
        let totals = shared.logic.renew_online(report).await;
        let began = Instant::now();
        if let Ok(totals) = &totals {
            shared.census.learn(&totals.rooms, &rooms);
            if totals.generation.is_some() {
                let before = std::mem::replace(&mut generation, totals.generation.clone());
                if before.is_some_and(|before| Some(before) != generation) {
                    tracing::warn!(
                        "the directory may have lost sessions of this comet; it enters them again"
                    );
                    confirm();
                }
            }
            if taken.elapsed() >= RECORDS_LIVE {
                tracing::warn!("no report was taken for long; the comet enters its sessions again");
                confirm();
            }
            taken = Instant::now();
        }
        worked += began.elapsed();
        word.ends(totals);
        // A map of very many rooms takes its time; reporting must not become the comet's main work.
        let pause = shared.config.report_interval.max(worked * 100);
        tokio::time::sleep(pause.max(INTERVAL_MIN)).await;
    }
}

/// After so long without a report that was taken, records of sessions may have expired that nobody
/// could renew.
const RECORDS_LIVE: Duration = Duration::from_secs(10 * 60);

/// The shortest pause, whatever is configured.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Says once that something fails and once that it works again; it is tried again at the next turn.
struct Word {
    what: &'static str,
    well: bool,
}

impl Word {
    fn new(what: &'static str) -> Self {
        Self { what, well: true }
    }

    fn ends<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) {
        match &result {
            Err(error) if self.well => {
                tracing::warn!(%error, "the comet could not {}; it goes on trying", self.what);
            }
            Ok(_) if !self.well => tracing::info!("the comet can {} again", self.what),
            _ => {}
        }
        self.well = result.is_ok();
    }
}

/// This comet as others see it.
pub(crate) fn describe(shared: &Shared) -> CometNode {
    CometNode {
        connections: shared.addresses.connections() as u64,
        addresses: shared.addresses.addresses() as u64,
        ..shared.config.node.described()
    }
}
