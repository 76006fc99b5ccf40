//! What comet asks of logic: goim's service `goim.logic.Logic` without its transport.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{
    AuthFailure, Call, Generation, LifecycleEvent, Mid, Operation, PacketBuf, Position, RoomCounts, RoomId,
    Schema, Sequence, ServerId, SessionKey, TimelineId, Version,
};

/// Logic as comet sees it.
///
/// Calls are independent of each other; an implementation must put a deadline on each (goim has none).
pub trait LogicPort: Send + Sync {
    /// Somebody presents a token. On success the session is in the directory before the answer is given.
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>>;

    /// A session presents a new token, which takes the place of the one that it began with. By default nobody can tell.
    fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        drop(request);
        Call::Ready(Err(ConnectError::unavailable("this logic refreshes no tokens")))
    }

    /// A session has ended. Not called for a session that another one with its key has superseded on the same comet.
    /// The answer says whether the directory still had it.
    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>>;

    /// A session is still alive: its records must not expire.
    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>>;

    /// The rooms of this comet with their counts; the answer has the counts of the whole cluster.
    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>>;

    /// What has happened to sessions of a comet. `Ok` means that whoever wants to know has it; else it is to be told again. By default
    /// nobody wants to.
    fn events(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        drop(events);
        Call::Ready(Ok(()))
    }

    /// A packet for the backend. The answer is the body of the reply, empty when nobody handles the operation.
    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>>;

    /// Handles a request about a timeline and returns the body of the reply. Fails by default.
    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        drop(request);
        Call::Ready(Err(LogicError::Failed("this logic has no timelines".to_owned())))
    }
}

/// Somebody who wants a session.
#[derive(Clone)]
pub struct ConnectRequest {
    /// The comet that asks.
    pub server: ServerId,
    /// Value of the first `Cookie` header of the upgrade request; empty over TCP.
    pub cookie: String,
    /// Value of the first `User-Agent` header of the upgrade request; empty over TCP.
    pub user_agent: String,
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
    /// Further rooms to be in from the start.
    pub rooms: Vec<RoomId>,
    /// The rooms that the session may be in; `None` is any.
    pub scope: Option<RoomScope>,
    /// The session ends then, unless it has presented a new token; `None` is never.
    pub expires_at: Option<ExpiresAt>,
    /// Operations that the session wants from pushes by key, by member and to all.
    pub accepts: Vec<Operation>,
    /// The session ends when this much time passes without a heartbeat packet. Zero ends it at once.
    pub heartbeat: Duration,
    /// Highest packet version that the client reads. Its presence makes the client an extended one.
    pub protover: Option<Version>,
    /// The client syncs: of a message in a timeline it is told that it is there.
    pub syncing: Option<SyncOptions>,
}

/// How a client syncs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncOptions {
    /// Where it is in timelines: it is given what comes behind, without asking.
    pub resume: Vec<ResumePosition>,
    /// It does not want small messages along with the word that they are there.
    pub notify_only: bool,
}

/// How far a client is in a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumePosition {
    /// Which one.
    pub timeline: TimelineId,
    /// What the client has.
    pub position: Position,
}

/// A session that presents a new token.
#[derive(Clone)]
pub struct RefreshRequest {
    /// The session.
    pub session: SessionRef,
    /// What it presents: the body of the packet, unread.
    pub token: Bytes,
    /// Where the connection comes from.
    pub remote: IpAddr,
}

impl std::fmt::Debug for RefreshRequest {
    /// Leaves out the token: it is a credential.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RefreshRequest")
            .field("session", &self.session)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// What a new token has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// As in [`Accepted`].
    pub scope: Option<RoomScope>,
    /// As in [`Accepted`].
    pub expires_at: Option<ExpiresAt>,
}

/// When a token ends, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpiresAt(pub u64);

impl ExpiresAt {
    /// Time left, by the clock of this machine; zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.0).saturating_sub(now)
    }
}

/// The rooms that a session may be in: names, and beginnings of names with `*` behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomScope(pub Arc<Vec<String>>);

impl RoomScope {
    /// True when it has the room.
    #[must_use]
    pub fn allows(&self, room: &str) -> bool {
        self.0.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => room.starts_with(beginning),
            None => pattern == room,
        })
    }

    /// The names that stand for one room each.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|pattern| !pattern.ends_with('*'))
    }
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

/// A packet on its way from a client to the backend.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The sender.
    pub mid: Mid,
    /// The sender's session.
    pub key: SessionKey,
    /// What was sent; not compressed.
    pub packet: PacketBuf,
    /// What the packet's version says of the body's form.
    pub schema: Schema,
    /// True for a client that knows more than goim: it can be told that something has failed.
    pub negotiated: bool,
}

/// A request about a timeline, from a negotiated client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineRequest {
    /// The member that asks.
    pub mid: Mid,
    /// The member's session.
    pub key: SessionKey,
    /// The highest packet version that the client reads: the bodies of messages are chosen by it.
    pub protover: Version,
    /// The client's number for the request; zero when comet asks on its behalf.
    pub sequence: Sequence,
    /// What is asked.
    pub call: TimelineCall,
}

/// The requests about timelines, each with its undecoded body (`api/sync.proto`).
///
/// comet has checked that the session may read the timeline that a sync or an acknowledgement names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimelineCall {
    /// Read what was appended after a position: operation 21.
    Sync(Bytes),
    /// Move the member's cursor: operation 23.
    Ack(Bytes),
    /// Append a message: operation 4.
    Send {
        /// The body.
        body: Bytes,
        /// Whether the session is in the room that the message is for.
        is_room_member: bool,
    },
}

/// Why somebody got no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", .reason.label())]
pub struct ConnectError {
    /// What the client is told, if it can be told anything.
    pub reason: AuthFailure,
    /// More, for the log. Quotes nothing of the token.
    pub detail: String,
    /// True when the client has said that it knows more than goim: it is told why it gets no session.
    pub negotiated: bool,
}

impl ConnectError {
    /// For this reason; of a client that has not said what it knows.
    #[must_use]
    pub fn because(reason: AuthFailure, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), negotiated: false }
    }

    /// The token is not acceptable; trying again with the same one is useless.
    #[must_use]
    pub fn refused(detail: impl Into<String>) -> Self {
        Self::because(AuthFailure::AuthRefused, detail)
    }

    /// The answer could not be found out.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::because(AuthFailure::AuthUnavailable, detail)
    }

    /// True when trying again later, or elsewhere, may help.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.reason == AuthFailure::AuthUnavailable
    }
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
    /// As many calls of the kind are under way as may be; nothing was done.
    #[error("busy: {0}")]
    Busy(String),
    /// The sender has asked for more than it may; nothing was done.
    #[error("sent too fast: again in {retry_after:?}")]
    Limited {
        /// When there is room for it again.
        retry_after: Duration,
    },
    /// Whoever was asked did not answer in time. It may or may not have been done.
    #[error("no answer in time: {0}")]
    Late(String),
}
