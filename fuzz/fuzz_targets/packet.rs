//! Any bytes as packets: see `invariants/packet.rs` for what must hold.
#![no_main]

#[path = "../invariants/packet.rs"]
mod packet;
#[path = "../invariants/pieces.rs"]
mod pieces;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packet::check(data));
