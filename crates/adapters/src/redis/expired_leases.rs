//! Comets whose leases have expired.
//!
//! A lease expires when its comet dies, and also when Redis could not be written or reached. So
//! each reader of the list probes the comet itself; one that responds stays listed. One that does
//! not is removed immediately if Redis was healthy, since then only the comet can have missed the
//! renewal; otherwise after it has been silent for a lease. Probes continue while it has no lease,
//! so a comet that was only cut off returns by itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use goim_ports::{Call, CometNode, ServerId};
use tokio::time::timeout;

/// Probes a comet at its address: true when it responds, whatever the response.
pub type CometProbe = Arc<dyn Fn(&CometNode) -> Call<bool> + Send + Sync>;

/// The timeout of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two probes of a comet; at most a third of the lease.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum number of concurrent probes. Further comets wait their turn, and stay listed
/// meanwhile.
const PROBES_MAX: usize = 64;

/// The comets without a lease.
pub(super) struct ExpiredLeases {
    probe: Option<CometProbe>,
    lease: Duration,
    comets: HashMap<ServerId, Comet>,
}

struct Comet {
    /// When it was last known to be alive: found without a lease, or responding.
    last_seen: Instant,
    probed_at: Option<Instant>,
    /// The result of the pending probe.
    response: Option<Arc<OnceLock<bool>>>,
    has_responded: bool,
    is_removed: bool,
}

impl ExpiredLeases {
    /// Without a `probe`, a comet without a lease is removed, unless Redis has just lost its data.
    pub(super) fn new(probe: Option<CometProbe>, lease: Duration) -> Self {
        Self { probe, lease, comets: HashMap::new() }
    }

    /// Divides comets without a lease into those to list and those to remove, and forgets all
    /// others. `is_healthy`: Redis has been healthy for a lease; `keep_all`: none may be removed.
    pub(super) fn classify(
        &mut self,
        comets: Vec<CometNode>,
        is_healthy: bool,
        keep_all: bool,
    ) -> (Vec<CometNode>, Vec<CometNode>) {
        let servers: HashSet<&ServerId> = comets.iter().map(|comet| &comet.server).collect();
        self.comets.retain(|server, _| servers.contains(server));
        let mut probing = self.comets.values().filter(|comet| comet.response.is_some()).count();
        let Some(probe) = self.probe.clone() else {
            return if keep_all { (comets, Vec::new()) } else { (Vec::new(), comets) };
        };
        comets.into_iter().partition(|node| {
            let comet = self.comets.entry(node.server.clone()).or_insert_with(Comet::new);
            comet.apply_response(&node.server, is_healthy, self.lease);
            if comet.is_due(self.lease) && probing < PROBES_MAX {
                probing += 1;
                comet.probe(&probe, node);
            }
            keep_all || !comet.is_removed
        })
    }

    /// Returns whether no probe is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.comets
            .values()
            .all(|comet| comet.response.as_ref().is_none_or(|response| response.get().is_some()))
    }
}

impl Comet {
    fn new() -> Self {
        let (probed_at, response, has_responded, is_removed) = Default::default();
        Self { last_seen: Instant::now(), probed_at, response, has_responded, is_removed }
    }

    fn is_due(&self, lease: Duration) -> bool {
        let pause = PROBE_INTERVAL.min(lease / 3);
        self.response.is_none() && self.probed_at.is_none_or(|probed_at| probed_at.elapsed() >= pause)
    }

    fn probe(&mut self, probe: &CometProbe, node: &CometNode) {
        let result = Arc::new(OnceLock::new());
        (self.probed_at, self.response) = (Some(Instant::now()), Some(Arc::clone(&result)));
        let call = probe(node);
        tokio::spawn(async move {
            // No other task sets it.
            let _ = result.set(timeout(PROBE_TIMEOUT, call).await.unwrap_or(false));
        });
    }

    fn apply_response(&mut self, server: &ServerId, is_healthy: bool, lease: Duration) {
        let Some(is_alive) = self.response.as_ref().and_then(|response| response.get().copied()) else {
            return;
        };
        self.response = None;
        if is_alive {
            if !self.has_responded || self.is_removed {
                tracing::warn!(%server, "the lease of a comet has expired, but it responds; it stays on the list");
            }
            (self.last_seen, self.has_responded, self.is_removed) = (Instant::now(), true, false);
        } else if !self.is_removed && (is_healthy || self.last_seen.elapsed() >= lease) {
            tracing::info!(%server, "a comet has no lease and does not respond; it is removed from the list");
            self.is_removed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Returns the listed names when `names` have no lease.
    fn stay(expired: &mut ExpiredLeases, names: &[&str], is_healthy: bool) -> Vec<String> {
        let comets = names.iter().map(|name| conformance::node(name)).collect();
        expired.classify(comets, is_healthy, false).0.iter().map(|comet| comet.server.to_string()).collect()
    }

    async fn settle(expired: &ExpiredLeases) {
        while !expired.is_idle() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_answers_stays_and_who_does_not_goes_at_once_when_all_is_well() {
        let is_there = Arc::new(AtomicBool::new(true));
        let of_alive = Arc::clone(&is_there);
        let probe: CometProbe = Arc::new(move |node| {
            Call::Ready(node.server.as_str() == "alive" && of_alive.load(Ordering::Relaxed))
        });
        let mut expired = ExpiredLeases::new(Some(probe), Duration::from_millis(30));
        assert_eq!(
            stay(&mut expired, &["alive", "dead"], true),
            ["alive", "dead"],
            "they are probed_at first"
        );
        settle(&expired).await;
        assert_eq!(stay(&mut expired, &["alive", "dead"], true), ["alive"]);
        // It is probed again, and removed when it ends.
        is_there.store(false, Ordering::Relaxed);
        let began = Instant::now();
        while !stay(&mut expired, &["alive", "dead"], true).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&expired).await;
        }
        // A removed one that responds is listed again.
        is_there.store(true, Ordering::Relaxed);
        while stay(&mut expired, &["alive", "dead"], true) != ["alive"] {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&expired).await;
        }
    }

    #[tokio::test]
    async fn in_trouble_one_must_be_silent_for_a_lease() {
        let probed_at = Arc::new(AtomicUsize::new(0));
        let of_all = Arc::clone(&probed_at);
        let probe: CometProbe = Arc::new(move |_| {
            of_all.fetch_add(1, Ordering::Relaxed);
            Call::Ready(false)
        });
        let lease = Duration::from_millis(200);
        let mut expired = ExpiredLeases::new(Some(probe), lease);
        let began = Instant::now();
        while !stay(&mut expired, &["dead"], false).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&expired).await;
        }
        assert!(began.elapsed() >= lease && probed_at.load(Ordering::Relaxed) >= 2, "{:?}", began.elapsed());
    }
}
