//! The invariants of the architecture: which crate may depend on which, which code does no I/O,
//! which code knows adapters and transports, and how files begin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What each crate of ours may depend on, of ours. Tests and examples are free.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("goim-wire", &[]),
    ("goim-websocket", &[]),
    ("goim-compression", &["goim-wire"]),
    ("goim-session", &["goim-wire", "goim-websocket"]),
    ("goim-ports", &["goim-wire"]),
    ("goim-settings", &["goim-ports"]),
    ("goim-adapters", &["goim-ports", "goim-settings", "goim-wire"]),
    ("goim-comet", &["goim-compression", "goim-ports", "goim-session", "goim-settings", "goim-wire"]),
    ("goim-logic", &["goim-ports", "goim-settings", "goim-wire"]),
    ("goim-job", &["goim-ports", "goim-settings", "goim-wire"]),
    ("goim-client", &["goim-compression", "goim-session", "goim-wire", "goim-websocket"]),
    ("goim-bench", &["goim-compression", "goim-session", "goim-wire", "goim-websocket"]),
    (
        "goim",
        &[
            "goim-adapters",
            "goim-client",
            "goim-comet",
            "goim-job",
            "goim-logic",
            "goim-ports",
            "goim-settings",
            "goim-wire",
        ],
    ),
];

const ROLES: [&str; 3] = ["goim-comet", "goim-logic", "goim-job"];

/// Crates without I/O, `no_std` with `alloc`.
const PURE: [&str; 3] = ["goim-wire", "goim-websocket", "goim-session"];

/// Packages that a role must not depend on: stores, queues and RPC belong to adapters. Parts of
/// package names.
const ADAPTERS_ONLY: [&str; 14] = [
    "tonic",
    "prost",
    "redis",
    "fred",
    "kafka",
    "sql",
    "postgres",
    "fjall",
    "redb",
    "rocksdb",
    "sled",
    "etcd",
    "consul",
    "discovery",
];

/// Direct dependencies of our crates, tests' own left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let uses = package["dependencies"].as_array().unwrap().iter();
        let uses = uses.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
        let uses = uses.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect();
        found.insert(package["name"].as_str().unwrap().to_owned(), uses);
    }
    found
}

/// All our Rust files, relative to the root.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("crates"), root().join("fuzz"), root().join("xtask")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(found.len() > 50, "only {} files were found", found.len());
    found.sort();
    found
}

/// Code without comment lines.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn dependencies_point_one_way() {
    let found = dependencies();
    let known: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    for (name, uses) in &found {
        let allowed =
            known.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the table of this test"));
        let ours = uses.iter().filter(|one| known.contains_key(one.as_str()));
        let wrong: Vec<_> = ours.filter(|one| !allowed.contains(&one.as_str())).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
    for name in known.keys() {
        assert!(found.contains_key(*name), "{name} is in the table of this test, but not in the workspace");
    }
}

#[test]
fn roles_know_no_adapter() {
    for (name, uses) in dependencies().iter().filter(|(name, _)| ROLES.contains(&name.as_str())) {
        let wrong: Vec<_> =
            uses.iter().filter(|one| ADAPTERS_ONLY.iter().any(|part| one.contains(part))).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
    for (path, text) in sources() {
        let is_role = ROLES
            .iter()
            .any(|role| path.starts_with(format!("crates/{}/src", role.trim_start_matches("goim-"))));
        let wrong = code(&text).find(|line| line.contains("embedded"));
        assert!(
            !is_role || wrong.is_none(),
            "{}: a role does not know how it is put together: {wrong:?}",
            path.display()
        );
    }
}

/// Builds a `no_std` crate that depends on the pure crates and defines a panic handler. If the
/// standard library were linked below them, the compiler would refuse the second panic handler.
fn probe(folder: &str, first_line: &str) -> Output {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(folder.join("src")).unwrap();
    let dependencies: String = PURE
        .iter()
        .map(|name| {
            let path = root().join("crates").join(name.trim_start_matches("goim-"));
            format!("{name} = {{ path = {:?} }}\n", path.display().to_string())
        })
        .collect();
    let manifest = format!(
        "[package]\nname = \"probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}\n[workspace]\n"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    // The same versions as the workspace's, and no network.
    std::fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let used: String = PURE.iter().map(|name| format!("use {} as _;\n", name.replace('-', "_"))).collect();
    let code = format!(
        "#![no_std]\n{first_line}\n{used}\n#[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! {{\n    loop {{}}\n}}\n"
    );
    std::fs::write(folder.join("src/lib.rs"), code).unwrap();
    Command::new(env!("CARGO"))
        .args(["check", "--offline", "--quiet", "--target-dir"])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe-target"))
        .current_dir(&folder)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap()
}

#[test]
fn protocol_code_does_not_link_the_standard_library() {
    let output = probe("no-std-probe", "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The probe notices: with the standard library it does not compile.
    let output = probe("std-probe", "extern crate std;");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("panic_impl"), "the probe proves nothing: {errors}");
}

#[test]
fn protocol_code_declares_no_std() {
    for name in PURE {
        let folder = format!("crates/{}/src", name.trim_start_matches("goim-"));
        for (path, text) in sources().into_iter().filter(|(path, _)| path.starts_with(&folder)) {
            if path.ends_with("src/lib.rs") {
                assert!(code(&text).any(|line| line.trim() == "#![no_std]"), "{}", path.display());
            }
            // Tests may use std; they are last in a file, or in a separate file.
            let own = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_test = path.ends_with("tests.rs");
            let wrong = code(own).find(|line| line.contains("extern crate std") || line.contains("std::"));
            assert!(is_test || wrong.is_none(), "{}: {wrong:?}", path.display());
        }
    }
}

/// Modules that distinguish TCP, WebSocket and TLS, with the reason. All others handle any kind of
/// connection.
const KNOWS_TRANSPORTS: [(&str, &str); 8] = [
    ("crates/comet/src/transport.rs", "the one module that does"),
    ("crates/comet/src/listener.rs", "the table of listener kinds"),
    ("crates/comet/src/tls.rs", "below transport"),
    ("crates/comet/src/tls", "below transport"),
    ("crates/session/src/framing.rs", "the one module that does"),
    ("crates/session/src/lib.rs", "exports the name"),
    ("crates/session/src/client.rs", "a client asks for the upgrade"),
    ("crates/session/src/client", "and writes under a mask"),
];

#[test]
fn one_module_distinguishes_transports() {
    let names = ["Transport::Stream", "Transport::WebSocket", "goim_websocket", "rustls"];
    let mut seen = BTreeSet::new();
    for (path, text) in sources() {
        let inside = ["crates/comet/src", "crates/session/src"].iter().any(|folder| path.starts_with(folder));
        let own = text.split("#[cfg(test)]").next().unwrap_or_default();
        let line = code(own).find(|line| names.iter().any(|name| line.contains(name)));
        let (true, Some(line), false) = (inside, line, path.ends_with("tests.rs")) else { continue };
        match KNOWS_TRANSPORTS.iter().find(|(known, _)| path.starts_with(known)) {
            Some((known, _)) => seen.insert(*known),
            None => panic!("{}: only the transport's module tells them apart: {line}", path.display()),
        };
    }
    let transports = ["crates/comet/src/transport.rs", "crates/session/src/framing.rs"];
    assert!(
        transports.iter().all(|path| seen.contains(path)),
        "this test looks at the wrong names: {seen:?}"
    );
}

#[test]
fn files_begin_with_what_they_own() {
    for (path, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} does not open with //!", path.display());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let says_nothing = ["util", "utils", "common", "helper", "helpers", "manager", "misc"];
        assert!(!says_nothing.contains(&name.as_str()), "{}: name what is in it", path.display());
    }
}

#[test]
fn nothing_points_out_of_the_tree() {
    // In pieces, so that this file passes.
    let wrong = [concat!("/wo", "rk/"), concat!("../sha", "red")];
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    // A copy of the tree without git has nothing to list.
    let Some(output) = output.ok().filter(|output| output.status.success()) else { return };
    for name in String::from_utf8(output.stdout).unwrap().split('\0').filter(|name| !name.is_empty()) {
        let Ok(text) = std::fs::read_to_string(root().join(name)) else { continue };
        let found = text.lines().find(|line| wrong.iter().any(|part| line.contains(part)));
        assert!(found.is_none(), "{name} names a place outside the tree: {found:?}");
    }
}

#[test]
fn the_walks_name_items_that_exist() {
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let walks = document.split_once("## Three walks").unwrap().1.split_once("\n## ").unwrap().0;
    // Identifiers in the code of the crates, without their tests.
    let sources = sources();
    let is_part = |c: char| !c.is_alphanumeric() && c != '_';
    let own = sources.iter().filter(|(path, _)| path.components().any(|part| part.as_os_str() == "src"));
    let identifiers: BTreeSet<&str> = own.flat_map(|(_, text)| text.split(is_part)).collect();
    let named = walks.split('`').skip(1).step_by(2);
    // The last name of a path, or the type before braces: `Call::Send`, `PushRecord { payload }`.
    let names = named.map(|code| code.split([' ', '(']).next().unwrap_or(code).rsplit("::").next().unwrap());
    let names: BTreeSet<&str> = names.collect();
    assert!(names.len() > 30, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !identifiers.contains(**name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names what does not exist: {missing:?}");
}
