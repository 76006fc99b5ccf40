//! What the tree may hold: text of known kinds, in files that people can read.
//!
//! A core dump of 163 MB once lay beside a crate for a day. No list of names finds the next one; its size and its bytes do.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The largest file that may be in the tree.
const BYTES_MAX: u64 = 500 * 1000;

/// Endings of files that are text, and names of those that have none.
const KINDS: &[&str] = &[
    "conf", "html", "js", "json", "lock", "md", "mjs", "proto", "py", "rs", "service", "sh", "toml", "txt",
    "yaml", "yml",
];
const NAMES: &[&str] = &[
    ".ci/run",
    ".dockerignore",
    ".gitignore",
    "LICENSE",
    "Makefile",
    "deploy/Containerfile",
    "scripts/autobahn/wstest",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The files that git tracks, and those that it would add.
fn files(root: &Path) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.split_terminator('\0').map(str::to_owned).collect()
}

/// Why a file may not be in the tree.
fn fault(root: &Path, name: &str) -> Option<String> {
    let path = root.join(name);
    // A file that was removed, and not committed yet, is no concern.
    let size = std::fs::symlink_metadata(&path).ok()?.len();
    if size > BYTES_MAX {
        return Some(format!("{name}: {size} bytes; {BYTES_MAX} are the most"));
    }
    let is_known = Path::new(name).extension().is_some_and(|ending| KINDS.iter().any(|kind| ending == *kind));
    if !is_known && !NAMES.contains(&name) {
        return Some(format!("{name}: of no kind that is known here; text of a new kind is added to KINDS"));
    }
    let bytes = std::fs::read(&path).ok()?;
    let is_text = !bytes.contains(&0) && std::str::from_utf8(&bytes).is_ok();
    (!is_text).then(|| format!("{name}: not text"))
}

#[test]
fn the_tree_has_text_of_known_kinds_in_files_of_readable_size() {
    let root = root();
    let files = files(&root);
    assert!(files.len() > 400, "git lists {} files", files.len());
    let faults: Vec<String> = files.iter().filter_map(|name| fault(&root, name)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_does_not_belong_is_found() {
    let folder = std::env::temp_dir().join(format!("goim-tidy-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("crates")).unwrap();
    let large = "x".repeat(500 * 1000 + 1);
    let table: [(&str, &[u8], Option<&str>); 8] = [
        ("crates/lib.rs", b"//! Text.\n", None),
        ("LICENSE", b"MIT\n", None),
        ("gone.rs", b"", None),
        ("large.json", large.as_bytes(), Some("500001 bytes")),
        ("crates/core", b"\x7fELF\0\0", Some("no kind")),
        ("core.4711", b"text", Some("no kind")),
        ("photo.md", b"\x89PNG\r\n\x1a\n\0", Some("not text")),
        ("latin1.txt", b"caf\xe9", Some("not text")),
    ];
    for (name, bytes, wrong) in table {
        if name != "gone.rs" {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let found = fault(&folder, name);
        match wrong {
            None => assert_eq!(found, None, "{name}"),
            Some(why) => {
                assert!(found.as_ref().is_some_and(|found| found.contains(why)), "{name}: {found:?}")
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
