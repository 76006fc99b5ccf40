//! `goim bench sync`: messages that are kept, from the publisher to the disk and back to the members.
//!
//! Four parts, each a question of its own: how many messages a second are durable and how soon that is answered, beside a bare
//! `fdatasync` in the same folder; how fast they are read back; how soon everybody who was away has caught up; and what a stored message to a
//! room costs beside a transient one.

mod sessions;

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use goim_wire::Packet;
use goim_wire::sync::{Body as _, SyncReply};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::error::BenchError;
use crate::http::Api;
use crate::load::duration;
use crate::outcome::float;
use crate::pair::{OPERATION, Server, Subject};
use crate::paper::Paper;
use crate::progress::Progress;
use crate::server::{softirq_us, usage};
use crate::summary::{Figure, Pair, Unit};
use sessions::{Session, Sessions};

/// Messages that are kept, over HTTP and over connections. Needs a server of its own: with `--spawn` it keeps them in a folder that is removed
/// afterwards, unless `--set timelines.postgres=...` says where.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Members whose inboxes are written to
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    timelines: u64,
    /// Kept HTTP connections that publish, each with one request outstanding
    #[arg(long, default_value_t = 16, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    publishers: u32,
    /// Messages in one request
    #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    together: u32,
    /// Bytes in the body of a message
    #[arg(long, default_value_t = 200, value_name = "BYTES")]
    size: usize,
    /// How long is published, and how long read back
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Messages that each session is behind when all come back at once
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    behind: u32,
    /// Messages to the room of all, of each kind, in one pair of blocks
    #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    room_messages: u32,
    /// Leave out the sessions: only what is written and read over HTTP
    #[arg(long)]
    no_sessions: bool,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench sync --spawn --server-cpus none --client-cpus none
  goim bench sync --spawn --no-sessions --timelines 1000000
  goim bench sync --spawn --no-sessions --set timelines.postgres=postgres://goim@127.0.0.1:5432/goim";

/// Everything.
///
/// # Errors
/// When a request is refused, or not everybody catches up.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let folder = Folder::new();
    let mut subject = arguments.subject.clone();
    if subject.spawn && !subject.set.iter().any(|setting| setting.starts_with("timelines.")) {
        subject.set.push(format!("timelines.folder={}", folder.0.display()));
    }
    let progress = Progress::new("goim bench sync");
    let server = subject.server()?;
    let mut pairs: Vec<Pair> = Vec::new();
    let (mut faults, mut accounts) = (Vec::new(), Vec::new());
    let mut appended = 0;
    for number in 0..subject.repeat {
        let reference = bare_sync(&folder.0)?;
        let published = publish(arguments, &subject, &server, number)?;
        appended += published.count;
        let read = read_back(arguments, &subject, &server)?;
        progress.done(&format!("pair {}: {:.0} durable messages a second", number + 1, published.per_second));
        let own = vec![
            Figure::alone("durable messages", Unit::PerSecond, published.per_second),
            Figure::compared("acknowledgement p50, beside fdatasync", Unit::Milliseconds, published.p50),
            Figure::compared("acknowledgement p99, beside fdatasync", Unit::Milliseconds, published.p99),
            Figure::alone("messages read back", Unit::PerSecond, read),
        ];
        let other = vec![
            Figure::compared("acknowledgement p50, beside fdatasync", Unit::Milliseconds, reference.0),
            Figure::compared("acknowledgement p99, beside fdatasync", Unit::Milliseconds, reference.1),
        ];
        pairs.push((own, Some(other)));
    }
    if folder.0.exists() {
        let each = float(size_of(&folder.0)) / float(appended);
        accounts.push(format!(
            "on the disk: {each:.0} bytes for a message with {} bytes of body",
            arguments.size
        ));
    }
    if !arguments.no_sessions {
        let caught_up = catch_up(arguments, &subject, &server, &progress)?;
        for (own, _) in &mut pairs {
            own.extend(caught_up.iter().copied());
        }
        room(arguments, &subject, &server, &progress, &mut pairs, &mut faults)?;
    }
    let more = [
        ("timelines", arguments.timelines.to_string()),
        ("publishers", arguments.publishers.to_string()),
        ("messages in a request", arguments.together.to_string()),
        ("size", format!("{} B", arguments.size)),
    ];
    let mut paper = Paper::new("goim bench sync", &subject, &more, pairs)?;
    (paper.accounts, paper.faults) = (accounts, faults);
    Ok(paper)
}

/// p50 and p99 of writing 4 KiB and having it on the disk, in milliseconds.
fn bare_sync(folder: &Path) -> Result<(f64, f64), BenchError> {
    let failed = |error| BenchError::failed("cannot write beside the timelines", error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.with_extension("fdatasync");
    let mut file = std::fs::File::create(&path).map_err(failed)?;
    let mut times = times();
    for _ in 0..300 {
        let begun = Instant::now();
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).map_err(failed)?;
        note(&mut times, begun);
    }
    drop(file);
    std::fs::remove_file(path).map_err(failed)?;
    Ok(quantiles(&times))
}

struct Published {
    count: u64,
    per_second: f64,
    p50: f64,
    p99: f64,
}

/// Messages to members drawn at random, as fast as they are answered.
fn publish(
    arguments: &Arguments,
    subject: &Subject,
    server: &Server,
    round: u32,
) -> Result<Published, BenchError> {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    let of_publisher = |publisher: u32| -> Result<Histogram<u64>, BenchError> {
        let mut api = Api::connect(&server.doors.http, subject.api_key.as_deref())?;
        let mut random = Random((u64::from(round) << 32) | (u64::from(publisher) + 1));
        let mut times = times();
        while begun.elapsed() < arguments.seconds {
            let messages: Vec<Value> = (0..arguments.together)
                .map(|_| {
                    let mid = 1 + random.next() % arguments.timelines;
                    stored(&json!({ "mids": [mid] }), &random.text(arguments.size))
                })
                .collect();
            let at = Instant::now();
            post(&mut api, &messages)?;
            note(&mut times, at);
            count.fetch_add(u64::from(arguments.together), Ordering::Relaxed);
        }
        Ok(times)
    };
    let mut all = times();
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..arguments.publishers).map(|publisher| scope.spawn(move || of_publisher(publisher))).collect();
        running.into_iter().try_for_each(|publisher| {
            let times = publisher.join().map_err(|_| BenchError::Failed("a publisher panicked".into()))??;
            all.add(times).map_err(|error| BenchError::Failed(error.to_string()))
        })
    })?;
    let count = count.into_inner();
    let (p50, p99) = quantiles(&all);
    Ok(Published { count, per_second: float(count) / begun.elapsed().as_secs_f64(), p50, p99 })
}

fn stored(to: &Value, body: &str) -> Value {
    json!({ "to": to, "operation": OPERATION, "body": body, "delivery": "stored" })
}

fn post(api: &mut Api, messages: &[Value]) -> Result<(), BenchError> {
    let body = json!({ "messages": messages }).to_string();
    let answer = api.post("/v1/push", "Content-Type: application/json\r\n", body.as_bytes())?;
    if answer.status == 200 {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    Err(BenchError::Failed(format!("the server says {}: {text}", answer.status)))
}

/// Ranges of inboxes drawn at random, as packets, messages a second.
fn read_back(arguments: &Arguments, subject: &Subject, server: &Server) -> Result<f64, BenchError> {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    let of_reader = |reader: u32| -> Result<(), BenchError> {
        let mut api = Api::connect(&server.doors.http, subject.api_key.as_deref())?;
        let mut random = Random(u64::from(reader) + 77);
        while begun.elapsed() < arguments.seconds {
            let mid = 1 + random.next() % arguments.timelines;
            let path = format!("/v1/sync?timeline=mid://{mid}&mid={mid}");
            let answer = api.get(&path, "Accept: application/octet-stream\r\n")?;
            let packet = Packet::from_message(&answer.body, usize::MAX);
            let packet = packet.map_err(|_| BenchError::Failed("a range is no packet".into()))?;
            let reply = SyncReply::read(bytes::Bytes::copy_from_slice(packet.body)).unwrap_or_default();
            count.fetch_add(reply.messages.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|reader| scope.spawn(move || of_reader(reader))).collect();
        running.into_iter().try_for_each(|reader| {
            reader.join().map_err(|_| BenchError::Failed("a reader panicked".into()))?
        })
    })?;
    Ok(float(count.into_inner()) / begun.elapsed().as_secs_f64())
}

/// Everybody comes back at once, each so many messages behind.
fn catch_up(
    arguments: &Arguments,
    subject: &Subject,
    server: &Server,
    progress: &Progress,
) -> Result<Vec<Figure>, BenchError> {
    let members: Vec<u64> = (1..=u64::from(subject.connections)).map(|number| (1 << 40) + number).collect();
    let mut api = Api::connect(&server.doors.http, subject.api_key.as_deref())?;
    let text = Random(5).text(arguments.size);
    progress.phase("storing", u64::from(arguments.behind));
    for number in 0..arguments.behind {
        for some in members.chunks(1_000) {
            post(&mut api, &[stored(&json!({ "mids": some }), &text)])?;
        }
        progress.at(u64::from(number));
    }
    let before = server.pid.and_then(usage);
    let begun = Instant::now();
    let wanted = u64::from(arguments.behind);
    let of_member = |mid: &u64| Session::new(*mid, &format!("mid://{mid}"), "");
    let mut sessions = Sessions::open(server.target.addr, members.iter().map(of_member).collect())?;
    let (mut peak, mut looked) = (0, begun);
    while !sessions.all(|session| session.messages >= wanted) {
        sessions.turn()?;
        if looked.elapsed() > Duration::from_millis(50) {
            looked = Instant::now();
            peak = peak.max(server.pid.and_then(usage).map_or(0, |usage| usage.rss_bytes));
        }
        if begun.elapsed() > Duration::from_secs(120) {
            return Err(BenchError::Failed("not everybody has caught up within two minutes".into()));
        }
    }
    let took = begun.elapsed();
    let grown = peak.saturating_sub(before.map_or(0, |usage| usage.rss_bytes));
    progress.done(&format!("{} sessions have caught up in {took:.2?}", members.len()));
    Ok(vec![
        Figure::alone("everybody has caught up", Unit::Milliseconds, took.as_secs_f64() * 1e3),
        Figure::alone("memory that this took", Unit::Mebibytes, float(grown) / 1_048_576.0),
    ])
}

/// A stored and a transient message to a room of everybody, in turn.
fn room(
    arguments: &Arguments,
    subject: &Subject,
    server: &Server,
    progress: &Progress,
    pairs: &mut [Pair],
    faults: &mut Vec<String>,
) -> Result<(), BenchError> {
    let room = "bench://sync";
    let of_member = |number: u32| Session::new((1 << 41) + u64::from(number), "", room);
    let mut sessions = Sessions::open(server.target.addr, (0..subject.connections).map(of_member).collect())?;
    while !sessions.all(|session| session.is_open) {
        sessions.turn()?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let (server_cpus, _) = subject.processors()?;
    let cpu = || {
        let own = server.pid.and_then(crate::clock::cpu_of)?;
        Some(own + Duration::from_micros(softirq_us(&server_cpus)))
    };
    let mut api = Api::connect(&server.doors.http, subject.api_key.as_deref())?;
    let text = Random(9).text(arguments.size);
    for (number, (own, _)) in pairs.iter_mut().enumerate() {
        let mut costs = [0.0; 2];
        let kinds = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        for kind in kinds {
            let before = cpu();
            for _ in 0..arguments.room_messages {
                let expected = sessions.received() + u64::from(subject.connections);
                let message = match kind {
                    0 => json!({ "to": { "room": room }, "operation": OPERATION, "body": text }),
                    _ => stored(&json!({ "room": room }), &text),
                };
                post(&mut api, &[message])?;
                let begun = Instant::now();
                while sessions.received() < expected {
                    sessions.turn()?;
                    if begun.elapsed() > subject.patience {
                        faults.push(format!(
                            "{} words of a room message are missing",
                            expected - sessions.received()
                        ));
                        return Ok(());
                    }
                }
            }
            if let (Some(before), Some(after)) = (before, cpu()) {
                costs[kind] =
                    (after.saturating_sub(before)).as_secs_f64() / f64::from(arguments.room_messages);
            }
        }
        if costs[0] > 0.0 {
            own.push(Figure::alone(
                "stored room message beside a transient one, server CPU",
                Unit::Ratio,
                costs[1] / costs[0],
            ));
            own.push(Figure::alone("transient room message, server CPU", Unit::Milliseconds, costs[0] * 1e3));
        }
        progress.done(&format!(
            "room, pair {}: stored {:.2} of transient",
            number + 1,
            costs[1] / costs[0].max(1e-9)
        ));
    }
    Ok(())
}

/// In microseconds.
fn times() -> Histogram<u64> {
    // Three digits are among those that it knows.
    Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits"))
}

fn note(times: &mut Histogram<u64>, begun: Instant) {
    // A time that does not fit would be longer than the age of the machine.
    let _ = times.record(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
}

/// p50 and p99 in milliseconds.
fn quantiles(times: &Histogram<u64>) -> (f64, f64) {
    (float(times.value_at_quantile(0.5)) / 1e3, float(times.value_at_quantile(0.99)) / 1e3)
}

/// A folder that goes with the benchmark.
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

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Xorshift: the same for the same seed, and quick.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Letters, half of them always the same: as compressible as messages are.
    fn text(&mut self, size: usize) -> String {
        let drawn: String = (0..size / 2).map(|_| char::from(b'a' + (self.next() % 26) as u8)).collect();
        drawn + &"the same in all of them ".repeat(size / 24 + 1)[..size - size / 2]
    }
}
