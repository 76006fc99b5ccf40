//! Removes the sessions of comets that have failed.
//!
//! Every logic does this. When a comet leaves the list, deliberately or because its lease ended,
//! its sessions are removed immediately and completely, unless it has returned or answers a probe.
//! Several logics may do it at the same time: a session that has moved to another comet is not
//! removed.
//!
//! While Redis rejects writes or does not answer, and for one lease after that, nothing is removed:
//! comets could not renew their leases, and removed sessions could not be registered again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::redis::{CometProbe, RedisSessions};
use goim_ports::{CometNode, NodeDirectory, ServerId};

/// Between two probes of a comet that has left the list and answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A comet that has left the list.
#[derive(Clone)]
struct Unlisted {
    node: CometNode,
    answered: Option<Instant>,
}

/// Sweeps as long as it is polled; reads the list every `interval`.
pub(super) async fn run(
    sessions: RedisSessions,
    nodes: Arc<dyn NodeDirectory>,
    answers: CometProbe,
    interval: Duration,
) {
    let listed = |nodes: &dyn NodeDirectory| -> BTreeMap<ServerId, CometNode> {
        nodes.comets().iter().map(|comet| (comet.server.clone(), comet.clone())).collect()
    };
    let mut known = listed(&*nodes);
    let mut unlisted: BTreeMap<ServerId, Unlisted> = BTreeMap::new();
    loop {
        tokio::time::sleep(interval).await;
        let now = listed(&*nodes);
        for (server, node) in known {
            if !now.contains_key(&server) {
                unlisted.entry(server).or_insert(Unlisted { node, answered: None });
            }
        }
        unlisted.retain(|server, _| !now.contains_key(server));
        known = now;
        if !sessions.is_trusted() {
            continue;
        }
        for (server, comet) in unlisted.clone() {
            if comet.answered.is_some_and(|at| at.elapsed() < PROBE_INTERVAL) {
                continue;
            }
            if answers(&comet.node).await {
                unlisted.insert(server, Unlisted { answered: Some(Instant::now()), ..comet });
                continue;
            }
            let may_continue =
                || sessions.is_trusted() && !nodes.comets().iter().any(|comet| comet.server == server);
            match sessions.sweep(&server, may_continue).await {
                // Interrupted: the rest is removed in the next round.
                Ok(_) if !sessions.is_trusted() => {}
                Ok(swept) => {
                    tracing::info!(%server, swept, "removed the sessions of a failed comet");
                    unlisted.remove(&server);
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "cannot remove the sessions of a failed comet; retrying")
                }
            }
        }
    }
}
