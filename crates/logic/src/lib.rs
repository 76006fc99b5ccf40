//! Decides who may connect, where sessions are, who receives a push and which comet a client should
//! use.
//!
//! logic stores nothing itself. Sessions, room counts, nodes and the push log are behind ports
//! ([`Dependencies`]), so that any number of logics share them. comet calls
//! [`goim_ports::LogicPort`], which answers with `Call::Ready` whenever the directories do, so that
//! a comet shard, a plain thread, never waits for a runtime. The backend and the clients call the
//! HTTP API ([`http`]), the only module that knows HTTP and JSON.
//!
//! Invariant: tokens, cookies and API keys are never in a log, a metric or an error.

mod balancer;
mod batch;
mod circuit_breaker;
mod config;
mod deadline;
mod devices;
mod events;
mod grouping;
mod handler;
#[cfg(feature = "harness")]
pub mod harness;
pub mod http;
mod identity;
mod logic;
mod members;
mod metrics;
mod nodes;
mod online;
mod port;
mod push;
mod push_writer;
mod queries;
mod record;
mod route;
mod session_ends;
mod stored;
mod timelines;
mod webhook;

pub use batch::{BatchError, BatchMessage, Delivery, Receivers};
pub use config::{
    ApiKey, Backoff, Config, DevicePolicy, HttpConfig, IdentityConfig, IdentityMethod, JwtConfig,
    NodeInfoConfig, PushConfig, SendConfig, TimelinesConfig, UpstreamConfig, WebhookConfig,
};
pub use events::event_json;
pub use goim_ports::Secret;
pub use handler::{Handler, Handlers, Overlap};
pub use identity::KeyError;
pub use logic::{Dependencies, Logic, PushProtection};
pub use members::MemberAt;
pub use nodes::NodesReply;
pub use online::{OnlineTotal, RoomOnline};
pub use push_writer::PushError;
pub use route::config::RouteConfig;
pub use timelines::push::{AppendedMessage, StoredPush, StoredTo};
pub use timelines::{LongPollError, SendRule, TimelineRequestError, offline_json};
