//! `goim-bench sync`: stored messages, from the publisher to the disk and back to the members.
//!
//! Four parts: durable messages per second and the latency of their acknowledgement, compared with
//! a bare `fdatasync` in the same folder; messages read back per second; the time until all offline
//! members have caught up; and the cost of a stored message to a room, compared with a transient
//! one.

mod sessions;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use goim_wire::Packet;
use goim_wire::sync::{Body as _, SyncReply};
use serde_json::{Value, json};

use crate::clock::now_ns;
use crate::error::BenchError;
use crate::figures::float;
use crate::figures::{Figure, Pair, Unit};
use crate::http::Api;
use crate::latency::Latency;
use crate::options::{OPERATION, Options, duration};
use crate::progress::Progress;
use crate::report::Report;
use crate::system::Server;
use crate::usage::{Memory, cpu_time};
use crate::window::latency_figures;
use sessions::{Session, Sessions};

/// How long all members together may take to catch up.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);

/// Connections that read messages back.
const READERS: u32 = 4;

/// Measures stored messages, over HTTP and over sessions. Needs a separate server: with `--spawn`
/// it stores them in a folder that is removed afterwards, unless `--set timelines.postgres=...`
/// names a database.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Members whose inboxes are written to
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    timelines: u64,
    /// HTTP connections that publish, each with one request outstanding
    #[arg(long, default_value_t = 16, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    publishers: u32,
    /// Messages in one request
    #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    together: u32,
    /// Bytes in the body of a message
    #[arg(long, default_value_t = 200, value_name = "BYTES")]
    size: usize,
    /// Length of a window of publishing, and of one of reading back
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Messages that each session has missed when all reconnect at once
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    behind: u32,
    /// Messages to the room in a window, stored and transient
    #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    room_messages: u32,
    /// Measure HTTP only, without sessions
    #[arg(long)]
    no_sessions: bool,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench sync --spawn --server-cpus none --client-cpus none
  goim-bench sync --spawn --no-sessions --timelines 1000000
  goim-bench sync --spawn --no-sessions --set timelines.postgres=postgres://goim@127.0.0.1:5432/goim";

/// Measures all parts.
///
/// # Errors
/// When a request is refused, or when a session does not catch up.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let folder = Folder::new();
    let mut options = arguments.options.clone();
    let settings = &mut options.server.set;
    if options.server.spawn && !settings.iter().any(|setting| setting.starts_with("timelines.")) {
        settings.push(format!("timelines.folder={}", folder.0.display()));
    }
    let progress = Progress::new("goim-bench sync");
    let server = Server::start(&options)?;
    let bench = Bench { arguments, options: &options, server, progress };
    let mut pairs: Vec<Pair> = Vec::new();
    let mut appended = 0;
    for number in 0..options.run.repeat {
        let (pair, published) = bench.pair(number, &folder.0)?;
        appended += published;
        pairs.push(pair);
    }
    let mut accounts = Vec::new();
    if folder.0.exists() {
        let each = float(disk_usage(&folder.0)) / float(appended);
        accounts.push(format!("on disk: {each:.0} bytes per message with {} bytes of body", arguments.size));
    }
    let mut faults = Vec::new();
    if !arguments.no_sessions {
        let caught_up = bench.catch_up()?;
        pairs.iter_mut().for_each(|(own, _)| own.extend_from_slice(&caught_up));
        faults = bench.room(&mut pairs)?;
    }
    let more = [
        ("timelines", arguments.timelines.to_string()),
        ("publishers", arguments.publishers.to_string()),
        ("messages per request", arguments.together.to_string()),
        ("size", format!("{} B", arguments.size)),
    ];
    let mut report = Report::new("goim-bench sync", &options, &more, pairs);
    (report.accounts, report.faults) = (accounts, faults);
    Ok(report)
}

struct Bench<'a> {
    arguments: &'a Arguments,
    options: &'a Options,
    server: Server,
    progress: Progress,
}

impl Bench<'_> {
    /// Publishes and reads back for one window each. Also returns the number of messages published.
    fn pair(&self, number: u32, folder: &Path) -> Result<(Pair, u64), BenchError> {
        let fdatasync = fdatasync(folder)?;
        let began = Instant::now();
        let (published, acknowledged) = self.publish(number)?;
        let per_second = float(published) / began.elapsed().as_secs_f64();
        let read = self.read_back()?;
        self.progress.done(&format!("pair {}: {per_second:.0} durable messages per second", number + 1));
        let mut own = vec![Figure::absolute("durable messages", Unit::PerSecond, per_second)];
        own.extend(acknowledgement_figures(&acknowledged));
        own.push(Figure::absolute("messages read back", Unit::PerSecond, read));
        Ok(((own, Some(acknowledgement_figures(&fdatasync))), published))
    }

    /// Publishes to random members, as fast as requests are answered. Returns the number of
    /// messages, and the latency of requests.
    fn publish(&self, round: u32) -> Result<(u64, Latency), BenchError> {
        let Self { arguments, server, .. } = self;
        let (began, count) = (Instant::now(), AtomicU64::new(0));
        let publish = |publisher: u32| {
            let mut api = server.api()?;
            let mut random = Random((u64::from(round) << 32) | (u64::from(publisher) + 1));
            let mut latency = Latency::default();
            while began.elapsed() < arguments.seconds {
                let messages: Vec<Value> = (0..arguments.together)
                    .map(|_| {
                        let mid = 1 + random.next() % arguments.timelines;
                        stored(&json!({ "mids": [mid] }), &random.text(arguments.size))
                    })
                    .collect();
                let sent_ns = now_ns();
                post(&mut api, &messages)?;
                latency.record(sent_ns, now_ns());
                count.fetch_add(u64::from(arguments.together), Ordering::Relaxed);
            }
            Ok(latency)
        };
        let mut all = Latency::default();
        for latency in in_parallel(arguments.publishers, publish)? {
            all.add(&latency.samples());
        }
        Ok((count.into_inner(), all))
    }

    /// Reads ranges of random inboxes. Returns messages per second.
    fn read_back(&self) -> Result<f64, BenchError> {
        let Self { arguments, server, .. } = self;
        let began = Instant::now();
        let read = |reader: u32| {
            let mut api = server.api()?;
            let (mut random, mut count) = (Random(u64::from(reader) + 77), 0);
            while began.elapsed() < arguments.seconds {
                let mid = 1 + random.next() % arguments.timelines;
                let path = format!("/v1/sync?timeline=mid://{mid}&mid={mid}");
                let response = api.get(&path, "Accept: application/octet-stream\r\n")?;
                let packet = Packet::from_message(&response.body, usize::MAX);
                let packet = packet.map_err(|_| BenchError::Failed("a range is not a packet".into()))?;
                let reply = SyncReply::read(bytes::Bytes::copy_from_slice(packet.body)).unwrap_or_default();
                count += reply.messages.len() as u64;
            }
            Ok(count)
        };
        let count: u64 = in_parallel(READERS, read)?.into_iter().sum();
        Ok(float(count) / began.elapsed().as_secs_f64())
    }

    /// Stores messages for members that are offline, and connects all of them at once.
    fn catch_up(&self) -> Result<Vec<Figure>, BenchError> {
        let connections = u64::from(self.options.clients.connections);
        let members: Vec<u64> = (1..=connections).map(|number| (1 << 40) + number).collect();
        self.store_for(&members)?;
        let memory = || self.server.memory().map_or(0, |memory: Memory| memory.rss);
        let (before, began) = (memory(), Instant::now());
        let expected = u64::from(self.arguments.behind);
        let session = |mid: &u64| Session::new(*mid, &format!("mid://{mid}"), "");
        let mut sessions = Sessions::open(self.addr()?, members.iter().map(session).collect())?;
        let (mut peak, mut read_at) = (0, began);
        while !sessions.all(|session| session.messages >= expected) {
            sessions.poll()?;
            if read_at.elapsed() > Duration::from_millis(50) {
                read_at = Instant::now();
                peak = peak.max(memory());
            }
            if began.elapsed() > CATCH_UP_DEADLINE {
                let text = format!("not all sessions have caught up within {CATCH_UP_DEADLINE:?}");
                return Err(BenchError::Failed(text));
            }
        }
        let took = began.elapsed();
        self.progress.done(&format!("{} sessions have caught up in {took:.2?}", members.len()));
        let grown = float(peak.saturating_sub(before)) / 1_048_576.0;
        Ok(vec![
            Figure::absolute("all have caught up", Unit::Milliseconds, took.as_secs_f64() * 1e3),
            Figure::absolute("memory growth meanwhile", Unit::Mebibytes, grown),
        ])
    }

    fn store_for(&self, members: &[u64]) -> Result<(), BenchError> {
        let mut api = self.server.api()?;
        let text = Random(5).text(self.arguments.size);
        self.progress.phase("store", u64::from(self.arguments.behind));
        for number in 0..self.arguments.behind {
            for some in members.chunks(1_000) {
                post(&mut api, &[stored(&json!({ "mids": some }), &text)])?;
            }
            self.progress.at(u64::from(number));
        }
        Ok(())
    }

    /// Sends stored and transient messages to a room of all sessions, in turn. Adds the figures to
    /// the pairs, and returns the faults.
    fn room(&self, pairs: &mut [Pair]) -> Result<Vec<String>, BenchError> {
        let session = |number: u32| Session::new((1 << 41) + u64::from(number), "", ROOM);
        let all = (0..self.options.clients.connections).map(session).collect();
        let mut sessions = Sessions::open(self.addr()?, all)?;
        while !sessions.all(|session| session.is_open) {
            sessions.poll()?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let mut api = self.server.api()?;
        for (number, (own, _)) in pairs.iter_mut().enumerate() {
            let mut costs = [0.0; 2];
            let order = if number % 2 == 0 { [false, true] } else { [true, false] };
            for is_stored in order {
                match self.room_window(&mut api, &mut sessions, is_stored)? {
                    Ok(cost) => costs[usize::from(is_stored)] = cost,
                    Err(fault) => return Ok(vec![fault]),
                }
            }
            let [transient, stored] = costs;
            let ratio = stored / transient.max(1e-9);
            if transient > 0.0 {
                own.push(Figure::absolute(
                    "stored to transient room message, server CPU",
                    Unit::Ratio,
                    ratio,
                ));
                let millis = transient * 1e3;
                own.push(Figure::absolute("transient room message, server CPU", Unit::Milliseconds, millis));
            }
            self.progress.done(&format!("room, pair {}: stored {ratio:.2} of transient", number + 1));
        }
        Ok(Vec::new())
    }

    /// Returns the server's CPU seconds per message, 0 when its process is unknown, or the
    /// fault.
    fn room_window(
        &self,
        api: &mut Api,
        sessions: &mut Sessions,
        is_stored: bool,
    ) -> Result<Result<f64, String>, BenchError> {
        let cpus = self.options.run.server_cpus();
        let text = Random(9).text(self.arguments.size);
        let before = cpu_time(self.server.pid, &cpus);
        for _ in 0..self.arguments.room_messages {
            let expected = sessions.received() + u64::from(self.options.clients.connections);
            let to = json!({ "room": ROOM });
            let message = if is_stored {
                stored(&to, &text)
            } else {
                json!({ "to": to, "operation": OPERATION, "body": text })
            };
            post(api, &[message])?;
            let began = Instant::now();
            while sessions.received() < expected {
                sessions.poll()?;
                if began.elapsed() > self.options.clients.patience {
                    let missing = expected - sessions.received();
                    return Ok(Err(format!("{missing} notifications of a room message are missing")));
                }
            }
        }
        let used = cpu_time(self.server.pid, &cpus).zip(before);
        let used = used.map_or(Duration::ZERO, |(after, before)| after.saturating_sub(before));
        Ok(Ok(used.as_secs_f64() / f64::from(self.arguments.room_messages)))
    }

    fn addr(&self) -> Result<std::net::SocketAddr, BenchError> {
        let target = self.server.targets.first();
        target.map(|target| target.addr).ok_or_else(|| BenchError::Usage("--over names no transport".into()))
    }
}

/// The room of all sessions.
const ROOM: &str = "bench://sync";

fn acknowledgement_figures(latency: &Latency) -> Vec<Figure> {
    latency_figures(
        &latency.percentiles(),
        [
            ("acknowledgement p50, to fdatasync", |latency| latency.p50),
            ("acknowledgement p99, to fdatasync", |latency| latency.p99),
        ],
    )
}

/// Measures writing 4 KiB with `fdatasync`.
fn fdatasync(folder: &Path) -> Result<Latency, BenchError> {
    let failed = |error| BenchError::failed("cannot write beside the timelines", error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.with_extension("fdatasync");
    let mut file = std::fs::File::create(&path).map_err(failed)?;
    let mut latency = Latency::default();
    for _ in 0..300 {
        let began_ns = now_ns();
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).map_err(failed)?;
        latency.record(began_ns, now_ns());
    }
    drop(file);
    std::fs::remove_file(path).map_err(failed)?;
    Ok(latency)
}

/// Runs a function on several threads, given the number of the thread, and returns all results.
fn in_parallel<T: Send>(
    threads: u32,
    run: impl Fn(u32) -> Result<T, BenchError> + Sync,
) -> Result<Vec<T>, BenchError> {
    let run = &run;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || run(number))).collect();
        let joined = running.into_iter().map(|thread| {
            thread.join().map_err(|_| BenchError::Failed("a thread of the benchmark panicked".into()))?
        });
        joined.collect()
    })
}

/// Encodes a stored message.
fn stored(to: &Value, body: &str) -> Value {
    json!({ "to": to, "operation": OPERATION, "body": body, "delivery": "stored" })
}

fn post(api: &mut Api, messages: &[Value]) -> Result<(), BenchError> {
    let body = json!({ "messages": messages }).to_string();
    let response = api.post("/v1/push", "Content-Type: application/json\r\n", body.as_bytes())?;
    if response.status == 200 {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&response.body).into_owned();
    Err(BenchError::Refused(format!("status {}, {text}", response.status)))
}

/// A folder for timelines. Dropping it removes the folder.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("goim-bench-sync-{}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the disk space of all files in a folder, in bytes.
fn disk_usage(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => disk_usage(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Xorshift: fast, and the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns letters, half of them constant, so that they compress like messages.
    fn text(&mut self, size: usize) -> String {
        let random: String = (0..size / 2).map(|_| char::from(b'a' + (self.next() % 26) as u8)).collect();
        random + &"the same in all of them ".repeat(size / 24 + 1)[..size - size / 2]
    }
}
