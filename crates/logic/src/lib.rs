//! The decisions: who may connect, where a session is, what is pushed to whom, which comet a client should go to.
//!
//! logic keeps nothing itself. Sessions, room counts, nodes and the push log are behind the ports that it is given
//! ([`Dependencies`]), so that any number of logics may run over the same ones, in one process with comet or far
//! from it. It has two faces:
//!
//! - [`goim_ports::LogicPort`], which comet calls. An answer is `Call::Ready` whenever the directories' answers are:
//!   a comet's shard, a plain thread, then never waits for a runtime.
//! - the HTTP API ([`http`]), which the backend and the clients call: goim's routes, byte for byte where goim's
//!   users could notice.
//!
//! Map of the modules: `identity` reads tokens, `port` answers comet, `handler` is where the backend hangs in its
//! own packets and `route` sends them to a backend elsewhere, `push` turns requests into records of the push log, `batch` those with many messages, `online` counts, `timelines` keeps messages and gives them back, `balancer` and `nodes` choose
//! comets for clients, `metrics` counts what happens, [`http`] is the only one that knows HTTP and JSON.
//!
//! Invariant: tokens, cookies and API keys are never in a log, a metric or an error.

mod balancer;
mod batch;
mod circuit;
mod complaint;
mod config;
mod deadline;
mod devices;
mod events;
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
mod record;
mod route;
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
pub use push::PushError;
pub use route::RouteConfig;
pub use timelines::{NoWait, Placed, SendRule, StoredPush, StoredTo, TimelinesError, away_json};
