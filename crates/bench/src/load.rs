//! The options that scenarios share: how many clients, how much traffic, where it runs; and the plan that follows.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::control::{Plan, Target};
use crate::error::BenchError;
use crate::fleet::workers_needed;
use crate::machine::outgoing_ports;
use crate::message::SIZE_MIN;

/// Operation of the messages.
const OPERATION: i32 = 1000;

/// Clients on the way to the server at once, over all workers: enough to keep it busy, and few enough for its backlog.
const IN_FLIGHT: u32 = 512;

#[derive(Debug, Clone, Args)]
pub(crate) struct Load {
    /// Clients, evenly divided among the doors
    #[arg(long, default_value_t = 18_000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Processes that hold them; as many as the limit of open files demands, and at least two
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers: Option<u32>,
    /// Time between two heartbeats of one client
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub(crate) heartbeat: Duration,
    /// How long there is nothing but heartbeats
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub(crate) quiet: Duration,
    /// Messages to the room
    #[arg(long, default_value_t = 60, value_name = "NUMBER")]
    pub(crate) messages: u32,
    /// Messages to the room, per second
    #[arg(long, default_value_t = 2.0, value_name = "NUMBER", value_parser = rate)]
    pub(crate) rate: f64,
    /// Broadcasts to everybody, each when the one before has reached all
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    pub(crate) broadcasts: u32,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value_t = 64, value_name = "BYTES", value_parser = size)]
    pub(crate) size: usize,
    /// Wait after connecting, until the server's counts have settled
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = duration)]
    pub(crate) settle: Duration,
    /// How long nothing may arrive before what is missing counts as lost
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub(crate) patience: Duration,
    /// Runs; the figures are medians, with the spread
    #[arg(long, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeat: u32,
    /// Connect from this address; may be given many times. Towards loopback, 127.0.0.2 and the next are taken
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Vec<IpAddr>,
    /// Bind the server that is started, and the reference, to these processors
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) server_cpus: Vec<usize>,
    /// Bind the workers to these processors
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) client_cpus: Vec<usize>,
    /// Write all figures to this file too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What was asked for, for the report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Asked {
    pub(crate) connections: u32,
    pub(crate) workers: u32,
    pub(crate) heartbeat_ms: u128,
    pub(crate) quiet_ms: u128,
    pub(crate) messages: u32,
    pub(crate) rate: f64,
    pub(crate) broadcasts: u32,
    pub(crate) size: usize,
    pub(crate) server_cpus: Vec<usize>,
    pub(crate) client_cpus: Vec<usize>,
}

impl Load {
    /// Processes that hold the clients.
    ///
    /// # Errors
    /// When a process may have hardly any open files.
    pub(crate) fn workers(&self) -> Result<u32, BenchError> {
        let needed = workers_needed(self.connections)?;
        // A second one keeps one client process from being what is measured.
        let wanted = self.workers.unwrap_or(needed.max(2));
        Ok(wanted.min(self.connections))
    }

    /// The operation of all messages.
    pub(crate) fn operation(&self) -> i32 {
        OPERATION
    }

    /// The clients of one run.
    pub(crate) fn plan(&self, run: u32, targets: Vec<Target>) -> Result<Plan, BenchError> {
        let (sources, clients_per_source) = self.sources(&targets);
        Ok(Plan {
            run,
            streams: 2,
            targets,
            sources,
            clients_per_source,
            ports: outgoing_ports(),
            first: 0,
            count: self.connections,
            in_flight_max: (IN_FLIGHT / self.workers()?).max(1),
            operation: OPERATION,
            room: room_id(run),
            protover: None,
        })
    }

    /// Addresses to connect from, and how many clients each gets.
    fn sources(&self, targets: &[Target]) -> (Vec<IpAddr>, u32) {
        if !self.source.is_empty() {
            let count = u32::try_from(self.source.len()).unwrap_or(u32::MAX);
            return (self.source.clone(), self.connections.div_ceil(count));
        }
        // Half of the ports: some may be taken by others.
        let each = u32::from(outgoing_ports().1 / 2).max(1);
        let loopback = targets.iter().all(|target| target.addr.is_ipv4() && target.addr.ip().is_loopback());
        if !loopback {
            return (Vec::new(), each);
        }
        let address =
            |index: u32| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits().saturating_add(1 + index));
        ((0..self.connections.div_ceil(each)).map(|index| address(index).into()).collect(), each)
    }

    /// What was asked for, for the report.
    pub(crate) fn asked(&self) -> Result<Asked, BenchError> {
        Ok(Asked {
            connections: self.connections,
            workers: self.workers()?,
            heartbeat_ms: self.heartbeat.as_millis(),
            quiet_ms: self.quiet.as_millis(),
            messages: self.messages,
            rate: self.rate,
            broadcasts: self.broadcasts,
            size: self.size,
            server_cpus: self.server_cpus.clone(),
            client_cpus: self.client_cpus.clone(),
        })
    }
}

/// The room of a run, as clients name it.
fn room_id(run: u32) -> String {
    let (kind, room) = room(run);
    format!("{kind}://{room}")
}

/// The room of a run, as the HTTP API names it.
pub(crate) fn room(run: u32) -> (String, String) {
    ("bench".to_owned(), format!("{run:08x}"))
}

/// A number for a run that others do not have: what is left on a server by another run is then told apart.
pub(crate) fn new_run() -> u32 {
    let now = crate::clock::now_ns();
    let mixed = (now ^ u64::from(std::process::id()).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 32).unwrap_or_default()
}

/// Reads `500ms`, `30s`, `4m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: wants a number with ms, s or m, such as 30s");
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

fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no rate: wants messages per second, above 0");
    text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0).ok_or_else(wrong)
}

fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is no size: wants {SIZE_MIN} to 900000");
    text.parse().ok().filter(|size| (SIZE_MIN..=900_000).contains(size)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Carrier;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        load: Load,
    }

    fn load(arguments: &str) -> Result<Load, clap::Error> {
        Line::try_parse_from(["x"].into_iter().chain(arguments.split_whitespace())).map(|line| line.load)
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
    fn what_makes_no_sense_is_refused() {
        assert!(load("").is_ok());
        for wrong in ["--connections 0", "--workers 0", "--size 31", "--rate 0", "--rate inf", "--repeat 0"] {
            assert!(load(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sources_are_enough_for_the_ports() {
        let target = |addr: &str| Target {
            carrier: Carrier::Tcp,
            addr: addr.parse().unwrap(),
            host: addr.into(),
            path: String::new(),
        };
        let load = load("--connections 100000").unwrap();
        let plan = load.plan(7, vec![target("127.0.0.1:1")]).unwrap();
        let room = u64::try_from(plan.sources.len()).unwrap() * u64::from(plan.clients_per_source);
        assert!(room >= 100_000 && plan.clients_per_source < u32::from(outgoing_ports().1), "{plan:?}");
        assert_eq!(plan.sources[0], IpAddr::from([127, 0, 0, 2]));
        assert_eq!(plan.room, "bench://00000007");
        assert_eq!(load.plan(7, vec![target("10.0.0.1:1")]).unwrap().sources, Vec::<IpAddr>::new());
    }
}
