//! Telling the sessions that are there: a record of the push log for each comet that holds some. It carries the message too, for clients
//! of goim and for notifies with small messages in them.
//!
//! The message is kept already. When the directory or the log does not take the word of it, it is tried again in the background for a
//! while, and then left: whoever was to be told finds it with the next sync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{
    Append, AppendResult, Appended, NewMessage, OfflineMember, Payload, PushRecord, PushTarget, StoredAt,
    TimelineId,
};

use super::Timelines;
use crate::deadline::within;
use crate::port::directory_late;
use crate::push::{append_late, by_server};

/// Tries of an announcement in the background, and the pause before the first; each next one is twice as long.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// Returns the push of a stored message. For a duplicate only the notification is sent, in case the first was lost.
pub(super) fn record_of(
    target: PushTarget,
    timeline: TimelineId,
    kept: AppendResult,
    message: &NewMessage,
) -> PushRecord {
    let NewMessage { sender, operation, bodies, accepted_at } = message.clone();
    let at = Arc::new(StoredAt { timeline, position: kept.position, sender, accepted_at });
    // The stored bodies may differ from these, and clients that do not sync have already received them.
    let bodies = (!kept.is_duplicate).then_some(bodies);
    PushRecord { target, operation, payload: Payload::Stored { at, bodies }, accepted_at }
}

/// Who is away, for a message in an inbox in which nobody has a session.
fn member_of(append: &Append, kept: AppendResult) -> Option<OfflineMember> {
    let TimelineId::Inbox(mid) = append.timeline else { return None };
    let NewMessage { sender, operation, bodies, accepted_at } = append.message.clone();
    let body = bodies.primary().cloned().unwrap_or_default();
    Some(OfflineMember { mid, position: kept.position, sender, operation, body, accepted_at })
}

impl Timelines {
    /// Tells the sessions of messages. Waits for the first try only.
    pub(super) async fn announce(self: &Arc<Self>, mut kept: Vec<(Append, AppendResult)>) {
        let told = self.try_announce(&kept).await;
        if told == kept.len() {
            return;
        }
        kept.drain(..told);
        let Ok(permit) = Arc::clone(&self.announcing).try_acquire_owned() else {
            self.give_up(kept.len());
            return;
        };
        let timelines = Arc::clone(self);
        tokio::spawn(async move {
            timelines.announce_later(kept).await;
            drop(permit);
        });
    }

    async fn announce_later(&self, mut kept: Vec<(Append, AppendResult)>) {
        let mut pause = PAUSE;
        for _ in 0..TRIES {
            tokio::time::sleep(pause).await;
            pause *= 2;
            let told = self.try_announce(&kept).await;
            kept.drain(..told);
            if kept.is_empty() {
                return;
            }
        }
        self.give_up(kept.len());
    }

    fn give_up(&self, count: usize) {
        self.metrics.unannounced.inc_by(count as u64);
        if let Some(unsaid) = self.unannounced.say(Instant::now()) {
            let what =
                "sessions cannot be told of messages that are kept; they find them with their next sync";
            tracing::warn!(unsaid, "{what}");
        }
    }

    /// How many messages, from the front, the sessions are told of.
    async fn try_announce(&self, kept: &[(Append, AppendResult)]) -> usize {
        let (mut records, mut of, mut known) = (Vec::new(), Vec::new(), 0);
        let mut away = Vec::new();
        for (append, kept) in kept {
            let Some(targets) = self.targets_of(&append.timeline).await else { break };
            if targets.is_empty() && !kept.is_duplicate {
                away.extend(member_of(append, *kept).map(|member| (known, member)));
            }
            for target in targets {
                records.push(record_of(target, append.timeline.clone(), *kept, &append.message));
                of.push(known);
            }
            known += 1;
        }
        let told = if records.is_empty() { known } else { self.append_words(records, &of, known).await };
        if let Some(waiting) = self.away.get() {
            // What is announced again is looked at again.
            away.into_iter().filter(|(index, _)| *index < told).for_each(|(_, member)| waiting.note(member));
        }
        told
    }

    /// How many messages, from the front, the log has all records of; `of` says which message each record is of.
    async fn append_words(&self, records: Vec<PushRecord>, of: &[usize], known: usize) -> usize {
        let appended = self.push_log.append_all(records).map(Ok);
        let appended = within(self.push.append_timeout, appended, append_late).await;
        match appended.unwrap_or_else(|late| Appended { accepted: 0, error: Some(late) }) {
            Appended { error: None, .. } => known,
            Appended { accepted, error: Some(error) } => {
                tracing::debug!(%error, "the push log does not take the word of messages that are kept");
                of.get(accepted).copied().unwrap_or(known)
            }
        }
    }

    /// Where the sessions of a timeline are; `None` when that cannot be found out.
    async fn targets_of(&self, timeline: &TimelineId) -> Option<Vec<PushTarget>> {
        let mid = match timeline {
            TimelineId::Room(room) => return Some(vec![PushTarget::Room(room.clone())]),
            TimelineId::Inbox(mid) => *mid,
        };
        let sessions = self.sessions.sessions_of(vec![mid]);
        match within(self.directory_timeout, sessions, directory_late).await {
            Ok(sessions) => Some(by_server(sessions)),
            Err(error) => {
                tracing::debug!(%error, "the sessions of a member cannot be found out");
                None
            }
        }
    }
}
