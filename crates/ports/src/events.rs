//! Session events for the backend.

use crate::{AcceptedAt, Call, LogicError, Mid, RoomId, ServerId, SessionKey};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleEvent {
    /// A unique id. A retry has the same.
    pub id: String,
    /// The kind.
    pub kind: EventKind,
    /// The member; anonymous when zero or below.
    pub mid: Mid,
    /// The session.
    pub key: SessionKey,
    /// The comet.
    pub server: ServerId,
    /// The rooms that were joined or left; for a new session, the rooms that it starts in.
    pub rooms: Vec<RoomId>,
    /// The label of the close reason for the end of a session; otherwise empty.
    pub reason: String,
    /// When it happened.
    pub at: AcceptedAt,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A session was opened.
    Connect,
    /// A session was closed, with all its memberships.
    Disconnect,
    /// A session has joined rooms.
    Join,
    /// A session has left rooms and stays open.
    Leave,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Connect, Self::Disconnect, Self::Join, Self::Leave];

    /// Returns the name of the kind.
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

/// Where events are delivered.
pub trait EventSink: Send + Sync {
    /// Delivers events, all or none.
    fn deliver(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>>;
}
