//! The table of codes in docs/protocol.md equals the one in `goim_wire::reason`.

use goim_session::{CloseReason, ReconnectPolicy, RequestFailure};

#[test]
fn every_code_and_label_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
    let document = std::fs::read_to_string(path).expect("docs/protocol.md can be read");
    let reasons = CloseReason::ALL.iter().map(|reason| (reason.code(), reason.label()));
    let failures = RequestFailure::ALL.iter().map(|failure| (failure.code(), failure.label()));
    for (code, label) in reasons.chain(failures) {
        let entry = format!("{code} {label}");
        assert!(document.contains(&entry), "docs/protocol.md lacks \"{entry}\"");
    }
}

#[test]
fn every_documented_code_is_in_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
    let document = std::fs::read_to_string(path).expect("docs/protocol.md can be read");
    let rows: Vec<&str> =
        document.lines().filter(|line| line.starts_with("| 3") && line.get(6..11) == Some(" to 3")).collect();
    assert_eq!(rows.len(), 4, "one row for each range of codes");
    let mut documented = Vec::new();
    for row in rows {
        let Some((range, entries)) = row.rsplit_once(" | ") else { panic!("{row}") };
        let first = range[2..6].parse().expect("the range starts with a code");
        for entry in entries.trim_end_matches(" |").split(", ") {
            let (code, label) = entry.split_once(' ').expect("a code and a label");
            let code = code.parse().expect("a code");
            let reason = CloseReason::from_code(code).expect("a code of the table");
            assert_eq!((reason.label(), reason.reconnect()), (label, ReconnectPolicy::for_code(first)));
            documented.push(reason);
        }
    }
    assert_eq!(documented, CloseReason::ALL, "all reasons, ascending");
}
