//! What happens to sessions, for a backend that wants to know.

use crate::{AcceptedAt, Call, LogicError, Mid, RoomId, ServerId, SessionKey};

/// One thing that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleEvent {
    /// Names the event: the same when it is told again, and no other has it.
    pub id: String,
    /// What it is.
    pub kind: EventKind,
    /// The member; anonymous when zero or below.
    pub mid: Mid,
    /// The session.
    pub key: SessionKey,
    /// The comet.
    pub server: ServerId,
    /// The rooms that were joined or left; of a session that has begun those that it is in.
    pub rooms: Vec<RoomId>,
    /// Why a session has ended: a word of the table of reasons. Empty otherwise.
    pub reason: String,
    /// When it was.
    pub at: AcceptedAt,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A session has begun.
    Connect,
    /// A session has ended, and with it all its memberships.
    Disconnect,
    /// A session has joined rooms.
    Join,
    /// A session has left rooms and goes on.
    Leave,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Connect, Self::Disconnect, Self::Join, Self::Leave];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Disconnect => "disconnect",
            Self::Join => "join",
            Self::Leave => "leave",
        }
    }
}

/// Where events go.
pub trait EventSink: Send + Sync {
    /// Takes events, all or none. `Ok` means that they are where they should be.
    fn deliver(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>>;
}
