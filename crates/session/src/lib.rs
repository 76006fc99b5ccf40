//! One connection's state machine, for both ends: bytes and time go in, bytes, steps and a deadline come out.
//!
//! This crate owns what happens on one connection between the first byte and the last: the upgrade to WebSocket,
//! authentication, heartbeats, rooms and subscriptions, backend packets, the order of replies, what waits to be
//! sent and what happens when it does not drain. It owns no socket, no clock and no other connection: which
//! sessions share a room or a key is the driver's backend. `no_std` with `alloc` proves the first half of that.
//!
//! | module | what it is |
//! |---|---|
//! | [`framing`] | the only place that tells a byte stream from WebSocket |
//! | [`outbox`] | what waits to be sent, bounded |
//! | [`server`] | the server's end |
//! | [`client`] | the client's end |
//! | [`millis`] | time as a number |
//!
//! Invariants:
//! - Replies leave in the order of their requests. While one waits for an answer of the backend, no further packet
//!   is taken from the input.
//! - Whatever waits is bounded: replies by refusing to read on, pushes by the policy of their operation.
//! - An idle session owns no heap besides its subscriptions beyond four.
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
