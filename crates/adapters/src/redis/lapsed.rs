//! Comets whose leases are over.
//!
//! A lease ends when its comet dies, and also when Redis could not be written to, or was away. So
//! whoever reads the list asks the comet itself: one that answers is there. One that does not is
//! gone at once while all was well with Redis, since then nobody but the comet kept the lease from
//! being renewed; otherwise when it has been silent for a lease. It is asked again as long as it
//! has no lease: one that was only cut off comes back by itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use goim_ports::{Call, CometNode, ServerId};
use tokio::time::timeout;

/// Asks a comet, at its address, whether it is there: true when it answers, whatever it says.
pub type Answers = Arc<dyn Fn(&CometNode) -> Call<bool> + Send + Sync>;

/// How long a comet may take to answer.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How long it is left alone between two questions; a third of the lease where that is less.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Comets that are asked at once. Others wait their turn, and count as there meanwhile.
const ASKED_MAX: usize = 64;

/// What is known of comets without a lease.
pub(super) struct Lapsed {
    answers: Option<Answers>,
    lease: Duration,
    comets: HashMap<ServerId, Comet>,
}

struct Comet {
    /// When it was last known to be there: found without a lease, or answering.
    heard: Instant,
    asked: Option<Instant>,
    /// Of the question that is out.
    answer: Option<Arc<OnceLock<bool>>>,
    has_answered: bool,
    is_gone: bool,
}

impl Lapsed {
    /// Without `answers` a comet without a lease is gone, unless Redis has just lost what it had.
    pub(super) fn new(answers: Option<Answers>, lease: Duration) -> Self {
        Self { answers, lease, comets: HashMap::new() }
    }

    /// Divides comets without a lease into those that stay and those that have gone. `is_calm` says
    /// that Redis has been well for a lease; `keeps` that none is to be taken for gone. Forgets all
    /// others.
    pub(super) fn judge(
        &mut self,
        comets: Vec<CometNode>,
        is_calm: bool,
        keeps: bool,
    ) -> (Vec<CometNode>, Vec<CometNode>) {
        let servers: HashSet<&ServerId> = comets.iter().map(|comet| &comet.server).collect();
        self.comets.retain(|server, _| servers.contains(server));
        let mut asking = self.comets.values().filter(|comet| comet.answer.is_some()).count();
        let Some(answers) = self.answers.clone() else {
            return if keeps { (comets, Vec::new()) } else { (Vec::new(), comets) };
        };
        comets.into_iter().partition(|node| {
            let comet = self.comets.entry(node.server.clone()).or_insert_with(Comet::new);
            comet.take_answer(&node.server, is_calm, self.lease);
            if comet.is_due(self.lease) && asking < ASKED_MAX {
                asking += 1;
                comet.ask(&answers, node);
            }
            keeps || !comet.is_gone
        })
    }

    /// True when no question is out.
    pub(super) fn is_settled(&self) -> bool {
        self.comets.values().all(|comet| comet.answer.as_ref().is_none_or(|answer| answer.get().is_some()))
    }
}

impl Comet {
    fn new() -> Self {
        let (asked, answer, has_answered, is_gone) = Default::default();
        Self { heard: Instant::now(), asked, answer, has_answered, is_gone }
    }

    fn is_due(&self, lease: Duration) -> bool {
        let pause = ASK_INTERVAL.min(lease / 3);
        self.answer.is_none() && self.asked.is_none_or(|asked| asked.elapsed() >= pause)
    }

    fn ask(&mut self, answers: &Answers, node: &CometNode) {
        let said = Arc::new(OnceLock::new());
        (self.asked, self.answer) = (Some(Instant::now()), Some(Arc::clone(&said)));
        let question = answers(node);
        tokio::spawn(async move {
            // Nobody else sets it.
            let _ = said.set(timeout(ASK_DEADLINE, question).await.unwrap_or(false));
        });
    }

    fn take_answer(&mut self, server: &ServerId, is_calm: bool, lease: Duration) {
        let Some(answers) = self.answer.as_ref().and_then(|answer| answer.get().copied()) else { return };
        self.answer = None;
        if answers {
            if !self.has_answered || self.is_gone {
                tracing::warn!(%server, "the lease of a comet is over, but it answers: it stays on the list");
            }
            (self.heard, self.has_answered, self.is_gone) = (Instant::now(), true, false);
        } else if !self.is_gone && (is_calm || self.heard.elapsed() >= lease) {
            tracing::info!(%server, "a comet has no lease and does not answer: it is gone");
            self.is_gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// The names that stay when `names` have no lease.
    fn stay(lapsed: &mut Lapsed, names: &[&str], is_calm: bool) -> Vec<String> {
        let comets = names.iter().map(|name| conformance::node(name)).collect();
        lapsed.judge(comets, is_calm, false).0.iter().map(|comet| comet.server.to_string()).collect()
    }

    async fn settle(lapsed: &Lapsed) {
        while !lapsed.is_settled() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_answers_stays_and_who_does_not_goes_at_once_when_all_is_well() {
        let is_there = Arc::new(AtomicBool::new(true));
        let of_alive = Arc::clone(&is_there);
        let answers: Answers = Arc::new(move |node| {
            Call::Ready(node.server.as_str() == "alive" && of_alive.load(Ordering::Relaxed))
        });
        let mut lapsed = Lapsed::new(Some(answers), Duration::from_millis(30));
        assert_eq!(stay(&mut lapsed, &["alive", "dead"], true), ["alive", "dead"], "they are asked first");
        settle(&lapsed).await;
        assert_eq!(stay(&mut lapsed, &["alive", "dead"], true), ["alive"]);
        // It is asked again, and goes when it ends.
        is_there.store(false, Ordering::Relaxed);
        let began = Instant::now();
        while !stay(&mut lapsed, &["alive", "dead"], true).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&lapsed).await;
        }
        // One that was taken for gone and answers is back.
        is_there.store(true, Ordering::Relaxed);
        while stay(&mut lapsed, &["alive", "dead"], true) != ["alive"] {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&lapsed).await;
        }
    }

    #[tokio::test]
    async fn in_trouble_one_must_be_silent_for_a_lease() {
        let asked = Arc::new(AtomicUsize::new(0));
        let of_all = Arc::clone(&asked);
        let answers: Answers = Arc::new(move |_| {
            of_all.fetch_add(1, Ordering::Relaxed);
            Call::Ready(false)
        });
        let lease = Duration::from_millis(200);
        let mut lapsed = Lapsed::new(Some(answers), lease);
        let began = Instant::now();
        while !stay(&mut lapsed, &["dead"], false).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10));
            settle(&lapsed).await;
        }
        assert!(began.elapsed() >= lease && asked.load(Ordering::Relaxed) >= 2, "{:?}", began.elapsed());
    }
}
