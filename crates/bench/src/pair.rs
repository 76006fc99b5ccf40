//! The server under test and the bare send loop side by side: both alive at the same time, each with clients of its own,
//! measured in short blocks that take turns.
//!
//! A ratio of two runs one after the other carries all that the machine did in between. Blocks of a second or two on the
//! same sockets do not, so that a few pairs of them are enough.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use crate::bare::{Bare, Order};
use crate::clock::now_ns;
use crate::control::{Carrier, Command, Plan, Target};
use crate::error::BenchError;
use crate::fleet::{Fleet, Overall};
use crate::hold::{open_door, websocket_url};
use crate::http::Api;
use crate::latency::Latency;
use crate::load::{Load, duration, new_run, room};
use crate::machine::{open_files_max, processors_here};
use crate::message::Message;
use crate::outcome::{Sum, float};
use crate::progress::Progress;
use crate::publisher::{Audience, HttpPublisher, Taken};
use crate::server::{Doors, Spawned, softirq_us};
use crate::sizes::Sizes;

/// Operation of all messages.
pub(crate) const OPERATION: i32 = 1000;

/// How long everybody together may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(180);

/// What is measured and where it runs: the options that all paired benchmarks share.
#[derive(Debug, Clone, Args)]
pub(crate) struct Subject {
    /// Start a server from this same program, on free ports
    #[arg(long, conflicts_with_all = ["tcp", "ws", "http", "server_pid"])]
    pub(crate) spawn: bool,
    /// A setting for the server that is started; may be given many times
    #[arg(long, requires = "spawn", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// How clients connect
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) over: Carrier,
    /// The server's TCP door
    #[arg(long, default_value = "127.0.0.1:3101", value_name = "HOST:PORT")]
    pub(crate) tcp: String,
    /// The server's WebSocket door
    #[arg(long, default_value = "ws://127.0.0.1:3102/sub", value_name = "URL")]
    pub(crate) ws: String,
    /// The server's door for TCP inside TLS. Its certificate is not checked: this measures, and trusts nobody with anything
    #[arg(long, default_value = "127.0.0.1:3104", value_name = "HOST:PORT")]
    pub(crate) tls: String,
    /// The server's door for WebSocket inside TLS
    #[arg(long, default_value = "wss://127.0.0.1:3103/sub", value_name = "URL")]
    pub(crate) wss: String,
    /// The HTTP API
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    pub(crate) http: String,
    /// Key of the push API, when the server asks for one
    #[arg(long, env = "GOIM_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The server's process, when it is on this machine: its memory and processor time are then measured
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Leave out the bare send loop, with which the figures are compared
    #[arg(long)]
    pub(crate) no_reference: bool,
    /// Clients, as many again of the reference
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Processes that hold the clients of one side; as many as the limit of open files demands
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: Option<u32>,
    /// Pairs of blocks; the figures are medians, with the spread
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// How long nothing may arrive before what is missing counts as lost
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) patience: Duration,
    /// Time between two heartbeats of one client, besides what is measured
    #[arg(long, default_value = "2m", value_name = "DURATION", value_parser = duration)]
    pub(crate) heartbeat: Duration,
    /// Clients say that they read versions up to this one, and inflate what comes compressed: 2 is zlib, 3 brotli. The
    /// reference sends as it is
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i16).range(1..=3))]
    pub(crate) protover: Option<i16>,
    /// Connect from this address; may be given many times. Towards loopback, 127.0.0.2 and the next are taken
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Vec<IpAddr>,
    /// Bind the server that is started, and the reference, to these processors; `none` leaves them free. Default: the
    /// first, where there are two
    #[arg(long, value_name = "LIST")]
    pub(crate) server_cpus: Option<String>,
    /// Bind the clients to these processors; `none` leaves them free. Default: all but the first
    #[arg(long, value_name = "LIST")]
    pub(crate) client_cpus: Option<String>,
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with the figures and plots to this file too
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

impl Subject {
    /// Processors of the server and of the clients.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for a list that is none.
    pub(crate) fn processors(&self) -> Result<(Vec<usize>, Vec<usize>), BenchError> {
        let many = processors_here() > 1;
        let server = list(self.server_cpus.as_deref(), many.then(|| vec![0]))?;
        let client = list(self.client_cpus.as_deref(), many.then(|| (1..processors_here()).collect()))?;
        Ok((server, client))
    }

    /// The options of a whole run that say the same.
    pub(crate) fn load(&self) -> Result<Load, BenchError> {
        let (server_cpus, client_cpus) = self.processors()?;
        Ok(Load {
            connections: self.connections,
            workers: Some(match self.workers {
                Some(workers) => workers,
                None => crate::fleet::workers_needed(self.connections)?,
            }),
            heartbeat: self.heartbeat,
            quiet: Duration::ZERO,
            messages: 0,
            rate: 1.0,
            broadcasts: 0,
            size: 64,
            settle: Duration::ZERO,
            patience: self.patience,
            repeat: self.repeat,
            source: self.source.clone(),
            server_cpus,
            client_cpus,
            json: None,
        })
    }

    /// What was asked for, for the report.
    pub(crate) fn asked(&self) -> Result<Vec<(String, String)>, BenchError> {
        let (server, client) = self.processors()?;
        let names = |list: &[usize]| match list {
            [] => "any".to_owned(),
            list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        let carrier = match self.over {
            Carrier::Tcp => "TCP",
            Carrier::WebSocket => "WebSocket",
            Carrier::Tls => "TCP inside TLS",
            Carrier::WebSocketTls => "WebSocket inside TLS",
        };
        Ok(vec![
            ("connections".into(), crate::table::number(f64::from(self.connections))),
            ("over".into(), carrier.into()),
            ("pairs of blocks".into(), self.repeat.to_string()),
            ("processors of the server".into(), names(&server)),
            ("processors of the clients".into(), names(&client)),
        ])
    }

    /// The server, started if that was asked for.
    ///
    /// # Errors
    /// When it does not start, or nobody answers at its doors.
    pub(crate) fn server(&self) -> Result<Server, BenchError> {
        let limit = if self.spawn { open_files_max() } else { u64::MAX };
        let needed = u64::from(self.connections) + 100;
        if needed > limit {
            let who = "the server, as one process,";
            return Err(BenchError::Descriptors { who, needed, limit, way_out: "--connections" });
        }
        let (processors, _) = self.processors()?;
        let (spawned, doors) = if self.spawn {
            let spawned = Spawned::start_over(self.over, &self.set, &processors)?;
            let doors = spawned.doors.clone();
            (Some(spawned), doors)
        } else {
            let (tcp, websocket, http) = (self.tcp.clone(), self.ws.clone(), self.http.clone());
            (None, Doors { tcp, websocket, tls: self.tls.clone(), websocket_tls: self.wss.clone(), http })
        };
        let pid = spawned.as_ref().map(Spawned::pid).or(self.server_pid);
        let target = target(self.over, &doors)?;
        Ok(Server { _spawned: spawned, doors, pid, target, api_key: self.api_key.clone() })
    }

    /// The bare send loop, unless it was left out or there is none for this transport.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn bare(&self) -> Result<Option<Bare>, BenchError> {
        if self.no_reference || self.over.is_tls() {
            return Ok(None);
        }
        let (processors, _) = self.processors()?;
        Bare::start(self.over, OPERATION, &processors).map(Some)
    }
}

fn list(text: Option<&str>, usual: Option<Vec<usize>>) -> Result<Vec<usize>, BenchError> {
    let Some(text) = text else { return Ok(usual.unwrap_or_default()) };
    if text == "none" {
        return Ok(Vec::new());
    }
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    numbers.map_err(|_| BenchError::Usage(format!("{text:?} is no list of processors: wants 0,1 or none")))
}

fn target(over: Carrier, doors: &Doors) -> Result<Target, BenchError> {
    let url = match over {
        Carrier::Tcp | Carrier::Tls => {
            let host = if over == Carrier::Tcp { &doors.tcp } else { &doors.tls };
            let addr = open_door("the door", host)?;
            return Ok(Target { carrier: over, addr, host: host.clone(), path: String::new() });
        }
        Carrier::WebSocket => doors.websocket.clone(),
        Carrier::WebSocketTls => doors.websocket_tls.replacen("wss://", "ws://", 1),
    };
    let (host, path) = websocket_url(&url)?;
    let addr = open_door("the WebSocket door", &host)?;
    Ok(Target { carrier: over, addr, host, path })
}

/// The server under test.
pub(crate) struct Server {
    _spawned: Option<Spawned>,
    pub(crate) doors: Doors,
    pub(crate) pid: Option<u32>,
    pub(crate) target: Target,
    api_key: Option<String>,
}

impl Server {
    /// A publisher with a connection of its own to the push API.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(crate) fn publisher(&self, run: u32) -> Result<HttpPublisher, BenchError> {
        let api = Api::connect(&self.doors.http, self.api_key.as_deref())?;
        Ok(HttpPublisher { api, operation: OPERATION, room: room(run), batches: None })
    }
}

/// How messages get to the clients of one side.
pub(crate) enum Source {
    Server(Box<Server>, HttpPublisher),
    Bare(Bare),
}

/// One side: who sends, and the clients that receive.
pub(crate) struct Side {
    pub(crate) source: Source,
    pub(crate) fleet: Fleet,
    pub(crate) pid: Option<u32>,
    pub(crate) run: u32,
    pub(crate) clients: u32,
    /// Messages of each stream so far; each is for every client.
    pub(crate) published: Vec<u32>,
    /// When each message of the first stream was due, by number.
    due_ns: Vec<u64>,
    sizes: Sizes,
    patience: Duration,
    server_cpus: Vec<usize>,
}

/// Processor time at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    at: Instant,
    server: Option<Duration>,
    client: Duration,
}

/// What one block of one side came to.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) seconds: f64,
    pub(crate) deliveries: u64,
    pub(crate) messages: u64,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) client_cpu: Duration,
    /// Received by all clients, with everything around the messages.
    pub(crate) received_bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) last_receiver: Latency,
    /// How often a publisher was told to come again.
    pub(crate) held_back: u64,
    /// Seconds since the block's beginning, and messages received by then.
    pub(crate) timeline: Vec<(f64, f64)>,
}

impl Block {
    /// Adds what a further block of the same side came to.
    pub(crate) fn add(&mut self, more: &Self) {
        let shift = self.seconds;
        let count = float(self.deliveries);
        self.timeline.extend(more.timeline.iter().map(|(at, received)| (at + shift, received + count)));
        self.seconds += more.seconds;
        self.deliveries += more.deliveries;
        self.messages += more.messages;
        self.server_cpu = match (self.server_cpu, more.server_cpu) {
            (Some(own), Some(more)) => Some(own + more),
            (own, more) => own.or(more),
        };
        self.client_cpu += more.client_cpu;
        self.received_bytes += more.received_bytes;
        self.latency.add(&more.latency.samples());
        self.last_receiver.add(&more.last_receiver.samples());
        self.held_back += more.held_back;
    }
}

/// How messages follow each other in a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rhythm {
    /// Each burst when the one before has reached everybody.
    Drained {
        /// How many.
        bursts: u32,
    },
    /// At a rate, whether or not the ones before have arrived.
    Rate {
        /// Bursts a second.
        per_second: f64,
        seconds: f64,
    },
    /// As fast as they are accepted.
    Flood { publishers: u32, seconds: f64 },
}

impl Side {
    /// Connects all clients to the server.
    ///
    /// # Errors
    /// When not everybody can connect.
    pub(crate) fn of_server(
        subject: &Subject,
        server: Server,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let run = new_run();
        let publisher = server.publisher(run)?;
        let (target, pid) = (server.target.clone(), server.pid);
        let made = Made { run, pid, target, source: Source::Server(Box::new(server), publisher) };
        Self::connect(subject, made, streams, sizes, progress)
    }

    /// Connects all clients to the reference.
    ///
    /// # Errors
    /// When not everybody can connect.
    pub(crate) fn of_bare(
        subject: &Subject,
        bare: Bare,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let (target, pid) = (bare.target(), Some(bare.pid()));
        let made = Made { run: new_run(), pid, target, source: Source::Bare(bare) };
        Self::connect(subject, made, streams, sizes, progress)
    }

    fn connect(
        subject: &Subject,
        made: Made,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let load = subject.load()?;
        let plan = Plan { streams, protover: subject.protover, ..load.plan(made.run, vec![made.target])? };
        let fleet = open(&load, &plan, progress)?;
        let mut side = Self {
            source: made.source,
            fleet,
            pid: made.pid,
            run: made.run,
            clients: subject.connections,
            published: vec![0; streams as usize],
            due_ns: Vec::new(),
            sizes,
            patience: subject.patience,
            server_cpus: load.server_cpus,
        };
        let interval_ms = u64::try_from(subject.heartbeat.as_millis()).unwrap_or(u64::MAX).max(1);
        side.fleet.tell_all(&Command::Beat { interval_ms, clients: side.clients })?;
        Ok(side)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.source {
            Source::Server(..) => "server",
            Source::Bare(_) => "reference",
        }
    }

    pub(crate) fn clocks(&self) -> Clocks {
        let own = self.pid.and_then(crate::clock::cpu_of);
        let softirq = Duration::from_micros(softirq_us(&self.server_cpus));
        Clocks { at: Instant::now(), server: own.map(|own| own + softirq), client: self.fleet.cpu() }
    }

    /// Enters what has passed since `before` into a block.
    pub(crate) fn since(&self, before: &Clocks, block: &mut Block) {
        let after = self.clocks();
        block.seconds = after.at.duration_since(before.at).as_secs_f64();
        block.server_cpu =
            after.server.zip(before.server).map(|(after, before)| after.saturating_sub(before));
        block.client_cpu = after.client.saturating_sub(before.client);
    }

    /// One block of messages to everybody.
    ///
    /// # Errors
    /// When a push is refused, or a process of the benchmark has gone. Losses are no error.
    pub(crate) fn block(
        &mut self,
        audience: Audience,
        rhythm: Rhythm,
        burst: u32,
        progress: &Progress,
    ) -> Result<Block, BenchError> {
        self.fleet.tell_all(&Command::Fresh)?;
        self.fleet.take_timeline();
        let before_ns = now_ns();
        let before = self.clocks();
        let first = self.published.first().copied().unwrap_or_default();
        let (received, received_bytes) = (self.received(), self.fleet.overall().received_bytes);
        let messages: u64 = self.published.iter().map(|number| u64::from(*number)).sum();
        progress.phase(self.name(), 0);
        let mut block = Block::default();
        match rhythm {
            Rhythm::Drained { bursts } => {
                for _ in 0..bursts {
                    block.held_back += self.publish(audience, burst, now_ns())?;
                    self.drain(progress)?;
                }
            }
            Rhythm::Rate { per_second, seconds } => {
                block.held_back = self.at_rate(audience, burst, per_second, seconds, progress)?;
            }
            Rhythm::Flood { publishers, seconds } => {
                block.held_back = self.flood(audience, publishers, seconds)?;
                // From here on only what was accepted is waited for: the rate counts until the last has arrived.
                self.drain(progress)?;
            }
        }
        if matches!(rhythm, Rhythm::Rate { .. }) {
            self.drain(progress)?;
        }
        self.since(&before, &mut block);
        block.deliveries = self.received().saturating_sub(received);
        block.received_bytes = self.fleet.overall().received_bytes.saturating_sub(received_bytes);
        block.messages = self.published.iter().map(|number| u64::from(*number)).sum::<u64>() - messages;
        let sum = Sum::of(&self.fleet.reports(&self.published.clone())?);
        block.latency = sum.latency();
        let numbers = (first as usize)..self.due_ns.len();
        for number in numbers {
            let last = sum.last_ns(0).get(number).copied().unwrap_or_default();
            // 0: its publisher alone knows when it was due.
            if last > 0 && self.due_ns[number] > 0 {
                block.last_receiver.record(self.due_ns[number], last);
            }
        }
        block.timeline = self
            .fleet
            .take_timeline()
            .into_iter()
            .map(|(at, count)| {
                (float(at.saturating_sub(before_ns)) / 1e9, float(count.saturating_sub(received)))
            })
            .collect();
        progress.over();
        Ok(block)
    }

    fn received(&self) -> u64 {
        self.fleet.overall().delivered.iter().sum()
    }

    /// Publishes so many messages at once. Gives how often the publisher was told to come again.
    fn publish(&mut self, audience: Audience, burst: u32, due_ns: u64) -> Result<u64, BenchError> {
        let first = self.published.first().copied().unwrap_or_default();
        let (run, sizes) = (self.run, self.sizes);
        let body = |number| {
            let message = Message { run, stream: 0, number, due_ns };
            message.encode_with(sizes.filler(), sizes.of(number))
        };
        let held_back = match &mut self.source {
            Source::Bare(bare) => {
                let order = Order { run, stream: 0, first, burst, sizes, due_ns, flood_ms: 0 };
                bare.send(&order)?;
                0
            }
            Source::Server(_, http) if burst == 1 => http.publish(audience, &body(first))?,
            Source::Server(_, http) => {
                let bodies: Vec<_> = (first..first + burst).map(body).collect();
                http.publish_together(audience, &bodies)?
            }
        };
        if let Some(published) = self.published.first_mut() {
            *published += burst;
        }
        self.due_ns.extend((0..burst).map(|_| due_ns));
        Ok(held_back)
    }

    fn at_rate(
        &mut self,
        audience: Audience,
        burst: u32,
        per_second: f64,
        seconds: f64,
        progress: &Progress,
    ) -> Result<u64, BenchError> {
        let (began_ns, mut held_back) = (now_ns(), 0);
        let bursts = (per_second * seconds).ceil().max(1.0) as u32;
        for number in 0..bursts {
            let due_ns = began_ns + (1e9 / per_second * f64::from(number)) as u64;
            let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
            self.fleet.hear(Instant::now() + wait, |all| {
                progress.at(all.delivered.iter().sum());
                false
            })?;
            held_back += self.publish(audience, burst, due_ns)?;
        }
        Ok(held_back)
    }

    /// Publishes as fast as it is accepted. Gives how often a publisher was told to come again.
    fn flood(&mut self, audience: Audience, publishers: u32, seconds: f64) -> Result<u64, BenchError> {
        let (run, sizes) = (self.run, self.sizes);
        let server = match &mut self.source {
            Source::Server(server, _) => server,
            Source::Bare(bare) => {
                let first = self.published.first().copied().unwrap_or_default();
                let (due_ns, flood_ms) = (0, (seconds * 1e3) as u64);
                let order = Order { run, stream: 0, first, burst: FLOOD_BURST, sizes, due_ns, flood_ms };
                let sent = bare.send(&order)?;
                if let Some(published) = self.published.first_mut() {
                    *published += sent;
                }
                // The loop has made them itself, and knows when.
                self.due_ns.resize(self.published[0] as usize, 0);
                return Ok(0);
            }
        };
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut threads = Vec::new();
        for stream in 0..publishers {
            let mut http = server.publisher(run)?;
            let first = self.published.get(stream as usize).copied().unwrap_or_default();
            threads.push(std::thread::spawn(move || {
                let (mut number, mut held_back) = (first, 0_u64);
                while Instant::now() < until {
                    let message = Message { run, stream, number, due_ns: now_ns() };
                    let body = message.encode_with(sizes.filler(), sizes.of(number));
                    match http.try_publish(audience, &body)? {
                        Taken::All => number += 1,
                        Taken::Front { again_in, .. } => {
                            held_back += 1;
                            let left = until.saturating_duration_since(Instant::now());
                            std::thread::sleep(again_in.min(left));
                        }
                    }
                }
                Ok::<_, BenchError>((number, held_back))
            }));
        }
        let mut held_back = 0;
        for (stream, thread) in threads.into_iter().enumerate() {
            let ended = thread.join().map_err(|_| BenchError::Failed("a publisher has panicked".into()))?;
            let (number, held) = ended?;
            held_back += held;
            if let Some(published) = self.published.get_mut(stream) {
                *published = number;
            }
        }
        self.due_ns.resize(self.published[0] as usize, 0);
        Ok(held_back)
    }

    /// Waits until everything published has reached everybody, or nothing comes any more.
    ///
    /// # Errors
    /// When a worker has gone.
    pub(crate) fn drain(&mut self, progress: &Progress) -> Result<(), BenchError> {
        let messages: u64 = self.published.iter().map(|number| u64::from(*number)).sum();
        let wanted = messages * u64::from(self.clients);
        let got = |all: &Overall| all.delivered.iter().sum::<u64>();
        loop {
            let before = got(&self.fleet.overall());
            let deadline = Instant::now() + self.patience;
            let enough = self.fleet.hear(deadline, |all| {
                progress.at(got(all));
                got(all) >= wanted
            })?;
            if enough || got(&self.fleet.overall()) == before {
                return Ok(());
            }
        }
    }

    /// What is wrong with everything that this side's clients have received.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn faults(&mut self) -> Result<Vec<String>, BenchError> {
        let sum = Sum::of(&self.fleet.reports(&self.published.clone())?);
        let (lost, doubled, reordered) = sum.wrong();
        let strays = &sum.strays;
        let counts = [
            (lost, "deliveries lost"),
            (doubled, "deliveries doubled"),
            (reordered, "deliveries out of order"),
            (strays.damaged, "packets damaged"),
            (strays.foreign, "packets of another run"),
            (strays.mislabelled, "packets that nobody has sent or asked for"),
        ];
        let name = self.name();
        let mut faults: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{name}: {count} {what}"))
            .collect();
        let ended = self.fleet.overall().reasons;
        faults.extend(ended.iter().map(|(reason, count)| format!("{name}: {count} clients ended {reason}")));
        Ok(faults)
    }

    /// A line on all that has arrived.
    pub(crate) fn account(&self) -> String {
        let messages: u64 = self.published.iter().map(|number| u64::from(*number)).sum();
        let expected = messages * u64::from(self.clients);
        let number = |count: u64| crate::table::number(float(count));
        format!("{}: {} of {} deliveries", self.name(), number(self.received()), number(expected))
    }
}

/// Packets in one `send` of the reference when it sends as fast as it can.
const FLOOD_BURST: u32 = 20;

struct Made {
    run: u32,
    pid: Option<u32>,
    target: Target,
    source: Source,
}

/// Starts the workers and waits until all clients are authenticated.
///
/// # Errors
/// When not everybody can connect.
pub(crate) fn open(load: &Load, plan: &Plan, progress: &Progress) -> Result<Fleet, BenchError> {
    let mut fleet = Fleet::launch(load.workers()?, plan, &load.client_cpus)?;
    wait_open(&mut fleet, plan.count, progress)?;
    Ok(fleet)
}

/// Waits until so many clients are authenticated.
///
/// # Errors
/// When one cannot connect, with the reasons.
pub(crate) fn wait_open(fleet: &mut Fleet, clients: u32, progress: &Progress) -> Result<(), BenchError> {
    progress.phase("connect", u64::from(clients));
    fleet.hear(Instant::now() + CONNECT_DEADLINE, |all| {
        progress.at(u64::from(all.open));
        all.ended > 0 || all.open >= clients
    })?;
    let Overall { open, ended, reasons, .. } = fleet.overall();
    progress.over();
    if open >= clients {
        return Ok(());
    }
    let mut text = format!("{open} of {clients} clients are connected, {ended} have failed");
    for (reason, count) in reasons.iter().take(5) {
        text.push_str(&format!("\n  {count} {reason}"));
    }
    Err(BenchError::Failed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(list(None, Some(vec![0])).unwrap(), [0]);
        assert_eq!(list(Some("none"), Some(vec![0])).unwrap(), Vec::<usize>::new());
        assert_eq!(list(Some("1,3"), None).unwrap(), [1, 3]);
        assert_eq!(list(Some("a"), None).unwrap_err().exit_status(), 64);
    }
}
