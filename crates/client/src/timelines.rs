//! Timelines as an application sees them: what it follows, where it is, what it is given.
//!
//! The loop itself, one question at a time, in order, once, is [`goim_session::follow`]'s.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
pub use goim_session::follow::FollowRules;
use goim_session::follow::Follower;
use goim_wire::{Operation, Version, sync};
use serde_json::{Map, Value};

use crate::{Client, SendError};

/// How far an application is in a timeline. The default is the beginning of one that it does not know: the server then begins at the
/// member's cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// Of which life of the timeline; zero: not known.
    pub epoch: u64,
    /// The newest message that the application has; zero: none.
    pub seq: u64,
}

/// Keeps positions where the application keeps what it has received, so that both survive together.
///
/// [`PositionStore::save`] is called when the application takes the next event, hence has dealt with the messages before: a crash in between
/// gives it those messages again, and never loses one. Called from the task that takes events; it should be quick.
pub trait PositionStore: Send + Sync {
    /// Where the application is; the default for a timeline that it does not know.
    fn load(&self, timeline: &str) -> Position;

    /// The application has everything up to here.
    fn save(&self, timeline: &str, position: Position);
}

/// Positions that are forgotten with the process.
#[derive(Debug, Default)]
pub struct MemoryPositions(Mutex<BTreeMap<String, Position>>);

impl PositionStore for MemoryPositions {
    fn load(&self, timeline: &str) -> Position {
        let positions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        positions.get(timeline).copied().unwrap_or_default()
    }

    fn save(&self, timeline: &str, position: Position) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(timeline.to_owned(), position);
    }
}

/// What a client follows.
#[derive(Clone)]
pub struct SyncConfig {
    /// Timelines that are followed from the start: `mid://<mid>` for the member's inbox, or rooms.
    pub timelines: Vec<String>,
    /// Where the application's positions are. Default [`MemoryPositions`].
    pub positions: Arc<dyn PositionStore>,
    /// How the loop asks. Default [`FollowRules::default`].
    pub rules: FollowRules,
    /// The server sends small messages along with the word of them: a round trip less. Default true.
    pub inline: bool,
}

impl SyncConfig {
    /// Follows these timelines, from where the application is in each.
    pub fn new(
        timelines: impl IntoIterator<Item = impl Into<String>>,
        positions: Arc<dyn PositionStore>,
    ) -> Self {
        let timelines = timelines.into_iter().map(Into::into).collect();
        Self { timelines, positions, rules: FollowRules::default(), inline: true }
    }

    pub(crate) fn follower(&self) -> Follower {
        let mut follower = Follower::new(self.rules);
        for timeline in &self.timelines {
            follower.follow(timeline, self.positions.load(timeline).into());
        }
        follower
    }
}

impl fmt::Debug for SyncConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncConfig").field("timelines", &self.timelines).finish_non_exhaustive()
    }
}

/// A message of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineMessage {
    /// Its place: 1, 2, 3 and so on without holes.
    pub seq: u64,
    /// What it is.
    pub operation: Operation,
    /// How the body is to be read: a packet version.
    pub version: Version,
    /// When the server took it.
    pub accepted_at: SystemTime,
    /// The member that has sent it, as the server knows it; zero: the backend.
    pub sender: i64,
    /// What it says; `None` for one that was deleted, or that is in no schema that this client reads.
    pub body: Option<Bytes>,
}

impl From<sync::Message> for TimelineMessage {
    fn from(message: sync::Message) -> Self {
        let has_body = !message.deleted && !message.unreadable;
        Self {
            seq: message.seq,
            operation: Operation(message.operation),
            version: Version(i16::try_from(message.version).unwrap_or(i16::MAX)),
            accepted_at: UNIX_EPOCH
                + Duration::from_millis(u64::try_from(message.time_ms).unwrap_or_default()),
            sender: message.sender,
            body: has_body.then_some(message.body),
        }
    }
}

impl From<sync::Position> for Position {
    fn from(sync::Position { epoch, seq }: sync::Position) -> Self {
        Self { epoch, seq }
    }
}

impl From<Position> for sync::Position {
    fn from(Position { epoch, seq }: Position) -> Self {
        Self { epoch, seq }
    }
}

/// Where a message is that was sent to a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its place.
    pub position: Position,
    /// It was there before, by its name.
    pub is_duplicate: bool,
}

/// Where the member's cursor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// The newest message that was read.
    pub seq: u64,
    /// Messages behind it.
    pub unread: u64,
}

/// Positions that a token has room for: some more would make it larger than a server takes. The others are asked for.
const IN_TOKEN_MAX: usize = 32;

/// What a token says of timelines, and whether it has all positions.
pub(crate) struct InToken {
    pub(crate) positions: Value,
    pub(crate) notify_only: bool,
    pub(crate) is_complete: bool,
}

impl InToken {
    pub(crate) fn of(follower: &Follower, inline: bool) -> Self {
        let is_complete = follower.positions().count() <= IN_TOKEN_MAX;
        let positions = follower.positions().filter(|_| is_complete);
        let pairs = positions.map(|(name, sync::Position { epoch, seq })| {
            (name.to_owned(), serde_json::json!({ "epoch": epoch, "seq": seq }))
        });
        Self { positions: Value::Object(pairs.collect::<Map<_, _>>()), notify_only: !inline, is_complete }
    }
}

impl Client {
    /// Sends a message to a timeline: it is kept, and given to those who follow it. `client_id` names it among this member's messages: one
    /// that is sent again with the same name is kept once, so that it is safe to try again after an error that leaves open whether it
    /// arrived.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// As [`Client::send`].
    pub async fn send_to(
        &self,
        timeline: impl Into<String>,
        operation: Operation,
        body: impl Into<Bytes>,
        client_id: impl Into<String>,
    ) -> Result<Sent, SendError> {
        let (to, body, client_id) = (timeline.into(), body.into(), client_id.into());
        let request = sync::SendRequest { to, operation: operation.0, body, client_id };
        let reply: sync::SendReply = self.ask_about(Operation::SEND, &request).await?;
        let position = reply.position.unwrap_or_default().into();
        Ok(Sent { position, is_duplicate: reply.duplicate })
    }

    /// Moves the member's cursor in a timeline: everything up to `seq` is read.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// As [`Client::send`].
    pub async fn acknowledge(
        &self,
        timeline: impl Into<String>,
        seq: u64,
    ) -> Result<Acknowledged, SendError> {
        let ack = sync::Ack { timeline: timeline.into(), seq };
        let sync::AckReply { seq, unread, .. } = self.ask_about(Operation::ACK, &ack).await?;
        Ok(Acknowledged { seq, unread })
    }

    async fn ask_about<R: sync::Body>(
        &self,
        operation: Operation,
        request: &impl sync::Body,
    ) -> Result<R, SendError> {
        let answer = self.request(operation, request.write().into()).await?;
        R::read(answer).ok_or(SendError::BadReply)
    }
}
