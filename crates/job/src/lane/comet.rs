//! One comet as its lanes share it, and the worker of a lane: one call after the other.
//!
//! A call that fails or times out is repeated a few times. Then the comet is *down* for all its
//! lanes: deliveries to it fail immediately until it answers a probe. The probe is a harmless
//! query, so that neither a message nor a lane is risked to find out. A comet that hangs is marked
//! down earlier, when the in-flight limit is reached: other comets must not wait for it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use goim_ports::{Call, CometError, CometPool, CometPort, KeyPush, ServerId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::response_watchdog::ResponseWatchdog;
use crate::completion::OpenCalls;
use crate::config::CometConfig;
use crate::delivery::{Delivery, Push};
use crate::losses::{self, Losses};
use crate::metrics::{Metrics, Outcome};

/// The maximum number of pushes in one call.
const GROUP_MAX: usize = 256;
/// The maximum size of one call with several pushes, in bytes: well below the 4 MiB that a server
/// accepts.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// How long a comet without the grouped call gets single pushes. It may be upgraded in the
/// meantime.
const SINGLES_FOR: Duration = Duration::from_secs(60);

/// One comet.
pub(super) struct Comet {
    server: ServerId,
    pool: Arc<dyn CometPool>,
    config: CometConfig,
    metrics: Arc<Metrics>,
    calls: Arc<OpenCalls>,
    watchdog: ResponseWatchdog,
    /// The comet gets single pushes until then.
    singles_until: Mutex<Option<Instant>>,
    down: watch::Sender<bool>,
    losses: Arc<Losses>,
}

impl Comet {
    pub(super) fn new(
        server: ServerId,
        pool: Arc<dyn CometPool>,
        config: CometConfig,
        metrics: Arc<Metrics>,
        losses: Arc<Losses>,
    ) -> Arc<Self> {
        let (singles_until, down) = Default::default();
        let calls = OpenCalls::new(metrics.lane_calls.clone());
        let watchdog = ResponseWatchdog::new();
        Arc::new(Self { server, pool, config, metrics, calls, watchdog, singles_until, down, losses })
    }

    /// The calls that are queued in its lanes or in flight.
    pub(super) fn calls(&self) -> &Arc<OpenCalls> {
        &self.calls
    }

    /// Works until the lane's queue is closed and empty.
    ///
    /// One call is in flight at a time: the next begins when the previous one is answered or given
    /// up. This alone keeps the order per key and room, whatever the transport below does.
    pub(super) async fn run_lane(self: Arc<Self>, mut queue: mpsc::UnboundedReceiver<Delivery>) {
        let mut waiting = Vec::new();
        while queue.recv_many(&mut waiting, GROUP_MAX).await > 0 {
            for group in in_groups(waiting.drain(..)) {
                self.deliver_group(group).await;
            }
        }
    }

    /// Delivers a group in one call if the comet supports it: over a network a call costs far more
    /// than its content.
    async fn deliver_group(self: &Arc<Self>, group: Vec<Delivery>) {
        if group.len() > 1 && self.accepts_groups() {
            let outcome = self.deliver(&group).await;
            if outcome != Outcome::Refused {
                group.into_iter().for_each(|delivery| self.complete(delivery, outcome));
                return;
            }
            // The comet does not have the call, or one of the pushes is invalid: single pushes find
            // out.
        }
        for delivery in group {
            let outcome = self.deliver(std::slice::from_ref(&delivery)).await;
            self.complete(delivery, outcome);
        }
    }

    /// Counts the outcome. Dropping the delivery does the rest, see [`crate::completion`].
    fn complete(&self, delivery: Delivery, outcome: Outcome) {
        self.metrics.delivery_ended(outcome);
        drop(delivery);
    }

    fn accepts_groups(&self) -> bool {
        self.singles_until.lock().is_none_or(|until| until <= Instant::now())
    }

    /// Calls the comet until it answers or is given up. More than one delivery are pushes to keys.
    ///
    /// The comet is looked up for each attempt, because a restarted comet has the same name.
    async fn deliver(self: &Arc<Self>, group: &[Delivery]) -> Outcome {
        let started = Instant::now();
        let mut retries = self.config.retries_max;
        loop {
            let Some(comet) = self.pool.get(&self.server) else {
                self.losses.record(&self.server, Instant::now());
                return Outcome::NoComet;
            };
            if self.is_down() {
                self.losses.record(&self.server, Instant::now());
                return Outcome::Undeliverable;
            }
            match self.call(&*comet, group).await {
                Ok(()) => return Outcome::Delivered,
                Err(CometError::Unsupported) if group.len() > 1 => {
                    *self.singles_until.lock() = Some(Instant::now() + SINGLES_FOR);
                    return Outcome::Refused;
                }
                Err(error @ (CometError::Unsupported | CometError::Invalid(_))) => {
                    tracing::debug!(server = %self.server, %error, "comet refused a push");
                    return Outcome::Refused;
                }
                // A comet with too many paced broadcasts works as intended: it is not marked down.
                Err(error @ CometError::Busy { .. }) => {
                    if started.elapsed() >= self.config.busy_timeout {
                        tracing::warn!(server = %self.server, %error, "broadcast given up");
                        return Outcome::Undeliverable;
                    }
                }
                Err(error @ (CometError::Unavailable(_) | CometError::Timeout)) => {
                    if retries == 0 || self.is_down() {
                        self.mark_down(&error);
                        return Outcome::Undeliverable;
                    }
                    retries -= 1;
                    self.metrics.retries.inc();
                }
            }
            sleep(self.config.retry_backoff).await;
        }
    }

    async fn call(&self, comet: &dyn CometPort, group: &[Delivery]) -> Result<(), CometError> {
        let call = match group {
            [Delivery { push: Push::Keys(push), .. }] => comet.push(push.clone()),
            [Delivery { push: Push::Room(push), .. }] => comet.push_room(push.clone()),
            [Delivery { push: Push::All(broadcast), .. }] => comet.broadcast(broadcast.clone()),
            group => comet.push_many(group.iter().filter_map(Delivery::key_push).cloned().collect()),
        };
        match call {
            Call::Ready(answer) => answer,
            Call::Pending(answer) => {
                let started = Instant::now();
                self.watchdog.call_started();
                let mut down = self.down.subscribe();
                let answer = tokio::select! {
                    answer = timeout(self.config.call_timeout, answer) => answer.ok(),
                    // Another lane, or the in-flight limit, has marked the comet down: no reason to
                    // wait for the deadline, and each lane that waits would hold records open.
                    _ = down.wait_for(|is_down| *is_down) => None,
                };
                self.watchdog.call_ended(answer.is_some());
                self.metrics.call_seconds.observe(started.elapsed().as_secs_f64());
                answer.unwrap_or(Err(CometError::Timeout))
            }
        }
    }

    pub(super) fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    /// Returns whether other comets should not wait for this one: it is slow to answer, or down.
    pub(super) fn is_slow(&self) -> bool {
        self.is_down() || self.watchdog.is_slow()
    }

    /// Marks the comet down if it hangs, for when its queue holds up the reader of the log.
    pub(super) fn mark_down_if_hung(self: &Arc<Self>) {
        if !self.is_down() && self.watchdog.is_hung() {
            self.mark_down(&CometError::Timeout);
        }
    }

    fn mark_down(self: &Arc<Self>, error: &CometError) {
        self.losses.record(&self.server, Instant::now());
        // Several lanes may fail at the same time. Only the first starts a probe.
        if self.down.send_replace(true) {
            return;
        }
        self.metrics.comets_down.inc();
        tracing::warn!(server = %self.server, %error, "comet is down; messages for it are dropped until it answers");
        tokio::spawn(probe(Arc::downgrade(self), self.config.probe_interval));
    }

    fn mark_up(&self) {
        self.down.send_replace(false);
        self.metrics.comets_down.dec();
        tracing::info!(server = %self.server, "comet is up again");
    }

    /// Notifies the comet that messages for it were dropped. If that fails, the comet is down
    /// again.
    ///
    /// A comet that has left the pool is notified when it returns, by [`crate::intake`].
    async fn report_loss(self: &Arc<Self>) {
        let Some(last) = self.losses.take(&self.server) else { return };
        if losses::report(&self.server, last, &self.pool, &self.config, &self.metrics).await {
            return;
        }
        self.losses.record(&self.server, last);
        if self.pool.get(&self.server).is_some() {
            self.mark_down(&CometError::Timeout);
        }
    }

    /// Returns whether the comet answers a query, with any answer, or has left the pool.
    async fn answers(&self) -> bool {
        let Some(comet) = self.pool.get(&self.server) else { return true };
        let answer = match comet.rooms() {
            Call::Ready(answer) => answer,
            Call::Pending(answer) => {
                timeout(self.config.call_timeout, answer).await.unwrap_or(Err(CometError::Timeout))
            }
        };
        !matches!(answer, Err(CometError::Unavailable(_) | CometError::Timeout))
    }
}

impl Drop for Comet {
    fn drop(&mut self) {
        if self.is_down() {
            self.metrics.comets_down.dec();
        }
    }
}

/// Probes a comet that is down until it answers or its lanes are removed.
///
/// Holds a weak reference between probes, so that it does not keep the comet alive.
async fn probe(comet: Weak<Comet>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(comet) = comet.upgrade() else { return };
        if comet.answers().await {
            comet.mark_up();
            comet.report_loss().await;
            return;
        }
    }
}

/// Groups consecutive pushes to keys up to the size of one call. Other deliveries are groups of
/// one.
///
/// Only neighbours are grouped: moving a push past a room batch or a broadcast would reorder the
/// lane.
fn in_groups(waiting: impl Iterator<Item = Delivery>) -> Vec<Vec<Delivery>> {
    let mut groups: Vec<Vec<Delivery>> = Vec::new();
    let mut bytes_left = 0;
    for delivery in waiting {
        let bytes = delivery.key_push().map(size_of_push);
        match (groups.last_mut(), bytes) {
            (Some(group), Some(bytes)) if bytes <= bytes_left => {
                bytes_left -= bytes;
                group.push(delivery);
            }
            _ => {
                // A group that begins with a room batch or a broadcast has no space for others.
                bytes_left = bytes.map_or(0, |bytes| GROUP_BYTES_MAX.saturating_sub(bytes));
                groups.push(vec![delivery]);
            }
        }
    }
    groups
}

/// Returns the approximate size of a push in a call, in bytes.
fn size_of_push(push: &KeyPush) -> usize {
    push.keys.iter().map(|key| key.as_str().len() + 8).sum::<usize>() + push.payload.packet_body_len() + 64
}
