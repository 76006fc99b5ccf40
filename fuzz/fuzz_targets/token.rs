//! Arbitrary bytes as the body of an auth packet, and as a signed token: without a key no token is
//! accepted, and nothing panics.
#![no_main]

use goim_logic::harness::Gate;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    thread_local!(static GATES: [Gate; 2] = [Gate::open(), Gate::signed()]);
    GATES.with(|[open, signed]| {
        // The claims are trusted; a body that is no token is refused.
        let _ = open.lets_in(data);
        assert!(!signed.lets_in(data), "let in without a key");
    });
});
