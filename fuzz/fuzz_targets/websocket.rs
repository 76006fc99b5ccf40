//! Arbitrary bytes as frames and as handshakes: the invariants are in `invariants/websocket.rs`.
#![no_main]

#[path = "../invariants/pieces.rs"]
mod pieces;
#[path = "../invariants/websocket.rs"]
mod websocket;

libfuzzer_sys::fuzz_target!(|data: &[u8]| websocket::check(data));
