//! `goim bench churn`: everybody vanishes at once and comes back at once with the same key; nothing pushed after the return
//! may be lost.

use std::time::{Duration, Instant};

use clap::Args;

use crate::clock::now_ns;
use crate::control::Command;
use crate::error::BenchError;
use crate::message::Message;
use crate::outcome::{Sum, float};
use crate::pair::{Side, Source, Subject};
use crate::paper::Paper;
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Keys named in one push at most: those that came back since the push before.
const KEYS_AT_ONCE: usize = 100;

/// How long everybody together may take to come back.
const RETURN_DEADLINE: Duration = Duration::from_secs(60);

/// The streams of messages. Order holds within each, and not between pushes to a key and to a room.
const TO_KEYS: usize = 0;
const TO_ROOM: usize = 1;

/// Has everybody vanish without a word and come back with the same keys, several times. Each is pushed to by its key as
/// soon as it is back, while others are still on their way; all are by their room when the last is back. Every push must
/// arrive.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench churn --spawn               five times
  goim bench churn --spawn --over ws --repeat 20";

/// All rounds.
///
/// # Errors
/// When not everybody can come back, or a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let subject = &arguments.subject;
    let progress = Progress::new("goim bench churn");
    let mut side = Side::of_server(subject, subject.server()?, 2, Sizes::Fixed(64), &progress)?;
    let mut pairs: Vec<Pair> = Vec::new();
    for round in 0..subject.repeat {
        side.fleet.tell_all(&Command::Fresh)?;
        let back = return_of_all(&mut side, &progress)?;
        push_to_room(&mut side)?;
        side.drain(&progress)?;
        progress.done(&format!("round {} of {}: all back after {back:.2} s", round + 1, subject.repeat));
        pairs.push((figures(&mut side, back)?, None));
    }
    let more = [("rounds", subject.repeat.to_string())];
    let mut paper = Paper::new("goim bench churn", subject, &more, pairs)?;
    let pushes: u64 = side.published.iter().map(|number| u64::from(*number)).sum();
    let expected = pushes * u64::from(side.clients);
    paper.accounts.push(side.account());
    paper.accounts.push(format!("pushes after a return: {}", crate::table::number(float(expected))));
    paper.faults = side.faults()?;
    Ok(paper)
}

/// Has everybody vanish and come back, and pushes to each as soon as it is back. Gives the seconds that all took.
fn return_of_all(side: &mut Side, progress: &Progress) -> Result<f64, BenchError> {
    let began = Instant::now();
    let (clients, mut back) = (side.clients, 0_u32);
    progress.phase("return", u64::from(clients));
    side.fleet.tell_all(&Command::Return)?;
    while back < clients {
        side.fleet.hear(began + RETURN_DEADLINE, |all| all.returned > 0 || all.ended > 0)?;
        let returned = side.fleet.take_returned();
        if returned.is_empty() {
            return Err(missing(side, back));
        }
        for some in returned.chunks(KEYS_AT_ONCE) {
            push_to_keys(side, some)?;
        }
        back = back.saturating_add(u32::try_from(returned.len()).unwrap_or(u32::MAX));
        progress.at(u64::from(back));
    }
    progress.over();
    if let Some(published) = side.published.get_mut(TO_KEYS) {
        *published += 1;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Why the run ends when not everybody comes back.
fn missing(side: &Side, back: u32) -> BenchError {
    let all = side.fleet.overall();
    let mut text = format!(
        "{back} of {} clients are back within {RETURN_DEADLINE:?}, {} have failed",
        side.clients, all.ended
    );
    for (reason, count) in all.reasons.iter().take(5) {
        text.push_str(&format!("\n  {count} {reason}"));
    }
    BenchError::Failed(text)
}

fn message(side: &Side, stream: usize) -> Vec<u8> {
    let number = side.published.get(stream).copied().unwrap_or_default();
    let stream = u32::try_from(stream).unwrap_or_default();
    Message { run: side.run, stream, number, due_ns: now_ns() }.encode(64)
}

fn push_to_keys(side: &mut Side, clients: &[u32]) -> Result<(), BenchError> {
    let body = message(side, TO_KEYS);
    let keys: Vec<String> = clients.iter().map(|client| crate::worker::key(side.run, *client)).collect();
    match &mut side.source {
        Source::Server(_, http) => http.publish_to_keys(&keys, &body),
        Source::Bare(_) => Ok(()),
    }
}

fn push_to_room(side: &mut Side) -> Result<(), BenchError> {
    let body = message(side, TO_ROOM);
    if let Source::Server(_, http) = &mut side.source {
        http.publish(Audience::Room, &body)?;
    }
    if let Some(published) = side.published.get_mut(TO_ROOM) {
        *published += 1;
    }
    Ok(())
}

fn figures(side: &mut Side, back: f64) -> Result<Vec<Figure>, BenchError> {
    let latency = Sum::of(&side.fleet.reports(&side.published.clone())?).latency().percentiles();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(vec![
        Figure::alone("vanished and back", Unit::PerSecond, f64::from(side.clients) / back.max(1e-9)),
        Figure::alone("push after the return p50", Unit::Milliseconds, millis(latency.p50)),
        Figure::alone("push after the return p99", Unit::Milliseconds, millis(latency.p99)),
        Figure::alone("push after the return max", Unit::Milliseconds, millis(latency.max)),
    ])
}
