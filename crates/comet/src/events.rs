//! Lifecycle events of sessions, sent to logic in batches until logic has taken them.
//!
//! Shards note events and never wait; one task sends them. While logic does not take them they are
//! queued up to a bound; beyond it new ones are dropped and counted. Events that were not sent are
//! lost with the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, EventKind, LifecycleEvent, LogicPort, Mid, RetryQueue, RetryRules, RoomId, ServerId,
    SessionKey,
};

use crate::config::EventsConfig;

/// Pauses while logic does not take events.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a comet that stops keeps sending.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The events of a comet.
pub(crate) struct Events {
    config: EventsConfig,
    server: ServerId,
    /// Differs between starts, so that ids do.
    epoch: u64,
    next: AtomicU64,
    queue: RetryQueue<LifecycleEvent>,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

impl Events {
    pub(crate) fn new(config: EventsConfig, server: ServerId) -> Self {
        let queue = RetryQueue::new(RetryRules {
            queued_max: config.queued_max,
            batch_max: config.batch_max.get(),
            backoff_min: BACKOFF_MIN,
            backoff_max: BACKOFF_MAX,
        });
        let (next, delivered, dropped) = Default::default();
        Self { config, server, epoch: AcceptedAt::now().0, next, queue, delivered, dropped }
    }

    /// True when events are sent.
    pub(crate) fn are_enabled(&self) -> bool {
        self.config.enabled
    }

    /// Notes an event. Never waits.
    pub(crate) fn note(&self, kind: EventKind, mid: Mid, key: &SessionKey, rooms: Vec<RoomId>, reason: &str) {
        if !self.config.enabled {
            return;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let event = LifecycleEvent {
            id: format!("{}-{}-{number}", self.server, self.epoch),
            kind,
            mid,
            key: key.clone(),
            server: self.server.clone(),
            rooms,
            reason: reason.to_owned(),
            at: AcceptedAt::now(),
        };
        if !self.queue.push(event) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events are queued.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many events logic has taken.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How many events were dropped since the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends events until dropped.
    pub(crate) async fn run(self: Arc<Self>, logic: Arc<dyn LogicPort>) {
        loop {
            tokio::time::sleep(self.config.interval).await;
            while let Some(result) = self.send_batch(&*logic).await {
                if let Err(pause) = result {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Sends what is queued, for a comet that stops.
    pub(crate) async fn flush(&self, logic: &dyn LogicPort) {
        let until = Instant::now() + FLUSH_TIMEOUT;
        while Instant::now() < until {
            match self.send_batch(logic).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(_)) => tokio::time::sleep(BACKOFF_MIN).await,
            }
        }
        tracing::warn!(events = self.queue.len(), "events of sessions could not be delivered");
    }

    /// Sends the oldest events. `None` when there are none.
    ///
    /// # Errors
    /// The pause before the next try, when logic did not take them.
    async fn send_batch(&self, logic: &dyn LogicPort) -> Option<Result<(), Duration>> {
        let batch = self.queue.batch();
        if batch.is_empty() {
            return None;
        }
        let count = batch.len();
        Some(match logic.events(batch).await {
            Ok(()) => {
                self.queue.sent(count);
                self.delivered.fetch_add(count as u64, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, count, "events of sessions were not delivered; retrying");
                Err(self.queue.failed())
            }
        })
    }
}
