//! Where logic looks up sessions and room counts.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{AcceptedAt, Call, CloseReason, Mid, RoomId, ServerId, SessionKey, SessionRef};

/// Sessions in each room, shared by reference: the map of a whole cluster can be large.
pub type RoomCounts = Arc<HashMap<RoomId, u32>>;

/// Which comet holds which session.
///
/// Records may expire when nobody touches them (a comet that died cannot remove its own).
pub trait SessionDirectory: Send + Sync {
    /// Enters a session. A record with the same key is replaced, wherever it pointed.
    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>>;

    /// Removes a session if the record still points to `session.server`; the answer says whether it did.
    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>>;

    /// Keeps a session's record from expiring; enters it again if it had gone.
    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>>;

    /// The comets of these keys, one answer for each key, in order.
    fn servers_of(&self, keys: &[SessionKey]) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>>;

    /// Changes when sessions of this comet may have gone that are there: the directory has lost what it had, or they were removed in
    /// the belief that the comet was dead. The comet must enter them again then. A directory that never loses any need not say
    /// anything else than it does by itself: always the same.
    fn generation(&self, server: ServerId) -> Call<Result<Generation, DirectoryError>> {
        let _ = server;
        Call::Ready(Ok(Generation::default()))
    }

    /// All sessions of these members; the order is not defined, no session comes twice.
    fn sessions_of(&self, mids: Vec<Mid>) -> Call<Result<Vec<SessionRecord>, DirectoryError>>;

    /// Tells all logics that the backend ends sessions: what members have open over HTTP is held by them and by no comet. Done when
    /// whoever asks [`SessionDirectory::ends_after`] from now on hears of it; some thousands are remembered. By itself: nothing, for a
    /// directory that one logic has for itself.
    fn note_end(&self, end: SessionEnd) -> Call<Result<(), DirectoryError>> {
        let _ = end;
        Call::Ready(Ok(()))
    }

    /// What was noted after a mark, the oldest first, and the mark behind it. Without a mark nothing but the mark behind all that was
    /// noted.
    fn ends_after(
        &self,
        mark: Option<EndCursor>,
    ) -> Call<Result<(EndCursor, Vec<SessionEnd>), DirectoryError>> {
        Call::Ready(Ok((mark.unwrap_or_default(), Vec::new())))
    }
}

/// A place among the ends that a directory remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndCursor(pub String);

/// The backend ends sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// Whose.
    pub of: EndTarget,
    /// Why.
    pub reason: CloseReason,
    /// The logic that was told, by a number of its own: it need not hear of it again.
    pub origin: u64,
}

/// Whose sessions end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndTarget {
    /// Those with these keys.
    Keys(Vec<SessionKey>),
    /// Those of these members.
    Mids(Vec<Mid>),
    /// Those in a room.
    Room(RoomId),
}

/// What a directory's memory of one comet's sessions is known by: a mark that is another one after sessions may have been lost, and
/// behind a slash when they were last swept because the comet was taken for dead, if they were. A memory that was lost has no sweep in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generation(pub String);

impl Generation {
    /// Of a memory with this mark.
    #[must_use]
    pub fn new(mark: &str, swept_at: Option<u64>) -> Self {
        Self(swept_at.map_or_else(|| mark.to_owned(), |at| format!("{mark}/{at}")))
    }

    /// By what the memory is told from one that has lost sessions.
    #[must_use]
    pub fn mark(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(mark, _)| mark)
    }

    /// When the comet's sessions were last swept, in nanoseconds since 1970 by the clock of who has swept; `None` when nobody knows of it.
    #[must_use]
    pub fn swept_at(&self) -> Option<u64> {
        self.0.split_once('/').and_then(|(_, at)| at.parse().ok())
    }
}

/// A session with the comet that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionRecord {
    /// The session.
    pub key: SessionKey,
    /// The comet.
    pub server: ServerId,
}

/// On which devices members are, for a policy about them. What it says may be old: who asks looks at the sessions themselves too.
pub trait DeviceDirectory: Send + Sync {
    /// Enters a session of a member, and gives all that are entered, this one among them.
    fn enter(
        &self,
        mid: Mid,
        key: SessionKey,
        device: Device,
    ) -> Call<Result<Vec<(SessionKey, Device)>, DirectoryError>>;

    /// Forgets sessions of a member.
    fn forget(&self, mid: Mid, keys: Vec<SessionKey>) -> Call<Result<(), DirectoryError>>;
}

/// A device that a member is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What the client says that it runs on; may be empty.
    pub platform: String,
    /// When it came.
    pub since: AcceptedAt,
}

/// How many sessions each room has, over all comets.
pub trait RoomDirectory: Send + Sync {
    /// Replaces what is known of this comet's rooms. An empty map says that it has none.
    fn report(&self, server: ServerId, rooms: RoomCounts) -> Call<Result<(), DirectoryError>>;

    /// The sums over all comets whose report is fresh (not older than 5 minutes).
    fn totals(&self) -> Call<Result<RoomCounts, DirectoryError>>;
}

/// Why a directory did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be reached in time.
    #[error("{0}")]
    Unavailable(String),
}
