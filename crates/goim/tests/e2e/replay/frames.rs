//! The client connections captured of goim's own processes, played against this server: the same
//! bytes are received, except where the table below states a deviation.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use crate::harness;
use crate::harness::capture::{Connection, connections, exchanges};
use crate::harness::steps::{Deviation, Group};
use crate::harness::{Server, Settings};

/// Why a captured connection is not played.
const OTHER_PROCESSES: &str = "needs other processes than the one under test, or their absence";

/// Connections that are not played: all of a row, or one.
const SKIPPED: &[(&str, &str)] = &[
    ("upgrade", "every connection over WebSocket begins with it; it is compared there"),
    ("row 18 tcp #2", "logic is down; conformance::upstream plays it with a logic of its own"),
    ("row 18 tcp #3", "a connection that only tries whether the port is open"),
    ("row 18 tcp #4", "a connection that only tries whether the port is open"),
    ("row 18 ws #2", "logic is down; conformance::upstream plays it with a logic of its own"),
    ("row 18 ws #3", "a connection that only tries whether the port is open"),
    ("row 18 ws #4", "a connection that only tries whether the port is open"),
    ("row 80", OTHER_PROCESSES),
    ("row 86 ws #1", "a connection on which nothing was sent or received; what was meant is in #2"),
    ("row 101", OTHER_PROCESSES),
    ("row 105", "what comes is sent by comet's RPC, which the capture of the client does not have"),
    ("row 109", "looks at the record in the push log; what the client got is not in the capture"),
    ("row 110", OTHER_PROCESSES),
    ("row 111", OTHER_PROCESSES),
    ("row 112", OTHER_PROCESSES),
    ("row 114", OTHER_PROCESSES),
    ("row 115", OTHER_PROCESSES),
];

/// A push of `hello`, operation 1000, as its bytes are on TCP and on WebSocket.
const HELLO: &str = "0000001500100001000003e80000000068656c6c6f";
const HELLO_WS: &str = "8225 00000025001000010000000900000000 0000001500100001000003e80000000068656c6c6f";
const BY_KEY: &str = "0000001600100001000003e8000000006279206b6579";
const BY_KEY_WS: &str = "8226 00000026001000010000000900000000 0000001600100001000003e8000000006279206b6579";

/// Connections that are played or answered differently from goim: all of a row, or one; how, and
/// why.
const DEVIATIONS: &[(&str, Deviation, &str)] = &[
    (
        "row 11 tcp",
        Deviation::Instead(7, "0000001400100001000000030000000900000000"),
        "fix: who has left has a count of 0",
    ),
    (
        "row 11 ws",
        Deviation::Instead(7, "82140000001400100001000000030000000900000000"),
        "fix: who has left has a count of 0",
    ),
    ("row 16 tcp", Deviation::Also(4, HELLO), "fix: the own room is not lost by changing to it"),
    ("row 16 ws", Deviation::Also(4, HELLO_WS), "fix: the own room is not lost by changing to it"),
    ("row 25", Deviation::Closes(3), "fix: a packet shorter than its header"),
    ("row 26 tcp #3", Deviation::Closes(3), "fix: a length that wraps around"),
    ("row 30 tcp #2", Deviation::Also(2, BY_KEY), "fix: the key's mapping is not lost"),
    ("row 30 ws #2", Deviation::Also(2, BY_KEY_WS), "fix: the key's mapping is not lost"),
    ("row 31", Deviation::SentTooLate, "the last packet of the capture went when the session had ended"),
    ("row 37", Deviation::Batches, "how room messages are grouped is goim's timing"),
    ("row 38", Deviation::Batches, "how room messages are grouped is goim's timing"),
    ("row 39", Deviation::Refuses, "an answer that refuses the upgrade is fine"),
    ("row 46", Deviation::CloseFrame, "a close frame is answered with one"),
    ("row 47", Deviation::CloseFrame, "a close frame says why"),
    ("row 82 ws #1", Deviation::MayClose(3), "closing is fine"),
    ("row 82 ws #2", Deviation::MayClose(3), "closing is fine"),
    ("row 85", Deviation::LivesOn(7), "fix: no limit of control frames between messages"),
    ("row 87", Deviation::MayClose(1), "refusing is fine"),
    ("row 95", Deviation::Pipelined(4), "the capture of the client leaves out two requests"),
    (
        "row 100 #2",
        Deviation::Instead(3, "82140000001400100001000000030000000500000002"),
        "fix: the count of the comet, not of one bucket",
    ),
    (
        "row 100 #3",
        Deviation::Instead(3, "0000001400100001000000030000000500000003"),
        "fix: the count of the comet, not of one bucket",
    ),
    ("row 121", Deviation::Closes(3), "fix: a frame length with the top bit set"),
];

/// Whether an entry of a table speaks of a connection.
fn names(entry: &str, connection: &Connection) -> bool {
    connection.name == entry || connection.name.strip_prefix(entry).is_some_and(|rest| rest.starts_with(' '))
}

/// The capture's settings, with waits as short as a test needs them.
fn settings(row: u32) -> Settings {
    let settings = Settings::new();
    match row {
        4 | 119 => settings.handshake_timeout("1s"),
        31 => settings.heartbeat("1s", 2),
        _ => settings,
    }
}

#[derive(Default)]
struct Counts {
    exact: usize,
    deviating: usize,
    skipped: usize,
    failed: Vec<String>,
}

#[test]
fn captured_connections_are_answered_as_by_goim() {
    let (connections, exchanges) = (connections(), exchanges());
    check_tables(&connections);
    let mut groups: Vec<Vec<(&Connection, Option<Deviation>)>> = Vec::new();
    let mut counts = Counts::default();
    for connection in &connections {
        if let Some((_, why)) = SKIPPED.iter().find(|(entry, _)| names(entry, connection)) {
            eprintln!("skipped {}: {why}", connection.name);
            counts.skipped += 1;
            continue;
        }
        let deviation = DEVIATIONS
            .iter()
            .find(|(entry, ..)| names(entry, connection))
            .map(|(_, deviation, _)| *deviation);
        match groups.last_mut() {
            Some(group) if runs_with(group[0].0, connection) => group.push((connection, deviation)),
            _ => groups.push(vec![(connection, deviation)]),
        }
    }
    let (groups, counts) = (Mutex::new(groups), Mutex::new(counts));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(group) = groups.lock().unwrap().pop() else { return };
                    let group = Group { connections: group, exchanges: &exchanges };
                    play(&group, &counts);
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    let Counts { exact, deviating, skipped, .. } = counts;
    eprintln!("{exact} played exactly, {deviating} with a stated deviation, {skipped} skipped");
    assert_eq!(exact + deviating + skipped + counts.failed.len(), connections.len(), "each is in one class");
    assert!(counts.failed.is_empty(), "{} failed:\n{}", counts.failed.len(), counts.failed.join("\n"));
}

/// Connections of a group that share a key or a room, or saw the same requests, ran at the same
/// time. The others of a row ran one after the other, and are better played alone.
fn runs_with(first: &Connection, other: &Connection) -> bool {
    first.group() == other.group() && matches!(first.row(), 30 | 88 | 89 | 90 | 94 | 100 | 107)
}

fn play(group: &Group<'_>, counts: &Mutex<Counts>) {
    let first = group.connections[0].0;
    let played = catch_unwind(AssertUnwindSafe(|| group.play(&Server::start(&settings(first.row())))));
    let mut counts = counts.lock().unwrap();
    for (connection, deviation) in &group.connections {
        match (&played, deviation) {
            (Ok(()), None) => counts.exact += 1,
            (Ok(()), Some(_)) => counts.deviating += 1,
            (Err(why), _) => {
                let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
                counts.failed.push(format!("{}: {why}", connection.name));
            }
        }
    }
}

/// Both tables name only existing connections, and each once.
fn check_tables(connections: &[Connection]) {
    let mut seen = BTreeSet::new();
    let entries = SKIPPED.iter().map(|(entry, _)| *entry).chain(DEVIATIONS.iter().map(|(entry, ..)| *entry));
    for entry in entries {
        let of: Vec<&str> = connections
            .iter()
            .filter(|connection| names(entry, connection))
            .map(|c| c.name.as_str())
            .collect();
        assert!(!of.is_empty(), "no connection is called {entry}");
        for name in of {
            assert!(seen.insert(name), "{name} is in the tables twice");
        }
    }
}

#[test]
fn the_capture_is_read_to_the_last_byte() {
    let connections = connections();
    assert_eq!(connections.len(), 233);
    let find = |name: &str| connections.iter().find(|connection| connection.name == name).unwrap();
    // A packet of 4112 bytes in twenty masked frames of at most 206 bytes, written with repeated
    // units.
    let harness::capture::Step::Send(fragments) = &find("row 83 ws #1").steps[2] else {
        panic!("a packet is sent")
    };
    assert_eq!(fragments.len(), 20 * 8 + 4112);
    // Two requests are cut off in the file.
    for (name, length) in [("row 92 tcp #1", 256), ("row 106 tcp #1", 1)] {
        let bodies = find(name).steps.iter().filter_map(|step| match step {
            harness::capture::Step::Http(request) => Some(request.body.len()),
            _ => None,
        });
        assert!(bodies.into_iter().any(|body| body == length), "{name}");
    }
}
