//! Tests of the packet format: golden files of `testdata/wire`, and properties of arbitrary bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod golden;
mod golden_file;
#[path = "../../../../fuzz/invariants/packet.rs"]
mod packet;
#[path = "../../../../fuzz/invariants/pieces.rs"]
mod pieces;
mod properties;
mod sync;
