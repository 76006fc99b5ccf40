//! Tests of the WebSocket codec: golden files of `testdata/wire`, another implementation, and
//! properties of arbitrary bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod differential;
mod golden;
#[path = "../../../wire/tests/wire/golden_file.rs"]
mod golden_file;
#[path = "../../../../fuzz/invariants/websocket.rs"]
mod invariants;
mod memory;
#[path = "../../../../fuzz/invariants/pieces.rs"]
mod pieces;
mod properties;
