//! What the roles say to each other, and what they need of the world: traits and value types, nothing concrete.
//!
//! comet, logic and job are written against this crate only. Whether a call stays in the process, goes over gRPC,
//! to Redis or to Kafka is decided where the roles are put together (the `goim` crate); `goim-adapters` has the
//! concrete ends. There is no I/O here and no default that would hide one.
//!
//! | trait | who calls | who answers |
//! |---|---|---|
//! | [`LogicPort`] | comet | logic |
//! | [`CometPort`], [`CometPool`] | job | comet |
//! | [`PushLog`] | logic | the push log's writing end |
//! | [`PushLogReader`] | job | the push log's reading end |
//! | [`SessionDirectory`], [`RoomDirectory`] | logic | where sessions and room counts are kept |
//! | [`DeviceDirectory`] | logic | where the devices of members are kept |
//! | [`NodeDirectory`] | comet, logic | where the nodes find each other |
//! | [`HttpClient`] | logic | whoever makes requests to the backend |
//! | [`EventSink`] | logic | who hears what happens to sessions |
//! | [`OfflineSink`] | logic | who hears of members who were away |
//! | [`TimelineStore`] | logic | where timelines are kept |
//! | [`UpstreamPort`] | logic | the backend, for packets of clients |

mod call;
mod comet;
mod directory;
mod events;
mod extension;
mod http;
mod id;
mod logic;
mod node;
mod offline;
mod push_log;
mod rate_limited_log;
mod retry_queue;
mod secret;
mod timeline;
mod upstream;

pub use call::{BoxFuture, Call};
pub use comet::{
    Broadcast, CometError, CometPool, CometPort, KeyPush, RoomMember, RoomMembers, RoomPush, RoomsDelta,
    RoomsRevision, StripeDelta,
};
pub use directory::{
    Device, DeviceDirectory, DirectoryError, EndCursor, EndTarget, Generation, RoomCounts, RoomDirectory,
    SessionDirectory, SessionEnd, SessionRecord,
};
pub use events::{EventKind, EventSink, LifecycleEvent};
pub use extension::{EndCode, Extended, Extension, SchemaBody, StoredAt};
pub use goim_wire::{Encoding, Operation, PacketBuf, Schema, Sequence, Version, VersionRow, VersionTable};
pub use http::{HttpClient, HttpError, HttpRequest, HttpResponse};
pub use id::{Mid, RoomId, ServerId, SessionKey};
pub use logic::{
    Accepted, ConnectError, ConnectRequest, ExpiresAt, LogicError, LogicPort, NoSession, OnlineReport,
    OnlineTotals, RefreshRequest, Refreshed, ResumePosition, RoomScope, SessionRef, SyncOptions, Upstream,
};
pub use node::{CometNode, NodeDirectory, NodeError};
pub use offline::{OfflineMember, OfflineSink};
pub use push_log::{
    AcceptedAt, AppendError, Appended, LogEntry, LogPosition, PushLog, PushLogReader, PushRecord, PushTarget,
    ReadError,
};
pub use rate_limited_log::RateLimitedLog;
pub use retry_queue::{RetryQueue, RetryRules};
pub use secret::{Secret, ServiceUrl};
pub use timeline::{
    Append, AppendResult, CursorId, Epoch, Head, IdempotencyKey, NewMessage, Position, Range, ReadLimit,
    Retention, RetentionRules, StoredMessage, TimelineError, TimelineId, TimelineSeq, TimelineStore,
};
pub use upstream::UpstreamPort;
