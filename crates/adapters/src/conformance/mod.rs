//! Conformance suites: what every adapter of a port must do. Each function takes a way to create an
//! empty adapter, and panics with the case that failed; a test of the adapter calls it.
//!
//! The suites test what the ports promise and no more; other guarantees of an adapter are tested by
//! the adapter. The caller passes a function that lets time pass, so that an adapter on tokio's
//! clock is tested in virtual time and others in whatever way they offer.

// A suite is test code that happens to be a library: a panic is how it speaks.
#![allow(clippy::unwrap_used)]

mod nodes;
mod push_log;
mod rooms;
mod sessions;
mod timelines;

pub use nodes::{node, nodes, nodes_expire};
pub use push_log::{push_log, push_log_holds_back, record_for_key, record_for_room};
pub use rooms::{rooms, rooms_expire};
pub use sessions::{sessions, sessions_expire};
pub use timelines::{append_of, message, timelines, timelines_last, timelines_retain};
