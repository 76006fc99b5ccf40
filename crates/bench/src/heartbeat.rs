//! `goim-bench heartbeat`: many sessions that only send heartbeats.

use std::time::Duration;

use clap::Args;

use crate::control::Command;
use crate::error::BenchError;
use crate::figures::float;
use crate::figures::{Figure, Unit};
use crate::options::{Options, duration};
use crate::pair::Systems;
use crate::progress::Progress;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::system::System;
use crate::window::latency_figures;

/// Has all sessions send heartbeats, evenly spread or as fast as they are answered, in windows that
/// alternate with a loop that only answers.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Time between two heartbeats of one session
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    interval: Duration,
    /// Send heartbeats as fast as they are answered instead, so that seconds are enough to measure
    /// their cost
    #[arg(long, conflicts_with = "interval")]
    dense: bool,
    /// Heartbeats of --dense that are sent together; the next ones follow when all of them are
    /// answered
    #[arg(long, default_value_t = 500, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Length of a window
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench heartbeat --spawn --connections 18000        600 per second
  goim-bench heartbeat --spawn --interval 2s --over ws    5,000 per second over WebSocket
  goim-bench heartbeat --spawn --dense --seconds 3s       as fast as they are answered, 500 together";

/// Measures all pairs of windows.
///
/// # Errors
/// When a client cannot connect.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let progress = Progress::new("goim-bench heartbeat");
    let mut systems = Systems::connect(options, 1, Sizes::Fixed(64), &progress)?;
    systems.for_each(|system| system.fleet.send_all(&Command::StopHeartbeats))?;
    let mut pairs = Vec::new();
    for pair in 0..options.run.repeat {
        pairs.push(systems.alternate(pair, |system| measure(arguments, system, &progress))?);
        progress.done(&format!("pair {} of {}", pair + 1, options.run.repeat));
    }
    let more = if arguments.dense {
        [("heartbeats together", arguments.window.to_string())]
    } else {
        let per_second = f64::from(options.clients.connections) / arguments.interval.as_secs_f64();
        [("heartbeats per second", crate::table::number(per_second))]
    };
    let mut report = Report::new("goim-bench heartbeat", options, &more, pairs);
    let heartbeats = systems.measured.totals()?.heartbeats;
    let name = systems.measured.name();
    report.accounts.push(heartbeats.account(name));
    report.faults = systems.measured.faults()?;
    report.faults.extend(heartbeats.faults(name));
    Ok(report)
}

fn measure(
    arguments: &Arguments,
    system: &mut System,
    progress: &Progress,
) -> Result<Vec<Figure>, BenchError> {
    system.fleet.send_all(&Command::ResetLatency)?;
    let answered = system.fleet.overall().heartbeats_answered;
    if arguments.dense {
        let window = arguments.window.min(system.clients);
        system.fleet.send_all(&Command::HeartbeatWindows { window })?;
    } else {
        system.start_heartbeats(arguments.interval)?;
    }
    let window = system.idle_window(arguments.seconds, progress)?;
    system.finish_heartbeats()?;
    let latency = system.totals()?.heartbeat_latency.percentiles();
    // Includes heartbeats in flight at the end of the window.
    let heartbeats = system.fleet.overall().heartbeats_answered.saturating_sub(answered);
    let mut list = window.cpu_figures(["server CPU per heartbeat", "client CPU per heartbeat"], heartbeats);
    if let Some(cpu) = window.server_cpu {
        list.push(Figure::new("server CPU, of a core", Unit::Percent, window.core_share(cpu)));
    }
    list.push(Figure::new("heartbeats", Unit::PerSecond, float(heartbeats) / window.seconds));
    list.extend(latency_figures(
        &latency,
        [("latency p50", |latency| latency.p50), ("latency p99", |latency| latency.p99)],
    ));
    Ok(list)
}
