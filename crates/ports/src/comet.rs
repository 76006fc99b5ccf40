//! What job asks of comet: goim's service `goim.comet.Comet` without its transport.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::{AcceptedAt, Call, CometNode, Mid, Operation, PacketBuf, Payload, RoomId, ServerId, SessionKey};

/// A comet as job sees it.
///
/// `Ok` means handed over: the comet has the message and will write it to every session that it is for, or count
/// why it did not. It does not wait for sockets. An answer that takes long is back-pressure: the comet is full, and
/// the caller must wait rather than drop.
///
/// Order: calls made one after the other for the same key or the same room reach the session in that order.
pub trait CometPort: Send + Sync {
    /// To the sessions with these keys. Keys that the comet does not hold, and sessions that did not subscribe to the
    /// operation, are passed over.
    fn push(&self, push: KeyPush) -> Call<Result<(), CometError>>;

    /// Takes pushes from the front as long as that needs no wait, and gives back the others, to be made by `push` one
    /// after the other. Of the first of those, receivers who have been served may be missing.
    ///
    /// A comet in the same process wakes its shards once for all of them; one over a network has nothing to gain and takes
    /// none, which is what happens by default. Only to be called when no other call for these keys is under way.
    fn push_now(&self, pushes: Vec<KeyPush>) -> Vec<KeyPush> {
        pushes
    }

    /// Pushes one after the other in one call. An error is of all of them: some may have been taken, and the caller who makes them again
    /// may double those. By default unknown.
    ///
    /// # Errors
    /// [`CometError::Unsupported`] from who takes them one by one only.
    fn push_many(&self, pushes: Vec<KeyPush>) -> Call<Result<(), CometError>> {
        drop(pushes);
        Call::Ready(Err(CometError::Unsupported))
    }

    /// To every session that subscribed to the operation.
    fn broadcast(&self, broadcast: Broadcast) -> Call<Result<(), CometError>>;

    /// To every session in the room, whatever it subscribed to.
    fn push_room(&self, push: RoomPush) -> Call<Result<(), CometError>>;

    /// The rooms that have sessions here.
    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>>;

    /// What has changed in [`CometPort::rooms`] since an earlier answer: what was true at some moment between question and answer. By
    /// default nobody knows.
    ///
    /// # Errors
    /// [`CometError::Unsupported`] from a comet without this call, [`CometError::Invalid`] from one that cannot list its
    /// rooms, now and for some time.
    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        drop(known);
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Some sessions that are in a room here, and how many there are. By default nobody knows.
    fn room_members(&self, room: RoomId, limit: usize) -> Call<Result<RoomMembers, CometError>> {
        drop((room, limit));
        Call::Ready(Err(CometError::Unsupported))
    }

    /// Messages for this comet were dropped: it was given up, or had left the list; the last of them so long ago. Sessions that were there
    /// then have missed something: those that sync are told to look, others may be ended so that they come back. By default unknown.
    fn messages_missed(&self, ago: Duration) -> Call<Result<(), CometError>> {
        let _ = ago;
        Call::Ready(Err(CometError::Unsupported))
    }

    /// What the comet says of itself; where its RPC is reached and since when is for whoever asks to know. By default nothing is
    /// known.
    fn describe(&self) -> Call<Result<CometNode, CometError>> {
        Call::Ready(Err(CometError::Unsupported))
    }
}

/// A message to some keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPush {
    /// The receivers. One that is named twice gets it twice.
    pub keys: Vec<SessionKey>,
    /// The operation that a session must have subscribed to.
    pub operation: Operation,
    /// What is sent.
    pub payload: Payload<PacketBuf>,
    /// When the publisher's request for the (oldest) message was accepted, if known.
    pub accepted_at: Option<AcceptedAt>,
}

/// A message to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    /// The operation that a session must have subscribed to.
    pub operation: Operation,
    /// What is sent.
    pub payload: Payload<PacketBuf>,
    /// When the publisher's request for the (oldest) message was accepted, if known.
    pub accepted_at: Option<AcceptedAt>,
    /// Sessions per second on this comet; `None` is as fast as it goes.
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

/// Sessions of a room on one comet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomMembers {
    /// Some of them, in no order.
    pub members: Vec<RoomMember>,
    /// How many there are.
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

/// How much somebody knows of a comet's rooms. The default knows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomsRevision {
    /// Another one for each start of a comet.
    pub epoch: u64,
    /// One number for each stripe: rooms are spread over them by a rule of the comet's own.
    pub stripes: Vec<u64>,
}

/// What has changed in a comet's rooms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomsDelta {
    /// What is known with this.
    pub version: RoomsRevision,
    /// The stripes that have changed.
    pub stripes: Vec<StripeDelta>,
}

/// What has changed in one stripe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StripeDelta {
    /// Its number.
    pub stripe: u32,
    /// True when `come` is all that there is, whatever was known before.
    pub complete: bool,
    /// Rooms that have sessions now.
    pub added: Vec<RoomId>,
    /// Rooms that have none any more.
    pub removed: Vec<RoomId>,
}

/// Why a comet did not take a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CometError {
    /// The comet has left or cannot be reached. Its sessions are gone or going.
    #[error("comet not available: {0}")]
    Unavailable(String),
    /// The comet did not answer in time. It may or may not have the message.
    #[error("comet did not answer within its deadline")]
    Timeout,
    /// The comet is older, or goim's, and does not have this call.
    #[error("the comet does not support the call")]
    Unsupported,
    /// The request is invalid, for example one without a receiver.
    #[error("{0}")]
    Invalid(&'static str),
    /// As many paced broadcasts are under way as the comet allows.
    #[error("{limit} paced broadcasts are under way already")]
    Busy {
        /// How many the comet allows.
        limit: usize,
    },
}

/// The comets that a job knows.
pub trait CometPool: Send + Sync {
    /// The comet with this name, or `None` when it is gone or unknown.
    fn get(&self, server: &ServerId) -> Option<Arc<dyn CometPort>>;

    /// All comets, in no particular order.
    fn all(&self) -> Vec<(ServerId, Arc<dyn CometPort>)>;
}
