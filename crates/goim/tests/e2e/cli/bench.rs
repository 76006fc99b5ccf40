//! `goim bench` against a server of the same binary, with few clients: each subcommand ends with a
//! result in which everything has arrived, in each output format. The figures of so few clients
//! mean nothing and are not checked.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::binary::run;

/// Runs a subcommand with its own server and returns what it wrote to its files.
fn bench(subcommand: &str, arguments: &str) -> (Value, String) {
    let file = |kind: &str| -> PathBuf {
        let name = format!("bench-{subcommand}-{}-{}.{kind}", arguments.len(), std::process::id());
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
    };
    let (json, html) = (file("json"), file("html"));
    let mut line = vec!["bench", subcommand, "--spawn", "--server-cpus", "none", "--client-cpus", "none"];
    line.extend(arguments.split_whitespace());
    line.extend(["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()]);
    let output = run(&line);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{subcommand} {arguments}: {text}\n{errors}");
    assert!(text.contains("nothing lost, nothing doubled, everything in order"), "{text}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let page = std::fs::read_to_string(&html).unwrap();
    std::fs::remove_file(json).unwrap();
    std::fs::remove_file(html).unwrap();
    assert_eq!(result["faults"], Value::Array(Vec::new()), "{text}");
    (result, page)
}

/// The medians of a figure: the server's, and that of its ratio to the reference.
fn figure(result: &Value, name: &str) -> (f64, Option<f64>) {
    let row = result["figures"].as_array().unwrap().iter().find(|row| row["name"] == name);
    let row = row.unwrap_or_else(|| panic!("no {name} in {}", result["figures"]));
    (row["server"]["median"].as_f64().unwrap(), row["ratio"]["median"].as_f64())
}

/// True when one of the lines on what has arrived begins like that.
fn accounts(result: &Value, line: &str) -> bool {
    result["accounts"].as_array().unwrap().iter().any(|account| account.as_str().unwrap().starts_with(line))
}

#[test]
fn fan_out_in_every_rhythm_and_over_every_transport() {
    for (subcommand, arguments, deliveries) in [
        // Three messages to warm up, then the blocks.
        ("room", "--connections 30 --messages 5 --repeat 2", Some("390 of 390")),
        ("room", "--connections 30 --messages 5 --repeat 1 --over ws --size chat", Some("240 of 240")),
        ("room", "--connections 10 --messages 5 --repeat 1 --over tls", Some("80 of 80")),
        ("room", "--connections 10 --messages 5 --repeat 1 --over wss", Some("80 of 80")),
        ("room", "--connections 10 --messages 2 --repeat 1 --burst 20", Some("430 of 430")),
        ("all", "--connections 30 --repeat 1 --rate 50 --seconds 500ms", Some("840 of 840")),
        ("room", "--connections 10 --repeat 1 --flood --publishers 3 --seconds 300ms", None),
    ] {
        let (result, page) = bench(subcommand, arguments);
        let (per_second, ratio) = figure(&result, "deliveries");
        assert!(per_second > 0.0, "{subcommand} {arguments}: {result}");
        // Inside TLS there is nothing to compare with.
        assert_eq!(ratio.is_some(), !arguments.contains("tls") && !arguments.contains("wss"), "{arguments}");
        if let Some(deliveries) = deliveries {
            let line = format!("server: {deliveries} deliveries");
            assert!(accounts(&result, &line), "{subcommand} {arguments}: {}", result["accounts"]);
        }
        assert!(page.starts_with("<!DOCTYPE html>") || page.starts_with("<!doctype html>"), "{page:.80}");
        assert!(page.contains("Latency of deliveries") && page.contains("<polyline"), "{arguments}");
    }
}

#[test]
fn pushes_to_one_connection_each() {
    for by in ["key", "mid"] {
        let (result, _) =
            bench("push", &format!("--connections 20 --rate 200 --seconds 500ms --repeat 1 --by {by}"));
        let (p50, ratio) = figure(&result, "latency p50");
        assert!(p50 > 0.0 && ratio.is_some(), "{by}: {result}");
    }
}

#[test]
fn heartbeats_at_a_rate_and_densely() {
    for rhythm in ["--interval 500ms --over ws", "--dense --window 10"] {
        let arguments = format!("--connections 20 --seconds 1s --repeat 1 {rhythm}");
        let (result, _) = bench("heartbeat", &arguments);
        let (per_second, ratio) = figure(&result, "heartbeats");
        // 40 a second are asked for; as fast as they are answered is much more, on any machine.
        let dense = rhythm.contains("dense");
        assert!(per_second > if dense { 100.0 } else { 20.0 } && ratio.is_some(), "{rhythm}: {result}");
    }
}

#[test]
fn everybody_comes_back_and_is_reached() {
    let (result, _) = bench("churn", "--connections 50 --repeat 3");
    // To each by its key and to all by their room, three times.
    assert!(accounts(&result, "server: 300 of 300 deliveries"), "{}", result["accounts"]);
    let (per_second, _) = figure(&result, "vanished and back");
    // A client's return that was never reported was once awaited until the deadline of a minute.
    assert!(per_second > 10.0, "{result}");
}

#[test]
fn pushes_as_fast_as_the_api_takes_them() {
    let (result, _) = bench("api", "--clients 4 --seconds 300ms --repeat 1");
    let (per_second, ratio) = figure(&result, "single: pushes");
    assert!(per_second > 0.0 && ratio.is_some(), "{result}");
    for form in ["JSON: messages", "NDJSON: messages"] {
        assert!(figure(&result, form).0 > 0.0, "{form}: {result}");
    }
}
