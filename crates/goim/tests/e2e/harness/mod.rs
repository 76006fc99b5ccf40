//! A goim to test, and clients that share no code with it.
//!
//! The clients are written from the protocol's description on plain sockets: a fault in the
//! server's codecs cannot hide behind the same fault here. Everything waits for a condition with a
//! deadline. That nothing arrives is shown by a request whose reply must be the very next thing.
#![allow(unreachable_pub, reason = "items are shared by all suites")]

pub mod backend;
pub mod capture;
pub mod child;
pub mod client;
pub mod cluster;
pub mod fleet;
pub mod frame;
pub mod grpc;
pub mod hex;
pub mod http;
pub mod insist;
pub mod kafka;
pub mod keeping;
pub mod load;
pub mod log_watch;
pub mod packet;
pub mod postgres;
pub mod proto;
pub mod random;
pub mod server;
pub mod steps;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use client::{BOTH, Client, Transport, Who};
pub use hex::hex;
pub use packet::Packet;
pub use server::{Server, Settings, shared};

/// How long anything that must happen may take. Long, since test machines are busy; a test that
/// passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// `prefix` with a number that no other caller in this process gets.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", number())
}

/// A number above a million that no other caller in this process gets: a member, or an operation.
pub fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1_000_001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Evaluates `condition` repeatedly until it is true.
///
/// # Panics
/// When it is not true within [`DEADLINE`]; `what` names the condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
