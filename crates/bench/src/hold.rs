//! `goim-bench hold`: many sessions in one room that all send heartbeats. Messages to the room and
//! to all must reach each of them.

use std::time::{Duration, Instant};

use clap::Args;

use crate::control::Command;
use crate::error::BenchError;
use crate::figures::{Figure, Pair, Unit};
use crate::latency::Percentiles;
use crate::options::{Options, duration, rate};
use crate::pair::{Both, Systems};
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::system::{Source, System};
use crate::usage::{Memory, MemoryProfile};
use crate::window::{LoadPattern, Window, latency_figures};

/// Time between the end of traffic or of the connections, and reading the memory.
const MEMORY_SETTLES: Duration = Duration::from_secs(3);

/// Holds connections that send heartbeats throughout, publishes to their room and to all, and
/// accounts for every delivery and every heartbeat. The same windows of the reference alternate
/// with those of the server.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Time after connecting until the server's counts are exact. From then on each heartbeat reply
    /// must contain the number of sessions
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = duration)]
    settle: Duration,
    /// Length of a window with heartbeats only
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    quiet: Duration,
    /// Messages to the room in a window
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Messages to the room per second
    #[arg(long, default_value_t = 2.0, value_name = "NUMBER", value_parser = rate)]
    rate: f64,
    /// Messages to all in a window, each sent when the previous one has reached all clients
    #[arg(long, default_value_t = 10, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    broadcasts: u32,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value = "64", value_name = "BYTES", value_parser = Sizes::parse)]
    size: Sizes,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench hold --spawn --connections 18000 --over tcp,ws --heartbeat 30s
  goim-bench hold --server-pid $(pidof goim)                a server that is already running
  goim-bench hold --reference only                          the bare send loop alone
  goim-bench hold --settle 25s --connections 8000           goim's Go server counts every ten seconds";

/// The windows of a pair.
struct Windows {
    heartbeats: Both<Window>,
    room: Both<Window>,
    all: Both<Window>,
}

/// Measures all pairs of windows.
///
/// # Errors
/// When a client cannot connect, or when a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let progress = Progress::new("goim-bench hold");
    let (mut systems, before) = Systems::connect_with_memory(options, 1, arguments.size, &progress)?;
    pause(&mut systems, arguments.settle, &progress)?;
    systems.for_each(|system| {
        let online = i32::try_from(system.clients).unwrap_or(i32::MAX);
        system.fleet.send_all(&Command::ExpectOnline(online))
    })?;
    let idle = memory(&systems);
    let mut windows = Vec::new();
    for pair in 0..options.run.repeat {
        windows.push(arguments.measure(&mut systems, pair, &progress)?);
        progress.done(&format!("pair {} of {}", pair + 1, options.run.repeat));
    }
    pause(&mut systems, MEMORY_SETTLES, &progress)?;
    let after_messages = memory(&systems);
    let mut report = arguments.report(&mut systems, &windows)?;
    let after_leaving = close(systems);
    let profile = before.zip(idle).zip(after_messages).zip(after_leaving);
    if let Some((((before, idle), after_messages), after_leaving)) = profile {
        let profile = MemoryProfile { before, idle, after_messages, after_leaving };
        report.add_to_each(&profile.figures(options.clients.connections));
    }
    progress.clear();
    Ok(report)
}

impl Arguments {
    fn measure(&self, systems: &mut Systems, pair: u32, progress: &Progress) -> Result<Windows, BenchError> {
        let heartbeats = systems.alternate(pair, |system| {
            system.fleet.send_all(&Command::ResetLatency)?;
            let mut window = system.idle_window(self.quiet, progress)?;
            window.latency = system.totals()?.heartbeat_latency;
            Ok(window)
        })?;
        let rate = LoadPattern::Rate { per_second: self.rate, bursts: self.messages };
        let drained = LoadPattern::Drained { bursts: self.broadcasts };
        let mut room = systems.alternate(pair, |system| system.window(Audience::Room, rate, 1, progress))?;
        let mut all = systems.alternate(pair, |system| system.window(Audience::All, drained, 1, progress))?;
        for window in [&mut room, &mut all] {
            window.0.subtract_idle(&heartbeats.0);
            if let Some((window, idle)) = window.1.as_mut().zip(heartbeats.1.as_ref()) {
                window.subtract_idle(idle);
            }
        }
        Ok(Windows { heartbeats, room, all })
    }

    fn report(&self, systems: &mut Systems, windows: &[Windows]) -> Result<Report, BenchError> {
        let more = [
            ("heartbeat interval", format!("{:?}", self.options.clients.heartbeat)),
            ("messages to the room", format!("{} at {} per second", self.messages, self.rate)),
            ("messages to all", self.broadcasts.to_string()),
            ("size", self.size.to_string()),
        ];
        let pairs = windows.iter().map(Windows::figures).collect();
        let mut report = Report::new("goim-bench hold", &self.options, &more, pairs);
        report.accounts = systems.accounts();
        systems.for_each(|system| {
            let heartbeats = system.finish_heartbeats()?;
            report.accounts.push(heartbeats.account(system.name()));
            report.faults.extend(system.faults()?);
            report.faults.extend(heartbeats.faults(system.name()));
            Ok(())
        })?;
        Ok(report)
    }
}

impl Windows {
    fn figures(&self) -> Pair {
        let of = |heartbeats: &Window, room: &Window, all: &Window| {
            let mut list = heartbeat_figures(heartbeats);
            list.extend(room.cpu_figures(
                ["room: server CPU per delivery", "room: client CPU per delivery"],
                room.deliveries,
            ));
            list.extend(latency_figures(&room.latency.percentiles(), ROOM));
            list.extend(latency_figures(
                &room.last_receiver.percentiles(),
                [("room: last receiver p50", |latency| latency.p50)],
            ));
            list.extend(all.cpu_figures(
                ["broadcast: server CPU per delivery", "broadcast: client CPU per delivery"],
                all.deliveries,
            ));
            list.extend(latency_figures(&all.latency.percentiles(), BROADCAST));
            list.extend(latency_figures(
                &all.last_receiver.percentiles(),
                [("broadcast: last receiver p50", |latency| latency.p50)],
            ));
            list
        };
        let (heartbeats, room, all) = (&self.heartbeats, &self.room, &self.all);
        let reference = match (&heartbeats.1, &room.1, &all.1) {
            (Some(heartbeats), Some(room), Some(all)) => Some(of(heartbeats, room, all)),
            _ => None,
        };
        (of(&heartbeats.0, &room.0, &all.0), reference)
    }
}

/// A quantile and its name.
type Quantile = (&'static str, fn(&Percentiles) -> Duration);

const ROOM: [Quantile; 3] = [
    ("room: latency p50", |latency| latency.p50),
    ("room: latency p99", |latency| latency.p99),
    ("room: latency max", |latency| latency.max),
];
const BROADCAST: [Quantile; 3] = [
    ("broadcast: latency p50", |latency| latency.p50),
    ("broadcast: latency p99", |latency| latency.p99),
    ("broadcast: latency max", |latency| latency.max),
];

fn heartbeat_figures(window: &Window) -> Vec<Figure> {
    let mut list = Vec::new();
    if let Some(cpu) = window.server_cpu {
        let share = window.core_share(cpu);
        list.push(Figure::new("server CPU for heartbeats, of a core", Unit::Percent, share));
    }
    list.extend(
        window.cpu_figures(["server CPU per heartbeat", "client CPU per heartbeat"], window.heartbeats),
    );
    list.extend(latency_figures(
        &window.latency.percentiles(),
        [("heartbeat p50", |latency| latency.p50), ("heartbeat p99", |latency| latency.p99)],
    ));
    list
}

/// Waits while the workers of both systems continue.
fn pause(systems: &mut Systems, time: Duration, progress: &Progress) -> Result<(), BenchError> {
    progress.phase("settle", 0);
    let deadline = Instant::now() + time;
    systems.for_each(|system| system.fleet.wait_until(deadline, |_| false).map(drop))
}

/// Reads the memory of the server.
fn memory(systems: &Systems) -> Option<Memory> {
    systems.measured.server()?.memory()
}

/// Closes all clients, and reads the memory of the server after that.
fn close(systems: Systems) -> Option<Memory> {
    let Systems { measured, reference } = systems;
    drop(reference);
    let System { fleet, source, .. } = measured;
    fleet.close();
    let Source::Server(server, _) = &source else { return None };
    let pid = server.pid?;
    std::thread::sleep(MEMORY_SETTLES);
    Memory::of(pid)
}
