//! The Rust client of goim: sockets, TLS, time, and the decision to reconnect.
//!
//! The protocol of a connection is `goim_session::client`'s. The only files read are the system's
//! certificates (`TlsRoots::System`) and the file of `FilePositions`.
//!
#![doc = include_str!("../README.md")]

mod auth;
mod backoff;
mod client;
mod command;
mod config;
mod connection;
mod connection_task;
mod desired_state;
mod dialer;
mod endpoint;
mod error;
mod event;
mod http;
mod nodes;
mod positions;
mod stats;
mod supervisor;
mod timelines;
mod tls;

pub use auth::{Auth, AuthBody, Identity, ProviderError, Token, TokenProvider, TokenReason};
pub use backoff::{Backoff, Jitter};
pub use client::{Client, RoomsReply};
pub use config::{ClientConfig, ConfigError, Headers, Target, TlsRoots};
pub use endpoint::{Endpoint, EndpointError, Scheme};
pub use error::{
    ConnectError, HeartbeatError, RoomError, SendError, ServerError, SubscribeError, TimelineError,
};
pub use event::{AuthReply, DisconnectReason, Event, Events, Notice};
pub use goim_session::ReconnectPolicy;
pub use goim_wire::{Encoding, Operation, PacketBuf, Schema, Sequence, Version, VersionRow, VersionTable};
pub use http::HttpError;
pub use nodes::{NodeList, NodeSource, NodesError};
pub use positions::{FilePositions, MemoryPositions, Position, PositionStore, PositionStoreError};
pub use stats::Stats;
pub use timelines::{Acknowledged, Sent, SyncConfig, SyncRules, TimelineMessage};
