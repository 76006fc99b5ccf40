//! Tests of a running comet, through its clients and the ports that it calls.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "test code")]

mod harness;
mod limits;
mod recovery;
mod sessions;
mod tls;
