//! What every adapter of a port must do. Each function takes a way to make a fresh, empty adapter
//! and panics with the case that failed; a test of the adapter calls it.
//!
//! The suites ask for what the ports promise and nothing else: what one adapter does better than
//! promised belongs into its own tests. Times are passed by a function of the caller, so that an
//! adapter on tokio's clock is tested in virtual time and one on a server's clock with what that
//! server offers.

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
