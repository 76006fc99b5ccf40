//! Arbitrary bytes as the bodies of the timeline operations, and as packets to a client that syncs:
//! see `invariants/timeline_sync.rs`.
#![no_main]

#[path = "../invariants/timeline_sync.rs"]
mod timeline_sync;

libfuzzer_sys::fuzz_target!(|data: &[u8]| timeline_sync::check(data));
