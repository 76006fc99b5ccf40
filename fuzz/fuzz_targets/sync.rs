//! Any bytes as bodies of timelines, and as what a server tells a client that follows one: see `invariants/follow.rs`.
#![no_main]

#[path = "../invariants/follow.rs"]
mod follow;

libfuzzer_sys::fuzz_target!(|data: &[u8]| follow::check(data));
