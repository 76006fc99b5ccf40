//! The options that all benchmarks share, and the clients that follow from them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::control::{Plan, Target, Transport};
use crate::endpoints::Endpoints;
use crate::error::BenchError;
use crate::fleet::workers_needed;
use crate::machine::{cpu_count, outgoing_ports};

/// The operation of all messages.
pub(crate) const OPERATION: i32 = 1000;

/// Connections being opened at the same time, over all workers. Enough to keep the server busy, and
/// fewer than its backlog holds.
const CONNECTING_MAX: u32 = 512;

/// The options that all benchmarks share.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) clients: ClientOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// The server to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerOptions {
    /// Start a server on free ports
    #[arg(long, conflicts_with_all = ["tcp", "ws", "tls", "wss", "http", "server_pid"])]
    pub(crate) spawn: bool,
    /// The program that --spawn starts [default: `goim` beside this program, else from PATH]
    #[arg(long, requires = "spawn", value_name = "FILE")]
    pub(crate) goim: Option<PathBuf>,
    /// A setting for the server that --spawn starts; may be repeated
    #[arg(long, requires = "spawn", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    #[command(flatten)]
    pub(crate) endpoints: Endpoints,
    /// The key of the push API, where the server requires one
    #[arg(long, env = "GOIM_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// The server's process, where it is on this machine: its memory and CPU time are measured
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
}

/// The clients.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientOptions {
    /// How clients connect. Several transports, separated by commas, share the clients evenly
    #[arg(long, value_enum, default_value = "tcp", value_delimiter = ',', value_name = "TRANSPORT")]
    pub(crate) over: Vec<Transport>,
    /// Clients of the server; the reference gets as many
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Processes for the clients of one system [default: as many as the limit of open files
    /// requires]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: Option<u32>,
    /// The heartbeat interval of each client, apart from heartbeats that are measured
    #[arg(long, default_value = "2m", value_name = "DURATION", value_parser = duration)]
    pub(crate) heartbeat: Duration,
    /// The highest version that clients accept; they decompress 2 (zlib) and 3 (brotli). The
    /// reference never compresses
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(i16).range(1..=3))]
    pub(crate) protover: Option<i16>,
    /// Connect from this address; may be repeated [default: 127.0.0.2 and following to a loopback
    /// address]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Vec<IpAddr>,
    /// Missing messages count as lost when nothing has arrived for this long
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) patience: Duration,
}

/// Repetitions, processors and output.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// Measure the reference too: the bare send loop with the same messages
    #[arg(long, value_enum, default_value = "with", value_name = "MODE")]
    pub(crate) reference: ReferenceMode,
    /// Pairs of measurement windows. Figures are medians, with their range
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// Bind the server that is started, and the reference, to these CPUs; `none` binds nothing
    /// [default: the first of several]
    #[arg(long, value_name = "LIST", value_parser = CpuList::parse)]
    server_cpus: Option<CpuList>,
    /// Bind the clients to these CPUs; `none` binds nothing [default: all but the first]
    #[arg(long, value_name = "LIST", value_parser = CpuList::parse)]
    client_cpus: Option<CpuList>,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with figures and plots to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Whether the reference is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReferenceMode {
    /// The server and the reference
    With,
    /// The server only
    Without,
    /// The reference only
    Only,
}

/// CPU numbers; empty binds nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CpuList(Vec<usize>);

impl CpuList {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
        numbers.map(Self).map_err(|_| format!("expected CPU numbers such as 0,1 or `none`, found {text:?}"))
    }
}

impl RunOptions {
    /// Returns the CPUs of the server and of the reference; empty binds nothing.
    pub(crate) fn server_cpus(&self) -> Vec<usize> {
        let default = if cpu_count() > 1 { vec![0] } else { Vec::new() };
        self.server_cpus.as_ref().map_or(default, |list| list.0.clone())
    }

    /// Returns the CPUs of the clients; empty binds nothing.
    pub(crate) fn client_cpus(&self) -> Vec<usize> {
        let default = (1..cpu_count()).collect();
        self.client_cpus.as_ref().map_or(default, |list| list.0.clone())
    }
}

impl ClientOptions {
    /// Returns the number of processes that hold the clients.
    ///
    /// # Errors
    /// When the limit of open files leaves no room for a client.
    pub(crate) fn workers(&self) -> Result<u32, BenchError> {
        let workers = match self.workers {
            Some(workers) => workers,
            None => workers_needed(self.connections)?,
        };
        Ok(workers.min(self.connections))
    }

    /// Returns the plan of all clients of a run with these targets.
    ///
    /// # Errors
    /// See [`ClientOptions::workers`].
    pub(crate) fn plan(&self, run: u32, streams: u32, targets: Vec<Target>) -> Result<Plan, BenchError> {
        let (sources, clients_per_source) = self.sources(&targets);
        let (kind, room) = room(run);
        Ok(Plan {
            run,
            streams,
            targets,
            sources,
            clients_per_source,
            ports: outgoing_ports(),
            first: 0,
            count: self.connections,
            connecting_max: (CONNECTING_MAX / self.workers()?).max(1),
            operation: OPERATION,
            room: format!("{kind}://{room}"),
            protover: self.protover,
        })
    }

    /// Returns the addresses to connect from, and the number of clients per address.
    fn sources(&self, targets: &[Target]) -> (Vec<IpAddr>, u32) {
        if !self.source.is_empty() {
            let count = u32::try_from(self.source.len()).unwrap_or(u32::MAX);
            return (self.source.clone(), self.connections.div_ceil(count));
        }
        // Half of the ports: other programs may use some.
        let each = u32::from(outgoing_ports().1 / 2).max(1);
        let loopback = targets.iter().all(|target| target.addr.is_ipv4() && target.addr.ip().is_loopback());
        if !loopback {
            return (Vec::new(), each);
        }
        let address =
            |index: u32| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits().saturating_add(1 + index));
        ((0..self.connections.div_ceil(each)).map(|index| address(index).into()).collect(), each)
    }
}

impl Options {
    /// Returns the options as names and values, for the report.
    pub(crate) fn describe(&self) -> Vec<(String, String)> {
        let cpus = |list: Vec<usize>| match &list[..] {
            [] => "any".to_owned(),
            list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        };
        let over: Vec<_> = self.clients.over.iter().map(|transport| transport.name()).collect();
        vec![
            ("connections".into(), crate::table::number(f64::from(self.clients.connections))),
            ("over".into(), over.join(", ")),
            ("pairs of windows".into(), self.run.repeat.to_string()),
            ("server CPUs".into(), cpus(self.run.server_cpus())),
            ("client CPUs".into(), cpus(self.run.client_cpus())),
        ]
    }
}

/// Returns the room of a run: type and name, as the HTTP API takes them.
pub(crate) fn room(run: u32) -> (String, String) {
    ("bench".to_owned(), format!("{run:08x}"))
}

/// Parses `500ms`, `30s` or `4m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: expected a number with ms, s or m, such as 30s");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Parses a number of messages per second, above 0.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a rate: expected messages per second, above 0");
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &str) -> Result<Options, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(arguments.split_whitespace())).map(|line| line.options)
    }

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text).ok(), expect.map(Duration::from_millis), "{text}");
        };
        check("30s", Some(30_000));
        check("500ms", Some(500));
        check("1.5m", Some(90_000));
        check("0s", Some(0));
        for wrong in ["", "30", "s", "-1s", "1h", "1 s", "1.2.3s", "99999999999999999999s"] {
            check(wrong, None);
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        assert!(options("").is_ok());
        assert!(options("--spawn --set a=b --set c=d").is_ok());
        for wrong in [
            "--connections 0",
            "--workers 0",
            "--repeat 0",
            "--server-cpus a",
            "--over udp",
            "--spawn --tcp 127.0.0.1:1",
            "--set a=b",
        ] {
            assert!(options(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "-1", "inf", "x"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lists_of_cpus() {
        let cpus = |arguments| options(arguments).unwrap().run.server_cpus();
        assert_eq!(cpus("--server-cpus none"), Vec::<usize>::new());
        assert_eq!(cpus("--server-cpus 1,3"), [1, 3]);
        assert!(CpuList::parse("a").unwrap_err().contains("found \"a\""));
    }

    #[test]
    fn sources_have_enough_ports() {
        let target = |addr: &str| Target {
            transport: Transport::Tcp,
            addr: addr.parse().unwrap(),
            host: addr.into(),
            path: String::new(),
        };
        let clients = options("--connections 100000").unwrap().clients;
        let plan = clients.plan(7, 1, vec![target("127.0.0.1:1")]).unwrap();
        let ports = u64::try_from(plan.sources.len()).unwrap() * u64::from(plan.clients_per_source);
        assert!(ports >= 100_000 && plan.clients_per_source < u32::from(outgoing_ports().1), "{plan:?}");
        assert_eq!(plan.sources[0], IpAddr::from([127, 0, 0, 2]));
        assert_eq!(plan.room, "bench://00000007");
        assert_eq!(clients.plan(7, 1, vec![target("10.0.0.1:1")]).unwrap().sources, Vec::<IpAddr>::new());
    }
}
