//! What the tree may hold: text of known kinds, in files that people can read, in the field's
//! terms.
//!
//! Lists of names do not find the next core dump; its size and its bytes do. The terms to avoid are
//! the left column of the glossary in CONTRIBUTING.md, which is the only list of them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The largest file that may be in the tree.
const BYTES_MAX: u64 = 500 * 1000;

/// The widest line of a comment, in characters.
const COMMENT_WIDTH_MAX: usize = 100;

/// Extensions of text files, and names of text files without one.
const KINDS: &[&str] = &[
    "conf", "css", "html", "js", "json", "lock", "md", "mjs", "proto", "py", "rs", "service", "sh", "toml",
    "txt", "yaml", "yml",
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

/// Files whose language is not ours: captures of goim v2, the license, and the Chinese text.
fn is_foreign(name: &str) -> bool {
    let is_capture = name.starts_with("testdata/") && !name.ends_with(".md");
    is_capture || name.ends_with("zh-CN.md") || name == "LICENSE" || name == "Cargo.lock"
}

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
    // A file that was removed but not committed yet is still listed.
    let size = std::fs::symlink_metadata(&path).ok()?.len();
    if size > BYTES_MAX {
        return Some(format!("{name}: {size} bytes; the maximum is {BYTES_MAX}"));
    }
    let is_known = Path::new(name).extension().is_some_and(|ending| KINDS.iter().any(|kind| ending == *kind));
    if !is_known && !NAMES.contains(&name) {
        return Some(format!("{name}: of an unknown kind; add the extension of a new kind of text to KINDS"));
    }
    let bytes = std::fs::read(&path).ok()?;
    let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.contains('\0'));
    let Some(text) = text else { return Some(format!("{name}: not text")) };
    let has_values = name.contains("proptest-regressions/") && text.contains("# shrinks to");
    has_values.then(|| format!("{name}: keep the hashes, remove the shrunk values"))
}

/// The left column of the glossary in CONTRIBUTING.md.
fn glossary(contributing: &str) -> Vec<String> {
    let table = contributing.split_once("| do not write |").expect("CONTRIBUTING.md has a glossary").1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').nth(1).unwrap_or_default());
    cells.flat_map(|cell| cell.split(',')).map(|term| term.trim().to_lowercase()).collect()
}

/// The first of `terms` that is in `text`, as a whole term. Text in backticks is an identifier.
fn term_in<'a>(terms: &'a [String], text: &str) -> Option<&'a str> {
    let prose: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`").to_lowercase();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let has = |term: &str| {
        prose.match_indices(term).any(|(at, _)| {
            let before = prose[..at].chars().next_back();
            let after = prose[at + term.len()..].chars().next();
            !before.is_some_and(is_part) && !after.is_some_and(is_part)
        })
    };
    terms.iter().map(String::as_str).find(|term| has(term))
}

/// How comments begin in files of this name; `None` where there are none, or none of ours.
fn comment_mark(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("rs" | "proto" | "js" | "mjs") => Some("//"),
        Some("sh" | "toml" | "py" | "yaml" | "yml") => Some("#"),
        _ => None,
    }
}

/// The text of a line that people read: its comment, or the messages in its string literals.
fn prose_of<'a>(name: &str, line: &'a str) -> Vec<&'a str> {
    let Some(mark) = comment_mark(name) else { return Vec::new() };
    let trimmed = line.trim_start();
    if trimmed.starts_with(mark) {
        return vec![trimmed];
    }
    let comment = line.find(&format!(" {mark} ")).map(|at| &line[at..]);
    let is_test = ["/tests/", "/benches/", "/examples/"].iter().any(|folder| name.contains(folder))
        || name.ends_with("/tests.rs");
    let messages = line.split('"').skip(1).step_by(2).filter(|text| text.contains(' '));
    let messages = messages.filter(|_| name.ends_with(".rs") && !is_test && comment.is_none());
    comment.into_iter().chain(messages).collect()
}

/// The faults of one file's language: terms of the glossary's left column, and wide comments.
fn language_faults(terms: &[String], name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut is_output = false;
    for (number, line) in (1..).zip(text.lines()) {
        let is_markdown = name.ends_with(".md");
        if is_markdown && line.trim_start().starts_with("```") {
            is_output = !is_output;
        }
        let is_row_of_glossary = name == "CONTRIBUTING.md" && line.starts_with('|');
        let prose = match is_markdown {
            true if is_output || is_row_of_glossary => Vec::new(),
            true => vec![line],
            false => prose_of(name, line),
        };
        if let Some(term) = prose.iter().find_map(|text| term_in(terms, text)) {
            faults.push(format!(
                "{name}:{number}: \"{term}\" is not a term of ours, see CONTRIBUTING.md: {line}"
            ));
        }
        let is_comment = comment_mark(name).is_some_and(|mark| line.trim_start().starts_with(mark));
        if is_comment && line.chars().count() > COMMENT_WIDTH_MAX && !line.contains("://") {
            faults.push(format!("{name}:{number}: a comment wider than {COMMENT_WIDTH_MAX}: {line}"));
        }
    }
    faults
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
fn comments_docs_and_messages_use_the_terms_of_the_glossary() {
    let root = root();
    let terms = glossary(&std::fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap());
    assert!(terms.len() > 50, "the glossary has {} terms to avoid", terms.len());
    let mut faults = Vec::new();
    for name in files(&root).iter().filter(|name| !is_foreign(name)) {
        let Ok(text) = std::fs::read_to_string(root.join(name)) else { continue };
        faults.extend(language_faults(&terms, name, &text));
    }
    assert!(faults.is_empty(), "{} lines:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn language_that_is_not_the_fields_is_found() {
    let terms = glossary(
        "| do not write | write |\n|---|---|\n| hole, holes | gap |\n| hand over | deliver |\n\nend",
    );
    assert_eq!(terms, ["hole", "holes", "hand over"]);
    let wide = format!("// {}", "x".repeat(98));
    let wide_address = format!("// https://example.com/{}", "x".repeat(98));
    for (name, line, is_fault) in [
        ("a.rs", "/// A gap in a timeline.", false),
        ("a.rs", "/// A hole in a timeline.", true),
        ("a.rs", "//! Holes.", true),
        ("a.rs", concat!("let x = 1; /", "/ a hole"), true),
        ("a.rs", "/// The whole of it, a keyhole, hole_of.", false),
        ("a.rs", "/// `hole` is a field of goim.", false),
        ("a.rs", "fn hole() {}", false),
        ("src/a.rs", "return Err(\"there is a hole\");", true),
        ("src/a.rs", "map.insert(\"hole\");", false),
        ("crates/x/tests/a.rs", "assert!(ok, \"there is a hole\");", false),
        ("crates/x/tests/a.rs", "// there is a hole", true),
        ("a.proto", "// Hand over.", true),
        ("a.sh", "# no hole", true),
        ("a.sh", "echo hole", false),
        ("a.md", "A hole.", true),
        ("a.md", "A `hole`.", false),
        ("a.json", "\"hole\"", false),
        ("a.rs", &wide, true),
        ("a.rs", &wide[..100], false),
        ("a.rs", &wide_address, false),
    ] {
        let faults = language_faults(&terms, name, line);
        assert_eq!(!faults.is_empty(), is_fault, "{name}: {line}: {faults:?}");
    }
    let output = language_faults(&terms, "a.md", "```text\na hole\n```\na hole");
    assert_eq!(output.len(), 1, "{output:?}");
}

#[test]
fn files_that_do_not_belong_are_found() {
    let folder = std::env::temp_dir().join(format!("goim-tidy-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("crates")).unwrap();
    std::fs::create_dir_all(folder.join("proptest-regressions")).unwrap();
    let large = "x".repeat(500 * 1000 + 1);
    let table: [(&str, &[u8], Option<&str>); 10] = [
        ("crates/lib.rs", b"//! Text.\n", None),
        ("LICENSE", b"MIT\n", None),
        ("removed.rs", b"", None),
        ("large.json", large.as_bytes(), Some("500001 bytes")),
        ("crates/core", b"\x7fELF\0\0", Some("unknown kind")),
        ("core.4711", b"text", Some("unknown kind")),
        ("photo.md", b"\x89PNG\r\n\x1a\n\0", Some("not text")),
        ("latin1.txt", b"caf\xe9", Some("not text")),
        ("proptest-regressions/a.txt", b"cc 12ab\n", None),
        ("proptest-regressions/b.txt", b"cc 12ab # shrinks to x = 1\n", Some("shrunk values")),
    ];
    for (name, bytes, wrong) in table {
        if name != "removed.rs" {
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
