//! One measured system: the server or the reference, with the clients that receive from it.
//!
//! Owns publishing and waiting for deliveries. Which windows are measured in which order is decided
//! by the benchmarks.

use std::time::{Duration, Instant};

use crate::bare::{Bare, SendOrder};
use crate::clock::now_ns;
use crate::control::{Command, Target};
use crate::endpoints::Endpoints;
use crate::error::BenchError;
use crate::figures::float;
use crate::fleet::{Fleet, Overall};
use crate::http::Api;
use crate::machine::open_files_max;
use crate::message::{Message, new_run};
use crate::options::{OPERATION, Options, ReferenceMode, room};
use crate::progress::Progress;
use crate::publisher::{Accepted, Audience, HttpPublisher};
use crate::sizes::Sizes;
use crate::spawn::Spawned;
use crate::totals::{Heartbeats, Totals};
use crate::usage::{Memory, cpu_time};
use crate::window::{LoadPattern, Window};

/// How long all clients together may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(180);

/// Packets in one `send` of the reference under [`LoadPattern::Flood`].
const FLOOD_BURST: u32 = 20;

/// The server under test.
pub(crate) struct Server {
    _spawned: Option<Spawned>,
    pub(crate) endpoints: Endpoints,
    pub(crate) pid: Option<u32>,
    pub(crate) targets: Vec<Target>,
    pub(crate) api_key: Option<String>,
}

impl Server {
    /// Starts the server where the options ask for it, and connects to each of its addresses once.
    ///
    /// # Errors
    /// When it does not start or cannot be reached.
    pub(crate) fn start(options: &Options) -> Result<Self, BenchError> {
        let server = &options.server;
        let over = &options.clients.over;
        let spawned = if server.spawn {
            let connections = options.clients.connections;
            BenchError::check_descriptors("the server, as one process,", connections, open_files_max())?;
            let tls = over.iter().any(|transport| transport.is_tls());
            let cpus = options.run.server_cpus();
            Some(Spawned::start(server.goim.as_deref(), &server.set, tls, &cpus)?)
        } else {
            None
        };
        let endpoints =
            spawned.as_ref().map_or_else(|| server.endpoints.clone(), |spawned| spawned.endpoints.clone());
        let pid = spawned.as_ref().map(Spawned::pid).or(server.server_pid);
        let targets = endpoints.targets(over)?;
        Ok(Self { _spawned: spawned, endpoints, pid, targets, api_key: server.api_key.clone() })
    }

    /// Opens a connection to the HTTP API.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) fn api(&self) -> Result<Api, BenchError> {
        Api::connect(&self.endpoints.http, self.api_key.as_deref())
    }

    /// Returns a publisher with its own connection.
    ///
    /// # Errors
    /// When the HTTP API cannot be reached.
    pub(crate) fn publisher(&self, run: u32) -> Result<HttpPublisher, BenchError> {
        Ok(HttpPublisher { api: self.api()?, operation: OPERATION, room: room(run), batches: None })
    }

    /// Reads the memory of the server's process. `None` when the process is unknown.
    pub(crate) fn memory(&self) -> Option<Memory> {
        self.pid.and_then(Memory::of)
    }
}

/// The sender of a system's messages.
pub(crate) enum Source {
    Server(Box<Server>, HttpPublisher),
    Bare(Bare),
}

/// A system: the sender, and the clients that receive.
pub(crate) struct System {
    pub(crate) source: Source,
    pub(crate) fleet: Fleet,
    pub(crate) run: u32,
    pub(crate) clients: u32,
    /// Messages published so far, by stream. Each is for every client.
    pub(crate) published: Vec<u32>,
    /// When each message of the first stream was due, by number. 0 when only its publisher knows.
    due_ns: Vec<u64>,
    sizes: Sizes,
    patience: Duration,
    server_cpus: Vec<usize>,
}

/// CPU time at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    at: Instant,
    server: Option<Duration>,
    client: Duration,
}

impl System {
    /// Connects all clients to the server.
    ///
    /// # Errors
    /// When a client cannot connect.
    pub(crate) fn of_server(
        options: &Options,
        server: Server,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let run = new_run();
        let publisher = server.publisher(run)?;
        let targets = server.targets.clone();
        let source = Source::Server(Box::new(server), publisher);
        Self::connect(options, (run, source, targets), streams, sizes, progress)
    }

    /// Connects all clients to the reference.
    ///
    /// # Errors
    /// When a client cannot connect.
    pub(crate) fn of_bare(
        options: &Options,
        bare: Bare,
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let targets = vec![bare.target()];
        Self::connect(options, (new_run(), Source::Bare(bare), targets), streams, sizes, progress)
    }

    /// Starts the reference. `None` when the options exclude it, or when no transport without TLS
    /// is measured.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn bare(options: &Options) -> Result<Option<Bare>, BenchError> {
        let transport = options.clients.over.iter().copied().find(|transport| !transport.is_tls());
        let Some(transport) = transport.filter(|_| options.run.reference != ReferenceMode::Without) else {
            return Ok(None);
        };
        let connections = options.clients.connections;
        BenchError::check_descriptors("the send loop, as one process,", connections, open_files_max())?;
        Bare::start(transport, OPERATION, &options.run.server_cpus()).map(Some)
    }

    fn connect(
        options: &Options,
        (run, source, targets): (u32, Source, Vec<Target>),
        streams: u32,
        sizes: Sizes,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let clients = &options.clients;
        let plan = clients.plan(run, streams, targets)?;
        let mut fleet = Fleet::launch(clients.workers()?, &plan, &options.run.client_cpus())?;
        wait_connected(&mut fleet, clients.connections, progress)?;
        let mut system = Self {
            source,
            fleet,
            run,
            clients: clients.connections,
            published: vec![0; streams as usize],
            due_ns: Vec::new(),
            sizes,
            patience: clients.patience,
            server_cpus: options.run.server_cpus(),
        };
        system.start_heartbeats(clients.heartbeat)?;
        Ok(system)
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.is_reference() { "reference" } else { "server" }
    }

    pub(crate) fn is_reference(&self) -> bool {
        matches!(self.source, Source::Bare(_))
    }

    /// Returns the server, where this is one.
    pub(crate) fn server(&self) -> Option<&Server> {
        match &self.source {
            Source::Server(server, _) => Some(server),
            Source::Bare(_) => None,
        }
    }

    /// Returns the publisher of the server, where this is one.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for the reference.
    pub(crate) fn publisher(&mut self) -> Result<&mut HttpPublisher, BenchError> {
        match &mut self.source {
            Source::Server(_, publisher) => Ok(publisher),
            Source::Bare(_) => Err(BenchError::Usage("this benchmark needs a server".into())),
        }
    }

    /// Has all clients send heartbeats at this interval, evenly spread.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(crate) fn start_heartbeats(&mut self, interval: Duration) -> Result<(), BenchError> {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        self.fleet.send_all(&Command::Heartbeat { interval_ms, clients: self.clients })
    }

    pub(crate) fn clocks(&self) -> Clocks {
        let pid = match &self.source {
            Source::Server(server, _) => server.pid,
            Source::Bare(bare) => Some(bare.pid()),
        };
        Clocks { at: Instant::now(), server: cpu_time(pid, &self.server_cpus), client: self.fleet.cpu() }
    }

    /// Records the time and CPU time since `before` in a window.
    pub(crate) fn record(&self, before: &Clocks, window: &mut Window) {
        let after = self.clocks();
        window.seconds = after.at.duration_since(before.at).as_secs_f64();
        window.server_cpu =
            after.server.zip(before.server).map(|(after, before)| after.saturating_sub(before));
        window.client_cpu = after.client.saturating_sub(before.client);
    }

    /// Measures a window without messages: only what the clients do by themselves.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(crate) fn idle_window(&mut self, time: Duration, progress: &Progress) -> Result<Window, BenchError> {
        progress.phase(self.name(), 0);
        let answered = self.fleet.overall().heartbeats_answered;
        let before = self.clocks();
        self.fleet.wait_until(Instant::now() + time, |all| {
            progress.at(all.heartbeats_answered.saturating_sub(answered));
            false
        })?;
        let mut window = Window::default();
        self.record(&before, &mut window);
        window.heartbeats = self.fleet.overall().heartbeats_answered.saturating_sub(answered);
        progress.clear();
        Ok(window)
    }

    /// Measures a window of messages to all clients.
    ///
    /// # Errors
    /// When a push is refused, or when a process of the benchmark has ended. Losses are not errors.
    pub(crate) fn window(
        &mut self,
        audience: Audience,
        pattern: LoadPattern,
        burst: u32,
        progress: &Progress,
    ) -> Result<Window, BenchError> {
        self.fleet.send_all(&Command::ResetLatency)?;
        self.fleet.take_timeline();
        let (before_ns, before) = (now_ns(), self.clocks());
        let (first, messages, received) = (self.due_ns.len(), self.messages(), self.received());
        let received_bytes = self.fleet.overall().received_bytes;
        progress.phase(self.name(), 0);
        let mut window =
            Window { throttled: self.send(audience, pattern, burst, progress)?, ..Window::default() };
        if !matches!(pattern, LoadPattern::Drained { .. }) {
            self.drain(progress)?;
        }
        self.record(&before, &mut window);
        window.deliveries = self.received().saturating_sub(received);
        window.received_bytes = self.fleet.overall().received_bytes.saturating_sub(received_bytes);
        window.messages = self.messages() - messages;
        self.record_latency(first, &mut window)?;
        let since = |(at, count): (u64, u64)| {
            (float(at.saturating_sub(before_ns)) / 1e9, float(count.saturating_sub(received)))
        };
        window.timeline = self.fleet.take_timeline().into_iter().map(since).collect();
        progress.clear();
        Ok(window)
    }

    /// Publishes the messages of a window. Returns the number of 429 responses.
    fn send(
        &mut self,
        audience: Audience,
        pattern: LoadPattern,
        burst: u32,
        progress: &Progress,
    ) -> Result<u64, BenchError> {
        match pattern {
            LoadPattern::Drained { bursts } => {
                let mut throttled = 0;
                for _ in 0..bursts {
                    throttled += self.publish(audience, burst, now_ns())?;
                    self.drain(progress)?;
                }
                Ok(throttled)
            }
            LoadPattern::Rate { per_second, bursts } => {
                self.send_at_rate(audience, burst, per_second, bursts, progress)
            }
            LoadPattern::Flood { publishers, seconds } => self.flood(audience, publishers, seconds),
        }
    }

    /// Records the latency of all deliveries, and of the last receiver of each message from number
    /// `first` on.
    fn record_latency(&mut self, first: usize, window: &mut Window) -> Result<(), BenchError> {
        let totals = self.totals()?;
        window.latency = totals.latency();
        for (due_ns, last_ns) in self.due_ns.iter().zip(totals.last_ns(0)).skip(first) {
            if *due_ns > 0 && *last_ns > 0 {
                window.last_receiver.record(*due_ns, *last_ns);
            }
        }
        Ok(())
    }

    /// Returns the reports of all workers, added up.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn totals(&mut self) -> Result<Totals, BenchError> {
        Ok(Totals::of(&self.fleet.reports(&self.published)?))
    }

    /// Messages that clients have received so far.
    pub(crate) fn received(&self) -> u64 {
        self.fleet.overall().received()
    }

    /// Messages published so far, over all streams.
    fn messages(&self) -> u64 {
        self.published.iter().map(|number| u64::from(*number)).sum()
    }

    /// Publishes a burst of messages. Returns the number of 429 responses.
    fn publish(&mut self, audience: Audience, burst: u32, due_ns: u64) -> Result<u64, BenchError> {
        let first = self.published.first().copied().unwrap_or_default();
        let (run, sizes) = (self.run, self.sizes);
        let body =
            |number| Message { run, stream: 0, number, due_ns }.encode_with(sizes.filler(), sizes.of(number));
        let throttled = match &mut self.source {
            Source::Bare(bare) => {
                bare.send(&SendOrder { run, stream: 0, first, burst, sizes, due_ns, flood_ms: 0 })?;
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
        Ok(throttled)
    }

    fn send_at_rate(
        &mut self,
        audience: Audience,
        burst: u32,
        per_second: f64,
        bursts: u32,
        progress: &Progress,
    ) -> Result<u64, BenchError> {
        let (began_ns, mut throttled) = (now_ns(), 0);
        for number in 0..bursts {
            let due_ns = began_ns + (1e9 / per_second * f64::from(number)) as u64;
            let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
            self.fleet.wait_until(Instant::now() + wait, |all| {
                progress.at(all.received());
                false
            })?;
            throttled += self.publish(audience, burst, due_ns)?;
        }
        Ok(throttled)
    }

    /// Publishes as fast as messages are accepted. Returns the number of 429 responses.
    fn flood(&mut self, audience: Audience, publishers: u32, seconds: f64) -> Result<u64, BenchError> {
        let (run, sizes) = (self.run, self.sizes);
        let first = self.published.first().copied().unwrap_or_default();
        let throttled = match &mut self.source {
            Source::Bare(bare) => {
                let (due_ns, flood_ms) = (0, (seconds * 1e3) as u64);
                let order = SendOrder { run, stream: 0, first, burst: FLOOD_BURST, sizes, due_ns, flood_ms };
                self.published[0] += bare.send(&order)?;
                0
            }
            Source::Server(server, _) => {
                let until = Instant::now() + Duration::from_secs_f64(seconds);
                let mut threads = Vec::new();
                for (stream, number) in (0..publishers).zip(self.published.iter().copied()) {
                    let http = server.publisher(run)?;
                    let flood = Flood { http, audience, sizes, until };
                    let message = Message { run, stream, number, due_ns: 0 };
                    threads.push(std::thread::spawn(move || flood.run(message)));
                }
                let mut throttled = 0;
                for (published, thread) in self.published.iter_mut().zip(threads) {
                    let result = thread.join();
                    let result = result.map_err(|_| BenchError::Failed("a publisher panicked".into()))?;
                    let (number, count) = result?;
                    *published = number;
                    throttled += count;
                }
                throttled
            }
        };
        // Only the publishers know when these messages were due.
        self.due_ns.resize(self.published[0] as usize, 0);
        Ok(throttled)
    }

    /// Waits until all messages have reached all clients, or until nothing arrives for a while.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(crate) fn drain(&mut self, progress: &Progress) -> Result<(), BenchError> {
        let expected = self.messages() * u64::from(self.clients);
        loop {
            let before = self.received();
            let complete = self.fleet.wait_until(Instant::now() + self.patience, |all| {
                progress.at(all.received());
                all.received() >= expected
            })?;
            if complete || self.received() == before {
                return Ok(());
            }
        }
    }

    /// Returns the faults of the messages that the clients of this system received.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn faults(&mut self) -> Result<Vec<String>, BenchError> {
        let totals = self.totals()?;
        let (lost, duplicate, reordered) = totals.faults();
        let unexpected = &totals.unexpected;
        let name = self.name();
        let counts = [
            (lost, "deliveries lost"),
            (duplicate, "deliveries duplicated"),
            (reordered, "deliveries out of order"),
            (unexpected.damaged, "packets damaged"),
            (unexpected.foreign, "packets of another run"),
            (unexpected.mislabelled, "packets that were never sent or requested"),
        ];
        let ended = self.fleet.overall().reasons;
        Ok(counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{name}: {count} {what}"))
            .chain(ended.iter().map(|(reason, count)| format!("{name}: {count} clients ended {reason}")))
            .collect())
    }

    /// Stops the heartbeats, waits for their replies, and returns the counts of all heartbeats.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub(crate) fn finish_heartbeats(&mut self) -> Result<Heartbeats, BenchError> {
        self.fleet.send_all(&Command::StopHeartbeats)?;
        let answered = |all: &Overall| all.heartbeats_answered >= all.heartbeats_sent;
        // Workers report their counts every 250 ms: the first report may be older than the last
        // heartbeat.
        self.fleet.wait_until(Instant::now() + Duration::from_millis(600), |_| false)?;
        self.fleet.wait_until(Instant::now() + self.patience, answered)?;
        Ok(self.totals()?.heartbeats)
    }

    /// Returns a line about all deliveries.
    pub(crate) fn account(&self) -> String {
        let expected = self.messages() * u64::from(self.clients);
        let number = |count: u64| crate::table::number(float(count));
        format!("{}: {} of {} deliveries", self.name(), number(self.received()), number(expected))
    }
}

/// One publisher of [`LoadPattern::Flood`].
struct Flood {
    http: HttpPublisher,
    audience: Audience,
    sizes: Sizes,
    until: Instant,
}

impl Flood {
    /// Publishes until the time is over. Returns the number of the next message, and of the 429
    /// responses.
    fn run(mut self, mut message: Message) -> Result<(u32, u64), BenchError> {
        let mut throttled = 0;
        while Instant::now() < self.until {
            message.due_ns = now_ns();
            let body = message.encode_with(self.sizes.filler(), self.sizes.of(message.number));
            match self.http.try_publish(self.audience, &body)? {
                Accepted::All => message.number += 1,
                Accepted::First { retry_after, .. } => {
                    throttled += 1;
                    std::thread::sleep(retry_after.min(self.until.saturating_duration_since(Instant::now())));
                }
            }
        }
        Ok((message.number, throttled))
    }
}

/// Waits until so many clients are authenticated.
///
/// # Errors
/// When one cannot connect, with the reasons.
pub(crate) fn wait_connected(fleet: &mut Fleet, clients: u32, progress: &Progress) -> Result<(), BenchError> {
    progress.phase("connect", u64::from(clients));
    fleet.wait_until(Instant::now() + CONNECT_DEADLINE, |all| {
        progress.at(u64::from(all.open));
        all.ended > 0 || all.open >= clients
    })?;
    progress.clear();
    if fleet.overall().open >= clients {
        return Ok(());
    }
    // Others may fail for the same reason: their number belongs into the message.
    fleet.wait_until(Instant::now() + Duration::from_secs(1), |_| false)?;
    let Overall { open, ended, reasons, .. } = fleet.overall();
    let reasons = crate::totals::list_reasons(&reasons);
    Err(BenchError::Failed(format!(
        "{open} of {clients} clients are connected, {ended} have failed{reasons}"
    )))
}
