//! The adapters behind the ports: where sessions, room counts, nodes, timelines and the push log
//! are stored, and how calls leave the process.
//!
//! The roles never name this crate; the `goim` binary puts an adapter behind each trait.
//!
//! - [`memory`]: everything in this process, for `goim serve`.
//! - `discovery` (a feature): nodes on a bilibili/discovery server, beside goim's Go processes.
//! - `embedded` (a feature): timelines in a local folder.
//! - `kafka` (a feature): the push log on goim's topic.
//! - `postgres` (a feature): timelines on PostgreSQL.
//! - `redis` (a feature): sessions, room counts and nodes with goim's keys.
//! - [`list`]: nodes by address, from a static list or DNS.
//! - [`grpc`]: goim's gRPC services and their clients.
//! - [`http`]: the HTTP client.
#![cfg_attr(
    any(test, feature = "conformance"),
    doc = "- [`conformance`]: the suites that every adapter of a port must pass."
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
