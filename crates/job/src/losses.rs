//! Messages that were dropped for comets that may be alive: since when they are to be told, and whether they are there to be told.
//!
//! A comet that is given up, or that leaves the list, has mostly died, and its sessions with it. One that was frozen or cut off comes back with
//! all its sessions, and these do not know that they have missed something. So it is noted when the last message for a comet was
//! dropped, and who takes the comet up again tells it. How long ago is all that is said: sessions that came after that have missed nothing, so
//! that a comet that was started anew in the meantime has nobody to tell.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, CometError, CometPool, CometPort, Operation, PacketBuf, Payload, ServerId};
use tokio::time::{Instant, sleep, timeout};

use crate::config::CometConfig;
use crate::metrics::Metrics;

/// Comets that are remembered though they are gone. Of more than that the one that was gone longest is forgotten.
const COMETS_MAX: usize = 1024;
/// How long. Whoever was away for longer was swept by logic, and hears of it so.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// How fast sessions are told to look, on a comet that only knows that: far slower than syncs are answered.
const LOOKS_PER_SECOND: NonZeroU32 = NonZeroU32::new(2_000).unwrap();

/// When the last message for each comet was dropped, for those who are not told yet.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<HashMap<ServerId, Instant>>);

impl Losses {
    fn all(&self) -> MutexGuard<'_, HashMap<ServerId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message for the comet was dropped.
    pub(crate) fn note(&self, server: &ServerId, now: Instant) {
        let mut all = self.all();
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

    /// When the last was dropped, for who tells the comet.
    pub(crate) fn take(&self, server: &ServerId) -> Option<Instant> {
        self.all().remove(server)
    }

    /// Forgets comets that have been gone for very long.
    fn forget_old(&self, now: Instant) {
        self.all().retain(|_, last| now.saturating_duration_since(*last) < REMEMBERED);
    }
}

/// Which comets were on the list, so that one that comes back is noticed.
#[derive(Default)]
pub(crate) struct Presence {
    /// Those that are there, and since when the others are gone.
    known: HashMap<ServerId, Option<Instant>>,
}

impl Presence {
    /// Looks at the list. With `for_all`, messages for rooms or for all were spread since it was looked at last: who is not there has missed
    /// them. Gives the comets that have come, or come back.
    pub(crate) fn look(
        &mut self,
        pool: &dyn CometPool,
        losses: &Losses,
        for_all: bool,
        now: Instant,
    ) -> Vec<ServerId> {
        let mut here = pool.all();
        let mut came = Vec::new();
        for (server, gone) in &mut self.known {
            let place = here.iter().position(|(known, _)| known == server);
            match place.map(|place| here.swap_remove(place)) {
                Some(_) if gone.take().is_some() => {
                    // What was spread before it came may not have been for it.
                    if for_all {
                        losses.note(server, now);
                    }
                    came.push(server.clone());
                }
                Some(_) => {}
                None => {
                    gone.get_or_insert(now);
                    if for_all {
                        losses.note(server, now);
                    }
                }
            }
        }
        for (server, _) in here {
            self.known.insert(server.clone(), None);
            came.push(server);
        }
        came
    }

    /// True while somebody may come back.
    pub(crate) fn misses_some(&self) -> bool {
        self.known.values().any(Option::is_some)
    }

    /// Forgets comets that have been gone for very long, or of which there are too many.
    pub(crate) fn forget_gone(&mut self, losses: &Losses, now: Instant) {
        let is_old = |gone: &Option<Instant>| {
            gone.is_some_and(|gone| now.saturating_duration_since(gone) >= REMEMBERED)
        };
        self.known.retain(|_, gone| !is_old(gone));
        while self.known.len() > COMETS_MAX {
            let gone = self.known.iter().filter_map(|(server, gone)| Some(((*gone)?, server.clone())));
            let Some((_, oldest)) = gone.min() else { break };
            self.known.remove(&oldest);
        }
        losses.forget_old(now);
    }
}

/// Tells a comet that messages for it were dropped, the last one at `last`. False when it did not hear it.
pub(crate) async fn tell(
    server: &ServerId,
    last: Instant,
    pool: &Arc<dyn CometPool>,
    config: &CometConfig,
    metrics: &Metrics,
) -> bool {
    for _ in 0..=config.retries_max {
        let Some(comet) = pool.get(server) else { return false };
        let answer = match within(config, comet.messages_missed(last.elapsed())).await {
            Err(CometError::Unsupported) => within(config, look(&*comet)).await,
            answer => answer,
        };
        match answer {
            Ok(()) => {
                metrics.losses_told.inc();
                return true;
            }
            Err(CometError::Unavailable(_) | CometError::Timeout | CometError::Busy { .. }) => {
                sleep(config.retry_backoff).await;
            }
            // It will say the same again.
            Err(CometError::Unsupported | CometError::Invalid(_)) => return true,
        }
    }
    false
}

async fn within(config: &CometConfig, call: Call<Result<(), CometError>>) -> Result<(), CometError> {
    match call {
        Call::Ready(answer) => answer,
        Call::Pending(answer) => {
            timeout(config.call_timeout, answer).await.unwrap_or(Err(CometError::Timeout))
        }
    }
}

/// For a comet that does not know more: whoever syncs on it looks. When it does not take that either, clients find what they have missed when
/// they look by themselves.
fn look(comet: &dyn CometPort) -> Call<Result<(), CometError>> {
    comet.broadcast(goim_ports::Broadcast {
        operation: Operation::NOTIFY,
        payload: Payload::plain(PacketBuf::push(Operation::NOTIFY, Bytes::new())),
        accepted_at: None,
        speed: Some(LOOKS_PER_SECOND),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_has_an_end() {
        let losses = Losses::default();
        for number in 0..2 * COMETS_MAX {
            losses.note(&ServerId::from(format!("c{number}")), Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(losses.all().len(), COMETS_MAX);
        assert!(losses.take(&"c0".into()).is_none() && losses.take(&"c2047".into()).is_some());
        losses.forget_old(Instant::now() + REMEMBERED);
        assert!(losses.all().is_empty());
    }
}
