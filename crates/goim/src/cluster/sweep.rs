//! Removing the sessions of comets that have died.
//!
//! Every logic does it: a comet that leaves the list, by its own word or because its lease has
//! ended, has its sessions removed at once and completely, as long as it is not back and does not
//! answer when it is asked. Two logics that do the same do no harm: a session that is its comet's
//! no longer is left alone.
//!
//! While Redis refuses writes or is silent, and for a lease behind that, nothing is removed: comets
//! could not say that they are there, and what is removed could not be entered again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_adapters::redis::{CometProbe, RedisSessions};
use goim_ports::{CometNode, NodeDirectory, ServerId};

/// How long a comet that has left the list and answers is left alone.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// A comet that is not on the list any more.
#[derive(Clone)]
struct Gone {
    node: CometNode,
    answered: Option<Instant>,
}

/// Sweeps as long as it is polled; looks at the list every `interval`.
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
    let mut gone: BTreeMap<ServerId, Gone> = BTreeMap::new();
    loop {
        tokio::time::sleep(interval).await;
        let now = listed(&*nodes);
        for (server, node) in known {
            if !now.contains_key(&server) {
                gone.entry(server).or_insert(Gone { node, answered: None });
            }
        }
        gone.retain(|server, _| !now.contains_key(server));
        known = now;
        if !sessions.is_trusted() {
            continue;
        }
        for (server, comet) in gone.clone() {
            if comet.answered.is_some_and(|at| at.elapsed() < ASK_INTERVAL) {
                continue;
            }
            if answers(&comet.node).await {
                gone.insert(server, Gone { answered: Some(Instant::now()), ..comet });
                continue;
            }
            let goes_on =
                || sessions.is_trusted() && !nodes.comets().iter().any(|comet| comet.server == server);
            match sessions.sweep(&server, goes_on).await {
                // Stopped on the way: what is left is looked at again.
                Ok(_) if !sessions.is_trusted() => {}
                Ok(swept) => {
                    tracing::info!(%server, swept, "the sessions of a comet that has gone are removed");
                    gone.remove(&server);
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "the sessions of a comet that has gone stay for now")
                }
            }
        }
    }
}
