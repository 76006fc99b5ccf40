//! The directories in which logic looks up sessions, devices and room counts.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{AcceptedAt, Call, CloseReason, Mid, RoomId, ServerId, SessionKey, SessionRef};

/// Sessions in each room. Shared by reference: the map of a whole cluster can be large.
pub type RoomCounts = Arc<HashMap<RoomId, u32>>;

/// Which comet holds which session.
///
/// Records may expire unless they are renewed: a comet that died cannot remove its own.
pub trait SessionDirectory: Send + Sync {
    /// Adds a session. Replaces a record with the same key, whatever comet it names.
    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>>;

    /// Removes a session if its record still names `session.server`. Returns whether it did.
    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>>;

    /// Renews a session's record; adds it again if it has expired.
    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>>;

    /// Returns the comets of these keys, one result for each key, in order.
    fn servers_of(&self, keys: &[SessionKey]) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>>;

    /// Returns a value that changes when records of this comet's open sessions may be missing: the
    /// directory has lost data, or a sweep removed them because the comet seemed dead. The comet
    /// must then register its sessions again. A directory that never loses data always returns the
    /// same value, as by default.
    fn generation(&self, server: ServerId) -> Call<Result<Generation, DirectoryError>> {
        let _ = server;
        Call::Ready(Ok(Generation::default()))
    }

    /// Returns all sessions of these members, each once, in no order.
    fn sessions_of(&self, mids: Vec<Mid>) -> Call<Result<Vec<SessionRecord>, DirectoryError>>;

    /// Records that the backend ends sessions, for all logics: connections of members over HTTP are
    /// held by logics, not by a comet. After `Ok`, calls of [`SessionDirectory::ends_after`] return
    /// it; some thousands are remembered. Does nothing by default, which suits a directory with a
    /// single logic.
    fn note_end(&self, end: SessionEnd) -> Call<Result<(), DirectoryError>> {
        let _ = end;
        Call::Ready(Ok(()))
    }

    /// Returns what was recorded after a cursor, oldest first, and the new cursor. Without a
    /// cursor, only returns the one at the end.
    fn ends_after(
        &self,
        mark: Option<EndCursor>,
    ) -> Call<Result<(EndCursor, Vec<SessionEnd>), DirectoryError>> {
        Call::Ready(Ok((mark.unwrap_or_default(), Vec::new())))
    }
}

/// A position among the recorded ends of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndCursor(pub String);

/// A request of the backend to end sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// The sessions.
    pub of: EndTarget,
    /// The reason.
    pub reason: CloseReason,
    /// A number of the logic that recorded it, which ignores its own entries.
    pub origin: u64,
}

/// The sessions to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndTarget {
    /// The sessions with these keys.
    Keys(Vec<SessionKey>),
    /// The sessions of these members.
    Mids(Vec<Mid>),
    /// The sessions in a room.
    Room(RoomId),
}

/// The state of a directory's records of one comet: an incarnation that changes when records may
/// have been lost, followed by a slash and the time of the last sweep, if there was one. Records
/// that were lost have no sweep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generation(pub String);

impl Generation {
    /// Creates a generation with this incarnation.
    #[must_use]
    pub fn new(mark: &str, swept_at: Option<u64>) -> Self {
        Self(swept_at.map_or_else(|| mark.to_owned(), |at| format!("{mark}/{at}")))
    }

    /// Returns the incarnation of the records.
    #[must_use]
    pub fn mark(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(mark, _)| mark)
    }

    /// Returns when the comet's sessions were last swept, in nanoseconds since 1970 by the clock of
    /// the logic that swept; `None` if they never were, or that is unknown.
    #[must_use]
    pub fn swept_at(&self) -> Option<u64> {
        self.0.split_once('/').and_then(|(_, at)| at.parse().ok())
    }
}

/// A session and the comet that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionRecord {
    /// The session.
    pub key: SessionKey,
    /// The comet.
    pub server: ServerId,
}

/// The devices of members, for device limits. Entries may be stale: the caller checks the session
/// directory too.
pub trait DeviceDirectory: Send + Sync {
    /// Adds a session of a member and returns all of the member's sessions, with this one.
    fn enter(
        &self,
        mid: Mid,
        key: SessionKey,
        device: Device,
    ) -> Call<Result<Vec<(SessionKey, Device)>, DirectoryError>>;

    /// Removes sessions of a member.
    fn forget(&self, mid: Mid, keys: Vec<SessionKey>) -> Call<Result<(), DirectoryError>>;
}

/// A device of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The platform that the client has sent; may be empty.
    pub platform: String,
    /// When the session was opened.
    pub since: AcceptedAt,
}

/// The number of sessions in each room, over all comets.
pub trait RoomDirectory: Send + Sync {
    /// Replaces the counts of this comet. An empty map means that it has no rooms.
    fn report(&self, server: ServerId, rooms: RoomCounts) -> Call<Result<(), DirectoryError>>;

    /// Returns the sums over all comets with a fresh report (at most 5 minutes old).
    fn totals(&self) -> Call<Result<RoomCounts, DirectoryError>>;
}

/// Why a directory failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be reached in time.
    #[error("{0}")]
    Unavailable(String),
}
