//! Giving messages to those they are for: what comes behind a position, what came before, how much is unread.

use std::net::IpAddr;
use std::time::Duration;

use goim_ports::{
    CursorId, ExpiresAt, Head, Mid, Position, Range, ReadLimit, RoomScope, SessionKey, StoredMessage,
    TimelineId, TimelineSeq, Version,
};
use goim_wire::sync;
use tokio::time::Instant;

use super::wait::{Ending, Wait, Waiter};
use super::{Timelines, TimelinesError, named};

/// How often somebody who waits looks by himself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who reads.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// The member; anonymous for the backend.
    pub(crate) mid: Mid,
    /// The rooms that it may read; `None` is any.
    pub(crate) scope: Option<RoomScope>,
    /// The highest packet version that it reads: by it the body of a message is chosen.
    pub(crate) protover: Version,
    /// The backend may read everything.
    pub(crate) is_backend: bool,
    /// The key of the session that the token stands for; one that nobody else has, where it names none.
    pub(crate) key: SessionKey,
    /// When the token ends.
    pub(crate) expires_at: Option<ExpiresAt>,
}

/// What a wait has come to.
pub(crate) enum Waited {
    /// Messages, or the time that it was to take is over.
    Found(sync::SyncReply),
    /// It was ended.
    Ended(Ending),
}

/// How far a member has read in a timeline, and what there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) timeline: TimelineId,
    pub(crate) cursor: TimelineSeq,
    pub(crate) head: Head,
}

impl Unread {
    /// Messages behind the cursor that are still kept.
    pub(crate) fn count(&self) -> u64 {
        let read = self.cursor.max(self.head.first.previous());
        self.head.latest.0.saturating_sub(read.0)
    }
}

impl Reader {
    fn may_read(&self, timeline: &TimelineId) -> bool {
        if self.is_backend {
            return true;
        }
        match timeline {
            TimelineId::Inbox(mid) => *mid == self.mid && !self.mid.is_anonymous(),
            TimelineId::Room(room) => self.scope.as_ref().is_none_or(|scope| scope.allows(room.as_str())),
        }
    }

    fn check(&self, timeline: &TimelineId) -> Result<(), TimelinesError> {
        if self.may_read(timeline) { Ok(()) } else { Err(TimelinesError::Forbidden(timeline.to_string())) }
    }
}

impl Timelines {
    /// What comes behind a position, at once.
    ///
    /// # Errors
    /// [`TimelinesError`].
    pub(crate) async fn sync(
        &self,
        reader: &Reader,
        request: &sync::SyncRequest,
    ) -> Result<sync::SyncReply, TimelinesError> {
        let timeline = named(&request.timeline)?;
        let reply = match reader.check(&timeline) {
            Ok(()) => self.sync_once(reader, &timeline, request).await,
            Err(error) => Err(error),
        };
        self.counted(reply)
    }

    /// Begins to wait for a timeline to grow, before it is looked at.
    ///
    /// # Errors
    /// [`TimelinesError`]; among them that as many wait as may.
    pub(crate) fn begin_wait(
        &self,
        reader: &Reader,
        timeline: &str,
        address: Option<IpAddr>,
    ) -> Result<Wait, TimelinesError> {
        let timeline = named(timeline)?;
        reader.check(&timeline)?;
        // The clock of the machine says when a token ends, whatever it does meanwhile.
        let until = reader.expires_at.map(|at| at.left()).and_then(|left| Instant::now().checked_add(left));
        let who = Waiter { mid: reader.mid, key: reader.key.clone(), address, until };
        self.waits.begin(timeline, who).map_err(|refusal| {
            self.metrics.waits_refused.inc();
            refusal.into()
        })
    }

    /// What comes behind a position. An answer without messages is put off until there are some, so long at most.
    ///
    /// # Errors
    /// [`TimelinesError`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn sync_waiting(
        &self,
        reader: &Reader,
        request: &sync::SyncRequest,
        wait: &Wait,
        time: Duration,
    ) -> Result<Waited, TimelinesError> {
        let timeline = named(&request.timeline)?;
        let until = Instant::now() + time;
        loop {
            if let Some(ending) = wait.ending() {
                return Ok(Waited::Ended(ending));
            }
            let mut grown = std::pin::pin!(wait.grown());
            // What comes while the timeline is looked at must wake it.
            grown.as_mut().enable();
            let reply = match self.sync_once(reader, &timeline, request).await {
                Ok(reply) if reply.messages.is_empty() && !reply.gap && Instant::now() < until => reply,
                reply => return self.counted(reply).map(Waited::Found),
            };
            let look_again = until.min(Instant::now() + LOOK_AGAIN);
            tokio::select! {
                // The process goes away, and nothing has come: that is an answer.
                ending = wait.ended() => return match ending {
                    Ending::Draining => self.counted(Ok(reply)).map(Waited::Found),
                    ending => Ok(Waited::Ended(ending)),
                },
                // Either way it looks.
                _ = tokio::time::timeout_at(look_again, grown) => {}
            }
        }
    }

    /// Waits without looking.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn pause(wait: &Wait) {
        let _ = tokio::time::timeout(LOOK_AGAIN, wait.ended()).await;
    }

    fn counted(
        &self,
        reply: Result<sync::SyncReply, TimelinesError>,
    ) -> Result<sync::SyncReply, TimelinesError> {
        self.metrics.request("sync", &reply.as_ref().map(drop));
        if let Ok(reply) = &reply {
            self.metrics.read.inc_by(reply.messages.len() as u64);
            self.metrics.resets.inc_by(u64::from(reply.gap));
        }
        reply
    }

    async fn sync_once(
        &self,
        reader: &Reader,
        timeline: &TimelineId,
        request: &sync::SyncRequest,
    ) -> Result<sync::SyncReply, TimelinesError> {
        let given = request.position.unwrap_or_default();
        let known = Position { epoch: goim_ports::Epoch(given.epoch), seq: TimelineSeq(given.seq) };
        let limit = self.limit(request.limit);
        let is_new = known == Position::default();
        let after = if is_new { self.cursor(reader.mid, timeline).await? } else { known.seq };
        let mut range = self.ask(self.store.read(timeline.clone(), after, limit)).await?;
        let gap = range.head.has_gap(known);
        let mut after = if is_new { after.max(range.head.first.previous()) } else { after };
        // A cursor of another life of the timeline says nothing of this one.
        let is_lost = is_new && after > range.head.latest;
        if gap || is_lost {
            after = range.head.first.previous();
            range = self.ask(self.store.read(timeline.clone(), after, limit)).await?;
        }
        let Range { head, messages } = range;
        let last = messages.last().map_or(after, |stored| stored.seq);
        Ok(sync::SyncReply {
            timeline: timeline.to_string(),
            epoch: head.epoch.0,
            latest: head.latest.0,
            more: last < head.latest,
            gap,
            after: after.0,
            messages: self.messages(reader.protover, messages),
        })
    }

    /// Pages of a timeline, the newest first; a page is in ascending order.
    ///
    /// # Errors
    /// [`TimelinesError`].
    pub(crate) async fn history(
        &self,
        reader: &Reader,
        timeline: &str,
        before: Option<TimelineSeq>,
        limit: u32,
    ) -> Result<(Head, Vec<sync::Message>), TimelinesError> {
        let timeline = named(timeline)?;
        reader.check(&timeline)?;
        let range = self.ask(self.store.read_back(timeline, before, self.limit(limit))).await;
        self.metrics.request("history", &range.as_ref().map(drop));
        let Range { head, messages } = range?;
        self.metrics.read.inc_by(messages.len() as u64);
        Ok((head, self.messages(reader.protover, messages)))
    }

    /// How much of timelines a member has not read.
    ///
    /// # Errors
    /// [`TimelinesError`].
    pub(crate) async fn unread(
        &self,
        reader: &Reader,
        timelines: &[String],
    ) -> Result<Vec<Unread>, TimelinesError> {
        let named = timelines.iter().map(|text| named(text)).collect::<Result<Vec<_>, _>>()?;
        named.iter().try_for_each(|timeline| reader.check(timeline))?;
        let cursor = |timeline: &TimelineId| CursorId { mid: reader.mid, timeline: timeline.clone() };
        let cursors = self.ask(self.store.cursors(named.iter().map(cursor).collect())).await;
        self.metrics.request("unread", &cursors.as_ref().map(drop));
        let heads = self.ask(self.store.heads(named.clone())).await?;
        let found = named.into_iter().zip(cursors?).zip(heads);
        Ok(found.map(|((timeline, cursor), head)| Unread { timeline, cursor, head }).collect())
    }

    /// Moves a member's cursor.
    ///
    /// # Errors
    /// [`TimelinesError`].
    pub(crate) async fn acknowledge(
        &self,
        reader: &Reader,
        ack: &sync::Ack,
    ) -> Result<sync::AckReply, TimelinesError> {
        let timeline = named(&ack.timeline)?;
        reader.check(&timeline)?;
        if reader.mid.is_anonymous() {
            return Err(TimelinesError::Forbidden(timeline.to_string()));
        }
        let cursor = CursorId { mid: reader.mid, timeline: timeline.clone() };
        let at = self.ask(self.store.advance(cursor, TimelineSeq(ack.seq))).await;
        self.metrics.request("ack", &at.as_ref().map(drop));
        let cursor = at?;
        let heads = self.ask(self.store.heads(vec![timeline.clone()])).await?;
        let head = heads.first().copied().unwrap_or_default();
        let unread = Unread { timeline, cursor, head };
        Ok(sync::AckReply { timeline: unread.timeline.to_string(), seq: cursor.0, unread: unread.count() })
    }

    /// Takes the body out of a message. False when there is none.
    ///
    /// # Errors
    /// [`TimelinesError`].
    pub(crate) async fn delete(&self, timeline: &str, seq: TimelineSeq) -> Result<bool, TimelinesError> {
        let deleted = self.ask(self.store.delete(named(timeline)?, seq)).await;
        self.metrics.request("delete", &deleted.as_ref().map(drop));
        deleted
    }

    async fn cursor(&self, mid: Mid, timeline: &TimelineId) -> Result<TimelineSeq, TimelinesError> {
        if mid.is_anonymous() {
            return Ok(TimelineSeq::default());
        }
        let cursor = CursorId { mid, timeline: timeline.clone() };
        let found = self.ask(self.store.cursors(vec![cursor])).await?;
        Ok(found.first().copied().unwrap_or_default())
    }

    fn limit(&self, wanted: u32) -> ReadLimit {
        let most = self.config.reply_messages_max;
        let messages = match usize::try_from(wanted) {
            Ok(wanted) if wanted > 0 => wanted.min(most),
            _ => most,
        };
        ReadLimit { messages, bytes: self.config.reply_bytes_max }
    }

    fn messages(&self, protover: Version, messages: Vec<StoredMessage>) -> Vec<sync::Message> {
        messages.into_iter().map(|stored| self.message(protover, stored)).collect()
    }

    /// A message in the highest schema that its reader knows.
    fn message(
        &self,
        protover: Version,
        StoredMessage { seq, message, is_deleted }: StoredMessage,
    ) -> sync::Message {
        let bodies = &message.bodies;
        let body_in = |schema| {
            let other = bodies.others().iter().find(|body| body.schema == schema).map(|body| &body.body);
            other.or_else(|| bodies.primary().filter(|_| schema == goim_ports::Schema::FIRST))
        };
        let schema = self.versions.schema_for(protover, |schema| body_in(schema).is_some());
        let body = schema.and_then(body_in).cloned();
        let version =
            schema.and_then(|schema| self.versions.plain(schema)).map_or(Version::GOIM, |row| row.version);
        sync::Message {
            seq: seq.0,
            operation: message.operation.0,
            version: version.0.into(),
            time_ms: i64::try_from(message.accepted_at.0 / 1000).unwrap_or(i64::MAX),
            sender: message.sender.0,
            unreadable: body.is_none() && !is_deleted,
            body: body.unwrap_or_default(),
            deleted: is_deleted,
        }
    }
}
