//! Every row of goim's behaviour that concerns one process has a test with its number in the name.
//!
//! The rows that are missing here are about several processes, or about Kafka, Redis and discovery.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

const ROWS: [RangeInclusive<u32>; 8] =
    [1..=64, 71..=71, 81..=100, 102..=104, 106..=107, 116..=117, 119..=121, 105..=105];

#[test]
fn every_row_has_a_test() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let mut tested = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("conformance_") {
            let source = std::fs::read_to_string(&path).unwrap();
            let rows = source.split("#[test]\nfn row_").skip(1);
            tested.extend(rows.map(|rest| rest[..3].parse::<u32>().expect("a row has three digits")));
        }
    }
    let missing: Vec<u32> = ROWS.into_iter().flatten().filter(|row| !tested.contains(row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:?}");
}
