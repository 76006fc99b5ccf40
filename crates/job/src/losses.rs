//! Messages that were dropped for comets that may still be alive.
//!
//! A comet that is down or leaves the pool has mostly crashed, and its sessions with it. One that
//! was frozen or partitioned returns with all its sessions, and these do not know that they missed
//! messages. So the time of the last dropped message is recorded per comet, and reported when the
//! comet is reachable again. The report holds only how long ago that was: sessions that started
//! later missed nothing, so a comet that was restarted has no session to notify.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, CometError, CometPool, CometPort, Operation, PacketBuf, Payload, ServerId};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::config::CometConfig;
use crate::metrics::Metrics;

/// The maximum number of comets to remember. Beyond it, the one with the oldest loss is forgotten.
const COMETS_MAX: usize = 1024;
/// How long an absent comet is remembered. Logic has expired its sessions long before.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// Sessions per second that are asked to sync, on a comet without the call for losses. Comets
/// answer syncs far faster.
const SYNCS_PER_SECOND: NonZeroU32 = NonZeroU32::new(2_000).unwrap();

/// The time of the last dropped message for each comet that is not notified yet.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<HashMap<ServerId, Instant>>);

impl Losses {
    /// Records that a message for the comet was dropped.
    pub(crate) fn record(&self, server: &ServerId, now: Instant) {
        let mut all = self.0.lock();
        if let Some(last) = all.get_mut(server) {
            *last = now.max(*last);
            return;
        }
        if all.len() >= COMETS_MAX {
            let oldest = all.iter().min_by_key(|(_, last)| **last).map(|(server, _)| server.clone());
            oldest.map(|server| all.remove(&server));
        }
        all.insert(server.clone(), now);
    }

    /// Takes the time of the last dropped message, for the task that notifies the comet.
    pub(crate) fn take(&self, server: &ServerId) -> Option<Instant> {
        self.0.lock().remove(server)
    }

    fn remove_old(&self, now: Instant) {
        self.0.lock().retain(|_, last| now.saturating_duration_since(*last) < REMEMBERED);
    }
}

/// The comets that were in the pool, to detect the ones that return.
#[derive(Default)]
pub(crate) struct Presence {
    /// `None` for a comet in the pool, otherwise the time since when it is absent.
    absent_since: HashMap<ServerId, Option<Instant>>,
}

impl Presence {
    /// Compares the pool with the last update. Returns the comets that are new or have returned.
    ///
    /// With `had_fan_out`, messages to rooms or to all sessions were dispatched since the last
    /// update: absent comets have missed them.
    pub(crate) fn update(
        &mut self,
        pool: &dyn CometPool,
        losses: &Losses,
        had_fan_out: bool,
        now: Instant,
    ) -> Vec<ServerId> {
        let mut present = pool.all();
        let mut added = Vec::new();
        for (server, absent_since) in &mut self.absent_since {
            let index = present.iter().position(|(known, _)| known == server);
            match index.map(|index| present.swap_remove(index)) {
                Some(_) if absent_since.take().is_some() => {
                    // Messages that were dispatched before it returned may have skipped it.
                    if had_fan_out {
                        losses.record(server, now);
                    }
                    added.push(server.clone());
                }
                Some(_) => {}
                None => {
                    absent_since.get_or_insert(now);
                    if had_fan_out {
                        losses.record(server, now);
                    }
                }
            }
        }
        for (server, _) in present {
            self.absent_since.insert(server.clone(), None);
            added.push(server);
        }
        added
    }

    /// Returns whether a comet is absent and may return.
    pub(crate) fn has_absent(&self) -> bool {
        self.absent_since.values().any(Option::is_some)
    }

    /// Forgets comets that have been absent for too long, or the oldest ones if they are too many.
    pub(crate) fn remove_old(&mut self, losses: &Losses, now: Instant) {
        let is_old = |absent_since: &Option<Instant>| {
            absent_since.is_some_and(|since| now.saturating_duration_since(since) >= REMEMBERED)
        };
        self.absent_since.retain(|_, absent_since| !is_old(absent_since));
        while self.absent_since.len() > COMETS_MAX {
            let absent =
                self.absent_since.iter().filter_map(|(server, since)| Some(((*since)?, server.clone())));
            let Some((_, oldest)) = absent.min() else { break };
            self.absent_since.remove(&oldest);
        }
        losses.remove_old(now);
    }
}

/// Notifies a comet that messages for it were dropped, the last one at `last`.
///
/// Returns false if the comet was not reached.
pub(crate) async fn report(
    server: &ServerId,
    last: Instant,
    pool: &Arc<dyn CometPool>,
    config: &CometConfig,
    metrics: &Metrics,
) -> bool {
    for _ in 0..=config.retries_max {
        let Some(comet) = pool.get(server) else { return false };
        let answer = match with_deadline(config, comet.messages_missed(last.elapsed())).await {
            Err(CometError::Unsupported) => with_deadline(config, request_syncs(&*comet)).await,
            answer => answer,
        };
        match answer {
            Ok(()) => {
                metrics.losses_notified.inc();
                return true;
            }
            Err(CometError::Unavailable(_) | CometError::Timeout | CometError::Busy { .. }) => {
                sleep(config.retry_backoff).await;
            }
            // A repeated call would get the same answer.
            Err(CometError::Unsupported | CometError::Invalid(_)) => return true,
        }
    }
    false
}

async fn with_deadline(config: &CometConfig, call: Call<Result<(), CometError>>) -> Result<(), CometError> {
    match call {
        Call::Ready(answer) => answer,
        Call::Pending(answer) => {
            timeout(config.call_timeout, answer).await.unwrap_or(Err(CometError::Timeout))
        }
    }
}

/// Asks all sessions to sync, on a comet without the call for losses.
///
/// If the comet refuses this too, clients find the missed messages with their next regular sync.
fn request_syncs(comet: &dyn CometPort) -> Call<Result<(), CometError>> {
    comet.broadcast(goim_ports::Broadcast {
        operation: Operation::NOTIFY,
        payload: Payload::plain(PacketBuf::push(Operation::NOTIFY, Bytes::new())),
        accepted_at: None,
        speed: Some(SYNCS_PER_SECOND),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_number_of_comets_is_bounded_and_entries_expire() {
        let losses = Losses::default();
        for number in 0..2 * COMETS_MAX {
            losses.record(&ServerId::from(format!("c{number}")), Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(losses.0.lock().len(), COMETS_MAX);
        assert!(losses.take(&"c0".into()).is_none() && losses.take(&"c2047".into()).is_some());
        losses.remove_old(Instant::now() + REMEMBERED);
        assert!(losses.0.lock().is_empty());
    }
}
