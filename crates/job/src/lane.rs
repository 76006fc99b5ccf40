//! The lanes of all comets: a queue and a worker each.
//!
//! Owns the choice of a lane, and the creation and removal of lanes. The worker itself is in
//! [`comet`]. Invariant: per comet, all pushes to one key, and all pushes to one room, use the same
//! lane.

mod comet;
mod response_watchdog;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use goim_ports::{CometPool, ServerId, SessionKey};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::task::JoinSet;

use crate::config::CometConfig;
use crate::delivery::{Delivery, Push};
use crate::losses::Losses;
use crate::metrics::Metrics;
use comet::Comet;

/// The lanes of all comets that had a delivery.
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
    /// The lanes of keys and rooms, then the one of broadcasts.
    queues: Vec<mpsc::UnboundedSender<Delivery>>,
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

    /// Returns the lane of a key or a room.
    fn lane_of_name(&self, name: &str) -> usize {
        (self.hasher.hash_one(name) >> 32) as usize % self.config.lanes.get()
    }

    /// Returns the lane of a push. All keys of a push to keys share a lane, see [`Lanes::split`].
    fn lane_of(&self, push: &Push) -> usize {
        match push {
            Push::Keys(push) => self.lane_of_name(push.keys.first().map_or("", SessionKey::as_str)),
            Push::Room(push) => self.lane_of_name(push.room.as_str()),
            Push::All(_) => self.config.lanes.get(),
        }
    }

    /// Splits keys by lane. The keys of one lane stay in order.
    pub(crate) fn split(&self, keys: Vec<SessionKey>) -> Vec<Vec<SessionKey>> {
        if keys.len() == 1 {
            return vec![keys];
        }
        let mut parts: Vec<(usize, Vec<SessionKey>)> = Vec::new();
        for key in keys {
            let lane = self.lane_of_name(key.as_str());
            match parts.iter_mut().find(|(of, _)| *of == lane) {
                Some((_, keys)) => keys.push(key),
                None => parts.push((lane, vec![key])),
            }
        }
        parts.into_iter().map(|(_, keys)| keys).collect()
    }

    /// Queues a delivery in its lane. The queue itself is unbounded: the in-flight limit bounds it.
    pub(crate) fn enqueue(&mut self, mut delivery: Delivery) {
        let lane = self.lane_of(&delivery.push);
        let lanes = self.lanes_to(&delivery.server);
        delivery.open = Some(lanes.comet.calls().open());
        if let Err(SendError(delivery)) = lanes.queues[lane].send(delivery) {
            // A worker ends early only by a panic, which is a bug in a port. The comet gets new
            // lanes; the other workers empty their old queues and end.
            self.metrics.worker_panics.inc();
            tracing::error!(server = %delivery.server, "lane worker panicked; the comet gets new lanes");
            self.comets.remove(&delivery.server);
            self.enqueue(delivery);
        }
    }

    /// Returns whether no delivery to the comet is queued or in flight, and the comet is not down.
    pub(crate) fn is_idle(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_none_or(|lanes| lanes.comet.calls().is_zero() && !lanes.comet.is_down())
    }

    /// Returns whether other comets should not wait for this one.
    pub(crate) fn is_slow(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_some_and(|lanes| lanes.comet.is_slow())
    }

    /// Returns whether the comet is down and being probed.
    pub(crate) fn is_down(&self, server: &ServerId) -> bool {
        self.comets.get(server).is_some_and(|lanes| lanes.comet.is_down())
    }

    /// Marks the comets that hang as down.
    pub(crate) fn mark_hung_down(&self) {
        self.comets.values().for_each(|lanes| lanes.comet.mark_down_if_hung());
    }

    fn lanes_to(&mut self, server: &ServerId) -> &CometLanes {
        self.comets.entry(server.clone()).or_insert_with_key(|server| {
            let (config, metrics) = (self.config.clone(), Arc::clone(&self.metrics));
            let losses = Arc::clone(&self.losses);
            let comet = Comet::new(server.clone(), Arc::clone(&self.pool), config, metrics, losses);
            let queues = (0..=self.config.lanes.get()).map(|_| {
                let (queue, deliveries) = mpsc::unbounded_channel();
                self.workers.spawn(Arc::clone(&comet).run_lane(deliveries));
                queue
            });
            CometLanes { queues: queues.collect(), comet }
        })
    }

    /// Removes the lanes of comets that left the pool, once they are empty.
    ///
    /// Not earlier: a comet that returns must get the same lanes, or its order would be lost.
    pub(crate) fn remove_departed(&mut self) {
        while self.workers.try_join_next().is_some() {}
        self.comets.retain(|server, lanes| !lanes.comet.calls().is_zero() || self.pool.get(server).is_some());
    }

    /// Closes all lanes and waits until their workers have emptied them.
    pub(crate) async fn drain(&mut self) {
        self.comets.clear();
        while self.workers.join_next().await.is_some() {}
    }
}
