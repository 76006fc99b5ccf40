//! Timelines: durable, ordered messages, one timeline for each member and room.
//!
//! The store gives a message its sequence when it is appended, and reads go by sequence. Retention
//! removes messages from the old end only, and a deleted message leaves its sequence, so that a gap
//! is never mistaken for the end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::{AcceptedAt, Bodies, Call, Mid, Operation, RoomId};

/// The owner of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimelineId {
    /// The inbox of a member, written `mid://<mid>`. Never of an anonymous one.
    Inbox(Mid),
    /// A room, written as its name.
    Room(RoomId),
}

impl TimelineId {
    /// Parses the text form; `None` if it is neither an inbox nor `type://room`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once("://")?;
        if kind == "mid" {
            let mid = name.parse().ok().map(Mid)?;
            // Only the canonical number names an inbox.
            return (!mid.is_anonymous() && mid.to_string() == name).then_some(Self::Inbox(mid));
        }
        (!kind.is_empty() && !name.is_empty()).then(|| Self::Room(text.into()))
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbox(mid) => write!(f, "mid://{mid}"),
            Self::Room(room) => room.fmt(f),
        }
    }
}

/// The sequence of a message in its timeline: 1, 2, 3 and so on without gaps. Zero is before the
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimelineSeq(pub u64);

impl TimelineSeq {
    /// Returns the next sequence.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the previous sequence; zero for zero.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for TimelineSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Generated when a timeline is created. When it changes, a client knows that the store was lost or
/// reset. Zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(pub u64);

/// A position in a timeline. The default is before the first message of an unknown timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// The epoch of the timeline.
    pub epoch: Epoch,
    /// The sequence of the latest message up to here.
    pub seq: TimelineSeq,
}

/// The bounds of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Head {
    /// The epoch; none if nothing was ever appended.
    pub epoch: Epoch,
    /// The latest message; zero if there never was one.
    pub latest: TimelineSeq,
    /// The oldest message that is stored; one above `latest` if none is.
    pub first: TimelineSeq,
}

impl Head {
    /// Returns the position of the latest message.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.latest }
    }

    /// Returns true if a reader at this position misses messages: the epoch is another one, the
    /// position is ahead of the timeline, or the next message has been removed. A reader without a
    /// position never has a gap.
    #[must_use]
    pub fn has_gap(&self, known: Position) -> bool {
        if known == Position::default() {
            return false;
        }
        known.epoch != self.epoch || known.seq > self.latest || known.seq.next() < self.first
    }
}

/// A message to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// The sender; anonymous for the backend.
    pub sender: Mid,
    /// The operation of the packet.
    pub operation: Operation,
    /// The bodies.
    pub bodies: Bodies,
    /// When the publisher's request was accepted.
    pub accepted_at: AcceptedAt,
}

/// A message with its sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The sequence.
    pub seq: TimelineSeq,
    /// The message. A deleted one has a single, empty body.
    pub message: NewMessage,
    /// Whether it was deleted: only its sequence is left.
    pub is_deleted: bool,
}

/// Identifies a message of one sender or publisher: within the deduplication window an append with
/// the same key is a duplicate. 1 to [`IdempotencyKey::BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Bytes);

impl IdempotencyKey {
    /// The maximum length in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Creates a key; `None` if it is empty or too long.
    #[must_use]
    pub fn new(name: impl Into<Bytes>) -> Option<Self> {
        let name = name.into();
        (1..=Self::BYTES_MAX).contains(&name.len()).then_some(Self(name))
    }

    /// Returns the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message and the timeline to append it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The timeline.
    pub timeline: TimelineId,
    /// The message.
    pub message: NewMessage,
    /// The key for deduplication, among the messages of the same sender in the same timeline.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// The result of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendResult {
    /// The position of the message.
    pub position: Position,
    /// Whether it was appended before: nothing was appended now.
    pub is_duplicate: bool,
}

/// The limits of one read. It returns at least one message if there is one, however large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Maximum number of messages.
    pub messages: usize,
    /// Maximum number of body bytes.
    pub bytes: usize,
}

/// A range of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// The bounds of the timeline when it was read.
    pub head: Head,
    /// The messages, ascending, without gaps between them.
    pub messages: Vec<StoredMessage>,
}

/// The cursor of a member in a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CursorId {
    /// The member.
    pub mid: Mid,
    /// The timeline.
    pub timeline: TimelineId,
}

/// Retention limits. Messages beyond any of them are removed, oldest first, within a pass or two of
/// the store. The latest message of a timeline stays unless it is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Messages of a timeline.
    pub messages_max: u64,
    /// Time since a message was accepted.
    pub age_max: Duration,
    /// Bytes of the bodies of a timeline.
    pub bytes_max: u64,
}

impl Retention {
    /// No limits.
    pub const FOREVER: Self = Self { messages_max: u64::MAX, age_max: Duration::MAX, bytes_max: u64::MAX };
}

/// Retention by kind of timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionRules {
    /// By the part of the name before `://`; `mid` for inboxes.
    pub retention_overrides: Vec<(String, Retention)>,
    /// For all other kinds.
    pub otherwise: Retention,
}

impl RetentionRules {
    /// Returns the retention of a timeline.
    #[must_use]
    pub fn of(&self, timeline: &TimelineId) -> Retention {
        let kind = match timeline {
            TimelineId::Inbox(_) => "mid",
            TimelineId::Room(room) => room.as_str().split_once("://").map_or("", |(kind, _)| kind),
        };
        let rule = self.retention_overrides.iter().find(|(known, _)| known == kind);
        rule.map_or(self.otherwise, |(_, rule)| *rule)
    }
}

/// The store of timelines.
///
/// If an append to a timeline starts after another was answered, its messages have higher
/// sequences. A read returns everything that was answered before it started.
pub trait TimelineStore: Send + Sync {
    /// Appends messages in the order given, all of them or none. `Ok` means that they survive
    /// whatever failures the store promises to survive. The results are in the order of the
    /// messages.
    ///
    /// # Cancel safety
    /// Dropping the call may leave the messages appended.
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>>;

    /// Returns the messages after `after`, ascending.
    fn read(
        &self,
        timeline: TimelineId,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>>;

    /// Returns the latest messages before `before`, ascending; `None` is the end of the timeline.
    fn read_back(
        &self,
        timeline: TimelineId,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>>;

    /// Returns the bounds of timelines, in the order given. A timeline that does not exist has the
    /// default.
    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>>;

    /// Deletes the bodies of a message and leaves its sequence. Returns false if it does not exist
    /// or is deleted already.
    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>>;

    /// Moves a cursor forward, never backward and never beyond the latest message. Returns the new
    /// value.
    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>>;

    /// Returns cursors in the order given; zero for one that was never moved.
    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>>;
}

/// Why a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// Too much is in flight; nothing was done.
    #[error("the timelines are busy: {0}")]
    Busy(String),
    /// The store is not available now, for example because the disk is full. Nothing was appended.
    #[error("the timelines are not available: {0}")]
    Unavailable(String),
    /// The request is invalid; a retry is useless.
    #[error("{0}")]
    Invalid(String),
    /// The result is unknown; a retry with an [`IdempotencyKey`] is safe.
    #[error("it is not known whether the message was stored: {0}")]
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_timelines() {
        let inbox = Some(TimelineId::Inbox(Mid(7)));
        let room = |name: &str| Some(TimelineId::Room(name.into()));
        for (text, expected) in [
            ("mid://7", inbox),
            ("live://7", room("live://7")),
            ("a://b://c", room("a://b://c")),
            ("mid://0", None),
            ("mid://-1", None),
            ("mid://07", None),
            ("mid://+7", None),
            ("mid://x", None),
            ("mid://", None),
            ("://x", None),
            ("x://", None),
            ("x", None),
            ("", None),
        ] {
            let read = TimelineId::parse(text);
            assert_eq!(read, expected, "{text}");
            if let Some(read) = read {
                assert_eq!(read.to_string(), text);
            }
        }
    }

    #[test]
    fn who_would_miss_something() {
        let [epoch, other] = [Epoch(7), Epoch(8)];
        let head = Head { epoch, latest: TimelineSeq(10), first: TimelineSeq(5) };
        let at = |epoch, seq| Position { epoch, seq: TimelineSeq(seq) };
        for (known, has_gap) in [
            (Position::default(), false),
            (at(epoch, 10), false),
            (at(epoch, 4), false),
            (at(epoch, 3), true),
            (at(epoch, 0), true),
            (at(epoch, 11), true),
            (at(other, 7), true),
            (at(Epoch::default(), 7), true),
        ] {
            assert_eq!(head.has_gap(known), has_gap, "{known:?}");
        }
        assert!(!Head::default().has_gap(Position::default()));
        assert!(Head::default().has_gap(at(epoch, 3)), "what was known is lost");
    }
}
