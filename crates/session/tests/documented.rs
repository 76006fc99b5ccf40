//! The table of codes in docs/protocol.md equals the one in `goim_wire::reason`.

use goim_session::{CloseReason, RequestFailure};

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
