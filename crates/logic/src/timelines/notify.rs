//! Notifies the sessions of stored messages: appends a push record for each comet that holds some.
//!
//! The record carries the message too, for goim v2's clients and for notifications with small
//! messages inside. The message is already durable. When the directory or the push log fails, the
//! notification is retried in the background for a while and then dropped: the sessions find the
//! message with their next sync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{
    Append, AppendResult, Appended, NewMessage, OfflineMember, Payload, PushRecord, PushTarget, StoredAt,
    TimelineId,
};

use super::Timelines;
use crate::deadline::{directory_late, with_timeout};
use crate::grouping::by_server;
use crate::push_writer::append_late;

/// The number of retries in the background, and the pause before the first. The pause doubles with
/// each retry.
const RETRIES: u32 = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Returns the push of a stored message. For a duplicate only the notification is sent, in case the
/// first was lost.
pub(super) fn push_record(
    target: PushTarget,
    timeline: TimelineId,
    appended: AppendResult,
    message: &NewMessage,
) -> PushRecord {
    let NewMessage { sender, operation, bodies, accepted_at } = message.clone();
    let at = Arc::new(StoredAt { timeline, position: appended.position, sender, accepted_at });
    // The stored bodies may differ from these, and clients that do not sync have already received
    // them.
    let bodies = (!appended.is_duplicate).then_some(bodies);
    PushRecord { target, operation, payload: Payload::Stored { at, bodies }, accepted_at }
}

/// Returns the offline member for a message in an inbox without a session.
fn offline_member(append: &Append, appended: AppendResult) -> Option<OfflineMember> {
    let TimelineId::Inbox(mid) = append.timeline else { return None };
    let NewMessage { sender, operation, bodies, accepted_at } = append.message.clone();
    let body = bodies.primary().cloned().unwrap_or_default();
    Some(OfflineMember { mid, position: appended.position, sender, operation, body, accepted_at })
}

impl Timelines {
    /// Notifies the sessions of messages. Waits for the first attempt only.
    pub(super) async fn notify_sessions(self: &Arc<Self>, mut appended: Vec<(Append, AppendResult)>) {
        let notified = self.try_notify(&appended).await;
        if notified == appended.len() {
            return;
        }
        appended.drain(..notified);
        let Ok(permit) = Arc::clone(&self.notify_retries).try_acquire_owned() else {
            self.give_up(appended.len());
            return;
        };
        let timelines = Arc::clone(self);
        tokio::spawn(async move {
            timelines.retry_notify(appended).await;
            drop(permit);
        });
    }

    async fn retry_notify(&self, mut appended: Vec<(Append, AppendResult)>) {
        let mut pause = RETRY_PAUSE;
        for _ in 0..RETRIES {
            tokio::time::sleep(pause).await;
            pause *= 2;
            let notified = self.try_notify(&appended).await;
            appended.drain(..notified);
            if appended.is_empty() {
                return;
            }
        }
        self.give_up(appended.len());
    }

    fn give_up(&self, count: usize) {
        self.metrics.notify_failed.inc_by(count as u64);
        if let Some(suppressed) = self.notify_failure_log.try_log(Instant::now()) {
            let what = "sessions cannot be notified of stored messages; they find them with their next sync";
            tracing::warn!(suppressed, "{what}");
        }
    }

    /// Returns the number of messages, from the front, whose sessions were notified.
    async fn try_notify(&self, appended: &[(Append, AppendResult)]) -> usize {
        let (mut records, mut of, mut known) = (Vec::new(), Vec::new(), 0);
        let mut offline = Vec::new();
        for (append, appended) in appended {
            let Some(targets) = self.targets_of(&append.timeline).await else { break };
            if targets.is_empty() && !appended.is_duplicate {
                offline.extend(offline_member(append, *appended).map(|member| (known, member)));
            }
            for target in targets {
                records.push(push_record(target, append.timeline.clone(), *appended, &append.message));
                of.push(known);
            }
            known += 1;
        }
        let notified =
            if records.is_empty() { known } else { self.append_notifications(records, &of, known).await };
        if let Some(queue) = self.offline.get() {
            // The sessions of the others are looked up again with the next attempt.
            offline
                .into_iter()
                .filter(|(index, _)| *index < notified)
                .for_each(|(_, member)| queue.push(member));
        }
        notified
    }

    /// Appends records and returns the number of messages, from the front, whose records are all in
    /// the log. `of` has the index of each record's message.
    async fn append_notifications(&self, records: Vec<PushRecord>, of: &[usize], known: usize) -> usize {
        let appended = self.push_log.append_all(records).map(Ok);
        let appended = with_timeout(self.push.append_timeout, appended, append_late).await;
        match appended.unwrap_or_else(|late| Appended { accepted: 0, error: Some(late) }) {
            Appended { error: None, .. } => known,
            Appended { accepted, error: Some(error) } => {
                tracing::debug!(%error, "the push log refuses notifications of stored messages");
                of.get(accepted).copied().unwrap_or(known)
            }
        }
    }

    /// Looks up the sessions of a timeline; `None` when the directory does not answer.
    async fn targets_of(&self, timeline: &TimelineId) -> Option<Vec<PushTarget>> {
        let mid = match timeline {
            TimelineId::Room(room) => return Some(vec![PushTarget::Room(room.clone())]),
            TimelineId::Inbox(mid) => *mid,
        };
        let sessions = self.sessions.sessions_of(vec![mid]);
        match with_timeout(self.directory_timeout, sessions, directory_late).await {
            Ok(sessions) => Some(by_server(sessions)),
            Err(error) => {
                tracing::debug!(%error, "the sessions of a member cannot be looked up");
                None
            }
        }
    }
}
