//! `goim bench push`: messages to one connection each, by key or by member, at a rate.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use goim_session::{ClientRules, ClientSession, ClientStep, Moment, Opening};
use goim_wire::{Operation, Version};

use crate::bare::Bare;
use crate::clock::now_ns;
use crate::control::{Carrier, Command};
use crate::error::BenchError;
use crate::load::duration;
use crate::message::Message;
use crate::outcome::{Sum, each, float};
use crate::pair::{Block, Side, Source, Subject};
use crate::paper::{Paper, Plot, PlotKind, Series};
use crate::progress::Progress;
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Pushes to one connection after the other by the HTTP API, at a rate, in blocks that take turns with a bare ping-pong: a
/// loop that passes a packet from one socket on to another.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// How a receiver is named
    #[arg(long, value_enum, default_value = "key")]
    by: By,
    /// Pushes a second
    #[arg(long, default_value_t = 500.0, value_name = "NUMBER")]
    rate: f64,
    /// Length of a block
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    size: usize,
}

/// How a receiver is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Key,
    Mid,
}

const AFTER_HELP: &str = "\
Latency counts from the moment at which a push is sent, or was to be sent when the one before was answered too late for it.

Examples:
  goim bench push --spawn --connections 1000
  goim bench push --spawn --connections 1000 --rate 2000 --by mid";

/// Sends single messages into one side.
enum Sender {
    Http(By),
    /// A connection to the send loop, which passes messages on.
    Relay(Box<Relay>),
}

struct Relay {
    stream: TcpStream,
    session: ClientSession,
}

/// All pairs of blocks.
///
/// # Errors
/// When a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let subject = &arguments.subject;
    crate::machine::wake_exactly();
    let progress = Progress::new("goim bench push");
    let sizes = Sizes::Fixed(arguments.size);
    let mut server = Side::of_server(subject, subject.server()?, 1, sizes, &progress)?;
    let mut own = Sender::Http(arguments.by);
    let mut bare = match subject.bare()? {
        Some(bare) => {
            let side = Side::of_bare(subject, bare, 1, sizes, &progress)?;
            let relay = match &side.source {
                Source::Bare(bare) => Relay::open(bare)?,
                Source::Server(..) => return Err(BenchError::Failed("no reference".into())),
            };
            Some((side, Sender::Relay(Box::new(relay))))
        }
        None => None,
    };
    block(arguments, &mut server, &mut own, 1.0, &progress)?;
    if let Some((side, sender)) = &mut bare {
        block(arguments, side, sender, 1.0, &progress)?;
    }
    let seconds = arguments.seconds.as_secs_f64();
    let mut blocks = Vec::new();
    for pair in 0..subject.repeat {
        let mut reference = None;
        if let Some((side, sender)) = bare.as_mut().filter(|_| pair % 2 == 1) {
            reference = Some(block(arguments, side, sender, seconds, &progress)?);
        }
        let measured = block(arguments, &mut server, &mut own, seconds, &progress)?;
        if let (Some((side, sender)), None) = (&mut bare, &reference) {
            reference = Some(block(arguments, side, sender, seconds, &progress)?);
        }
        progress.done(&format!("pair {} of {}", pair + 1, subject.repeat));
        blocks.push((measured, reference));
    }
    let pairs: Vec<Pair> =
        blocks.iter().map(|(own, reference)| (figures(own), reference.as_ref().map(figures))).collect();
    let more = [
        ("pushes a second", crate::table::number(arguments.rate)),
        ("by", format!("{:?}", arguments.by).to_lowercase()),
        ("size", sizes.to_string()),
    ];
    let mut paper = Paper::new("goim bench push", subject, &more, pairs)?;
    let line = |name: &str, block: &Block| Series { name: name.into(), points: block.latency.curve() };
    let series = blocks.iter().flat_map(|(own, reference)| {
        [Some(line("server", own)), reference.as_ref().map(|block| line("reference", block))]
    });
    paper.plots.push(Plot {
        title: "Latency of pushes".into(),
        x: "share of pushes".into(),
        y: "ms".into(),
        kind: PlotKind::Latency,
        series: series.flatten().collect(),
    });
    paper.faults = faults(&mut server)?;
    if let Some((side, _)) = &mut bare {
        paper.faults.extend(faults(side)?);
    }
    Ok(paper)
}

/// Each message is for one client, so that every client has had its share when nothing is lost.
fn faults(side: &mut Side) -> Result<Vec<String>, BenchError> {
    let each = side.published[0] / side.clients;
    side.published[0] = each;
    side.faults()
}

/// Pushes at the rate; whole rounds over all clients, so that each has got as many as the others.
fn block(
    arguments: &Arguments,
    side: &mut Side,
    sender: &mut Sender,
    seconds: f64,
    progress: &Progress,
) -> Result<Block, BenchError> {
    let rounds = (arguments.rate * seconds / f64::from(side.clients)).ceil().max(1.0) as u32;
    let pushes = rounds * side.clients;
    side.fleet.tell_all(&Command::Fresh)?;
    progress.phase(side.name(), u64::from(pushes));
    let before = side.clocks();
    let received = side.fleet.overall().delivered.first().copied().unwrap_or_default();
    let began_ns = now_ns();
    for push in 0..pushes {
        let scheduled_ns = began_ns + (1e9 / arguments.rate * f64::from(push)) as u64;
        let early = Duration::from_nanos(scheduled_ns.saturating_sub(now_ns()));
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        // Waking late is our own fault; being late because the push before took too long is the server's.
        let due_ns = if early.is_zero() { scheduled_ns } else { now_ns() };
        let (client, number) = (side.published[0] % side.clients, side.published[0] / side.clients);
        let message = Message { run: side.run, stream: 0, number, due_ns };
        sender.send(side, client, &message.encode(arguments.size))?;
        side.published[0] += 1;
    }
    let mut block = Block::default();
    side.since(&before, &mut block);
    let wanted = received + u64::from(pushes);
    side.fleet.hear(Instant::now() + arguments.subject.patience, |all| {
        all.delivered.first().copied().unwrap_or_default() >= wanted
    })?;
    block.deliveries = side.fleet.overall().delivered.first().copied().unwrap_or_default() - received;
    block.messages = u64::from(pushes);
    block.latency = Sum::of(&side.fleet.reports(&[0])?).latency();
    progress.over();
    Ok(block)
}

impl Sender {
    fn send(&mut self, side: &mut Side, client: u32, body: &[u8]) -> Result<(), BenchError> {
        match (self, &mut side.source) {
            (Self::Http(By::Key), Source::Server(_, http)) => {
                http.publish_to_keys(&[crate::worker::key(side.run, client)], body)
            }
            (Self::Http(By::Mid), Source::Server(_, http)) => {
                http.publish_to_member(crate::worker::member(client), body)
            }
            (Self::Relay(relay), _) => relay.send(body),
            (Self::Http(_), Source::Bare(_)) => Ok(()),
        }
    }
}

impl Relay {
    fn open(bare: &Bare) -> Result<Self, BenchError> {
        let failed = |error| BenchError::failed("cannot reach the send loop", error);
        let mut stream = TcpStream::connect(bare.addr).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let target = bare.target();
        let opening = match bare.carrier {
            Carrier::Tcp => Opening::Stream,
            _ => Opening::WebSocket { host: &target.host, path: &target.path, headers: &[] },
        };
        let masks = Box::new(|| [1, 2, 3, 4]);
        // It never shows a token, so that no message is for it.
        let rules = std::sync::Arc::new(ClientRules::default());
        let mut session = ClientSession::new(rules, opening, Vec::new(), masks, Moment(0));
        if bare.carrier == Carrier::WebSocket {
            stream.write_all(session.output()).map_err(failed)?;
            let len = session.output().len();
            session.written(len);
            let mut answer = [0; 1024];
            let len = stream.read(&mut answer).map_err(failed)?;
            let mut at = 0;
            while !matches!(
                session.step(Moment(0), &mut answer[..len], &mut at),
                Ok(ClientStep::Idle) | Err(_)
            ) {}
            // The token that it would send now stays here.
            let len = session.output().len();
            session.written(len);
        } else {
            let len = session.output().len();
            session.written(len);
        }
        Ok(Self { stream, session })
    }

    fn send(&mut self, body: &[u8]) -> Result<(), BenchError> {
        let failed = |error: std::io::Error| BenchError::failed("the send loop has gone", error);
        let bytes = match self.session.transport() {
            goim_session::Transport::Stream => {
                let mut bytes = Vec::new();
                goim_wire::Packet {
                    version: Version::GOIM,
                    operation: Operation::SEND,
                    sequence: goim_wire::Sequence::NONE,
                    body,
                }
                .encode(&mut bytes);
                bytes
            }
            goim_session::Transport::WebSocket => {
                let mut packet = Vec::new();
                goim_wire::Packet {
                    version: Version::GOIM,
                    operation: Operation::SEND,
                    sequence: goim_wire::Sequence::NONE,
                    body,
                }
                .encode(&mut packet);
                let mut bytes = Vec::new();
                goim_websocket::encode_frame(
                    &mut bytes,
                    goim_websocket::Opcode::Binary,
                    &packet,
                    Some([1, 2, 3, 4]),
                );
                bytes
            }
        };
        self.stream.write_all(&bytes).map_err(failed)
    }
}

fn figures(block: &Block) -> Vec<Figure> {
    let latency = block.latency.percentiles();
    let mut list = Vec::new();
    for (name, value) in [
        ("latency p50", latency.p50),
        ("latency p90", latency.p90),
        ("latency p99", latency.p99),
        ("latency p99.9", latency.p99_9),
        ("latency max", latency.max),
    ] {
        list.push(Figure::compared(name, Unit::Milliseconds, value.as_secs_f64() * 1e3));
    }
    if let Some(cpu) = block.server_cpu {
        list.push(Figure::compared("server CPU per push", Unit::Microseconds, each(cpu, block.deliveries)));
    }
    list.push(Figure::compared(
        "client CPU per push",
        Unit::Microseconds,
        each(block.client_cpu, block.deliveries),
    ));
    list.push(Figure::compared("pushes", Unit::PerSecond, float(block.deliveries) / block.seconds));
    list
}
