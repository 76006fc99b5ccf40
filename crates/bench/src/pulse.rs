//! `goim bench heartbeat`: very many sessions that do nothing but say that they live.

use std::time::{Duration, Instant};

use clap::Args;

use crate::control::Command;
use crate::error::BenchError;
use crate::load::duration;
use crate::outcome::{Sum, each, float};
use crate::pair::{Block, Side, Subject};
use crate::paper::Paper;
use crate::progress::Progress;
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Has all sessions send heartbeats, evenly spread or as fast as they are answered, in blocks that take turns with a loop that only answers.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Time between two heartbeats of one session
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    interval: Duration,
    /// Send them as fast as they are answered instead, so that their cost shows in seconds
    #[arg(long, conflicts_with = "interval")]
    dense: bool,
    /// Heartbeats of --dense that go out together; the next as many when all of them are answered
    #[arg(long, default_value_t = 500, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Length of a block
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench heartbeat --spawn --connections 18000        600 a second
  goim bench heartbeat --spawn --interval 2s --over ws    5,000 a second over WebSocket
  goim bench heartbeat --spawn --dense --seconds 3s       as fast as they are answered, 500 at once";

/// All pairs of blocks.
///
/// # Errors
/// When not everybody can connect.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let subject = &arguments.subject;
    let progress = Progress::new("goim bench heartbeat");
    let mut server = Side::of_server(subject, subject.server()?, 1, Sizes::Fixed(64), &progress)?;
    let bare = subject.bare()?;
    let mut bare = match bare {
        Some(bare) => Some(Side::of_bare(subject, bare, 1, Sizes::Fixed(64), &progress)?),
        None => None,
    };
    server.fleet.tell_all(&Command::StopBeats)?;
    if let Some(bare) = &mut bare {
        bare.fleet.tell_all(&Command::StopBeats)?;
    }
    let mut pairs: Vec<Pair> = Vec::new();
    for pair in 0..subject.repeat {
        let mut reference = None;
        if let Some(bare) = bare.as_mut().filter(|_| pair % 2 == 1) {
            reference = Some(block(arguments, bare, &progress)?);
        }
        let own = block(arguments, &mut server, &progress)?;
        if let (Some(bare), None) = (&mut bare, &reference) {
            reference = Some(block(arguments, bare, &progress)?);
        }
        progress.done(&format!("pair {} of {}", pair + 1, subject.repeat));
        pairs.push((own, reference));
    }
    let per_second = f64::from(subject.connections) / arguments.interval.as_secs_f64();
    let more = if arguments.dense {
        [("heartbeats at once", arguments.window.to_string())]
    } else {
        [("heartbeats a second", crate::table::number(per_second))]
    };
    let mut paper = Paper::new("goim bench heartbeat", subject, &more, pairs)?;
    let sum = Sum::of(&server.fleet.reports(&[0])?);
    let beats = &sum.beats;
    let number = |count: u64| crate::table::number(float(count));
    paper.accounts.push(format!(
        "server: {} of {} heartbeats answered",
        number(beats.answered),
        number(beats.sent)
    ));
    paper.faults = server.faults()?;
    if beats.answered < beats.sent {
        paper.faults.push(format!("server: {} heartbeats unanswered", beats.sent - beats.answered));
    }
    Ok(paper)
}

fn block(arguments: &Arguments, side: &mut Side, progress: &Progress) -> Result<Vec<Figure>, BenchError> {
    progress.phase(side.name(), 0);
    side.fleet.tell_all(&Command::Fresh)?;
    let answered = side.fleet.overall().beats_answered;
    let interval_ms = u64::try_from(arguments.interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let rhythm = if arguments.dense {
        Command::Dense { window: arguments.window.min(side.clients) }
    } else {
        Command::Beat { interval_ms, clients: side.clients }
    };
    let before = side.clocks();
    side.fleet.tell_all(&rhythm)?;
    side.fleet.hear(Instant::now() + arguments.seconds, |all| {
        progress.at(all.beats_answered.saturating_sub(answered));
        false
    })?;
    side.fleet.tell_all(&Command::StopBeats)?;
    let mut block = Block::default();
    side.since(&before, &mut block);
    // What is on its way may arrive, and be heard of.
    side.fleet.hear(Instant::now() + Duration::from_millis(600), |_| false)?;
    let beats = side.fleet.overall().beats_answered.saturating_sub(answered);
    let latency = Sum::of(&side.fleet.reports(&[0])?).beats.latency;
    let mut list = Vec::new();
    if let Some(cpu) = block.server_cpu {
        list.push(Figure::compared("server CPU per heartbeat", Unit::Microseconds, each(cpu, beats)));
        let share = cpu.as_secs_f64() / block.seconds * 100.0;
        list.push(Figure::compared("server CPU, of a core", Unit::Percent, share));
    }
    list.push(Figure::compared(
        "client CPU per heartbeat",
        Unit::Microseconds,
        each(block.client_cpu, beats),
    ));
    list.push(Figure::compared("heartbeats", Unit::PerSecond, float(beats) / block.seconds));
    for (name, value) in [("latency p50", latency.p50), ("latency p99", latency.p99)] {
        list.push(Figure::compared(name, Unit::Milliseconds, value.as_secs_f64() * 1e3));
    }
    progress.over();
    Ok(list)
}
