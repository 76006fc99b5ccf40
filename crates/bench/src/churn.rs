//! `goim bench churn`: everybody vanishes at once and comes back at once with the same key; nothing pushed after the return
//! may be lost.

use std::time::{Duration, Instant};

use clap::Args;

use crate::clock::now_ns;
use crate::control::Command;
use crate::error::BenchError;
use crate::message::Message;
use crate::outcome::float;
use crate::pair::{Side, Source, Subject};
use crate::paper::Paper;
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Keys named in one push.
const KEYS_AT_ONCE: u32 = 100;

/// Has everybody vanish without a word and come back with the same keys, several times. As soon as all are back, each is
/// pushed to by its key, and all by their room: every push must arrive.
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
    let mut side = Side::of_server(subject, subject.server()?, 1, Sizes::Fixed(64), &progress)?;
    let mut pairs: Vec<Pair> = Vec::new();
    for round in 0..subject.repeat {
        let began = Instant::now();
        side.fleet.tell_all(&Command::Return)?;
        // Whoever was there has first to be heard of as gone.
        let clients = side.clients;
        side.fleet.hear(Instant::now() + Duration::from_secs(60), |all| all.open < clients)?;
        crate::pair::wait_open(&mut side.fleet, clients, &progress)?;
        let back = began.elapsed().as_secs_f64();
        let due_ns = now_ns();
        let number = side.published[0];
        push_to_every_key(&mut side, number, due_ns)?;
        let room = Message { run: side.run, stream: 0, number: number + 1, due_ns }.encode(64);
        if let Source::Server(_, http) = &mut side.source {
            http.publish(Audience::Room, &room)?;
        }
        side.published[0] += 2;
        side.drain(&progress)?;
        progress.done(&format!("round {} of {}: all back after {back:.2} s", round + 1, subject.repeat));
        let rate = f64::from(clients) / back;
        pairs.push((vec![Figure::alone("vanished and back", Unit::PerSecond, rate)], None));
    }
    let more = [("rounds", subject.repeat.to_string())];
    let mut paper = Paper::new("goim bench churn", subject, &more, pairs)?;
    paper.accounts.push(side.account());
    paper.faults = side.faults()?;
    let expected = u64::from(side.published[0]) * u64::from(side.clients);
    paper.accounts.push(format!("pushes after a return: {}", crate::table::number(float(expected))));
    Ok(paper)
}

fn push_to_every_key(side: &mut Side, number: u32, due_ns: u64) -> Result<(), BenchError> {
    let body = Message { run: side.run, stream: 0, number, due_ns }.encode(64);
    let (run, clients) = (side.run, side.clients);
    let Source::Server(_, http) = &mut side.source else { return Ok(()) };
    let mut first = 0;
    while first < clients {
        let end = clients.min(first + KEYS_AT_ONCE);
        let keys: Vec<String> = (first..end).map(|client| crate::worker::key(run, client)).collect();
        http.publish_to_keys(&keys, &body)?;
        first = end;
    }
    Ok(())
}
