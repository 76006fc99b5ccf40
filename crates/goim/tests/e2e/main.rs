//! The whole system as a user has it: real sockets, real engines, the real binary.
//!
//! All of it is one binary, so that the server's crates and librdkafka are linked once.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod architecture;
mod chaos;
mod cli;
mod client_by_hand;
mod client_timelines;
mod cluster;
mod conformance;
mod engine_ports;
mod harness;
mod login;
mod nothing_lost;
mod replay;
mod robustness;
mod sdk;
mod simulation_sync;
mod tidy;
