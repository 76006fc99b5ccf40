//! Measures what sessions cost a shard when there are a million of them: each operation on a shard
//! of 1,000 sessions and on one of many, alternating within the same seconds, through
//! `goim_comet::harness`.
//!
//! `cargo bench -p goim-comet --features harness --bench scale -- [--sessions N] [--repeat N]
//! [--only NAME] [--json FILE]`
//!
//! Times are of the thread's processor clock. Requests are created for each push, as a publisher
//! does: no part of a receiver is cached because the benchmark has just used it. Not here:
//! measurements over sockets (`goim-bench`).

#![allow(clippy::print_stdout, reason = "a command that prints a table")]

#[path = "scale/measure.rs"]
mod measure;
#[path = "scale/world.rs"]
mod world;

use std::error::Error;
use std::time::Duration;

use measure::{Paired, Report, cpu_ns, resident_bytes};
use world::{Rooms, World};

/// Sessions of the small shard.
const FEW: usize = 1000;
/// Operations between two turns of the loop, where there are several.
const TOGETHER: usize = 64;
/// Operations of one sample.
const OPERATIONS: usize = 64 * 1024;
/// Receivers of the messages of one fan-out sample, in total.
const RECEIVERS: usize = 2_000_000;
/// Time between two heartbeats of a session.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Steps in which that time passes.
const STEP: Duration = Duration::from_millis(100);
/// Rounds of heartbeats: enough for every session's record to be renewed once, which is due within
/// ten minutes.
const ROUNDS: usize = 21;

struct Arguments {
    sessions: usize,
    repeat: usize,
    /// Only operations of the first group whose name contains this.
    only: Option<String>,
    json: Option<String>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut found = Arguments { sessions: 1_000_000, repeat: 5, only: None, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--sessions" => found.sessions = value()?.parse()?,
            "--repeat" => found.repeat = value()?.parse()?,
            "--only" => found.only = Some(value()?),
            "--json" => found.json = Some(value()?),
            // Passed by cargo.
            "--bench" => {}
            _ => {
                return Err(
                    format!("{argument}: only --sessions, --repeat, --only and --json are known").into()
                );
            }
        }
    }
    if found.sessions < FEW || found.repeat == 0 {
        return Err(format!("--sessions must be at least {FEW}, --repeat at least 1").into());
    }
    Ok(found)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { sessions, repeat, only, json } = arguments()?;
    let mut report = Report::new(sessions, FEW, repeat);
    rooms_of_one(sessions, repeat, only.as_deref(), &mut report)?;
    if only.is_none() {
        one_room(sessions, repeat, &mut report)?;
    }
    println!("{}", report.table());
    if let Some(file) = json {
        std::fs::write(&file, report.json())
            .map_err(|error| format!("--json {file}: {error}; name a file that can be written"))?;
    }
    Ok(())
}

/// Each session in a separate room: memory, pushes to one session, heartbeats.
fn rooms_of_one(
    sessions: usize,
    repeat: usize,
    only: Option<&str>,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let mut small = World::new(FEW, Rooms::None)?;
    small.move_all(Rooms::Own);
    let start = resident_bytes()?;
    let mut large = World::with_directory(sessions)?;
    let directory = resident_bytes()?;
    large.open_all(Rooms::None);
    let opened = resident_bytes()?;
    large.move_all(Rooms::Own);
    let moved = resident_bytes()?;
    let each = |from: usize, to: usize| to.saturating_sub(from) as f64 / sessions as f64;
    report.bytes("session in the directory (MemorySessions), RSS", each(start, directory));
    report.bytes("session in comet without a room, RSS", each(directory, opened));
    report.bytes("of these its place in the table, size", World::connection_bytes() as f64);
    report.bytes("room of one, RSS", each(opened, moved));
    report.bytes("room of one, sum of the sizes of its parts", World::room_bytes() as f64);

    let mut pair = |name: &str, operation: fn(&mut World, usize) -> u64| {
        if only.is_some_and(|only| !name.contains(only)) {
            return;
        }
        let (ops, each) = (OPERATIONS, OPERATIONS as f64);
        let paired = Paired::sample(repeat, || {
            (operation(&mut small, ops) as f64 / each, operation(&mut large, ops) as f64 / each)
        });
        report.paired(name, paired);
    };
    pair("push by key, one in a turn", |world, ops| world.push_keys(ops, 1));
    pair("push by key, 64 in a turn", |world, ops| world.push_keys(ops, TOGETHER));
    pair("push by member, one in a turn", |world, ops| world.push_members(ops, 1));
    pair("push by member, 64 in a turn", |world, ops| world.push_members(ops, TOGETHER));
    pair("push to a room of one, one in a turn", |world, ops| world.push_rooms(ops, 1));
    pair("push to a room of one, 64 in a turn", |world, ops| world.push_rooms(ops, TOGETHER));
    pair("heartbeat, one in a turn", |world, ops| world.heartbeats(ops, 1));
    pair("heartbeat, 64 in a turn", |world, ops| world.heartbeats(ops, TOGETHER));

    if only.is_some() {
        return large.check();
    }
    let steps = (HEARTBEAT.as_millis() / STEP.as_millis()) as usize;
    let shares: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let before = cpu_ns();
            large.heartbeat_round(steps, STEP, TOGETHER);
            (cpu_ns() - before) as f64 / HEARTBEAT.as_nanos() as f64 * 100.0
        })
        .collect();
    report.percent("heartbeats of all every 30 s with timers and directory, of a core", &shares);
    large.check()
}

/// All sessions in one room: fan-out, joining and leaving.
fn one_room(sessions: usize, repeat: usize, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let mut small = World::new(FEW, Rooms::One)?;
    let mut large = World::new(sessions, Rooms::One)?;
    let mut leaves = Vec::new();
    let mut joins = Vec::new();
    for (name, few) in [("random sessions", false), ("the same 64 sessions", true)] {
        leaves.clear();
        joins.clear();
        for _ in 0..repeat {
            let [a, b] =
                [&mut small, &mut large].map(|world| world.leave_and_join(OPERATIONS, TOGETHER, few));
            let each = |ns: u64| ns as f64 / OPERATIONS as f64;
            leaves.push((each(a.0), each(b.0)));
            joins.push((each(a.1), each(b.1)));
        }
        report.paired(&format!("leave a room, {name}"), Paired::of(&leaves));
        report.paired(&format!("join a room, {name}"), Paired::of(&joins));
    }
    let to_room = |world: &mut World| world.push_one_room(RECEIVERS.div_ceil(world.len()));
    let to_all = |world: &mut World| world.broadcast(RECEIVERS.div_ceil(world.len()));
    let rounds = |operation: &dyn Fn(&mut World) -> f64, small: &mut World, large: &mut World| {
        Paired::sample(repeat, || (operation(small), operation(large)))
    };
    let room = rounds(&to_room, &mut small, &mut large);
    report.time("one message to one room of all, until the last is written", room.large() * sessions as f64);
    report.paired("message to one room of all, per receiver", room);
    report.paired("broadcast, per receiver", rounds(&to_all, &mut small, &mut large));
    large.check()
}
