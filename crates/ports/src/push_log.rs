//! The push log: pushes that logic has accepted and job has not delivered yet, in order.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{BoxFuture, Call, Operation, Payload, RoomId, ServerId, SessionKey};

/// An accepted push: goim's Kafka record as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushRecord {
    /// The receivers.
    pub target: PushTarget,
    /// The operation of the packet. Pushes to keys and to all go to sessions that have subscribed
    /// to it.
    pub operation: Operation,
    /// What is sent. The operation of a disconnect is [`Operation::DISCONNECT`].
    pub payload: Payload,
    /// When the publisher's request was accepted.
    pub accepted_at: AcceptedAt,
}

/// The receivers of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushTarget {
    /// Sessions on one comet.
    Keys {
        /// The comet.
        server: ServerId,
        /// The sessions, never empty.
        keys: Vec<SessionKey>,
    },
    /// All sessions of a room.
    Room(RoomId),
    /// All sessions.
    All {
        /// Sessions per second over all comets together; `None` has no limit.
        speed: Option<NonZeroU32>,
    },
}

impl PushRecord {
    /// Returns the key of goim's Kafka record: records with the same key stay in order.
    #[must_use]
    pub fn partition_key(&self) -> Cow<'_, str> {
        match &self.target {
            PushTarget::Keys { keys, .. } => keys.first().map_or("", SessionKey::as_str).into(),
            PushTarget::Room(room) => room.as_str().into(),
            PushTarget::All { .. } => self.operation.to_string().into(),
        }
    }
}

/// When a push was accepted, in microseconds since 1970. Delivery latency is measured from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AcceptedAt(pub u64);

impl AcceptedAt {
    /// Returns the current time.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Returns the time until `later`; zero if the clocks disagree.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(later.0.saturating_sub(self.0))
    }
}

/// The writing end of the push log.
pub trait PushLog: Send + Sync {
    /// Appends a record. `Ok` means that it is in the log and will be delivered. Waits while the
    /// log is full, at most until a deadline of the log's; the call always returns.
    ///
    /// Order: records with the same partition key are in the order of their `append` calls.
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>>;

    /// Appends records in the order given, as if `append` had been called for each, and as close
    /// together as the log allows, so that a reader gets them together. Waits while the log is
    /// full, with one deadline for all.
    ///
    /// The log always takes a prefix: if it does not take a record, it takes none after it, and the
    /// publisher can continue from there. With [`AppendError::Unknown`], any record after the
    /// prefix may be in the log too.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended>;
}

/// The result of appending several records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The number of records, from the front, that are in the log and will be delivered.
    pub accepted: usize,
    /// Why the next record is not; `None` if all are.
    pub error: Option<AppendError>,
}

/// Why an append failed. The record is not in the log, except with [`AppendError::Unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The record exceeds the size limit. goim's users see this text.
    #[error("kafka server: Message was too large, server rejected it to avoid allocation error.")]
    TooLarge {
        /// The record's size in bytes.
        size: usize,
        /// The maximum size in bytes.
        limit: usize,
    },
    /// The log was full until the deadline: receivers are slower than publishers.
    #[error("the push log is full; try again later")]
    Full,
    /// The log cannot be reached. The record is not in it and will not be.
    #[error("{0}")]
    Unavailable(String),
    /// The record may or may not be in the log: it was sent, and there was no clear reply in time.
    /// Publishers always see the same text; the reason is for the operator.
    #[error("the push may or may not be in the log")]
    Unknown(String),
}

impl AppendError {
    /// Returns the error of a multi-record request after some of its records are in the log: the
    /// result is then unknown.
    #[must_use]
    pub fn in_part(self) -> Self {
        match self {
            Self::Unknown(_) => self,
            rest => Self::Unknown(format!("a part of the push is in the log, the rest is not: {rest}")),
        }
    }
}

/// The position of a record in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The partition. Records of different partitions have no order.
    pub partition: i32,
    /// The offset in the partition, ascending.
    pub offset: i64,
}

/// A record with its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The position.
    pub position: LogPosition,
    /// The record.
    pub record: PushRecord,
}

/// The reading end of the push log. Each partition has one reader at a time.
pub trait PushLogReader: Send {
    /// Returns the next records, at least one; waits for them. `None` when the log is closed and
    /// drained.
    ///
    /// # Errors
    /// [`ReadError`]. After [`ReadError::Unavailable`] the caller may retry after a delay; after
    /// any other error the reader has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no record.
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>>;

    /// Acknowledges this record and all before it in its partition: they need not be read again.
    fn done(&mut self, position: LogPosition);
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The log cannot be reached.
    #[error("push log not available: {0}")]
    Unavailable(String),
    /// This reader has ended; a new one can continue.
    #[error("{0}")]
    Ended(String),
    /// Another reader with the same name has replaced this one: the operator must fix the
    /// configuration.
    #[error("{0}")]
    Fenced(String),
}
