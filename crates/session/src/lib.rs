//! The state machine of one connection, for both ends: bytes and time go in; bytes, steps and a
//! deadline are returned.
//!
//! This crate owns a connection from the first byte to the last: the upgrade to WebSocket,
//! authentication, heartbeats, rooms and subscriptions, backend packets, the order of replies, and
//! the bounded queue of what is sent. It owns no socket, no clock and no other connection: which
//! sessions share a room or a key is known to the driver. `no_std` with `alloc` ensures the first
//! two.
//!
//! | module | content |
//! |---|---|
//! | [`framing`] | the only place that distinguishes a byte stream from WebSocket |
//! | [`outbox`] | the bounded queue of bytes to send |
//! | [`server`] | the server's end |
//! | [`client`] | the client's end |
//! | [`timeline_sync`] | the client's sync loop |
//! | [`millis`] | time as a number |
//!
//! Invariants:
//! - Replies are sent in the order of their requests. While a request waits for the backend, no
//!   further packet is read.
//! - All queues are bounded: replies by not reading on, pushes by the policy of their operation.
//! - An idle session owns no heap memory except for more than four subscriptions.
#![no_std]

extern crate alloc;

pub mod client;
pub mod framing;
pub mod millis;
pub mod outbox;
pub mod server;
pub mod timeline_sync;

pub use client::{ClientRules, ClientSession, ClientStep, Ended, Opening};
pub use framing::{EncodedPush, FramingRules, Transport, UpgradeFacts, websocket_rules};
pub use goim_wire::{CloseReason, ReconnectPolicy, RequestFailure};
pub use millis::Millis;
pub use outbox::{Admission, Outbox, OutboxPool, QueueLimit, SlowConsumerPolicy};
pub use server::{Established, SUBSCRIPTIONS_MAX, ServerRules, ServerSession, Step};
