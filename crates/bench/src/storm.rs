//! `goim bench connect`: how fast everybody can come, and what everybody costs in memory.

use std::time::{Duration, Instant};

use clap::Args;

use crate::bare::Bare;
use crate::clock::now_ns;
use crate::control::{Command, Plan, Target};
use crate::error::BenchError;
use crate::fleet::Fleet;
use crate::load::{Load, new_run};
use crate::machine::slab_bytes;
use crate::outcome::{each, float};
use crate::pair::{Rhythm, Server, Side, Subject};
use crate::paper::{Paper, Plot, PlotKind, Series};
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::server::{Usage, softirq_us, usage};
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Between a storm and the next: what those who left cause is over then.
const PAUSE: Duration = Duration::from_secs(4);
/// How long after everybody has left the memory is looked at: what is given back is given back by then.
const GONE_SETTLES: Duration = Duration::from_secs(8);
/// How long after connecting or messages.
const IDLE_SETTLES: Duration = Duration::from_secs(6);
/// Sessions of the short life before memory is measured, so that code which was never used is in memory already.
const WARM_UP: u32 = 200;

/// Has everybody connect and authenticate at once, several times, in turn with a loop that only accepts and answers; then
/// looks at the server's memory through one life: connecting, idle, after messages to all, everybody gone.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Messages to all between the second and the third look at the memory
    #[arg(long, default_value_t = 10, value_name = "NUMBER")]
    broadcasts: u32,
    /// Leave out the storms and look at the memory only
    #[arg(long)]
    memory_only: bool,
}

const AFTER_HELP: &str = "\
Each session has a key of 36 bytes, a member, a room and three subscriptions.

Examples:
  goim bench connect --spawn                                 10,000 over TCP
  goim bench connect --spawn --over ws --html connect.html   over WebSocket, with plots
  goim bench connect --spawn --over tls --memory-only        what a session inside TLS costs";

/// One storm.
struct Storm {
    per_second: f64,
    server_cpu: Option<Duration>,
    client_cpu: Duration,
    p50: Duration,
    p99: Duration,
}

/// Everything.
///
/// # Errors
/// When not everybody can connect.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let subject = &arguments.subject;
    let progress = Progress::new("goim bench connect");
    let load = subject.load()?;
    let server = subject.server()?;
    let bare = subject.bare()?;
    let mut pairs: Vec<Pair> = Vec::new();
    let storms = if arguments.memory_only { 0 } else { subject.repeat };
    for number in 0..storms {
        let own = |progress: &Progress| storm(&load, server.target.clone(), server.pid, progress);
        let other = |progress: &Progress| {
            let storm_of = |bare: &Bare| storm(&load, bare.target(), Some(bare.pid()), progress);
            bare.as_ref().map(storm_of).transpose()
        };
        let (server_storm, reference) = if number % 2 == 0 {
            let own = own(&progress)?;
            (own, other(&progress)?)
        } else {
            let other = other(&progress)?;
            (own(&progress)?, other)
        };
        progress.done(&format!("storm {} of {storms}: {:.0} a second", number + 1, server_storm.per_second));
        pairs.push((figures(&server_storm, subject), reference.map(|storm| figures(&storm, subject))));
    }
    drop(bare);
    let life = match server.pid {
        Some(_) => Some(life(arguments, &load, server, &progress)?),
        None => None,
    };
    if let Some(life) = &life {
        if pairs.is_empty() {
            pairs.push((Vec::new(), None));
        }
        for (own, _) in &mut pairs {
            own.extend(memory_figures(life, subject.connections));
        }
    }
    let more = [("messages to all", arguments.broadcasts.to_string())];
    let mut paper = Paper::new("goim bench connect", subject, &more, pairs)?;
    if let Some(life) = life {
        paper.faults = life.faults.clone();
        paper.accounts.push(life.account.clone());
        paper.plots.push(life.plot());
    }
    Ok(paper)
}

fn storm(load: &Load, target: Target, pid: Option<u32>, progress: &Progress) -> Result<Storm, BenchError> {
    std::thread::sleep(PAUSE);
    let softirq = || Duration::from_micros(softirq_us(&load.server_cpus));
    let plan = load.plan(new_run(), vec![target])?;
    let cpu = || Some(pid.and_then(crate::clock::cpu_of)? + softirq());
    let before = cpu();
    let began_ns = now_ns();
    let mut fleet = crate::pair::open(load, &plan, progress)?;
    let after = cpu();
    let seconds = float(fleet.overall().last_opened_ns.saturating_sub(began_ns)) / 1e9;
    let client_cpu = fleet.cpu();
    let latency = crate::outcome::Sum::of(&fleet.reports(&[0, 0])?).connect.percentiles();
    fleet.close();
    Ok(Storm {
        per_second: f64::from(load.connections) / seconds.max(1e-9),
        server_cpu: after.zip(before).map(|(after, before)| after.saturating_sub(before)),
        client_cpu,
        p50: latency.p50,
        p99: latency.p99,
    })
}

fn figures(storm: &Storm, subject: &Subject) -> Vec<Figure> {
    let count = u64::from(subject.connections);
    let mut list = vec![Figure::compared("authenticated connections", Unit::PerSecond, storm.per_second)];
    if let Some(cpu) = storm.server_cpu {
        list.push(Figure::compared("server CPU per connection", Unit::Microseconds, each(cpu, count)));
    }
    let client = each(storm.client_cpu, count);
    list.push(Figure::compared("client CPU per connection", Unit::Microseconds, client));
    list.push(Figure::compared("connect p50", Unit::Milliseconds, storm.p50.as_secs_f64() * 1e3));
    list.push(Figure::compared("connect p99", Unit::Milliseconds, storm.p99.as_secs_f64() * 1e3));
    list
}

/// The server's memory in the course of one life.
struct Life {
    before: Usage,
    /// While they connect: how many there are, and the memory.
    coming: Vec<(f64, f64)>,
    idle: Usage,
    after_traffic: Usage,
    gone: Usage,
    /// The kernel's memory for one connection, both ends.
    kernel: Option<f64>,
    account: String,
    faults: Vec<String>,
}

fn life(arguments: &Arguments, load: &Load, server: Server, progress: &Progress) -> Result<Life, BenchError> {
    let subject = &arguments.subject;
    let pid = server.pid.unwrap_or_default();
    let look = || usage(pid).ok_or_else(|| BenchError::Failed(format!("no process {pid} to look at")));
    let rhythm = Rhythm::Drained { bursts: arguments.broadcasts };
    warm_up(&server, load, progress)?;
    let before = look()?;
    let slab = slab_bytes();
    let coming = come(load, &server, pid, progress)?;
    let mut side = Side::of_server(subject, server, 1, Sizes::Fixed(64), progress)?;
    progress.phase("idle", 0);
    std::thread::sleep(IDLE_SETTLES);
    let idle = look()?;
    let kernel = slab
        .zip(slab_bytes())
        .map(|(before, after)| float(after.saturating_sub(before)) / f64::from(subject.connections));
    if arguments.broadcasts > 0 {
        side.block(Audience::All, rhythm, 1, progress)?;
    }
    progress.phase("quiet", 0);
    std::thread::sleep(IDLE_SETTLES);
    let after_traffic = look()?;
    let (account, faults) = (side.account(), side.faults()?);
    let Side { fleet, source, .. } = side;
    fleet.close();
    progress.phase("gone", 0);
    std::thread::sleep(GONE_SETTLES);
    let gone = look()?;
    progress.over();
    drop(source);
    Ok(Life { before, coming, idle, after_traffic, gone, kernel, account, faults })
}

/// A few sessions come, get messages and leave.
fn warm_up(server: &Server, load: &Load, progress: &Progress) -> Result<(), BenchError> {
    let run = new_run();
    let few = Load { connections: WARM_UP.min(load.connections), workers: Some(1), ..load.clone() };
    let plan = few.plan(run, vec![server.target.clone()])?;
    let fleet = crate::pair::open(&few, &plan, progress)?;
    let mut http = server.publisher(run)?;
    let body = crate::message::Message { run, stream: 0, number: 0, due_ns: now_ns() }.encode(64);
    for _ in 0..20 {
        http.publish(Audience::All, &body)?;
        http.publish(Audience::Room, &body)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    fleet.close();
    std::thread::sleep(GONE_SETTLES);
    Ok(())
}

/// A tenth more of them each time, with a look at the memory; then all leave again.
fn come(load: &Load, server: &Server, pid: u32, progress: &Progress) -> Result<Vec<(f64, f64)>, BenchError> {
    let mut fleets: Vec<Fleet> = Vec::new();
    let mut points = vec![(0.0, usage(pid).map_or(0.0, |usage| float(usage.rss_bytes) / 1_048_576.0))];
    let run = new_run();
    for tenth in 1..=10_u32 {
        let bound = |at: u32| load.connections * at / 10;
        let (first, count) = (bound(tenth - 1), bound(tenth) - bound(tenth - 1));
        if count == 0 {
            continue;
        }
        let part = Load { connections: count, workers: Some(1), ..load.clone() };
        let whole = load.plan(run, vec![server.target.clone()])?;
        let mut fleet = Fleet::launch(1, &Plan { first, count, ..whole }, &part.client_cpus)?;
        crate::pair::wait_open(&mut fleet, count, progress)?;
        std::thread::sleep(Duration::from_millis(500));
        points.push((
            f64::from(bound(tenth)),
            usage(pid).map_or(0.0, |usage| float(usage.rss_bytes) / 1_048_576.0),
        ));
        fleets.push(fleet);
    }
    let until = Instant::now() + GONE_SETTLES;
    for mut fleet in fleets {
        // One that has gone is closed.
        let _ = fleet.tell_all(&Command::Close);
        fleet.close();
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    Ok(points)
}

impl Life {
    fn plot(&self) -> Plot {
        Plot {
            title: "Memory over connections".into(),
            x: "connections".into(),
            y: "MiB (RSS)".into(),
            kind: PlotKind::Linear,
            series: vec![Series { name: "server".into(), points: self.coming.clone() }],
        }
    }
}

fn memory_figures(life: &Life, connections: u32) -> Vec<Figure> {
    let mebibytes = |usage: &Usage| float(usage.rss_bytes) / 1_048_576.0;
    let per_session = |usage: &Usage, of: fn(&Usage) -> u64| {
        float(of(usage).saturating_sub(of(&life.before))) / f64::from(connections.max(1))
    };
    let taken = life.after_traffic.rss_bytes.saturating_sub(life.before.rss_bytes);
    let given_back = life.after_traffic.rss_bytes.saturating_sub(life.gone.rss_bytes);
    let mut list = vec![
        Figure::alone("RSS per idle session", Unit::Bytes, per_session(&life.idle, |usage| usage.rss_bytes)),
        Figure::alone("PSS per idle session", Unit::Bytes, per_session(&life.idle, |usage| usage.pss_bytes)),
        Figure::alone(
            "RSS per session after messages",
            Unit::Bytes,
            per_session(&life.after_traffic, |usage| usage.rss_bytes),
        ),
        Figure::alone("RSS before", Unit::Mebibytes, mebibytes(&life.before)),
        Figure::alone("RSS, everybody idle", Unit::Mebibytes, mebibytes(&life.idle)),
        Figure::alone("RSS after messages", Unit::Mebibytes, mebibytes(&life.after_traffic)),
        Figure::alone("RSS, everybody gone", Unit::Mebibytes, mebibytes(&life.gone)),
        Figure::alone("given back", Unit::Percent, float(given_back) / float(taken.max(1)) * 100.0),
    ];
    if let Some(kernel) = life.kernel {
        list.push(Figure::alone("kernel, both ends of a connection", Unit::Bytes, kernel));
    }
    list
}
