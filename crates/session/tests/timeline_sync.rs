//! A client that syncs timelines with a server that sends arbitrary packets: the invariants are in
//! `fuzz/invariants/timeline_sync.rs`.
#![allow(clippy::expect_used, reason = "a test fails by it")]

#[path = "../../../fuzz/invariants/timeline_sync.rs"]
mod invariants;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn invariants_hold_for_arbitrary_packets(data in vec(any::<u8>(), 0..400)) {
        invariants::check(&data);
    }
}
