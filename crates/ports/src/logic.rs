//! What comet asks of logic: goim's service `goim.logic.Logic` without its transport.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::{Call, Generation, Mid, Operation, PacketBuf, RoomCounts, RoomId, ServerId, SessionKey, Version};

/// Logic as comet sees it.
///
/// Calls are independent of each other; an implementation must put a deadline on each (goim has none).
pub trait LogicPort: Send + Sync {
    /// Somebody presents a token. On success the session is in the directory before the answer is given.
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>>;

    /// A session has ended. Not called for a session that another one with its key has superseded on the same comet.
    /// The answer says whether the directory still had it.
    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>>;

    /// A session is still alive: its records must not expire.
    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>>;

    /// The rooms of this comet with their counts; the answer has the counts of the whole cluster.
    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>>;

    /// A packet for the business. The answer is the body of the reply, empty when nobody handles the operation.
    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>>;
}

/// Somebody who wants a session.
#[derive(Clone)]
pub struct ConnectRequest {
    /// The comet that asks.
    pub server: ServerId,
    /// Value of the first `Cookie` header of the upgrade request; empty over TCP.
    pub cookie: String,
    /// Body of the auth packet, unread.
    pub token: Bytes,
    /// Where the connection comes from.
    pub remote: IpAddr,
}

impl std::fmt::Debug for ConnectRequest {
    /// Leaves out token and cookie: they are credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("server", &self.server)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// A session as logic has accepted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The member; anonymous when zero or below.
    pub mid: Mid,
    /// The session's key, drawn by logic when the client gave none.
    pub key: SessionKey,
    /// The room to be in from the start.
    pub room: Option<RoomId>,
    /// Operations that the session wants from pushes by key, by member and to all.
    pub accepts: Vec<Operation>,
    /// The session ends when this much time passes without a heartbeat packet. Zero ends it at once.
    pub heartbeat: Duration,
    /// Highest packet version that the client reads. Its presence makes the client an extended one.
    pub protover: Option<Version>,
}

/// One session, as comet names it to logic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRef {
    /// The member.
    pub mid: Mid,
    /// The session.
    pub key: SessionKey,
    /// The comet that holds it.
    pub server: ServerId,
}

/// The rooms of one comet.
#[derive(Debug, Clone)]
pub struct OnlineReport {
    /// The comet.
    pub server: ServerId,
    /// Sessions in each room; rooms without sessions are absent.
    pub rooms: RoomCounts,
}

/// What a comet learns when it reports its rooms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OnlineTotals {
    /// Sessions in each room, over all comets.
    pub rooms: RoomCounts,
    /// By another one than before a comet sees that it must enter its sessions again; `None` where logic cannot tell (goim's).
    pub generation: Option<Generation>,
}

/// A packet on its way from a client to the business.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The sender.
    pub mid: Mid,
    /// The sender's session.
    pub key: SessionKey,
    /// What was sent.
    pub packet: PacketBuf,
}

/// Why somebody got no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The token is not acceptable; trying again with the same one is useless.
    #[error("refused: {0}")]
    Refused(String),
    /// The answer could not be found out; trying again later may help.
    #[error("not available: {0}")]
    Unavailable(String),
}

/// Why logic did not do what comet asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogicError {
    /// Logic, or what it depends on, could not be reached in time.
    #[error("not available: {0}")]
    Unavailable(String),
    /// Logic understood and said no.
    #[error("failed: {0}")]
    Failed(String),
}
