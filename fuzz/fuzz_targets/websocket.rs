//! Any bytes as frames and as handshakes: see `invariants/websocket.rs` for what must hold.
#![no_main]

#[path = "../invariants/pieces.rs"]
mod pieces;
#[path = "../invariants/websocket.rs"]
mod websocket;

libfuzzer_sys::fuzz_target!(|data: &[u8]| websocket::check(data));
