//! The concrete ends of the ports: where sessions, room counts, nodes and the push log really live,
//! and how a call leaves the process.
//!
//! The roles never name this crate; the `goim` binary puts an adapter behind each trait.
//!
//! - [`memory`]: everything in this process. What `goim serve` runs on.
//! - `discovery` (a feature): nodes on a bilibili/discovery server, beside goim's Go processes.
//! - `embedded` (a feature): timelines in a folder of this machine.
//! - `kafka` (a feature): the push log on goim's topic.
//! - `postgres` (a feature): timelines on PostgreSQL.
//! - `redis` (a feature): sessions, room counts and nodes on goim's keys.
//! - [`list`]: nodes by address, as an operator or DNS lists them.
//! - [`grpc`]: goim's services, to be called by other nodes, and the same services of other nodes
//!   behind our ports.
#![cfg_attr(
    any(test, feature = "conformance"),
    doc = "- [`conformance`]: what every adapter of a port must do, as functions that a test calls."
)]

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "discovery")]
pub mod discovery;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod grpc;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod list;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod push_size;
#[cfg(feature = "redis")]
pub mod redis;
mod timeline;
