//! The lanes of all comets: which one a call goes to, when they are made and when they are forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use goim_ports::{CometPool, ServerId, SessionKey};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::task::JoinSet;

use crate::config::CometConfig;
use crate::lane::{Comet, OpenCall, Request, Stake, Work};
use crate::losses::Losses;
use crate::metrics::Metrics;

/// One lane of each comet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaneId(usize);

/// A call with the lane that it is for.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) server: ServerId,
    pub(crate) lane: LaneId,
    pub(crate) request: Request,
    pub(crate) stake: Stake,
}

/// The lanes of all comets that had something to get.
pub(crate) struct Lanes {
    config: CometConfig,
    pool: Arc<dyn CometPool>,
    metrics: Arc<Metrics>,
    losses: Arc<Losses>,
    hasher: RandomState,
    comets: HashMap<ServerId, CometLanes>,
    workers: JoinSet<()>,
}

struct CometLanes {
    comet: Arc<Comet>,
    /// One for each part of the keys and rooms, and at the end the one for broadcasts.
    queues: Vec<mpsc::UnboundedSender<Work>>,
}

impl Lanes {
    pub(crate) fn new(
        config: CometConfig,
        pool: Arc<dyn CometPool>,
        metrics: Arc<Metrics>,
        losses: Arc<Losses>,
    ) -> Self {
        let (hasher, comets, workers) = Default::default();
        Self { config, pool, metrics, losses, hasher, comets, workers }
    }

    /// The lane of everything that has this name: a key, a room.
    pub(crate) fn lane_of(&self, name: &str) -> LaneId {
        LaneId((self.hasher.hash_one(name) >> 32) as usize % self.config.lanes.get())
    }

    /// The lane of broadcasts.
    pub(crate) fn broadcast_lane(&self) -> LaneId {
        LaneId(self.config.lanes.get())
    }

    /// The keys, sorted by lane; those of one lane stay in order.
    pub(crate) fn split(&self, keys: Vec<SessionKey>) -> Vec<(LaneId, Vec<SessionKey>)> {
        if let [only] = keys.as_slice() {
            return vec![(self.lane_of(only.as_str()), keys)];
        }
        let mut parts: Vec<(LaneId, Vec<SessionKey>)> = Vec::new();
        for key in keys {
            let lane = self.lane_of(key.as_str());
            match parts.iter_mut().find(|(of, _)| *of == lane) {
                Some((_, keys)) => keys.push(key),
                None => parts.push((lane, vec![key])),
            }
        }
        parts
    }

    /// Puts a call into its lane, which is bounded by what may be in flight.
    pub(crate) fn assign(&mut self, assignment: Assignment) {
        let Assignment { server, lane, request, stake } = assignment;
        let lanes = self.lanes_to(&server);
        let work = Work { request, stake, open: OpenCall::new(&lanes.comet) };
        if let Err(SendError(Work { request, stake, .. })) = lanes.queues[lane.0].send(work) {
            // A worker ends early only by a panic: a bug in a port. The comet goes on with new lanes.
            self.metrics.worker_panics.inc();
            tracing::error!(%server, "the worker of a lane has panicked; the comet gets new lanes");
            self.comets.remove(&server);
            self.assign(Assignment { server, lane, request, stake });
        }
    }

    /// True when nothing that was assigned to the comet waits or is under way, and it was not given up.
    pub(crate) fn is_idle(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_none_or(|lanes| lanes.comet.calls.is_zero() && !lanes.comet.is_down())
    }

    /// True when others should not wait for this comet's answers.
    pub(crate) fn is_late(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_some_and(|lanes| lanes.comet.is_late())
    }

    /// True when the comet was given up, and is asked whether it is back.
    pub(crate) fn is_down(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_some_and(|lanes| lanes.comet.is_down())
    }

    /// Gives up the comets that hang.
    pub(crate) fn give_up_hung(&self) {
        self.comets.values().for_each(|lanes| lanes.comet.give_up_if_hung());
    }

    fn lanes_to(&mut self, server: &ServerId) -> &CometLanes {
        self.comets.entry(server.clone()).or_insert_with_key(|server| {
            let (config, metrics) = (self.config.clone(), Arc::clone(&self.metrics));
            let losses = Arc::clone(&self.losses);
            let comet = Comet::new(server.clone(), Arc::clone(&self.pool), config, metrics, losses);
            let queues = (0..=self.config.lanes.get()).map(|_| {
                let (queue, calls) = mpsc::unbounded_channel();
                self.workers.spawn(Arc::clone(&comet).work(calls));
                queue
            });
            CometLanes { queues: queues.collect(), comet }
        })
    }

    /// Forgets comets that have left the pool and for which nothing waits. Not earlier: a comet that comes back gets the
    /// same lanes, so that its order is kept.
    pub(crate) fn forget_gone(&mut self) {
        while self.workers.try_join_next().is_some() {}
        self.comets.retain(|server, lanes| !lanes.comet.calls.is_zero() || self.pool.get(server).is_some());
    }

    /// Takes no more calls and waits until all workers have worked theirs off.
    pub(crate) async fn finish(&mut self) {
        self.comets.clear();
        while self.workers.join_next().await.is_some() {}
    }
}
