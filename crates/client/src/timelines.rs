//! Timelines as an application sees them: what it syncs, its positions, and the messages.
//!
//! The sync loop itself is [`goim_session::timeline_sync`]'s: one request at a time per timeline,
//! messages in order and once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
pub use goim_session::timeline_sync::SyncRules;
use goim_session::timeline_sync::TimelineSync;
use goim_wire::{Operation, Version, sync};
use serde_json::{Map, Value};

use crate::client::{request_error, timeline_error};
use crate::command::{Request, RequestFailure};
use crate::positions::{Position, PositionStore, SharedPositionStore};
use crate::{Client, ConnectError, SendError, TimelineError};

/// Which timelines a client syncs, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SyncConfig {
    /// Timelines that are synced from the start: `mid://<mid>` for the member's inbox, or rooms. At
    /// most [`Client::TIMELINES_MAX`]. More can be added later with [`Client::subscribe_timeline`].
    pub timelines: Vec<String>,
    /// Timeouts and limits of the sync loop. Default [`SyncRules::default`].
    pub rules: SyncRules,
    /// True (default): the server sends small messages along with their notification, which saves a
    /// round trip.
    pub inline: bool,
    pub(crate) store: SharedPositionStore,
}

impl SyncConfig {
    /// Syncs these timelines, each from its position in `positions`.
    ///
    /// Pass an [`Arc`](std::sync::Arc) of the store to keep a reference to it.
    pub fn new(
        timelines: impl IntoIterator<Item = impl Into<String>>,
        positions: impl PositionStore,
    ) -> Self {
        let timelines = timelines.into_iter().map(Into::into).collect();
        let store = SharedPositionStore::new(positions);
        Self { timelines, rules: SyncRules::default(), inline: true, store }
    }
}

/// A message of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimelineMessage {
    /// Its sequence number: 1, 2, 3 and so on without gaps.
    pub seq: u64,
    /// The operation that it was sent with.
    pub operation: Operation,
    /// The packet version of the body: its schema and encoding.
    pub version: Version,
    /// When the server accepted it.
    pub accepted_at: SystemTime,
    /// The member that sent it, verified by the server; zero for the application's backend.
    pub sender: i64,
    /// The body; `None` for a message that was deleted, or that exists in no schema that this
    /// client reads.
    pub body: Option<Bytes>,
}

impl From<sync::Message> for TimelineMessage {
    fn from(message: sync::Message) -> Self {
        let has_body = !message.deleted && !message.unreadable;
        let accepted_at = Duration::from_millis(u64::try_from(message.time_ms).unwrap_or_default());
        Self {
            seq: message.seq,
            operation: Operation(message.operation),
            version: Version(i16::try_from(message.version).unwrap_or(i16::MAX)),
            accepted_at: UNIX_EPOCH + accepted_at,
            sender: message.sender,
            body: has_body.then_some(message.body),
        }
    }
}

/// The result of [`Client::send_to`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// The position of the message in the timeline.
    pub position: Position,
    /// True when the message was stored before under the same client id.
    pub is_duplicate: bool,
}

/// The result of [`Client::acknowledge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acknowledged {
    /// The sequence number of the newest message that the member has read.
    pub seq: u64,
    /// The number of messages after it.
    pub unread: u64,
}

/// The sync loop with the bookkeeping of subscriptions. It outlives connections.
pub(crate) struct Timelines {
    sync: TimelineSync,
    store: SharedPositionStore,
    /// Timelines of the configuration whose position is not loaded yet.
    unloaded: Vec<String>,
    /// The last delivered positions of unsubscribed timelines. The store may be behind them while
    /// events wait in the queue; a new subscription must not deliver those events again.
    left: BTreeMap<String, Position>,
    inline: bool,
    /// Increases with each change of the set of timelines.
    revision: u64,
}

impl Timelines {
    pub(crate) fn new(config: &SyncConfig) -> Self {
        Self {
            sync: TimelineSync::new(config.rules),
            store: config.store.clone(),
            unloaded: config.timelines.clone(),
            left: BTreeMap::new(),
            inline: config.inline,
            revision: 0,
        }
    }

    pub(crate) fn sync(&mut self) -> &mut TimelineSync {
        &mut self.sync
    }

    /// The future that loads the next position, with the name of its timeline; `None` when all are
    /// loaded.
    pub(crate) fn next_load(
        &self,
    ) -> Option<(String, impl Future<Output = Result<Option<Position>, ConnectError>> + use<>)> {
        let timeline = self.unloaded.first()?.clone();
        let (name, store) = (timeline.clone(), self.store.clone());
        let load = async move {
            let loaded = store.load(name.clone()).await;
            loaded.map_err(|source| ConnectError::Positions { timeline: name, source })
        };
        Some((timeline, load))
    }

    /// Starts to sync a timeline whose position was loaded, unless it was unsubscribed meanwhile.
    pub(crate) fn loaded(&mut self, timeline: &str, position: Option<Position>) {
        if let Some(index) = self.unloaded.iter().position(|name| name == timeline) {
            self.unloaded.remove(index);
            self.sync.subscribe(timeline, position.unwrap_or_default().into());
        }
    }

    /// Loads every position of the configuration.
    pub(crate) async fn load(&mut self) -> Result<(), ConnectError> {
        while let Some((timeline, load)) = self.next_load() {
            let position = load.await?;
            self.loaded(&timeline, position);
        }
        Ok(())
    }

    /// Adds a timeline. One that is synced already stays as it is.
    pub(crate) fn subscribe(&mut self, timeline: &str, position: Position) -> Result<(), RequestFailure> {
        let is_new = !self.unloaded.iter().any(|name| name == timeline)
            && !self.sync.positions().any(|(name, _)| name == timeline);
        if !is_new {
            return Ok(());
        }
        if self.sync.positions().count().saturating_add(self.unloaded.len()) >= Client::TIMELINES_MAX {
            return Err(RequestFailure::TooMany);
        }
        let position = self.left.remove(timeline).unwrap_or(position);
        self.sync.subscribe(timeline, position.into());
        self.revision = self.revision.wrapping_add(1);
        Ok(())
    }

    /// Removes a timeline.
    pub(crate) fn unsubscribe(&mut self, timeline: &str) {
        self.unloaded.retain(|name| name != timeline);
        let position =
            self.sync.positions().find(|(name, _)| *name == timeline).map(|(_, position)| position);
        let Some(position) = position else { return };
        self.sync.unsubscribe(timeline);
        self.revision = self.revision.wrapping_add(1);
        if self.left.len() >= Client::TIMELINES_MAX {
            self.left.pop_first();
        }
        self.left.insert(timeline.to_owned(), position.into());
    }

    /// What the token of the next connection contains about timelines.
    pub(crate) fn resume(&self) -> ResumeFields {
        let is_complete = self.sync.positions().count() <= TOKEN_POSITIONS_MAX;
        let positions = self.sync.positions().filter(|_| is_complete);
        let pairs = positions.map(|(name, sync::Position { epoch, seq })| {
            (name.to_owned(), serde_json::json!({ "epoch": epoch, "seq": seq }))
        });
        ResumeFields {
            positions: Value::Object(pairs.collect::<Map<_, _>>()),
            notify_only: !self.inline,
            revision: is_complete.then_some(self.revision),
        }
    }

    /// Whether the token that was made at `revision` contains exactly the present timelines.
    pub(crate) fn is_at(&self, revision: Option<u64>) -> bool {
        revision == Some(self.revision)
    }
}

/// The maximum number of positions in a token. More could exceed the size that a server accepts;
/// they are then requested one by one.
const TOKEN_POSITIONS_MAX: usize = 32;

/// The fields of a token that concern timelines.
pub(crate) struct ResumeFields {
    pub(crate) positions: Value,
    pub(crate) notify_only: bool,
    /// The revision of the set of timelines; `None` when the token does not contain all positions.
    pub(crate) revision: Option<u64>,
}

impl Client {
    /// The maximum number of timelines that a client syncs at a time.
    pub const TIMELINES_MAX: usize = 1024;

    /// Sends a message to a timeline, where it is stored and delivered to subscribers.
    ///
    /// `client_id` identifies the message among those of this member: a message that is sent again
    /// with the same id is stored once. It is therefore safe to retry after an error that leaves
    /// open whether the message arrived. At most 128 bytes.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// See [`Client::send`].
    pub async fn send_to(
        &self,
        timeline: impl Into<String>,
        operation: Operation,
        body: impl Into<Bytes>,
        client_id: impl Into<String>,
    ) -> Result<Sent, SendError> {
        let (to, body, client_id) = (timeline.into(), body.into(), client_id.into());
        let request = sync::SendRequest { to, operation: operation.0, body, client_id };
        let reply: sync::SendReply = self.protobuf_request(Operation::SEND, &request).await?;
        let position = reply.position.unwrap_or_default().into();
        Ok(Sent { position, is_duplicate: reply.duplicate })
    }

    /// Moves the member's read cursor in a timeline forward to `seq`.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// See [`Client::send`].
    pub async fn acknowledge(
        &self,
        timeline: impl Into<String>,
        seq: u64,
    ) -> Result<Acknowledged, SendError> {
        let ack = sync::Ack { timeline: timeline.into(), seq };
        let sync::AckReply { seq, unread, .. } = self.protobuf_request(Operation::ACK, &ack).await?;
        Ok(Acknowledged { seq, unread })
    }

    /// Syncs one more timeline, now and after every reconnect, from its position in the store.
    ///
    /// Messages follow as [`Event::Messages`](crate::Event::Messages). The server notifies a
    /// session about its member's inbox and about the rooms it is in, so [join](Client::join_rooms)
    /// the room of a timeline as well. Without it, new messages are found only by the periodic sync
    /// ([`SyncRules`]). A timeline that is subscribed already stays as it is.
    ///
    /// # Errors
    /// See [`TimelineError`].
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the timeline may or may not be subscribed.
    pub async fn subscribe_timeline(&self, timeline: impl Into<String>) -> Result<(), TimelineError> {
        let timeline = timeline.into();
        let store = self.positions().ok_or(TimelineError::SyncDisabled)?;
        let position = store.load(timeline.clone()).await.map_err(TimelineError::Store)?.unwrap_or_default();
        let request = Request::SubscribeTimeline { timeline, position };
        self.call(request).await.map(drop).map_err(timeline_error)
    }

    /// Stops syncing a timeline, now and after every reconnect. Messages that are already queued
    /// are still delivered; then there are no more. Does nothing for a timeline that is not
    /// subscribed.
    ///
    /// # Errors
    /// See [`TimelineError`].
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, the timeline may or may not be subscribed.
    pub async fn unsubscribe_timeline(&self, timeline: impl Into<String>) -> Result<(), TimelineError> {
        let request = Request::UnsubscribeTimeline { timeline: timeline.into() };
        self.call(request).await.map(drop).map_err(timeline_error)
    }

    async fn protobuf_request<R: sync::Body>(
        &self,
        operation: Operation,
        request: &impl sync::Body,
    ) -> Result<R, SendError> {
        let body = request.write().into();
        let reply = self.packet(Version::GOIM, operation, body).await.map_err(request_error)?;
        R::read(reply).ok_or(SendError::BadReply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryPositions;

    fn timelines(names: &[&str]) -> Timelines {
        Timelines::new(&SyncConfig::new(names.iter().copied(), MemoryPositions::default()))
    }

    #[tokio::test]
    async fn the_token_contains_the_positions_of_all_timelines() {
        let mut timelines = timelines(&["mid://7", "live://1"]);
        timelines.unsubscribe("live://1");
        timelines.load().await.unwrap();
        timelines.subscribe("live://2", Position { epoch: 1, seq: 5 }).unwrap();
        let resume = timelines.resume();
        let expect = serde_json::json!({
            "live://2": { "epoch": 1, "seq": 5 },
            "mid://7": { "epoch": 0, "seq": 0 },
        });
        assert_eq!(resume.positions, expect);
        assert!(timelines.is_at(resume.revision));
        timelines.unsubscribe("mid://7");
        assert!(!timelines.is_at(resume.revision), "the token is outdated");
        // A token with too many positions contains none; they are requested.
        for number in 0..40 {
            timelines.subscribe(&format!("live://n{number}"), Position::default()).unwrap();
        }
        let resume = timelines.resume();
        assert_eq!((resume.positions, resume.revision), (serde_json::json!({}), None));
        assert!(!timelines.is_at(None));
    }

    #[test]
    fn a_timeline_that_is_subscribed_again_continues_where_it_was() {
        let mut timelines = timelines(&[]);
        timelines.subscribe("live://1", Position { epoch: 1, seq: 5 }).unwrap();
        timelines.unsubscribe("live://1");
        // The store is behind: events are still in the queue.
        timelines.subscribe("live://1", Position { epoch: 1, seq: 2 }).unwrap();
        assert_eq!(timelines.resume().positions["live://1"]["seq"], 5);
    }

    #[test]
    fn timelines_are_bounded() {
        let mut timelines = timelines(&[]);
        for round in 0..3 {
            for number in 0..Client::TIMELINES_MAX {
                timelines.subscribe(&format!("live://{round}/{number}"), Position::default()).unwrap();
            }
            let one_more = timelines.subscribe("live://x", Position::default());
            assert!(matches!(one_more, Err(RequestFailure::TooMany)));
            for number in 0..Client::TIMELINES_MAX {
                timelines.unsubscribe(&format!("live://{round}/{number}"));
            }
        }
        assert_eq!(timelines.left.len(), Client::TIMELINES_MAX);
    }
}
