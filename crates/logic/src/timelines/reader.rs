//! Reads timelines: sync from a position, history, unread counts, cursors.

use std::net::IpAddr;
use std::time::Duration;

use goim_ports::{
    CursorId, ExpiresAt, Head, Mid, Position, Range, ReadLimit, RoomScope, SessionKey, StoredMessage,
    TimelineId, TimelineSeq, Version,
};
use goim_wire::sync;
use tokio::time::Instant;

use super::long_poll::{LongPoll, LongPollEnd, LongPollOwner};
use super::{TimelineRequestError, Timelines, parse_timeline};

/// The interval in which a long poll reads the timeline itself, because other logics append too.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Who reads.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    /// The member; anonymous for the backend.
    pub(crate) mid: Mid,
    /// The rooms that it may read; `None` is any room.
    pub(crate) scope: Option<RoomScope>,
    /// The highest packet version that it reads. It selects the body of each message.
    pub(crate) protover: Version,
    /// The backend may read every timeline.
    pub(crate) is_backend: bool,
    /// The session key in the token, or a random one when the token has none.
    pub(crate) key: SessionKey,
    /// When the token expires.
    pub(crate) expires_at: Option<ExpiresAt>,
}

/// The result of a long poll.
pub(crate) enum LongPollOutcome {
    /// Messages, or none because the time is over.
    Found(sync::SyncReply),
    /// The long poll was ended.
    Ended(LongPollEnd),
}

/// A member's cursor and the state of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    pub(crate) timeline: TimelineId,
    pub(crate) cursor: TimelineSeq,
    pub(crate) head: Head,
}

impl Unread {
    /// The number of stored messages after the cursor.
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

    fn check(&self, timeline: &TimelineId) -> Result<(), TimelineRequestError> {
        if self.may_read(timeline) {
            Ok(())
        } else {
            Err(TimelineRequestError::Forbidden(timeline.to_string()))
        }
    }
}

impl Timelines {
    /// Returns the messages after a position immediately.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn sync(
        &self,
        reader: &Reader,
        request: &sync::SyncRequest,
    ) -> Result<sync::SyncReply, TimelineRequestError> {
        let timeline = parse_timeline(&request.timeline)?;
        let reply = match reader.check(&timeline) {
            Ok(()) => self.sync_once(reader, &timeline, request).await,
            Err(error) => Err(error),
        };
        self.counted(reply)
    }

    /// Starts a long poll, before the timeline is read.
    ///
    /// # Errors
    /// [`TimelineRequestError`]; among them that a limit of long polls is reached.
    pub(crate) fn begin_long_poll(
        &self,
        reader: &Reader,
        timeline: &str,
        address: Option<IpAddr>,
    ) -> Result<LongPoll, TimelineRequestError> {
        let timeline = parse_timeline(timeline)?;
        reader.check(&timeline)?;
        // The wall clock decides when a token expires, so the time left is computed now.
        let until = reader.expires_at.map(|at| at.left()).and_then(|left| Instant::now().checked_add(left));
        let who = LongPollOwner { mid: reader.mid, key: reader.key.clone(), address, until };
        self.long_polls.begin(timeline, who).map_err(|refusal| {
            self.metrics.long_polls_refused.inc();
            refusal.into()
        })
    }

    /// Returns the messages after a position. Waits up to `time` while there are none.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn sync_waiting(
        &self,
        reader: &Reader,
        request: &sync::SyncRequest,
        wait: &LongPoll,
        time: Duration,
    ) -> Result<LongPollOutcome, TimelineRequestError> {
        let timeline = parse_timeline(&request.timeline)?;
        let until = Instant::now() + time;
        loop {
            if let Some(ending) = wait.ending() {
                return Ok(LongPollOutcome::Ended(ending));
            }
            let mut grown = std::pin::pin!(wait.grown());
            // Registered before the timeline is read, so that a message appended during the read
            // wakes it.
            grown.as_mut().enable();
            let reply = match self.sync_once(reader, &timeline, request).await {
                Ok(reply) if reply.messages.is_empty() && !reply.gap && Instant::now() < until => reply,
                reply => return self.counted(reply).map(LongPollOutcome::Found),
            };
            let recheck_at = until.min(Instant::now() + RECHECK_INTERVAL);
            tokio::select! {
                // The process drains and no message arrived: an empty reply is the answer.
                ending = wait.ended() => return match ending {
                    LongPollEnd::Draining => self.counted(Ok(reply)).map(LongPollOutcome::Found),
                    ending => Ok(LongPollOutcome::Ended(ending)),
                },
                // On a notification and on a timeout the timeline is read again.
                _ = tokio::time::timeout_at(recheck_at, grown) => {}
            }
        }
    }

    /// Waits for [`RECHECK_INTERVAL`] or the end of the long poll.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn pause(wait: &LongPoll) {
        let _ = tokio::time::timeout(RECHECK_INTERVAL, wait.ended()).await;
    }

    fn counted(
        &self,
        reply: Result<sync::SyncReply, TimelineRequestError>,
    ) -> Result<sync::SyncReply, TimelineRequestError> {
        self.metrics.request("sync", &reply.as_ref().map(drop));
        if let Ok(reply) = &reply {
            self.metrics.read.inc_by(reply.messages.len() as u64);
            self.metrics.gaps.inc_by(u64::from(reply.gap));
        }
        reply
    }

    async fn sync_once(
        &self,
        reader: &Reader,
        timeline: &TimelineId,
        request: &sync::SyncRequest,
    ) -> Result<sync::SyncReply, TimelineRequestError> {
        let given = request.position.unwrap_or_default();
        let known = Position { epoch: goim_ports::Epoch(given.epoch), seq: TimelineSeq(given.seq) };
        let limit = self.limit(request.limit);
        let is_new = known == Position::default();
        let after = if is_new { self.cursor(reader.mid, timeline).await? } else { known.seq };
        let mut range = self.call_store(self.store.read(timeline.clone(), after, limit)).await?;
        let gap = range.head.has_gap(known);
        let mut after = if is_new { after.max(range.head.first.previous()) } else { after };
        // The cursor is of another epoch of the timeline.
        let is_lost = is_new && after > range.head.latest;
        if gap || is_lost {
            after = range.head.first.previous();
            range = self.call_store(self.store.read(timeline.clone(), after, limit)).await?;
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

    /// Returns a page of messages before `before`, or the newest page. Messages are in ascending
    /// order.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn history(
        &self,
        reader: &Reader,
        timeline: &str,
        before: Option<TimelineSeq>,
        limit: u32,
    ) -> Result<(Head, Vec<sync::Message>), TimelineRequestError> {
        let timeline = parse_timeline(timeline)?;
        reader.check(&timeline)?;
        let range = self.call_store(self.store.read_back(timeline, before, self.limit(limit))).await;
        self.metrics.request("history", &range.as_ref().map(drop));
        let Range { head, messages } = range?;
        self.metrics.read.inc_by(messages.len() as u64);
        Ok((head, self.messages(reader.protover, messages)))
    }

    /// Returns the unread counts of timelines for the reader.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn unread(
        &self,
        reader: &Reader,
        timelines: &[String],
    ) -> Result<Vec<Unread>, TimelineRequestError> {
        let parse_timeline =
            timelines.iter().map(|text| parse_timeline(text)).collect::<Result<Vec<_>, _>>()?;
        parse_timeline.iter().try_for_each(|timeline| reader.check(timeline))?;
        let cursor = |timeline: &TimelineId| CursorId { mid: reader.mid, timeline: timeline.clone() };
        let cursors = self.call_store(self.store.cursors(parse_timeline.iter().map(cursor).collect())).await;
        self.metrics.request("unread", &cursors.as_ref().map(drop));
        let heads = self.call_store(self.store.heads(parse_timeline.clone())).await?;
        let found = parse_timeline.into_iter().zip(cursors?).zip(heads);
        Ok(found.map(|((timeline, cursor), head)| Unread { timeline, cursor, head }).collect())
    }

    /// Moves the member's cursor. It never moves backwards.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn acknowledge(
        &self,
        reader: &Reader,
        ack: &sync::Ack,
    ) -> Result<sync::AckReply, TimelineRequestError> {
        let timeline = parse_timeline(&ack.timeline)?;
        reader.check(&timeline)?;
        if reader.mid.is_anonymous() {
            return Err(TimelineRequestError::Forbidden(timeline.to_string()));
        }
        let cursor = CursorId { mid: reader.mid, timeline: timeline.clone() };
        let at = self.call_store(self.store.advance(cursor, TimelineSeq(ack.seq))).await;
        self.metrics.request("ack", &at.as_ref().map(drop));
        let cursor = at?;
        let heads = self.call_store(self.store.heads(vec![timeline.clone()])).await?;
        let head = heads.first().copied().unwrap_or_default();
        let unread = Unread { timeline, cursor, head };
        Ok(sync::AckReply { timeline: unread.timeline.to_string(), seq: cursor.0, unread: unread.count() })
    }

    /// Deletes the body of a message. Returns false when there is no such message.
    ///
    /// # Errors
    /// [`TimelineRequestError`].
    pub(crate) async fn delete(
        &self,
        timeline: &str,
        seq: TimelineSeq,
    ) -> Result<bool, TimelineRequestError> {
        let deleted = self.call_store(self.store.delete(parse_timeline(timeline)?, seq)).await;
        self.metrics.request("delete", &deleted.as_ref().map(drop));
        deleted
    }

    async fn cursor(&self, mid: Mid, timeline: &TimelineId) -> Result<TimelineSeq, TimelineRequestError> {
        if mid.is_anonymous() {
            return Ok(TimelineSeq::default());
        }
        let cursor = CursorId { mid, timeline: timeline.clone() };
        let found = self.call_store(self.store.cursors(vec![cursor])).await?;
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

    /// Encodes a message in the highest schema that its reader knows.
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
