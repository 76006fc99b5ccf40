//! The port from job to comet: goim's service `goim.comet.Comet` without its transport.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::{AcceptedAt, Call, CometNode, Mid, Operation, PacketBuf, Payload, RoomId, ServerId, SessionKey};

/// A comet as job sees it.
///
/// `Ok` means delivered to the comet: it has the message and will write it to every matching
/// session, or count why it did not. It does not wait for sockets. A slow reply is back-pressure:
/// the comet is full, and the caller must wait instead of dropping.
///
/// Order: calls made one after the other for the same key or room reach a session in that order.
pub trait CometPort: Send + Sync {
    /// Pushes to the sessions with these keys. Keys that the comet does not hold, and sessions that
    /// have not subscribed to the operation, are skipped.
    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>>;

    /// Takes pushes from the front as long as none has to wait, and returns the rest for
    /// [`CometPort::push`]. Some receivers of the first returned push may have been served; they
    /// are missing from it.
    ///
    /// A comet in the same process wakes its shards once for all of them. Takes none by default:
    /// over a network there is nothing to gain. Only call this while no other call for these keys
    /// is in flight.
    fn push_now(&self, pushes: Vec<KeyPush>) -> Vec<KeyPush> {
        pushes
    }

    /// Pushes in order, in one call. Unsupported by default.
    ///
    /// # Errors
    /// [`CometError::Unsupported`] if pushes must be sent one by one. Any other error is for all
    /// pushes: some may have been taken, and a retry may duplicate those.
    fn push_many(&self, pushes: Vec<KeyPush>) -> Call<Result<(), CometError>> {
        drop(pushes);
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Pushes to every session that has subscribed to the operation.
    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>>;

    /// Pushes to every session in the room, whatever it has subscribed to.
    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>>;

    /// Returns the rooms that have sessions here.
    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>>;

    /// Returns the changes of [`CometPort::rooms`] since a revision: a state that was true at some
    /// time between request and reply. Unsupported by default.
    ///
    /// # Errors
    /// [`CometError::Unsupported`] from a comet without this call, [`CometError::Invalid`] from one
    /// that cannot list its rooms for now.
    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        drop(known);
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Returns some sessions of a room here, and their total number. Unsupported by default.
    fn room_members(&self, room: RoomId, limit: usize) -> Call<Result<RoomMembers, CometError>> {
        drop((room, limit));
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Reports that messages for this comet were dropped, because it was marked as down or was
    /// missing from the node list; the last one `ago`. Sessions that were open then have missed
    /// messages: those that sync are notified, others may be closed so that they reconnect.
    /// Unsupported by default.
    fn messages_missed(&self, ago: Duration) -> Call<Result<(), CometError>> {
        let _ = ago;
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Returns what the comet reports about itself. RPC addresses and the time of the last change
    /// are left to the caller. Unsupported by default.
    fn describe(&self) -> Call<Result<CometNode, CometError>> {
        Call::Ready(Err(CometError::Unsupported))
    }
}

/// A message to session keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPush {
    /// The receivers. A key that is named twice gets the message twice.
    pub keys: Vec<SessionKey>,
    /// The operation that a session must have subscribed to.
    pub operation: Operation,
    /// What is sent.
    pub payload: Payload<PacketBuf>,
    /// When the publisher's request for the (oldest) message was accepted, if known.
    pub accepted_at: Option<AcceptedAt>,
}

/// A message to all sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    /// The operation that a session must have subscribed to.
    pub operation: Operation,
    /// What is sent.
    pub payload: Payload<PacketBuf>,
    /// When the publisher's request for the (oldest) message was accepted, if known.
    pub accepted_at: Option<AcceptedAt>,
    /// Sessions per second on this comet; `None` has no limit.
    pub speed: Option<NonZeroU32>,
}

/// A message to a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomPush {
    /// The room.
    pub room: RoomId,
    /// The operation of the (first) message, for the policy of full queues and for counters.
    pub operation: Operation,
    /// What is sent.
    pub payload: Payload<PacketBuf>,
    /// When the publisher's request for the (oldest) message was accepted, if known.
    pub accepted_at: Option<AcceptedAt>,
}

/// The sessions of a room on one comet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomMembers {
    /// Some of the sessions, in no order.
    pub members: Vec<RoomMember>,
    /// The total number of sessions.
    pub count: u64,
}

/// One session of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomMember {
    /// The member; anonymous when zero or below.
    pub mid: Mid,
    /// The session.
    pub key: SessionKey,
}

/// A revision of a comet's room set. The default is of an unknown one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomsRevision {
    /// Identifies the start of the comet.
    pub epoch: u64,
    /// One number for each stripe. The comet decides which stripe a room is in.
    pub stripes: Vec<u64>,
}

/// The changes of a comet's room set since a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomsDelta {
    /// The revision after these changes.
    pub version: RoomsRevision,
    /// The stripes that have changed.
    pub stripes: Vec<StripeDelta>,
}

/// The changes of one stripe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StripeDelta {
    /// The index of the stripe.
    pub stripe: u32,
    /// Whether `added` is the whole stripe, whatever was known before.
    pub complete: bool,
    /// Rooms that have sessions now.
    pub added: Vec<RoomId>,
    /// Rooms that have no sessions any more.
    pub removed: Vec<RoomId>,
}

/// Why a comet did not take a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CometError {
    /// The comet has left or cannot be reached. Its sessions are closed or closing.
    #[error("comet not available: {0}")]
    Unavailable(String),
    /// The comet did not reply in time. It may or may not have the message.
    #[error("comet did not answer within its deadline")]
    Timeout,
    /// The comet is older, or goim's, and does not have this call.
    #[error("the comet does not support the call")]
    Unsupported,
    /// The request is invalid, for example one without a receiver.
    #[error("{0}")]
    Invalid(&'static str),
    /// The comet's limit of concurrent paced broadcasts is reached.
    #[error("{limit} paced broadcasts are in flight already")]
    Busy {
        /// The limit.
        limit: usize,
    },
}

/// The comets that a job knows.
pub trait CometPool: Send + Sync {
    /// Returns the comet with this name; `None` if it has left or is unknown.
    fn get(&self, server: &ServerId) -> Option<Arc<dyn CometPort>>;

    /// Returns all comets, in no order.
    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)>;
}
