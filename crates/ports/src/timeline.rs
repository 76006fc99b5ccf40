//! Timelines: durable runs of messages, one for each member and room, in which nothing is missing.
//!
//! A message gets its sequence from the store when it is appended; who reads goes by sequence. What is removed by age or number
//! goes from the old end only, and a single message that is deleted leaves its place behind, so that a hole can never be taken for
//! the end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::{AcceptedAt, Bodies, Call, Mid, Operation, RoomId};

/// What has a timeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimelineId {
    /// The inbox of a member, written `mid://<mid>`. Never of somebody anonymous.
    Inbox(Mid),
    /// A room, written as its name.
    Room(RoomId),
}

impl TimelineId {
    /// Reads the text form; `None` for what is neither an inbox nor `type://room`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once("://")?;
        if kind == "mid" {
            let mid = name.parse().ok().map(Mid)?;
            // One inbox has one name.
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

/// The place of a message in its timeline: 1, 2, 3 and so on without holes. Zero is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimelineSeq(pub u64);

impl TimelineSeq {
    /// The one behind.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The one before; zero has none.
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

/// Drawn when a timeline is created: by another one than before a client sees that the store was lost or reset. Zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epoch(pub u64);

/// How far somebody is in a timeline. The default is the beginning of one that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// Of which life of the timeline.
    pub epoch: Epoch,
    /// The newest message that is meant.
    pub seq: TimelineSeq,
}

/// What is known of a timeline as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Head {
    /// Of which life it is; none as long as nothing was ever appended.
    pub epoch: Epoch,
    /// The newest message; zero while there was none.
    pub latest: TimelineSeq,
    /// The oldest that is kept; one above `latest` when nothing is.
    pub first: TimelineSeq,
}

impl Head {
    /// Where the timeline ends.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.latest }
    }

    /// True when somebody at this position would miss messages by reading on: it is of another life of the timeline, ahead of it, or
    /// what comes next is not kept any more. The beginning is a hole for nobody who has never been here.
    #[must_use]
    pub fn has_gap(&self, known: Position) -> bool {
        if known == Position::default() {
            return false;
        }
        known.epoch != self.epoch || known.seq > self.latest || known.seq.next() < self.first
    }
}

/// A message to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Who has sent it; anonymous for the backend.
    pub sender: Mid,
    /// What the packet is.
    pub operation: Operation,
    /// The bodies.
    pub bodies: Bodies,
    /// When it was taken from its publisher.
    pub accepted_at: AcceptedAt,
}

/// A message with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Its place.
    pub seq: TimelineSeq,
    /// The message. A deleted one has a single, empty body.
    pub message: NewMessage,
    /// It was deleted: its place is all that is left.
    pub is_deleted: bool,
}

/// Names one message of its sender or publisher: who gives the same name again within the window means the same message. 1 to
/// [`IdempotencyKey::BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Bytes);

impl IdempotencyKey {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Takes a name; `None` for one that is empty or too long.
    #[must_use]
    pub fn new(name: impl Into<Bytes>) -> Option<Self> {
        let name = name.into();
        (1..=Self::BYTES_MAX).contains(&name.len()).then_some(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A message on its way into a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Where to.
    pub timeline: TimelineId,
    /// What.
    pub message: NewMessage,
    /// By what another copy of it is known, among those of the same sender in the same timeline.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendResult {
    /// Where the message is.
    pub position: Position,
    /// It was there before: nothing was appended.
    pub is_duplicate: bool,
}

/// How much one read gives at most. It gives one message at least, if there is one, however large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Messages.
    pub messages: usize,
    /// Bytes of bodies.
    pub bytes: usize,
}

/// A part of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Range {
    /// The timeline as it was when this was read.
    pub head: Head,
    /// The messages, ascending, without holes among them.
    pub messages: Vec<StoredMessage>,
}

/// How far a member has read in a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CursorId {
    /// Who reads.
    pub mid: Mid,
    /// What.
    pub timeline: TimelineId,
}

/// How long messages are kept: what goes beyond any of these goes, oldest first, within a pass or two of the store's own. The
/// newest message of a timeline stays unless it is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Messages of a timeline.
    pub messages_max: u64,
    /// Time since they were accepted.
    pub age_max: Duration,
    /// Bytes of the bodies of a timeline.
    pub bytes_max: u64,
}

impl Retention {
    /// Everything is kept.
    pub const FOREVER: Self = Self { messages_max: u64::MAX, age_max: Duration::MAX, bytes_max: u64::MAX };
}

/// How long messages are kept in timelines of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionRules {
    /// By the part of the name before `://`; `mid` is the inboxes.
    pub retention_overrides: Vec<(String, Retention)>,
    /// For all others.
    pub otherwise: Retention,
}

impl RetentionRules {
    /// The rule of a timeline.
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

/// Where timelines are kept.
///
/// Two appends to one timeline, the second called after the first was answered, have their places in this order. Reads see
/// everything that was answered before they were called.
pub trait TimelineStore: Send + Sync {
    /// Appends messages, all of them or none, in the order given. `Ok` means that they survive the death of the process and of the
    /// machine that the store promises to survive; the answers are in the order of the messages.
    ///
    /// # Cancel safety
    /// Dropping the call may leave the messages appended.
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>>;

    /// The messages behind `after`, ascending.
    fn read(
        &self,
        timeline: TimelineId,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>>;

    /// The newest messages before `before`, ascending; `None` is the newest of all.
    fn read_back(
        &self,
        timeline: TimelineId,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>>;

    /// What is known of timelines, in the order of the question. One that does not exist is the default.
    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>>;

    /// Takes the body out of a message and leaves its place. False when it is not there, or not any more.
    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>>;

    /// Moves a cursor forward, never back and never beyond the newest message. The answer is where it is then.
    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>>;

    /// Where cursors are, in the order of the question; zero for one that was never moved.
    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>>;
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// As much is under way as may be; nothing was done.
    #[error("the timelines are busy: {0}")]
    Busy(String),
    /// The store cannot do it now: the disk is full, the server is away. What was to be appended is not there.
    #[error("the timelines are not available: {0}")]
    Unavailable(String),
    /// It makes no sense; trying again is useless.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be told whether it was done; with a name (see [`IdempotencyKey`]) it is safe to try again.
    #[error("it is not known whether it was kept: {0}")]
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
