//! The table of codes in docs/protocol.md is the one in the source.

use goim_session::CloseReason;

#[test]
fn every_code_and_its_word_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
    let document = std::fs::read_to_string(path).expect("docs/protocol.md can be read");
    for reason in CloseReason::ALL {
        let entry = format!("{} {}", reason.code(), reason.label());
        assert!(document.contains(&entry), "docs/protocol.md lacks \"{entry}\"");
    }
}
