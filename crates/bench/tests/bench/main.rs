//! The whole way with real processes: workers, the bare send loop, the account, the report.
//!
//! Workers are this program again (see [`goim_bench::cli::BenchCommand`]), so that it has a `main` of its own instead of
//! the test harness: with `bench` as first argument it is `goim bench`, else it runs the tests.

mod faulty;

use std::path::Path;
use std::process::{Command, ExitCode, Output};

use clap::{Parser, Subcommand};
use faulty::{Fault, Faulty};
use goim_bench::cli::BenchCommand;
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Role,
}

#[derive(Subcommand)]
enum Role {
    Bench(BenchCommand),
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("bench") {
        let Cli { command: Role::Bench(command) } = Cli::parse();
        return command.run().unwrap_or_else(|error| {
            eprintln!("{error}");
            error.exit_status().into()
        });
    }
    what_a_server_does_wrong_is_found_in_pairs();
    storms_need_no_process_to_look_at();
    the_reference_accounts_for_every_delivery();
    what_a_server_does_wrong_is_found();
    nobody_at_the_door();
    a_refused_push_is_told();
    server_and_reference_take_turns();
    ExitCode::SUCCESS
}

fn bench(arguments: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("bench").args(arguments.split_whitespace()).output().expect("this program runs")
}

fn the_reference_accounts_for_every_delivery() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reference-{}.json", std::process::id()));
    let output = bench(&format!(
        "reference --connections 200 --workers 3 --heartbeat 2s --quiet 3s --settle 200ms --messages 10 --rate 50 \
         --broadcasts 4 --size 100 --json {}",
        file.display()
    ));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("nothing lost"), "{text}");
    assert!(errors.contains("connect: 200 in"), "{errors}");

    let json: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    let run = &json["runs"][0]["server"];
    let number = |path: &str| {
        let value = run.pointer(path).unwrap_or_else(|| panic!("{path} in {run}"));
        value.as_f64().unwrap_or_else(|| panic!("{path} is {value}"))
    };
    for (path, expect) in [
        ("/room/expected", 2_000.0),
        ("/room/delivered", 2_000.0),
        ("/room/latency/samples", 2_000.0),
        ("/room/last_receiver/samples", 10.0),
        ("/all/delivered", 800.0),
        ("/all/lost", 0.0),
        ("/connect/latency/samples", 200.0),
        ("/heartbeats/wrong_count", 0.0),
    ] {
        assert_eq!(number(path), expect, "{path}");
    }
    // One every two seconds each, for three seconds.
    assert!(number("/quiet/heartbeats") > 200.0, "{run}");
    assert_eq!(number("/heartbeats/sent"), number("/heartbeats/answered"));
    assert!(number("/memory/idle/rss_bytes") > 0.0);
    std::fs::remove_file(&file).expect("the file is ours");
}

fn nobody_at_the_door() {
    // Port 1 is nobody's; a bench that began would say so much later, and otherwise.
    let output = bench("hold --tcp 127.0.0.1:1 --ws none --connections 2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{errors}");
    assert!(errors.contains("cannot reach the TCP door at 127.0.0.1:1"), "{errors}");
    assert!(output.stdout.is_empty());
}

/// Ten clients, five messages to the room, three to all, against a server that treats one client wrong.
fn what_a_server_does_wrong_is_found() {
    let check = |fault: Option<Fault>, expect: &str| {
        let server = Faulty::start(fault);
        let output = bench(&format!(
            "hold --tcp {} --ws none --http {} --connections 10 --heartbeat 60s --quiet 300ms --settle 100ms \
             --messages 5 --rate 50 --broadcasts 3 --patience 300ms --no-reference",
            server.tcp, server.http
        ));
        let text = String::from_utf8_lossy(&output.stdout);
        let found: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("WRONG: ")).collect();
        assert_eq!(
            found.join(", "),
            expect,
            "{fault:?}: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(i32::from(fault.is_some())), "{fault:?}");
    };
    check(None, "");
    check(Some(Fault::Lose), "1 deliveries to the room lost");
    check(Some(Fault::Double), "1 deliveries to the room doubled");
    check(Some(Fault::Swap), "1 deliveries to the room out of order");
    check(Some(Fault::Damage), "1 deliveries to the room lost, 1 packets damaged");
    // The third message to the room is the first that does not come; three to all follow.
    let gone = "3 deliveries to the room lost, 3 deliveries to all lost, 1 clients ended while open: closed by the server";
    check(Some(Fault::Close), gone);
}

/// Ten clients of each side, two pairs of blocks; a page and a file of figures come out.
fn server_and_reference_take_turns() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = |kind: &str| folder.join(format!("room-{}.{kind}", std::process::id()));
    let check = |fault: Option<Fault>, command: &str, expect: &str| {
        let server = Faulty::start(fault);
        let output = bench(&format!(
            "{command} --tcp {} --http {} --connections 10 --repeat 2 --patience 300ms --server-cpus none \
             --client-cpus none --json {} --html {}",
            server.tcp,
            server.http,
            file("json").display(),
            file("html").display()
        ));
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(i32::from(fault.is_some())),
            "{command} {fault:?}: {text}\n{errors}"
        );
        assert!(text.contains(expect), "{command} {fault:?}: {text}\n{errors}");
    };
    check(Some(Fault::Lose), "room --messages 3", "WRONG: server: 1 deliveries lost");
    check(Some(Fault::Swap), "room --messages 3", "WRONG: server: 1 deliveries out of order");
    check(None, "room --rate 20 --seconds 500ms --messages 2", "server: 230 of 230 deliveries");
    check(None, "all --messages 3", "nothing lost");
    check(None, "heartbeat --interval 200ms --seconds 500ms", "heartbeats answered");
    check(None, "room --messages 3", "reference: 90 of 90 deliveries");
    let json: Value = serde_json::from_slice(&std::fs::read(file("json")).expect("the file")).expect("JSON");
    let row = |name: &str| {
        let rows = json["figures"].as_array().expect("rows");
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name} in {json}")).clone()
    };
    assert!(row("deliveries")["ratio"]["median"].as_f64().expect("a ratio") > 0.0);
    let page = std::fs::read_to_string(file("html")).expect("the page");
    assert!(page.contains("<svg") && page.ends_with("</html>\n"), "{page}");
    for kind in ["json", "html"] {
        std::fs::remove_file(file(kind)).expect("the file is ours");
    }
}

fn a_refused_push_is_told() {
    let server = Faulty::start(Some(Fault::Refuse));
    let output = bench(&format!(
        "hold --tcp {} --ws none --http {} --connections 2 --quiet 0s --settle 0s --no-reference",
        server.tcp, server.http
    ));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("the push was refused: status 401") && errors.contains("--api-key"), "{errors}");
}

/// Ten clients beside ten of the reference; four messages, the first three of them to warm up.
fn what_a_server_does_wrong_is_found_in_pairs() {
    let check = |fault: Option<Fault>, more: &str, expect: &str| {
        let server = Faulty::start(fault);
        let output = bench(&format!(
            "room --tcp {} --http {} --connections 10 --messages 1 --repeat 1 --patience 300ms {more}",
            server.tcp, server.http
        ));
        let text = String::from_utf8_lossy(&output.stdout);
        let found: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("WRONG: ")).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(found.join(", "), expect, "{fault:?} {more}: {text}\n{errors}");
        assert_eq!(output.status.code(), Some(i32::from(fault.is_some())), "{fault:?} {more}: {errors}");
        assert_eq!(text.contains("bursts were as many requests"), more.contains("--burst"), "{more}: {text}");
        assert!(text.contains("reference: 40 of 40 deliveries") || !more.is_empty(), "{text}");
    };
    check(None, "", "");
    check(Some(Fault::Lose), "", "server: 1 deliveries lost");
    check(Some(Fault::Double), "", "server: 1 deliveries doubled");
    check(Some(Fault::Swap), "", "server: 1 deliveries out of order");
    check(Some(Fault::Damage), "", "server: 1 deliveries lost, server: 1 packets damaged");
    let gone = "server: 2 deliveries lost, server: 1 clients ended while open: closed by the server";
    check(Some(Fault::Close), "--no-reference", gone);
    // It takes one message in a request, as goim does: then several requests are written at once.
    check(None, "--burst 5", "");
    check(Some(Fault::Swap), "--burst 5 --no-reference", "server: 1 deliveries out of order");
}

fn storms_need_no_process_to_look_at() {
    let server = Faulty::start(None);
    let output = bench(&format!(
        "connect --tcp {} --http {} --connections 20 --repeat 1 --no-reference",
        server.tcp, server.http
    ));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("authenticated connections"), "{text}");
    assert!(!text.contains("RSS"), "{text}");
}
