//! Telling the sessions that are there: a record of the push log for each comet that holds some. It
//! carries the message too, for clients of goim and for notifies with small messages in them.
//!
//! The message is kept already. When the directory or the log does not take the word of it, it is
//! tried again in the background for a while, and then left: whoever was to be told finds it with
//! the next sync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{
    Append, AppendResult, Appended, Extended, NewMessage, OfflineMember, PushRecord, PushTarget, StoredAt,
    TimelineId,
};

use super::Timelines;
use crate::deadline::with_timeout;
use crate::port::directory_late;
use crate::push::by_server;
use crate::push_writer::append_late;

/// Tries of an announcement in the background, and the pause before the first; each next one is
/// twice as long.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// The record of a message that is kept. Of one that was there before it is the word alone: whoever
/// has missed that hears it.
pub(super) fn record_of(
    target: PushTarget,
    timeline: TimelineId,
    kept: AppendResult,
    message: &NewMessage,
) -> PushRecord {
    let NewMessage { sender, operation, body, extension, accepted_at } = message.clone();
    let (body, extension) = if kept.is_duplicate {
        // What is there may differ from what has come now, and whoever reads plain pushes has had
        // it.
        let nothing = Extended { without_first: true, ..Extended::default() };
        (Bytes::new(), Some(Arc::new(nothing)))
    } else {
        (body, extension)
    };
    let (bodies, without_first) = match extension.as_deref() {
        Some(negotiated) => (negotiated.bodies.clone(), negotiated.without_first),
        None => (Vec::new(), false),
    };
    let stored = StoredAt { timeline, position: kept.position, sender, accepted_at };
    let negotiated = Extended { bodies, without_first, end: None, stored: Some(stored) };
    PushRecord { target, operation, body, accepted_at, extension: Some(Arc::new(negotiated)) }
}

/// Who is away, for a message in an inbox in which nobody has a session.
fn member_of(append: &Append, kept: AppendResult) -> Option<OfflineMember> {
    let TimelineId::Inbox(mid) = append.timeline else { return None };
    let NewMessage { sender, operation, body, accepted_at, .. } = append.message.clone();
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
        let Ok(permit) = Arc::clone(&self.notify_retries).try_acquire_owned() else {
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
        self.metrics.notify_failed.inc_by(count as u64);
        if let Some(suppressed) = self.notify_failure_log.try_log(Instant::now()) {
            let what =
                "sessions cannot be told of messages that are kept; they find them with their next sync";
            tracing::warn!(suppressed, "{what}");
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
        if let Some(waiting) = self.offline.get() {
            // What is announced again is looked at again.
            away.into_iter().filter(|(index, _)| *index < told).for_each(|(_, member)| waiting.push(member));
        }
        told
    }

    /// How many messages, from the front, the log has all records of; `of` says which message each
    /// record is of.
    async fn append_words(&self, records: Vec<PushRecord>, of: &[usize], known: usize) -> usize {
        let appended = self.push_log.append_all(records).map(Ok);
        let appended = with_timeout(self.push.append_timeout, appended, append_late).await;
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
        match with_timeout(self.directory_timeout, sessions, directory_late).await {
            Ok(sessions) => Some(by_server(sessions)),
            Err(error) => {
                tracing::debug!(%error, "the sessions of a member cannot be found out");
                None
            }
        }
    }
}
