//! Removing the sessions of comets that have died.
//!
//! Every logic does it: a comet that leaves the list, by its own word or because its lease has ended, has its sessions removed at once
//! and completely, as long as it is not back. Two logics that do the same do no harm: a session that is its comet's no longer is left
//! alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use goim_adapters::redis::RedisSessions;
use goim_ports::{NodeDirectory, ServerId};

/// Sweeps as long as it is polled; looks at the list every `interval`.
pub(super) async fn run(sessions: RedisSessions, nodes: Arc<dyn NodeDirectory>, interval: Duration) {
    let listed = |nodes: &dyn NodeDirectory| -> BTreeSet<ServerId> {
        nodes.comets().iter().map(|comet| comet.server.clone()).collect()
    };
    let mut known = listed(&*nodes);
    let mut dead: BTreeSet<ServerId> = BTreeSet::new();
    loop {
        tokio::time::sleep(interval).await;
        let now = listed(&*nodes);
        dead.extend(known.difference(&now).cloned());
        dead.retain(|server| !now.contains(server));
        known = now;
        for server in dead.clone() {
            let is_gone = || !nodes.comets().iter().any(|comet| comet.server == server);
            match sessions.sweep(&server, is_gone).await {
                Ok(swept) => {
                    tracing::info!(%server, swept, "the sessions of a comet that has gone are removed");
                    dead.remove(&server);
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "the sessions of a comet that has gone stay for now")
                }
            }
        }
    }
}
