//! What happens to sessions, told to logic in batches until logic has it.
//!
//! Shards note events and never wait; a task tells them. What cannot be told waits here, up to a bound; beyond it what is new is
//! dropped and counted. A comet that dies takes with it what it has not told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use goim_ports::{AcceptedAt, EventKind, LifecycleEvent, LogicPort, Mid, RoomId, ServerId, SessionKey};

use crate::config::EventsConfig;

/// Pauses between tries while logic does not take events.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a comet that stops goes on telling.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The events of a comet.
pub(crate) struct Events {
    config: EventsConfig,
    server: ServerId,
    /// Another one for each start.
    epoch: u64,
    next: AtomicU64,
    waiting: Mutex<VecDeque<LifecycleEvent>>,
    pub(crate) told: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

impl Events {
    pub(crate) fn new(config: EventsConfig, server: ServerId) -> Self {
        let (next, waiting, told, dropped) = Default::default();
        Self { config, server, epoch: AcceptedAt::now().0, next, waiting, told, dropped }
    }

    /// True when somebody wants to know.
    pub(crate) fn are_wanted(&self) -> bool {
        self.config.enabled
    }

    /// Notes what has happened to a session.
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
        let mut waiting = self.waiting();
        if waiting.len() < self.config.waiting_max {
            waiting.push_back(event);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that are not told yet.
    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting().len()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<LifecycleEvent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells events until dropped.
    pub(crate) async fn run(self: Arc<Self>, logic: Arc<dyn LogicPort>) {
        let mut retry = RETRY_MIN;
        loop {
            tokio::time::sleep(self.config.interval).await;
            while let Some(told) = self.tell_some(&*logic).await {
                if told {
                    retry = RETRY_MIN;
                    continue;
                }
                tokio::time::sleep(retry).await;
                retry = RETRY_MAX.min(retry * 2);
            }
        }
    }

    /// Tells what is left, for a comet that stops.
    pub(crate) async fn last_words(&self, logic: &dyn LogicPort) {
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until {
            match self.tell_some(logic).await {
                None => return,
                Some(true) => {}
                Some(false) => tokio::time::sleep(RETRY_MIN).await,
            }
        }
        tracing::warn!(events = self.waiting_len(), "events of sessions could not be told");
    }

    /// Tells the first events; `None` when there are none, else whether logic has taken them.
    async fn tell_some(&self, logic: &dyn LogicPort) -> Option<bool> {
        let batch: Vec<LifecycleEvent> =
            self.waiting().iter().take(self.config.batch_max.get()).cloned().collect();
        if batch.is_empty() {
            return None;
        }
        let count = batch.len();
        match logic.events(batch).await {
            Ok(()) => {
                // Only this task takes events out.
                self.waiting().drain(..count);
                self.told.fetch_add(count as u64, Ordering::Relaxed);
                Some(true)
            }
            Err(error) => {
                tracing::debug!(%error, count, "events of sessions are told again");
                Some(false)
            }
        }
    }
}
