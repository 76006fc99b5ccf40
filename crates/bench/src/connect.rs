//! `goim-bench connect`: connections per second, and the memory of sessions.

use std::time::{Duration, Instant};

use clap::Args;

use crate::bare::Bare;
use crate::clock::now_ns;
use crate::control::{Command, Plan, Target};
use crate::error::BenchError;
use crate::figures::{Figure, Unit, float};
use crate::fleet::Fleet;
use crate::machine::slab_bytes;
use crate::message::{Message, new_run};
use crate::options::{ClientOptions, Options};
use crate::pair::figures;
use crate::progress::Progress;
use crate::publisher::Audience;
use crate::report::{Plot, PlotKind, Report, Series};
use crate::sizes::Sizes;
use crate::system::{Server, System, wait_connected};
use crate::totals::Totals;
use crate::usage::{Memory, MemoryProfile, cpu_time};
use crate::window::{LoadPattern, Window, latency_figures};

/// Time between two connect windows, for the server to clean up.
const PAUSE: Duration = Duration::from_secs(4);
/// Time between the end of all sessions and reading the memory, for the server to return memory.
const LEAVING_SETTLES: Duration = Duration::from_secs(8);
/// Time between connecting or messages and reading the memory.
const IDLE_SETTLES: Duration = Duration::from_secs(6);
/// Sessions before the first reading of the memory, so that code which has never run is in memory.
const WARM_UP: u32 = 200;

/// Has all clients connect and authenticate at once, several times, in windows that alternate with
/// a loop that only accepts and answers. Then measures the server's memory: before, while they
/// connect, idle, after messages, and after all have left.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Messages to all, before the memory is read again
    #[arg(long, default_value_t = 10, value_name = "NUMBER")]
    broadcasts: u32,
    /// Measure the memory only
    #[arg(long)]
    memory_only: bool,
}

const AFTER_HELP: &str = "\
Each session has a key of 36 bytes, a member, a room and three subscriptions.

Examples:
  goim-bench connect --spawn                                 10,000 over TCP
  goim-bench connect --spawn --over ws --html connect.html   over WebSocket, with plots
  goim-bench connect --spawn --over tls --memory-only        the memory of a session over TLS";

/// Measures all windows, and the memory.
///
/// # Errors
/// When a client cannot connect.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let progress = Progress::new("goim-bench connect");
    let server = Server::start(options)?;
    let bare = System::bare(options)?;
    let repeat = if arguments.memory_only { 0 } else { options.run.repeat };
    let of_server = || window(options, server.targets.clone(), server.pid, &progress);
    let of_bare = |bare: &Bare| window(options, vec![bare.target()], Some(bare.pid()), &progress);
    let mut windows = Vec::new();
    for number in 0..repeat {
        let both = if number.is_multiple_of(2) {
            (of_server()?, bare.as_ref().map(of_bare).transpose()?)
        } else {
            let reference = bare.as_ref().map(of_bare).transpose()?;
            (of_server()?, reference)
        };
        let per_second = float(both.0.messages) / both.0.seconds;
        progress.done(&format!("window {} of {repeat}: {per_second:.0} per second", number + 1));
        windows.push(both);
    }
    drop(bare);
    let pairs = figures(&windows, window_figures);
    let memory = match server.pid {
        Some(pid) => Some(MemoryRun::measure(arguments, server, pid, &progress)?),
        None => None,
    };
    let more = [("messages to all", arguments.broadcasts.to_string())];
    let mut report = Report::new("goim-bench connect", options, &more, pairs);
    if let Some(memory) = memory {
        report.add_to_each(&memory.figures(options.clients.connections));
        report.plots.push(memory.plot());
        report.faults = memory.faults;
        report.accounts.push(memory.account);
    }
    Ok(report)
}

/// Connects and authenticates all clients. In the window, `messages` are connections.
fn window(
    options: &Options,
    targets: Vec<Target>,
    pid: Option<u32>,
    progress: &Progress,
) -> Result<Window, BenchError> {
    std::thread::sleep(PAUSE);
    let clients = &options.clients;
    let plan = clients.plan(new_run(), 1, targets)?;
    let cpus = options.run.server_cpus();
    let (before, began_ns) = (cpu_time(pid, &cpus), now_ns());
    let mut fleet = Fleet::launch(clients.workers()?, &plan, &options.run.client_cpus())?;
    wait_connected(&mut fleet, clients.connections, progress)?;
    let after = cpu_time(pid, &cpus);
    let took_ns = fleet.overall().last_opened_ns.saturating_sub(began_ns).max(1);
    let client_cpu = fleet.cpu();
    let latency = Totals::of(&fleet.reports(&[0])?).connect;
    fleet.close();
    Ok(Window {
        seconds: float(took_ns) / 1e9,
        messages: u64::from(clients.connections),
        server_cpu: after.zip(before).map(|(after, before)| after.saturating_sub(before)),
        client_cpu,
        latency,
        ..Window::default()
    })
}

fn window_figures(window: &Window) -> Vec<Figure> {
    let per_second = float(window.messages) / window.seconds;
    let mut list = vec![Figure::new("authenticated connections", Unit::PerSecond, per_second)];
    list.extend(
        window.cpu_figures(["server CPU per connection", "client CPU per connection"], window.messages),
    );
    list.extend(latency_figures(
        &window.latency.percentiles(),
        [("connect p50", |latency| latency.p50), ("connect p99", |latency| latency.p99)],
    ));
    list
}

/// The server's memory from before the first client until after the last.
struct MemoryRun {
    profile: MemoryProfile,
    /// While clients connect: their number, and the memory in MiB.
    growth: Vec<(f64, f64)>,
    /// The kernel's memory per connection, both ends.
    kernel: Option<f64>,
    account: String,
    faults: Vec<String>,
}

impl MemoryRun {
    fn measure(
        arguments: &Arguments,
        server: Server,
        pid: u32,
        progress: &Progress,
    ) -> Result<Self, BenchError> {
        let options = &arguments.options;
        let read = || Memory::of(pid).ok_or_else(|| BenchError::Failed(format!("no process {pid} to read")));
        warm_up(options, &server, progress)?;
        let (before, slab) = (read()?, slab_bytes());
        let growth = growth(options, &server, pid, progress)?;
        let mut system = System::of_server(options, server, 1, Sizes::Fixed(64), progress)?;
        progress.phase("idle", 0);
        std::thread::sleep(IDLE_SETTLES);
        let idle = read()?;
        let per_client = |bytes: u64| float(bytes) / f64::from(options.clients.connections);
        let kernel = slab.zip(slab_bytes()).map(|(before, after)| per_client(after.saturating_sub(before)));
        if arguments.broadcasts > 0 {
            let pattern = LoadPattern::Drained { bursts: arguments.broadcasts };
            system.window(Audience::All, pattern, 1, progress)?;
        }
        progress.phase("after messages", 0);
        std::thread::sleep(IDLE_SETTLES);
        let after_messages = read()?;
        let (account, faults) = (system.account(), system.faults()?);
        let System { fleet, source, .. } = system;
        fleet.close();
        progress.phase("after leaving", 0);
        std::thread::sleep(LEAVING_SETTLES);
        let after_leaving = read()?;
        progress.clear();
        drop(source);
        let profile = MemoryProfile { before, idle, after_messages, after_leaving };
        Ok(Self { profile, growth, kernel, account, faults })
    }

    fn figures(&self, connections: u32) -> Vec<Figure> {
        let kernel = self
            .kernel
            .map(|bytes| Figure::absolute("kernel memory, both ends of a connection", Unit::Bytes, bytes));
        self.profile.figures(connections).into_iter().chain(kernel).collect()
    }

    fn plot(&self) -> Plot {
        Plot {
            title: "Memory by connections".into(),
            x: "connections".into(),
            y: "MiB (RSS)".into(),
            kind: PlotKind::Linear,
            series: vec![Series { name: "server".into(), points: self.growth.clone() }],
        }
    }
}

/// Connects a few sessions, sends messages to them and closes them.
fn warm_up(options: &Options, server: &Server, progress: &Progress) -> Result<(), BenchError> {
    let run = new_run();
    let connections = WARM_UP.min(options.clients.connections);
    let few = ClientOptions { connections, workers: Some(1), ..options.clients.clone() };
    let plan = few.plan(run, 1, server.targets.clone())?;
    let mut fleet = Fleet::launch(1, &plan, &options.run.client_cpus())?;
    wait_connected(&mut fleet, connections, progress)?;
    let mut http = server.publisher(run)?;
    let body = Message { run, stream: 0, number: 0, due_ns: now_ns() }.encode(64);
    for _ in 0..20 {
        http.publish(Audience::All, &body)?;
        http.publish(Audience::Room, &body)?;
    }
    std::thread::sleep(Duration::from_secs(1));
    fleet.close();
    std::thread::sleep(LEAVING_SETTLES);
    Ok(())
}

/// Connects the clients in ten steps, reads the memory after each, and closes them.
fn growth(
    options: &Options,
    server: &Server,
    pid: u32,
    progress: &Progress,
) -> Result<Vec<(f64, f64)>, BenchError> {
    let memory = || Memory::of(pid).map_or(0.0, |memory| memory.rss_mebibytes());
    let clients = ClientOptions { workers: Some(1), ..options.clients.clone() };
    let plan = clients.plan(new_run(), 1, server.targets.clone())?;
    let mut fleets: Vec<Fleet> = Vec::new();
    let mut points = vec![(0.0, memory())];
    for step in 1..=10_u32 {
        let bound = |at: u32| clients.connections * at / 10;
        let (first, count) = (bound(step - 1), bound(step) - bound(step - 1));
        if count == 0 {
            continue;
        }
        let part = Plan { first, count, ..plan.clone() };
        let mut fleet = Fleet::launch(1, &part, &options.run.client_cpus())?;
        wait_connected(&mut fleet, count, progress)?;
        std::thread::sleep(Duration::from_millis(500));
        points.push((f64::from(bound(step)), memory()));
        fleets.push(fleet);
    }
    let until = Instant::now() + LEAVING_SETTLES;
    for mut fleet in fleets {
        // Fails for a worker that has ended, which needs no command.
        let _ = fleet.send_all(&Command::Close);
        fleet.close();
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    Ok(points)
}
