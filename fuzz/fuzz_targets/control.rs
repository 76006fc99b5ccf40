//! Arbitrary bytes as bodies of control packets and as rows of the version table: decoded values
//! encode to the same, and nothing panics.
#![no_main]

use goim_wire::{VersionRow, VersionTable, batch, control};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(operations) = control::parse_operations(data) {
        let again = control::format_operations(&operations);
        assert_eq!(control::parse_operations(&again), Some(operations));
    }
    if let Some(count) = control::parse_online_count(data).and_then(|count| u32::try_from(count).ok()) {
        assert_eq!(control::online_count(count), data);
    }
    let run: usize = batch::packets(data).map_while(Result::ok).map(|packet| packet.encoded_len()).sum();
    assert!(run <= data.len());
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rows: Vec<VersionRow> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for row in &rows {
        assert_eq!(row.to_string().parse(), Ok(*row));
    }
    if let Ok(table) = VersionTable::new(rows) {
        for row in table.rows() {
            assert_eq!(table.row(row.version), Some(*row));
            assert!(table.best(row.version).version <= row.version.max(goim_wire::Version::GOIM));
        }
    }
});
