//! `goim-bench churn`: all clients disconnect at once and reconnect with the same key. Nothing that
//! is pushed after a reconnect may be lost.

use std::time::{Duration, Instant};

use clap::Args;

use crate::clock::now_ns;
use crate::control::Command;
use crate::error::BenchError;
use crate::figures::{Figure, Unit, float};
use crate::message::Message;
use crate::options::Options;
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::report::Report;
use crate::sizes::Sizes;
use crate::system::{Server, System};
use crate::totals::list_reasons;

/// The largest number of keys in one push.
const KEYS_MAX: usize = 100;

/// How long all clients together may take to reconnect.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(60);

/// Streams of messages. Order is guaranteed within each, and not between pushes to a key and to a
/// room.
const TO_KEYS: usize = 0;
const TO_ROOM: usize = 1;

/// Closes all connections without notice, and reconnects with the same keys, several times. Each
/// client gets a push by key as soon as it is back, while others still reconnect; when the last is
/// back, all get a push by room. Every push must arrive.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench churn --spawn               five times
  goim-bench churn --spawn --over ws --repeat 20";

/// Runs all rounds.
///
/// # Errors
/// When a client cannot reconnect, or when a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let repeat = options.run.repeat;
    let progress = Progress::new("goim-bench churn");
    let server = Server::start(options)?;
    let mut system = System::of_server(options, server, 2, Sizes::Fixed(64), &progress)?;
    let mut rounds = Vec::new();
    for round in 0..repeat {
        system.fleet.send_all(&Command::ResetLatency)?;
        let seconds = reconnect_all(&mut system, &progress)?;
        push_to_room(&mut system)?;
        system.drain(&progress)?;
        progress.done(&format!("round {} of {repeat}: all back after {seconds:.2} s", round + 1));
        rounds.push((figures(&mut system, seconds)?, None));
    }
    let more = [("rounds", repeat.to_string())];
    let mut report = Report::new("goim-bench churn", options, &more, rounds);
    report.accounts.push(system.account());
    report.faults = system.faults()?;
    Ok(report)
}

/// Reconnects all clients, and pushes to each as soon as it is back. Returns the seconds until the
/// last was back.
fn reconnect_all(system: &mut System, progress: &Progress) -> Result<f64, BenchError> {
    let began = Instant::now();
    let mut back = 0_u32;
    progress.phase("reconnect", u64::from(system.clients));
    system.fleet.send_all(&Command::Reconnect)?;
    while back < system.clients {
        let deadline = began + RECONNECT_DEADLINE;
        system.fleet.wait_until(deadline, |all| all.reconnected > 0 || all.ended > 0)?;
        let reconnected = system.fleet.take_reconnected();
        if reconnected.is_empty() {
            return Err(not_reconnected(system, back));
        }
        for some in reconnected.chunks(KEYS_MAX) {
            push_to_keys(system, some)?;
        }
        back = back.saturating_add(u32::try_from(reconnected.len()).unwrap_or(u32::MAX));
        progress.at(u64::from(back));
    }
    progress.clear();
    if let Some(published) = system.published.get_mut(TO_KEYS) {
        *published += 1;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn not_reconnected(system: &System, back: u32) -> BenchError {
    let all = system.fleet.overall();
    BenchError::Failed(format!(
        "{back} of {} clients are back within {RECONNECT_DEADLINE:?}, {} have failed{}",
        system.clients,
        all.ended,
        list_reasons(&all.reasons)
    ))
}

fn message(system: &System, stream: usize) -> Vec<u8> {
    let number = system.published.get(stream).copied().unwrap_or_default();
    let stream = u32::try_from(stream).unwrap_or_default();
    Message { run: system.run, stream, number, due_ns: now_ns() }.encode(64)
}

fn push_to_keys(system: &mut System, clients: &[u32]) -> Result<(), BenchError> {
    let body = message(system, TO_KEYS);
    let keys: Vec<String> = clients.iter().map(|client| crate::control::key(system.run, *client)).collect();
    system.publisher()?.publish_to_keys(&keys, &body)
}

fn push_to_room(system: &mut System) -> Result<(), BenchError> {
    let body = message(system, TO_ROOM);
    system.publisher()?.publish(Audience::Room, &body)?;
    if let Some(published) = system.published.get_mut(TO_ROOM) {
        *published += 1;
    }
    Ok(())
}

fn figures(system: &mut System, seconds: f64) -> Result<Vec<Figure>, BenchError> {
    let latency = system.totals()?.latency().percentiles();
    let millis = |name, time: Duration| Figure::absolute(name, Unit::Milliseconds, time.as_secs_f64() * 1e3);
    let per_second = float(u64::from(system.clients)) / seconds.max(1e-9);
    Ok(vec![
        Figure::absolute("reconnects", Unit::PerSecond, per_second),
        millis("push after reconnect p50", latency.p50),
        millis("push after reconnect p99", latency.p99),
        millis("push after reconnect max", latency.max),
    ])
}
