//! One lane: the worker that makes one call to its comet after the other, and what a failure means.
//!
//! A comet that cannot be reached, or does not answer in time, is asked again a few times. When that fails too it is
//! *down* for all its lanes: what is for it is given up at once, until it answers a probe. The probe asks for something
//! harmless, so that no message has to be risked, and no lane to be blocked, to find out. A comet that hangs goes down before
//! that, when no more may be in flight: others must not wait for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use goim_ports::{Broadcast, Call, CometError, CometPool, CometPort, KeyPush, RoomPush, ServerId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::config::CometConfig;
use crate::in_flight::{Level, Share};
use crate::losses::{self, Losses};
use crate::metrics::{Metrics, Outcome};
use crate::rooms::Flight;
use crate::silence::Silence;

/// Pushes that travel in one call at most, and their bytes: well below the 4 MiB that a server takes.
const MANY_MAX: usize = 256;
const MANY_BYTES_MAX: usize = 1024 * 1024;
/// How long a comet is not asked again to take many that did not know the call. It may be replaced by one that does.
const SINGLES_FOR: Duration = Duration::from_secs(60);

/// What a comet is asked.
#[derive(Debug)]
pub(crate) enum Request {
    Keys(KeyPush),
    /// Several of those, which travel together.
    Many(Vec<KeyPush>),
    Room(RoomPush),
    All(Broadcast),
}

impl Request {
    fn as_keys(&self) -> Option<&KeyPush> {
        if let Self::Keys(push) = self { Some(push) } else { None }
    }
}

/// What a call holds until it is over.
#[derive(Debug)]
#[must_use = "dropping it says that the call is over"]
#[expect(dead_code, reason = "held for what happens when they are dropped")]
pub(crate) enum Stake {
    Push(Share),
    Batch(Vec<Share>, Flight),
}

/// Calls that can travel together, each other one alone; in order.
fn in_groups(waiting: impl Iterator<Item = Work>) -> Vec<Vec<Work>> {
    let mut groups: Vec<Vec<Work>> = Vec::new();
    let mut room = 0;
    for work in waiting {
        let bytes = work.request.as_keys().map(bytes_of);
        match (groups.last_mut(), bytes) {
            (Some(group), Some(bytes)) if bytes <= room => {
                room -= bytes;
                group.push(work);
            }
            _ => {
                room = bytes.map_or(0, |bytes| MANY_BYTES_MAX.saturating_sub(bytes));
                groups.push(vec![work]);
            }
        }
    }
    groups
}

/// What a push takes in a call, near enough for a bound.
fn bytes_of(push: &KeyPush) -> usize {
    push.keys.iter().map(|key| key.as_str().len() + 8).sum::<usize>() + push.payload.packet_body_len() + 64
}

/// A call that waits in a lane.
pub(crate) struct Work {
    pub(crate) request: Request,
    /// Dropped when the call is over.
    pub(crate) stake: Stake,
    /// The same.
    pub(crate) open: OpenCall,
}

/// One comet, as its lanes share it.
pub(crate) struct Comet {
    pub(crate) server: ServerId,
    pub(crate) pool: Arc<dyn CometPool>,
    pub(crate) config: CometConfig,
    pub(crate) metrics: Arc<Metrics>,
    /// Calls that wait in its lanes or are under way.
    pub(crate) calls: Level,
    silence: Silence,
    /// Takes pushes one by one until then.
    singles_until: Mutex<Option<Instant>>,
    down: watch::Sender<bool>,
    losses: Arc<Losses>,
}

impl Comet {
    pub(crate) fn new(
        server: ServerId,
        pool: Arc<dyn CometPool>,
        config: CometConfig,
        metrics: Arc<Metrics>,
        losses: Arc<Losses>,
    ) -> Arc<Self> {
        let (calls, singles_until, down) = Default::default();
        let silence = Silence::new();
        Arc::new(Self { server, pool, config, metrics, calls, silence, singles_until, down, losses })
    }

    /// Works until the lane's queue is closed and empty.
    pub(crate) async fn work(self: Arc<Self>, mut queue: mpsc::UnboundedReceiver<Work>) {
        let mut waiting = Vec::new();
        while queue.recv_many(&mut waiting, MANY_MAX).await > 0 {
            for group in in_groups(waiting.drain(..)) {
                self.work_on(group).await;
            }
        }
    }

    /// Pushes to keys that stand behind each other travel together, to a comet that takes them so: a call over the network costs
    /// far more than what it carries.
    async fn work_on(self: &Arc<Self>, group: Vec<Work>) {
        if group.len() > 1 && self.takes_many() {
            let pushes = group.iter().filter_map(|work| work.request.as_keys()).cloned().collect();
            let outcome = self.hand_over(&Request::Many(pushes)).await;
            if outcome != Outcome::Refused {
                group.into_iter().for_each(|work| self.finish(work, outcome));
                return;
            }
            // It does not know the call, or refuses one of them: one by one then.
        }
        for work in group {
            let outcome = self.hand_over(&work.request).await;
            self.finish(work, outcome);
        }
    }

    fn finish(&self, work: Work, outcome: Outcome) {
        let Work { request: _, stake, open } = work;
        self.metrics.handed_over(outcome);
        drop(open);
        drop(stake);
    }

    fn singles_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.singles_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn takes_many(&self) -> bool {
        self.singles_until().is_none_or(|until| until <= Instant::now())
    }

    async fn hand_over(self: &Arc<Self>, request: &Request) -> Outcome {
        let started = Instant::now();
        let mut retries = self.config.retries_max;
        loop {
            let Some(comet) = self.pool.get(&self.server) else {
                self.losses.note(&self.server, Instant::now());
                return Outcome::NoComet;
            };
            if self.is_down() {
                self.losses.note(&self.server, Instant::now());
                return Outcome::Undeliverable;
            }
            match self.call(&*comet, request).await {
                Ok(()) => return Outcome::Delivered,
                Err(CometError::Unsupported) if matches!(request, Request::Many(_)) => {
                    *self.singles_until() = Some(Instant::now() + SINGLES_FOR);
                    return Outcome::Refused;
                }
                Err(error @ (CometError::Unsupported | CometError::Invalid(_))) => {
                    tracing::debug!(server = %self.server, %error, "comet refused a push");
                    return Outcome::Refused;
                }
                Err(error @ CometError::Busy { .. }) => {
                    if started.elapsed() >= self.config.busy_timeout {
                        tracing::warn!(server = %self.server, %error, "broadcast given up");
                        return Outcome::Undeliverable;
                    }
                }
                Err(error @ (CometError::Unavailable(_) | CometError::Timeout)) => {
                    if retries == 0 || self.is_down() {
                        self.goes_down(&error);
                        return Outcome::Undeliverable;
                    }
                    retries -= 1;
                    self.metrics.retries.inc();
                }
            }
            sleep(self.config.retry_backoff).await;
        }
    }

    async fn call(&self, comet: &dyn CometPort, request: &Request) -> Result<(), CometError> {
        let call = match request {
            Request::Keys(push) => comet.push(push.clone()),
            Request::Many(pushes) => comet.push_many(pushes.clone()),
            Request::Room(push) => comet.push_room(push.clone()),
            Request::All(broadcast) => comet.broadcast(broadcast.clone()),
        };
        match call {
            Call::Ready(answer) => answer,
            Call::Pending(answer) => {
                let started = Instant::now();
                self.silence.asked();
                let mut down = self.down.subscribe();
                let answer = tokio::select! {
                    answer = timeout(self.config.call_timeout, answer) => answer.ok(),
                    _ = down.wait_for(|is_down| *is_down) => None,
                };
                self.silence.ended(answer.is_some());
                self.metrics.call_seconds.observe(started.elapsed().as_secs_f64());
                answer.unwrap_or(Err(CometError::Timeout))
            }
        }
    }

    pub(crate) fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    /// True when others should not wait for it: it is silent for too long, or was given up.
    pub(crate) fn is_late(&self) -> bool {
        self.is_down() || self.silence.is_late()
    }

    /// Gives it up if it hangs: for when what waits for it stands in the way of others.
    pub(crate) fn give_up_if_hung(self: &Arc<Self>) {
        if !self.is_down() && self.silence.is_hung() {
            self.goes_down(&CometError::Timeout);
        }
    }

    fn goes_down(self: &Arc<Self>, error: &CometError) {
        self.losses.note(&self.server, Instant::now());
        if self.down.send_replace(true) {
            return;
        }
        self.metrics.comets_down.inc();
        tracing::warn!(server = %self.server, %error, "comet is given up until it answers; what is for it is lost");
        tokio::spawn(probe(Arc::downgrade(self), self.config.probe_interval));
    }

    fn comes_back(&self) {
        self.down.send_replace(false);
        self.metrics.comets_down.dec();
        tracing::info!(server = %self.server, "comet is no longer given up");
    }

    /// Tells the comet that messages for it were dropped. One that has left the list is told when it comes back. When it does not hear it,
    /// it is given up again.
    async fn tell_of_loss(self: &Arc<Self>) {
        let Some(last) = self.losses.take(&self.server) else { return };
        if losses::tell(&self.server, last, &self.pool, &self.config, &self.metrics).await {
            return;
        }
        self.losses.note(&self.server, last);
        if self.pool.get(&self.server).is_some() {
            self.goes_down(&CometError::Timeout);
        }
    }

    /// True when the comet answers, whatever it says, or is no longer a concern.
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

/// Asks a comet that is down whether it is back, as long as somebody has lanes to it.
async fn probe(comet: Weak<Comet>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(comet) = comet.upgrade() else { return };
        if comet.answers().await {
            comet.comes_back();
            comet.tell_of_loss().await;
            return;
        }
    }
}

/// Counts a call as open until it is dropped, in whatever way the worker ends.
pub(crate) struct OpenCall(Arc<Comet>);

impl OpenCall {
    pub(crate) fn new(comet: &Arc<Comet>) -> Self {
        comet.calls.raise();
        comet.metrics.lane_calls.inc();
        Self(Arc::clone(comet))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.calls.lower();
        self.0.metrics.lane_calls.dec();
    }
}

impl Drop for Comet {
    fn drop(&mut self) {
        if self.is_down() {
            self.metrics.comets_down.dec();
        }
    }
}
