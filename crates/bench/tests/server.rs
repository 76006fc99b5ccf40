//! Each benchmark against a server of this workspace, with few clients: everything arrives, and
//! each form of the report shows it. Figures of so few clients mean nothing, so their values are
//! not checked.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use support::{Files, run};

/// The server: the file in `GOIM`, or `goim` beside the program under test, which is built if it is
/// missing.
static GOIM: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(file) = std::env::var_os("GOIM") {
        return file.into();
    }
    let file = PathBuf::from(env!("CARGO_BIN_EXE_goim-bench")).with_file_name("goim");
    if !file.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--package", "goim"]);
        if file.parent().is_some_and(|folder| folder.ends_with("release")) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    }
    file
});

/// Runs a benchmark with a server, and returns its files.
fn bench(subcommand: &str, arguments: &str) -> Files {
    let files = Files::new(&format!("{subcommand}-{}", arguments.len()));
    let goim = GOIM.display();
    let output = run(&format!(
        "{subcommand} --spawn --goim {goim} --server-cpus none --client-cpus none {arguments} {files}"
    ));
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{subcommand} {arguments}: {text}\n{errors}");
    assert!(text.contains("nothing lost, nothing duplicated, everything in order"), "{text}");
    assert_eq!(files.json()["faults"], Value::Array(Vec::new()), "{text}");
    files
}

/// Returns the medians of a figure: of the server, and of its ratio to the reference.
fn figure(files: &Files, name: &str) -> (f64, Option<f64>) {
    let row = files.figure(name);
    (row["server"]["median"].as_f64().unwrap(), row["ratio"]["median"].as_f64())
}

/// Returns true when a line about arrivals starts like this.
fn has_account(files: &Files, line: &str) -> bool {
    let report = files.json();
    let accounts = report["accounts"].as_array().unwrap();
    accounts.iter().any(|account| account.as_str().unwrap().starts_with(line))
}

#[test]
fn fan_out_with_every_load_pattern_and_over_every_transport() {
    for (subcommand, arguments, deliveries) in [
        // Three messages warm up.
        ("room", "--connections 30 --messages 5 --repeat 2", Some("390 of 390")),
        ("room", "--connections 30 --messages 5 --repeat 1 --over ws --size chat", Some("240 of 240")),
        ("room", "--connections 10 --messages 5 --repeat 1 --over tls", Some("80 of 80")),
        ("room", "--connections 10 --messages 5 --repeat 1 --over wss", Some("80 of 80")),
        ("room", "--connections 10 --messages 2 --repeat 1 --burst 20", Some("430 of 430")),
        ("all", "--connections 30 --repeat 1 --rate 50 --seconds 500ms", Some("840 of 840")),
        ("room", "--connections 10 --repeat 1 --flood --publishers 3 --seconds 300ms", None),
    ] {
        let files = bench(subcommand, arguments);
        let (per_second, ratio) = figure(&files, "deliveries");
        assert!(per_second > 0.0, "{subcommand} {arguments}: {}", files.json());
        // The reference does not use TLS.
        assert_eq!(ratio.is_some(), !arguments.contains("tls") && !arguments.contains("wss"), "{arguments}");
        if let Some(deliveries) = deliveries {
            let line = format!("server: {deliveries} deliveries");
            assert!(has_account(&files, &line), "{subcommand} {arguments}: {}", files.json()["accounts"]);
        }
        let page = files.html();
        assert!(page.starts_with("<!doctype html>"), "{page:.80}");
        assert!(page.contains("Latency of deliveries") && page.contains("<polyline"), "{arguments}");
    }
}

#[test]
fn connections_over_two_transports_are_held() {
    let files = bench(
        "hold",
        "--connections 40 --over tcp,ws --heartbeat 500ms --settle 1s --quiet 1s --messages 4 --rate 20 \
         --broadcasts 2 --repeat 2",
    );
    assert!(has_account(&files, "server: 480 of 480 deliveries"), "{}", files.json()["accounts"]);
    assert!(has_account(&files, "reference: 480 of 480 deliveries"), "{}", files.json()["accounts"]);
    let (cpu, ratio) = figure(&files, "room: server CPU per delivery");
    assert!(cpu >= 0.0 && ratio.is_some(), "{}", files.json());
    assert!(figure(&files, "RSS, all sessions idle").0 > 0.0);
}

#[test]
fn pushes_to_one_session_each() {
    for by in ["key", "mid"] {
        let files =
            bench("push", &format!("--connections 20 --rate 200 --seconds 500ms --repeat 1 --by {by}"));
        let (p50, ratio) = figure(&files, "latency p50");
        assert!(p50 > 0.0 && ratio.is_some(), "{by}: {}", files.json());
    }
}

#[test]
fn heartbeats_at_a_rate_and_as_fast_as_they_are_answered() {
    for pattern in ["--interval 500ms --over ws", "--dense --window 10"] {
        let files = bench("heartbeat", &format!("--connections 20 --seconds 1s --repeat 1 {pattern}"));
        let (per_second, ratio) = figure(&files, "heartbeats");
        // The interval results in 40 per second. Without it there are many more, on any machine.
        let expected = if pattern.contains("dense") { 100.0 } else { 20.0 };
        assert!(per_second > expected && ratio.is_some(), "{pattern}: {}", files.json());
    }
}

#[test]
fn all_clients_reconnect_and_are_reached() {
    let files = bench("churn", "--connections 50 --repeat 3");
    // To each by key and to all by room, three times.
    assert!(has_account(&files, "server: 300 of 300 deliveries"), "{}", files.json()["accounts"]);
    let (per_second, _) = figure(&files, "reconnects");
    // An event that is missed would delay this to the deadline of a minute.
    assert!(per_second > 10.0, "{}", files.json());
}

#[test]
fn pushes_as_fast_as_the_api_accepts_them() {
    let files = bench("api", "--clients 4 --seconds 300ms --repeat 1");
    let (per_second, ratio) = figure(&files, "single: pushes");
    assert!(per_second > 0.0 && ratio.is_some(), "{}", files.json());
    for form in ["JSON: messages", "NDJSON: messages"] {
        assert!(figure(&files, form).0 > 0.0, "{form}: {}", files.json());
    }
}
