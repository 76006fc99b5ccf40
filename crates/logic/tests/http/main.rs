//! logic as its callers see it: comet through the port, the backend and clients over real sockets.
//!
//! `golden` replays the answers of goim v2's own processes. The other modules test the rest of the
//! conformance table's rows and what goim v2 does not have. `world` implements the ports in memory,
//! `client` is an HTTP client, `schema` validates JSON.
#![allow(clippy::unwrap_used, reason = "a test panics at the first failure")]

mod batches;
mod client;
mod connections;
mod golden;
mod limits;
mod openapi;
mod port;
mod protection;
mod pushes;
mod reads;
mod schema;
mod stored;
mod world;
