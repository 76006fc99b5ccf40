//! A running comet, seen by its clients and by those that it depends on.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, reason = "test code")]

mod harness;
mod limits;
mod recovery;
mod sessions;
mod tls;
