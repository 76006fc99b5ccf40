//! Reads the golden files of `testdata/wire`: JSON, and bytes as hex with repetition.

use serde_json::Value;

/// A golden file of `testdata/wire`.
pub(crate) fn load(name: &str) -> Value {
    load_from("wire", name)
}

/// The packets that running goim processes sent in each captured connection of one transport (`tcp`
/// or `ws`): name and bytes.
///
/// Those files have no space after a count, so `(70)*125821` is ambiguous; connections with such a
/// text are skipped.
pub(crate) fn captured(transport: &str) -> Vec<(String, Vec<u8>)> {
    let file = load_from("goim-v2", "frames.json");
    let mut connections = Vec::new();
    for entry in file.as_array().expect("a list of connections") {
        let received = entry["receive"].as_array().expect("a list of reads");
        let clear = received.iter().all(|read| {
            let count = read.as_str().and_then(|text| text.split_once(")*")).map(|(_, count)| count);
            count.is_none_or(|count| count.len() < 8 && count.bytes().all(|digit| digit.is_ascii_digit()))
        });
        if entry["transport"] == transport && clear {
            let bytes: Vec<u8> = received.iter().flat_map(hex).collect();
            // Handshakes of manual tests are entries too.
            if !bytes.starts_with(b"HTTP/") {
                connections.push((entry["name"].to_string(), bytes));
            }
        }
    }
    connections
}

fn load_from(folder: &str, name: &str) -> Value {
    let path = format!("{}/../../testdata/{folder}/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the entries of a list. An empty list would test nothing, so it is an error.
pub(crate) fn entries<'a>(file: &'a Value, list: &str) -> &'a [Value] {
    let entries = file[list].as_array().unwrap_or_else(|| panic!("no list {list}"));
    assert!(!entries.is_empty(), "{list} is empty");
    entries
}

/// Returns the bytes of a member: `0a(61)*3 0b` is `0a6161610b`.
pub(crate) fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap_or_else(|| panic!("no hex: {value}"));
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((plain, behind)) = rest.split_once('(') {
        out.extend(digits(plain));
        let (unit, behind) = behind.split_once(")*").unwrap_or_else(|| panic!("unclosed unit in {text}"));
        let (count, behind) = behind.split_once(' ').unwrap_or((behind, ""));
        out.extend(digits(unit).repeat(count.parse().unwrap()));
        rest = behind;
    }
    out.extend(digits(rest));
    out
}

fn digits(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "half a byte in {text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Returns a number, or its default if it is absent.
pub(crate) fn size_or(value: &Value, default: usize) -> usize {
    value.as_u64().map_or(default, |size| size.try_into().unwrap())
}
