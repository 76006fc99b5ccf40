//! The program with real processes: workers, the bare send loop and the report, against a server
//! that makes mistakes.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::process::Output;

use serde_json::Value;
use support::faulty_server::{Fault, FaultyServer};
use support::{Files, run};

fn text(output: &Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{text}\n{errors}")
}

/// Returns the faults that a report lists.
fn faults(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("WRONG: ")).collect();
    found.join(", ")
}

#[test]
fn the_reference_alone_accounts_for_every_delivery() {
    let files = Files::new("reference");
    let output = run(&format!(
        "hold --reference only --connections 200 --workers 3 --heartbeat 2s --quiet 3s --settle 200ms --messages 10 \
         --rate 50 --broadcasts 4 --size 100 --repeat 1 {files}"
    ));
    assert!(output.status.success(), "{}", text(&output));
    let report = files.json();
    assert_eq!(report["faults"], Value::Array(Vec::new()));
    let accounts: Vec<&str> =
        report["accounts"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!(accounts[0], "reference: 2,800 of 2,800 deliveries");
    assert!(accounts[1].ends_with("heartbeats answered"), "{accounts:?}");
    for name in ["server CPU per heartbeat", "room: server CPU per delivery", "broadcast: latency p50"] {
        assert!(files.figure(name)["server"]["median"].as_f64().unwrap() > 0.0, "{name}: {report}");
    }
}

#[test]
fn an_unreachable_server() {
    // Port 1 has no listener.
    let output = run("hold --tcp 127.0.0.1:1 --connections 2");
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("cannot reach TCP at 127.0.0.1:1"), "{}", text(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn too_few_descriptors_are_reported_before_anything_starts() {
    let output = run("room --reference only --connections 4000000000");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("ulimit -n"), "{}", text(&output));
    assert!(text(&output).contains("4000000100"), "{}", text(&output));
}

/// Ten clients, five messages to the room, three to all, against a server that makes one mistake
/// with one client.
#[test]
fn faults_are_found_while_connections_are_held() {
    let check = |fault: Option<Fault>, expect: &str| {
        let server = FaultyServer::start(fault);
        let output = run(&format!(
            "hold --tcp {} --http {} --connections 10 --heartbeat 60s --quiet 300ms --settle 100ms --messages 5 --rate 50 \
             --broadcasts 3 --repeat 1 --patience 300ms --reference without",
            server.tcp, server.http
        ));
        assert_eq!(faults(&output), expect, "{fault:?}: {}", text(&output));
        assert_eq!(output.status.code(), Some(i32::from(fault.is_some())), "{fault:?}");
    };
    check(None, "");
    check(Some(Fault::Lose), "server: 1 deliveries lost");
    check(Some(Fault::Double), "server: 1 deliveries duplicated");
    check(Some(Fault::Swap), "server: 1 deliveries out of order");
    check(Some(Fault::Damage), "server: 1 deliveries lost, server: 1 packets damaged");
    // The connection is closed at the third message to the room; three to all follow.
    let closed = "server: 6 deliveries lost, server: 1 clients ended while open: closed by the server";
    check(Some(Fault::Close), closed);
}

/// Ten clients of each system, two pairs of windows; HTML and JSON are written.
#[test]
fn server_and_reference_alternate() {
    let files = Files::new("room");
    let check = |fault: Option<Fault>, command: &str, expect: &str| {
        let server = FaultyServer::start(fault);
        let output = run(&format!(
            "{command} --tcp {} --http {} --connections 10 --repeat 2 --patience 300ms --server-cpus none --client-cpus \
             none {files}",
            server.tcp, server.http,
        ));
        let status = Some(i32::from(fault.is_some()));
        assert_eq!(output.status.code(), status, "{command} {fault:?}: {}", text(&output));
        assert!(text(&output).contains(expect), "{command} {fault:?}: {}", text(&output));
    };
    check(Some(Fault::Lose), "room --messages 3", "WRONG: server: 1 deliveries lost");
    check(Some(Fault::Swap), "room --messages 3", "WRONG: server: 1 deliveries out of order");
    check(None, "room --rate 20 --seconds 500ms --messages 2", "server: 230 of 230 deliveries");
    check(None, "all --messages 3", "nothing lost");
    check(None, "heartbeat --interval 200ms --seconds 500ms", "heartbeats answered");
    check(None, "room --messages 3", "reference: 90 of 90 deliveries");
    assert!(files.figure("deliveries")["ratio"]["median"].as_f64().unwrap() > 0.0);
    let page = files.html();
    assert!(page.contains("<svg") && page.ends_with("</html>\n"), "{page}");
}

#[test]
fn a_refused_push_is_reported() {
    let server = FaultyServer::start(Some(Fault::Refuse));
    let output = run(&format!(
        "hold --tcp {} --http {} --connections 2 --quiet 0s --settle 0s --reference without",
        server.tcp, server.http
    ));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the push was refused: status 401") && errors.contains("--api-key"), "{errors}");
}

/// Ten clients of the server and ten of the reference; four messages, three of them to warm up.
#[test]
fn faults_are_found_in_pairs() {
    let check = |fault: Option<Fault>, more: &str, expect: &str| {
        let server = FaultyServer::start(fault);
        let output = run(&format!(
            "room --tcp {} --http {} --connections 10 --messages 1 --repeat 1 --patience 300ms {more}",
            server.tcp, server.http
        ));
        let text = text(&output);
        assert_eq!(faults(&output), expect, "{fault:?} {more}: {text}");
        assert_eq!(output.status.code(), Some(i32::from(fault.is_some())), "{fault:?} {more}: {text}");
        assert_eq!(text.contains("a burst was as many requests"), more.contains("--burst"), "{more}: {text}");
        assert!(text.contains("reference: 40 of 40 deliveries") || !more.is_empty(), "{text}");
    };
    check(None, "", "");
    check(Some(Fault::Lose), "", "server: 1 deliveries lost");
    check(Some(Fault::Double), "", "server: 1 deliveries duplicated");
    check(Some(Fault::Swap), "", "server: 1 deliveries out of order");
    check(Some(Fault::Damage), "", "server: 1 deliveries lost, server: 1 packets damaged");
    let closed = "server: 2 deliveries lost, server: 1 clients ended while open: closed by the server";
    check(Some(Fault::Close), "--reference without", closed);
    // This server takes one message per request, as goim v2 does, so a burst is several requests
    // written at once.
    check(None, "--burst 5", "");
    check(Some(Fault::Swap), "--burst 5 --reference without", "server: 1 deliveries out of order");
}

#[test]
fn connect_windows_do_not_need_the_process_of_the_server() {
    let server = FaultyServer::start(None);
    let output = run(&format!(
        "connect --tcp {} --http {} --connections 20 --repeat 1 --reference without",
        server.tcp, server.http
    ));
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("authenticated connections"), "{text}");
    assert!(!text.contains("RSS"), "{text}");
}
