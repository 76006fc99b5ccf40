//! The Rust client of goim.
//!
//! A [`Client`] keeps one connection to a comet: it authenticates, sends heartbeats, receives pushes, makes requests,
//! and connects again when the connection ends, with the room and the subscriptions that it had. Transports are TCP
//! and WebSocket, each also inside TLS.
//!
//! ```no_run
//! use goim_client::{Client, ClientConfig, Endpoint, Event, Identity, Operation};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint: Endpoint = "tcp://127.0.0.1:3101".parse()?;
//! let identity = Identity::new(123).key("phone-1").room("live://1000").accepts([1000]);
//! let (client, mut events) = Client::connect(ClientConfig::new(endpoint, identity)).await?;
//!
//! let online = client.heartbeat().await?;
//! println!("{online} online");
//! client.send(Operation(1000), "hello").await?;
//!
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Push(push) => println!("{}: {:?}", push.operation, push.body),
//!         Event::Disconnected { reason, retry_in } => println!("{reason}; again in {retry_in:?}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With the node list instead of an address, the nodes, the heartbeat interval and the backoff come from logic:
//!
//! ```no_run
//! use goim_client::{Client, ClientConfig, Identity, NodeSource, Scheme};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = NodeSource::new("http://127.0.0.1:3111", Scheme::Ws);
//! let (client, events) = Client::connect(ClientConfig::new(source, Identity::new(123))).await?;
//! # let _ = (client, events);
//! # Ok(())
//! # }
//! ```
//!
//! With [`ClientConfig::sync`] it follows timelines: messages that the server keeps come as [`Event::Messages`], in order and once, however
//! often the connection was lost in between; a hole is told by [`Event::Gap`].
//!
//! What is kept and what is not:
//! - Pushes reach the application in the order in which the server sent them. What is pushed while there is no
//!   connection is lost, as in goim, unless it is in a timeline.
//! - Nothing is sent twice. A request that is cut off fails, and its error says whether the server may have taken it.
//! - Every queue is bounded. An application that does not take its events holds back the server, nobody else.
//! - Tokens appear in no log.
//!
//! This crate owns sockets, TLS, time and the decision to come back. What happens on a connection is
//! [`goim_session::client`]'s. It never reads files or the environment, save the system's certificates when
//! [`TlsRoots::System`] is used.

mod auth;
mod backoff;
mod client;
mod config;
mod connection;
mod desk;
mod dial;
mod drive;
mod endpoint;
mod error;
mod event;
mod http;
mod nodes;
mod stats;
mod supervisor;
mod timelines;
mod tls;
mod wanted;

pub use auth::{Auth, AuthBody, Identity, ProviderError, Token, TokenProvider, TokenReason};
pub use backoff::Backoff;
pub use client::{Client, RoomsReply};
pub use config::{ClientConfig, ConfigError, Headers, Target, TlsRoots};
pub use endpoint::{Endpoint, EndpointError, Scheme};
pub use error::{ConnectError, HeartbeatError, RoomError, SendError, ServerError, SubscribeError};
pub use event::{AuthReply, DisconnectReason, Event, Events, Notice};
pub use goim_session::ReconnectPolicy;
pub use goim_wire::{Encoding, Operation, PacketBuf, Schema, Sequence, Version, VersionRow, VersionTable};
pub use http::HttpError;
pub use nodes::{NodeList, NodeSource, NodesError};
pub use stats::Stats;
pub use timelines::{
    Acknowledged, FollowRules, MemoryPositions, Position, PositionStore, Sent, SyncConfig, TimelineMessage,
};
