//! `goim-bench push`: messages to one session at a time, by key or by member, at a fixed rate.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use goim_session::{ClientRules, ClientSession, ClientStep, Millis, Opening};
use goim_wire::{Operation, Packet, Sequence, Version};

use crate::bare::Bare;
use crate::clock::now_ns;
use crate::control::{Command, Transport};
use crate::error::BenchError;
use crate::figures::float;
use crate::figures::{Figure, Unit};
use crate::message::Message;
use crate::options::{Options, duration, rate};
use crate::pair::{Systems, figures};
use crate::progress::Progress;
use crate::report::{Plot, Report};
use crate::sizes::Sizes;
use crate::system::{Source, System};
use crate::window::{QUANTILES, Window, latency_figures};

/// Pushes to one session after the other through the HTTP API, in windows that alternate with a
/// bare ping-pong: a loop that forwards packets from one socket to another.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// How a receiver is addressed
    #[arg(long, value_enum, default_value = "key")]
    by: By,
    /// Pushes per second
    #[arg(long, default_value_t = 500.0, value_name = "NUMBER", value_parser = rate)]
    rate: f64,
    /// Length of a window
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    size: usize,
}

/// How a receiver is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Key,
    Mid,
}

const AFTER_HELP: &str = "\
Latency counts from the time at which a push is sent, or was due when the response to the previous one was late.

Examples:
  goim-bench push --spawn --connections 1000
  goim-bench push --spawn --connections 1000 --rate 2000 --by mid";

/// Measures all pairs of windows.
///
/// # Errors
/// When a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let options = &arguments.options;
    crate::machine::set_timer_slack();
    let progress = Progress::new("goim-bench push");
    let sizes = Sizes::Fixed(arguments.size);
    let mut systems = Systems::connect(options, 1, sizes, &progress)?;
    let bare = systems.reference.as_ref().unwrap_or(&systems.measured);
    let mut relay = match &bare.source {
        Source::Bare(bare) => Some(Relay::open(bare)?),
        Source::Server(..) => None,
    };
    let mut measure = |system: &mut System, time: Duration| {
        let mut sender = Sender { by: arguments.by, relay: relay.as_mut() };
        window(arguments, system, &mut sender, time, &progress)
    };
    systems.for_each(|system| measure(system, Duration::from_secs(1)).map(drop))?;
    let mut windows = Vec::new();
    for pair in 0..options.run.repeat {
        windows.push(systems.alternate(pair, |system| measure(system, arguments.seconds))?);
        progress.done(&format!("pair {} of {}", pair + 1, options.run.repeat));
    }
    let more = [
        ("pushes per second", crate::table::number(arguments.rate)),
        ("by", format!("{:?}", arguments.by).to_lowercase()),
        ("size", sizes.to_string()),
    ];
    let mut report = Report::new("goim-bench push", options, &more, figures(&windows, window_figures));
    report.plots.push(Plot::latency("pushes", &windows, |window| &window.latency));
    systems.for_each(|system| {
        // Each message is for one client, and each client gets as many as the others.
        system.published[0] /= system.clients;
        Ok(())
    })?;
    report.accounts = systems.accounts();
    report.faults = systems.faults()?;
    Ok(report)
}

/// Pushes at the given rate. Ends with a complete round over all clients, so that each has received
/// as many as the others.
fn window(
    arguments: &Arguments,
    system: &mut System,
    sender: &mut Sender<'_>,
    time: Duration,
    progress: &Progress,
) -> Result<Window, BenchError> {
    let rounds = (arguments.rate * time.as_secs_f64() / f64::from(system.clients)).ceil().max(1.0) as u32;
    let pushes = rounds * system.clients;
    system.fleet.send_all(&Command::ResetLatency)?;
    progress.phase(system.name(), u64::from(pushes));
    let (before, received, began_ns) = (system.clocks(), system.received(), now_ns());
    for push in 0..pushes {
        let scheduled_ns = began_ns + (1e9 / arguments.rate * f64::from(push)) as u64;
        let early = Duration::from_nanos(scheduled_ns.saturating_sub(now_ns()));
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        // A late wake-up is a fault of this program; a late response to the previous push is one of
        // the server.
        let due_ns = if early.is_zero() { scheduled_ns } else { now_ns() };
        let (client, number) = (system.published[0] % system.clients, system.published[0] / system.clients);
        let message = Message { run: system.run, stream: 0, number, due_ns };
        sender.send(system, client, &message.encode(arguments.size))?;
        system.published[0] += 1;
    }
    let mut window = Window { messages: u64::from(pushes), ..Window::default() };
    system.record(&before, &mut window);
    let expected = received + u64::from(pushes);
    let deadline = Instant::now() + arguments.options.clients.patience;
    system.fleet.wait_until(deadline, |all| all.received() >= expected)?;
    window.deliveries = system.received() - received;
    window.latency = system.totals()?.latency();
    progress.clear();
    Ok(window)
}

/// Sends single messages into a system.
struct Sender<'a> {
    by: By,
    /// The connection to the reference.
    relay: Option<&'a mut Relay>,
}

impl Sender<'_> {
    fn send(&mut self, system: &mut System, client: u32, body: &[u8]) -> Result<(), BenchError> {
        let run = system.run;
        match (&mut system.source, &mut self.relay) {
            (Source::Bare(_), Some(relay)) => relay.send(body),
            (Source::Bare(_), None) => Err(BenchError::Failed("no connection to the send loop".into())),
            (Source::Server(_, http), _) => match self.by {
                By::Key => http.publish_to_keys(&[crate::control::key(run, client)], body),
                By::Mid => http.publish_to_member(crate::control::member(client), body),
            },
        }
    }
}

/// A connection to the send loop, which forwards each message to the next client.
struct Relay {
    stream: TcpStream,
    transport: Transport,
}

impl Relay {
    fn open(bare: &Bare) -> Result<Self, BenchError> {
        let failed = |error| BenchError::failed("cannot reach the send loop", error);
        let mut stream = TcpStream::connect(bare.addr).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let target = bare.target();
        if target.transport.is_websocket() {
            let opening = Opening::WebSocket { host: &target.host, path: &target.path, headers: &[] };
            let rules = Arc::new(ClientRules::default());
            let mut session = ClientSession::new(rules, opening, Vec::new(), Box::new(|| MASK), Millis(0));
            stream.write_all(session.output()).map_err(failed)?;
            let len = session.output().len();
            session.written(len);
            let (mut answer, mut at) = ([0; 1024], 0);
            let len = stream.read(&mut answer).map_err(failed)?;
            // Once upgraded, the session would send its token. This connection never authenticates,
            // so that no message is forwarded to it.
            while !matches!(
                session.step(Millis(0), &mut answer[..len], &mut at),
                Ok(ClientStep::Idle) | Err(_)
            ) {}
        }
        Ok(Self { stream, transport: target.transport })
    }

    fn send(&mut self, body: &[u8]) -> Result<(), BenchError> {
        let (version, operation, sequence) = (Version::GOIM, Operation::SEND, Sequence::NONE);
        let mut packet = Vec::new();
        Packet { version, operation, sequence, body }.encode(&mut packet);
        if self.transport.is_websocket() {
            let mut frame = Vec::new();
            goim_websocket::encode_frame(&mut frame, goim_websocket::Opcode::Binary, &packet, Some(MASK));
            packet = frame;
        }
        let sent = self.stream.write_all(&packet);
        sent.map_err(|error| BenchError::failed("the send loop has ended", error))
    }
}

/// The WebSocket mask of a [`Relay`].
const MASK: [u8; 4] = [1, 2, 3, 4];

fn window_figures(window: &Window) -> Vec<Figure> {
    let mut list = latency_figures(&window.latency.percentiles(), QUANTILES);
    list.extend(window.cpu_figures(["server CPU per push", "client CPU per push"], window.deliveries));
    list.push(Figure::new("pushes", Unit::PerSecond, float(window.deliveries) / window.seconds));
    list
}
