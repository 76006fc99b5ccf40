//! `goim bench room` and `goim bench all`: messages to very many at once.

use clap::Args;

use crate::error::BenchError;
use crate::outcome::{each, float};
use crate::pair::{Block, Rhythm, Side, Source, Subject};
use crate::paper::{Paper, Plot, PlotKind, Series};
use crate::progress::Progress;
use crate::publisher::{Audience, HttpPublisher};
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Publishes to everybody at once and accounts for every delivery, in blocks that take turns with the bare send loop.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Bytes in the body of a message, at least 32; `json:2048`: so many bytes of JSON; or `chat`: sizes as people write
    #[arg(long, default_value = "64", value_name = "BYTES", value_parser = Sizes::parse)]
    size: Sizes,
    /// Messages that are published at once, in one request
    #[arg(long, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    burst: u32,
    /// Bursts in a block, each when the one before has reached everybody
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Publish at this rate instead, whether or not the messages before have arrived; the reference then still sends one
    /// round after the other
    #[arg(long, value_name = "PER SECOND", conflicts_with = "flood")]
    rate: Option<f64>,
    /// Publish as fast as it is accepted instead; the reference then sends 20 messages at a time as fast as it can
    #[arg(long)]
    flood: bool,
    /// Publishers of --flood, each with a connection of its own
    #[arg(long, default_value_t = 8, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    publishers: u32,
    /// Length of a block of --rate or --flood
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = crate::load::duration)]
    seconds: std::time::Duration,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench room --spawn                                     one message at a time to a room of 10,000
  goim bench room --spawn --over ws --size 1024               the same over WebSocket, larger messages
  goim bench room --spawn --burst 20                          20 messages published at once
  goim bench room --spawn --size json:2048 --protover 2       JSON of 2 KiB, compressed with zlib
  goim bench room --spawn --rate 100 --seconds 10s            100 messages a second
  goim bench room --spawn --flood --publishers 64             as fast as the server accepts
  goim bench room --server-pid $(pidof comet) --connections 8000 --heartbeat 30s    goim's Go server";

impl Arguments {
    fn rhythms(&self) -> (Rhythm, Rhythm) {
        let (seconds, drained) = (self.seconds.as_secs_f64(), Rhythm::Drained { bursts: self.messages });
        match self.rate {
            Some(per_second) => (Rhythm::Rate { per_second, seconds }, drained),
            None if self.flood => {
                let flood = Rhythm::Flood { publishers: self.publishers, seconds };
                (flood, flood)
            }
            None => (drained, drained),
        }
    }

    fn more(&self) -> Vec<(&'static str, String)> {
        let rhythm = match (self.rate, self.flood) {
            (Some(rate), _) => format!("{rate} a second for {:?}", self.seconds),
            (None, true) => {
                format!("as fast as accepted, {} publishers for {:?}", self.publishers, self.seconds)
            }
            (None, false) => format!("{} bursts, each drained", self.messages),
        };
        let protover =
            self.subject.protover.map_or("goim".to_owned(), |protover| format!("up to {protover}"));
        vec![
            ("clients read", protover),
            ("size", self.size.to_string()),
            ("at once", self.burst.to_string()),
            ("rhythm", rhythm),
        ]
    }
}

/// All pairs of blocks.
///
/// # Errors
/// See [`Side::block`].
pub(crate) fn run(
    what: &'static str,
    audience: Audience,
    arguments: &Arguments,
) -> Result<Paper, BenchError> {
    let subject = &arguments.subject;
    let progress = Progress::new(what);
    let streams = if arguments.flood { arguments.publishers } else { 1 };
    let mut server = Side::of_server(subject, subject.server()?, streams, arguments.size, &progress)?;
    let mut bare = match subject.bare()? {
        Some(bare) => Some(Side::of_bare(subject, bare, 1, arguments.size, &progress)?),
        None => None,
    };
    let (own, reference) = arguments.rhythms();
    // What is done for the first time is not measured.
    warm_up(&mut server, audience, &progress)?;
    if let Some(bare) = &mut bare {
        warm_up(bare, audience, &progress)?;
    }
    let mut blocks = Vec::new();
    for pair in 0..subject.repeat {
        let (mut block, mut second) = (Block::default(), bare.as_ref().map(|_| Block::default()));
        // Rounds take turns one by one: the machine's speed may change from one second to the next.
        let turns = if own == reference && !arguments.flood { arguments.messages } else { 1 };
        for turn in 0..turns {
            let of_one = |rhythm| if turns > 1 { Rhythm::Drained { bursts: 1 } } else { rhythm };
            let bare_first = (pair + turn) % 2 == 1;
            let mut bare_block = |second: &mut Option<Block>| match (&mut bare, second) {
                (Some(bare), Some(second)) => {
                    let block = bare.block(audience, of_one(reference), arguments.burst, &progress)?;
                    second.add(&block);
                    Ok::<_, BenchError>(())
                }
                _ => Ok(()),
            };
            if bare_first {
                bare_block(&mut second)?;
            }
            block.add(&server.block(audience, of_one(own), arguments.burst, &progress)?);
            if !bare_first {
                bare_block(&mut second)?;
            }
        }
        progress.done(&format!("pair {} of {}: {}", pair + 1, subject.repeat, said(&block, second.as_ref())));
        blocks.push((block, second));
    }
    let pairs: Vec<Pair> =
        blocks.iter().map(|(server, bare)| (figures(server), bare.as_ref().map(figures))).collect();
    let mut paper = Paper::new(what, subject, &arguments.more(), pairs)?;
    paper.plots = plots(&blocks);
    paper.accounts.push(server.account());
    if let Source::Server(_, HttpPublisher { batches: Some(false), .. }) = &server.source {
        let text = "the server takes one message in a request: bursts were as many requests, written at once";
        paper.accounts.push(text.into());
    }
    paper.faults = server.faults()?;
    if let Some(bare) = &mut bare {
        paper.accounts.push(bare.account());
        paper.faults.extend(bare.faults()?);
    }
    Ok(paper)
}

fn warm_up(side: &mut Side, audience: Audience, progress: &Progress) -> Result<(), BenchError> {
    side.block(audience, Rhythm::Drained { bursts: 3 }, 1, progress).map(drop)
}

/// A pair in a few words.
fn said(server: &Block, bare: Option<&Block>) -> String {
    let cpu = |block: &Block| block.server_cpu.map(|cpu| each(cpu, block.deliveries));
    let own = cpu(server).unwrap_or_default();
    match bare.and_then(cpu) {
        Some(bare) => format!("{own:.2} us of server CPU per delivery, reference {bare:.2}"),
        None => format!("{own:.2} us of server CPU per delivery"),
    }
}

fn figures(block: &Block) -> Vec<Figure> {
    let mut list = Vec::new();
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    list.push(Figure::compared("deliveries", Unit::PerSecond, float(block.deliveries) / block.seconds));
    if let Some(cpu) = block.server_cpu {
        let share = cpu.as_secs_f64() / block.seconds * 100.0;
        list.push(Figure::compared(
            "server CPU per delivery",
            Unit::Microseconds,
            each(cpu, block.deliveries),
        ));
        list.push(Figure::compared("server CPU, of a core", Unit::Percent, share));
    }
    let bytes = float(block.received_bytes) / float(block.deliveries.max(1));
    list.push(Figure::compared("bytes per delivery", Unit::Bytes, bytes));
    let client = block.client_cpu;
    list.push(Figure::compared(
        "client CPU per delivery",
        Unit::Microseconds,
        each(client, block.deliveries),
    ));
    let share = client.as_secs_f64() / block.seconds * 100.0;
    list.push(Figure::compared("client CPU, of a core", Unit::Percent, share));
    let latency = block.latency.percentiles();
    for (name, value) in [
        ("latency p50", latency.p50),
        ("latency p90", latency.p90),
        ("latency p99", latency.p99),
        ("latency p99.9", latency.p99_9),
        ("latency max", latency.max),
    ] {
        list.push(Figure::compared(name, Unit::Milliseconds, millis(value)));
    }
    let last = block.last_receiver.percentiles();
    if last.samples > 0 {
        list.push(Figure::compared("last receiver p50", Unit::Milliseconds, millis(last.p50)));
        list.push(Figure::compared("last receiver p99", Unit::Milliseconds, millis(last.p99)));
    }
    list.push(Figure::alone("messages accepted", Unit::PerSecond, float(block.messages) / block.seconds));
    if block.held_back > 0 {
        list.push(Figure::alone("publishers told to wait (429)", Unit::Count, float(block.held_back)));
    }
    list
}

fn plots(blocks: &[(Block, Option<Block>)]) -> Vec<Plot> {
    let name = |index: usize, who: &str| format!("{who}, block {}", index + 1);
    let mut latency = Vec::new();
    let mut timeline = Vec::new();
    for (index, (server, bare)) in blocks.iter().enumerate() {
        for (who, block) in [("server", Some(server)), ("reference", bare.as_ref())] {
            let Some(block) = block else { continue };
            latency.push(Series { name: name(index, who), points: block.latency.curve() });
            if index == 0 {
                timeline.push(Series { name: name(index, who), points: rate(&block.timeline) });
            }
        }
    }
    vec![
        Plot {
            title: "Latency of deliveries".into(),
            x: "share of deliveries".into(),
            y: "ms".into(),
            kind: PlotKind::Latency,
            series: latency,
        },
        Plot {
            title: "Deliveries over time".into(),
            x: "seconds".into(),
            y: "deliveries a second".into(),
            kind: PlotKind::Linear,
            series: timeline,
        },
    ]
}

/// Deliveries a second from a running count, in steps of a tenth of a second at least.
fn rate(timeline: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let (mut since, mut count) = (0.0, 0.0);
    for (at, received) in timeline {
        if at - since >= 0.1 {
            points.push((*at, (received - count) / (at - since)));
            (since, count) = (*at, *received);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_from_a_running_count() {
        let points = rate(&[(0.05, 10.0), (0.1, 20.0), (0.15, 30.0), (0.3, 60.0)]);
        assert_eq!(points.len(), 2);
        assert!((points[0].1 - 200.0).abs() < 1e-6 && (points[1].1 - 200.0).abs() < 1e-6, "{points:?}");
    }
}
