//! The push log: what logic has accepted and job has still to hand over, in order.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{BoxFuture, Call, Operation, Payload, RoomId, ServerId, SessionKey};

/// One accepted push: goim's Kafka record as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRecord {
    /// Whom it is for.
    pub target: PushTarget,
    /// What the packet is; for keys and for everybody also what a session must have subscribed to.
    pub operation: Operation,
    /// What is sent. The operation of a disconnect is [`Operation::DISCONNECT`].
    pub payload: Payload,
    /// When the publisher's request was accepted.
    pub accepted_at: AcceptedAt,
}

/// The receivers of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushTarget {
    /// Sessions that one comet holds.
    Keys {
        /// The comet.
        server: ServerId,
        /// The sessions, never empty.
        keys: Vec<SessionKey>,
    },
    /// All sessions of a room.
    Room(RoomId),
    /// Everybody.
    All {
        /// Sessions per second over all comets together; `None` is as fast as it goes.
        speed: Option<NonZeroU32>,
    },
}

impl PushRecord {
    /// The text that decides a record's place among others: records with the same one stay in order. It is the key
    /// of goim's Kafka record.
    #[must_use]
    pub fn partition_key(&self) -> Cow<'_, str> {
        match &self.target {
            PushTarget::Keys { keys, .. } => keys.first().map_or("", SessionKey::as_str).into(),
            PushTarget::Room(room) => room.as_str().into(),
            PushTarget::All { .. } => self.operation.to_string().into(),
        }
    }
}

/// When a push was accepted, in microseconds since 1970. Latency from acceptance to socket is counted from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AcceptedAt(pub u64);

impl AcceptedAt {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Time passed until `later`, zero when the clocks disagree.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(later.0.saturating_sub(self.0))
    }
}

/// The writing end.
pub trait PushLog: Send + Sync {
    /// Appends a record. `Ok` means that it is in the log and will be handed over. Waits (within a deadline) while the
    /// log is full. The answer always comes, within deadlines of the log's own.
    ///
    /// Order: of two records with the same partition key, the one whose append was called first comes first.
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>>;

    /// Appends records in one go: they stand in the log in this order, as if `append` had been
    /// called for each, and as near to each other as the log can keep them, so that a reader gets
    /// them together. Waits (within one deadline for all) while the log is full.
    ///
    /// What is in the log when the call ends is always a number of records from the front: the
    /// first one that the log does not take keeps out those behind it. The publisher goes on from
    /// there. With [`AppendError::Unknown`] any of those behind the front may be in the log too.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended>;
}

/// What became of records that were appended in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// How many of them, from the front, are in the log and will be handed over.
    pub accepted: usize,
    /// Why the one behind those is not; `None` when all are.
    pub error: Option<AppendError>,
}

/// Why it is not said that a record is in the log. It is not there, except with
/// [`AppendError::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Larger than a record may be. The text is the one that goim's users see.
    #[error("kafka server: Message was too large, server rejected it to avoid allocation error.")]
    TooLarge {
        /// The record's size in bytes.
        size: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// The log is full and stayed full until the deadline: the receivers are slower than the publishers.
    #[error("the push log is full; try again later")]
    Full,
    /// The log cannot be reached. The record is not in it, and will not be.
    #[error("{0}")]
    Unavailable(String),
    /// The record may or may not be in the log: it was on its way there, and nobody answered in
    /// time, or not clearly. For the publisher the text is always the same; why it is so is for the
    /// operator.
    #[error("the push may or may not be in the log")]
    Unknown(String),
}

impl AppendError {
    /// The same after a part of what belongs together is in the log: whether all of it is, is then
    /// not to be said either.
    #[must_use]
    pub fn in_part(self) -> Self {
        match self {
            Self::Unknown(_) => self,
            rest => Self::Unknown(format!("a part of the push is in the log, the rest is not: {rest}")),
        }
    }
}

/// Where a record is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The partition; records of different ones have no order among each other.
    pub partition: i32,
    /// The place in the partition, ascending.
    pub offset: i64,
}

/// A record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it is.
    pub position: LogPosition,
    /// What it is.
    pub record: PushRecord,
}

/// The reading end. One reader reads each partition at a time.
pub trait PushLogReader: Send {
    /// The next records, at least one; waits until there are some. `None` when the log has been
    /// closed and is used up.
    ///
    /// # Errors
    /// [`ReadError`]. With [`ReadError::Unavailable`] the reader may be asked again, after a pause;
    /// else that is of no use.
    ///
    /// # Cancel safety
    /// Dropping the future loses no record.
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>>;

    /// Says that this record, and all before it in its partition, were handed over: they need not be read again.
    fn done(&mut self, position: LogPosition);
}

/// Why nothing could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The log cannot be reached.
    #[error("push log not available: {0}")]
    Unavailable(String),
    /// This reader has ended; a new one may read on.
    #[error("{0}")]
    Ended(String),
    /// Another reader has taken its place, since it has the same name: that is for somebody to
    /// mend.
    #[error("{0}")]
    Fenced(String),
}
