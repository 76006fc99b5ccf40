//! The ports between the roles, and to engines and the backend: traits and value types, without
//! I/O.
//!
//! comet, logic and job depend on this crate only. The `goim` crate decides whether a call stays in
//! the process or uses gRPC, Redis or Kafka; `goim-adapters` has the implementations.
//!
//! | trait | caller | implementation |
//! |---|---|---|
//! | [`LogicPort`] | comet | logic |
//! | [`CometPort`], [`CometPool`] | job | comet |
//! | [`PushLog`] | logic | the push log's writing end |
//! | [`PushLogReader`] | job | the push log's reading end |
//! | [`SessionDirectory`], [`RoomDirectory`] | logic | the records of sessions and room counts |
//! | [`DeviceDirectory`] | logic | where the devices of members are recorded |
//! | [`NodeDirectory`] | comet, logic | where nodes find each other |
//! | [`HttpClient`] | logic | the HTTP client for requests to the backend |
//! | [`EventSink`] | logic | where session events are delivered |
//! | [`OfflineSink`] | logic | where notifications of offline members are delivered |
//! | [`TimelineStore`] | logic | where timelines are stored |
//! | [`UpstreamPort`] | logic | the backend, for packets of clients |

mod call;
mod comet;
mod directory;
mod events;
mod http;
mod id;
mod logic;
mod node;
mod offline;
mod payload;
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
pub use goim_wire::{
    AuthFailure, CloseReason, Encoding, Operation, PacketBuf, Schema, Sequence, Version, VersionRow,
    VersionTable,
};
pub use http::{HttpClient, HttpError, HttpRequest, HttpResponse};
pub use id::{Mid, RoomId, ServerId, SessionKey};
pub use logic::{
    Accepted, ConnectError, ConnectRequest, ExpiresAt, LogicError, LogicPort, OnlineReport, OnlineTotals,
    RefreshRequest, Refreshed, ResumePosition, RoomScope, SessionRef, SyncOptions, TimelineCall,
    TimelineRequest, Upstream,
};
pub use node::{CometNode, NodeDirectory, NodeError};
pub use offline::{OfflineMember, OfflineSink};
pub use payload::{Bodies, Payload, SchemaBody, StoredAt};
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
