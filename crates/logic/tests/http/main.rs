//! logic as its callers see it: comet over the port, the backend and clients over real sockets.
//!
//! `golden` replays what goim's own processes answered; the other modules test what a row of the
//! conformance table says beyond the answer, and what goim does not have. `world` stands in for
//! everything behind logic, `client` speaks HTTP byte by byte.
#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it should be")]

mod batches;
mod client;
mod connections;
mod golden;
mod limits;
mod port;
mod protection;
mod pushes;
mod reads;
mod stored;
mod world;
