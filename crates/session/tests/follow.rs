//! A client that follows timelines, told anything: see `fuzz/invariants/follow.rs` for what must hold.
#![allow(clippy::expect_used, reason = "a test fails by it")]

#[path = "../../../fuzz/invariants/follow.rs"]
mod invariants;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn whatever_a_server_says(data in vec(any::<u8>(), 0..400)) {
        invariants::check(&data);
    }
}
