//! Arbitrary bytes as packets: the invariants are in `invariants/packet.rs`.
#![no_main]

#[path = "../invariants/packet.rs"]
mod packet;
#[path = "../invariants/pieces.rs"]
mod pieces;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packet::check(data));
