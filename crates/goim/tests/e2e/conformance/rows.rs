//! Every row of goim's observable behaviour has a test with its number in the name: rows about one
//! process here, rows about several, and about Kafka, Redis and discovery, in `cluster::rows` or
//! beside the adapter.

use std::collections::BTreeSet;
use std::path::Path;

const ROWS: std::ops::RangeInclusive<u32> = 1..=121;

/// The rows in a test's name: `row_072_a…`, `rows_68_69_and_105_b…`, `rows_073_to_075_c…`.
fn rows_of(name: &str) -> BTreeSet<u32> {
    let mut rows = BTreeSet::new();
    let (mut last, mut to) = (None, false);
    for part in name.split('_').skip(1) {
        match part.parse::<u32>() {
            Ok(row) if to => rows.extend(last.unwrap_or(row)..=row),
            Ok(row) => drop(rows.insert(row)),
            Err(_) if part == "and" || part == "to" => {}
            Err(_) => break,
        }
        to = part == "to";
        last = part.parse().ok().or(last);
    }
    rows
}

fn tested(file: &Path, rows: &mut BTreeSet<u32>) {
    let source = std::fs::read_to_string(file).unwrap();
    for found in source.split("fn row").skip(1) {
        rows.extend(rows_of(found.split(['(', '<']).next().unwrap()));
    }
}

#[test]
fn every_row_has_a_test() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut rows = BTreeSet::new();
    let suites = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    for file in std::fs::read_dir(suites.join("conformance")).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().is_some_and(|name| name != "rows.rs") {
            tested(&path, &mut rows);
        }
    }
    tested(&suites.join("cluster/rows.rs"), &mut rows);
    for adapter in ["kafka", "redis", "discovery", "list", "grpc"] {
        let folder = crates.join("adapters/src").join(adapter);
        tested(&folder.join("tests.rs"), &mut rows);
        // Not every adapter has so many tests that they are in several files.
        for file in std::fs::read_dir(folder.join("tests")).into_iter().flatten() {
            tested(&file.unwrap().path(), &mut rows);
        }
    }
    let missing: Vec<u32> = ROWS.filter(|row| !rows.contains(row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:?}");
}

#[test]
fn row_numbers_are_read_from_test_names() {
    for (name, expected) in [
        ("_072_a_broadcast", vec![72]),
        ("s_68_69_and_105_what", vec![68, 69, 105]),
        ("s_073_to_075_reports", vec![73, 74, 75]),
        ("_118_a_message_over_4_mib", vec![118]),
    ] {
        assert_eq!(rows_of(name).into_iter().collect::<Vec<_>>(), expected, "{name}");
    }
}
