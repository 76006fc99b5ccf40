//! `goim bench hold`: many connections held on one server, all heartbeating, in one room; messages to the room and to all
//! reach every one of them.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::Args;

use crate::bare::Bare;
use crate::control::{Carrier, Target};
use crate::error::BenchError;
use crate::http::Api;
use crate::load::{Load, new_run, room};
use crate::machine::{open_files_max, open_files_of};
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::publisher::{HttpPublisher, Publisher};
use crate::scenario::{self, Subject};
use crate::server::{Doors, Spawned};

/// Open files of a server besides its connections.
const SERVER_FILES: u64 = 100;

/// How long a door may take to open when it is tried.
const TRY_DEADLINE: Duration = Duration::from_secs(5);

/// Holds connections, half over TCP and half over WebSocket, with heartbeats all the time; publishes to the room and to
/// all, and accounts for every delivery. Exit status: 0 nothing lost, 1 something was or the run broke off, 64 wrong
/// arguments, 69 server not reached.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// Start a server for each run, from this same program, on free ports
    #[arg(long, conflicts_with_all = ["tcp", "ws", "http", "server_pid"])]
    spawn: bool,
    /// A setting for the server that is started; may be given many times
    #[arg(long, requires = "spawn", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The server's TCP door; `none` leaves it out
    #[arg(long, default_value = "127.0.0.1:3101", value_name = "HOST:PORT")]
    tcp: String,
    /// The server's WebSocket door; `none` leaves it out
    #[arg(long, default_value = "ws://127.0.0.1:3102/sub", value_name = "URL")]
    ws: String,
    /// The HTTP API
    #[arg(long, default_value = "http://127.0.0.1:3111", value_name = "URL")]
    http: String,
    /// Key of the push API, when the server asks for one
    #[arg(long, env = "GOIM_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// The server's process, when it is on this machine: its memory and processor time are then measured
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Leave out the bare send loop, with which the figures are compared
    #[arg(long)]
    no_reference: bool,
    #[command(flatten)]
    pub(crate) load: Load,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench hold --spawn                                   everything on this machine
  goim bench hold --spawn --repeat 5 --json hold.json       medians of five runs
  goim bench hold --server-pid $(pidof goim)                a server that runs already
  goim bench hold --ws none --settle 25s --connections 8000 goim's Go server counts every ten seconds";

/// All runs, each of the server and of the reference beside it.
///
/// # Errors
/// See [`scenario::run`]; and when there are too few open files, or nobody answers.
pub(crate) fn run(arguments: &Arguments) -> Result<Vec<(Outcome, Option<Outcome>)>, BenchError> {
    arguments.check_descriptors()?;
    let repeat = arguments.load.repeat;
    (1..=repeat).map(|number| arguments.one_pair(&format!("[{number}/{repeat}]"))).collect()
}

impl Arguments {
    fn check_descriptors(&self) -> Result<(), BenchError> {
        let here = self.spawn || !self.no_reference;
        let limit = match self.server_pid {
            Some(pid) => {
                open_files_of(pid).unwrap_or(u64::MAX).min(if here { open_files_max() } else { u64::MAX })
            }
            None if here => open_files_max(),
            None => return Ok(()),
        };
        let needed = u64::from(self.load.connections) + SERVER_FILES;
        if needed > limit {
            let who = "the server, as one process,";
            return Err(BenchError::Descriptors { who, needed, limit, way_out: "--connections" });
        }
        Ok(())
    }

    fn one_pair(&self, name: &str) -> Result<(Outcome, Option<Outcome>), BenchError> {
        let server = self.of_server(name)?;
        let reference = if self.no_reference { None } else { Some(of_reference(&self.load, name)?) };
        Ok((server, reference))
    }

    fn of_server(&self, name: &str) -> Result<Outcome, BenchError> {
        let spawned =
            if self.spawn { Some(Spawned::start(&self.set, &self.load.server_cpus)?) } else { None };
        let (tcp, websocket, http) = (self.tcp.clone(), self.ws.clone(), self.http.clone());
        let given = Doors { tcp, websocket, tls: String::new(), websocket_tls: String::new(), http };
        let doors = spawned.as_ref().map_or(given, |spawned| spawned.doors.clone());
        let run = new_run();
        let subject = Subject {
            targets: targets(&doors)?,
            publisher: Publisher::Http(HttpPublisher {
                api: Api::connect(&doors.http, self.api_key.as_deref())?,
                operation: self.load.operation(),
                room: room(run),
                batches: None,
            }),
            pid: spawned.as_ref().map(Spawned::pid).or(self.server_pid),
            run,
        };
        scenario::run(&self.load, subject, &Progress::new(format!("{name} server,")))
    }
}

/// One run of the reference.
///
/// # Errors
/// See [`scenario::run`].
pub(crate) fn of_reference(load: &Load, name: &str) -> Result<Outcome, BenchError> {
    let mut bare = Bare::start(Carrier::Tcp, load.operation(), &load.server_cpus)?;
    let target = bare.target();
    let pid = Some(bare.pid());
    let subject =
        Subject { targets: vec![target], publisher: Publisher::Bare(&mut bare), pid, run: new_run() };
    scenario::run(load, subject, &Progress::new(format!("{name} reference,")))
}

/// The doors that are not left out, each tried once.
fn targets(doors: &Doors) -> Result<Vec<Target>, BenchError> {
    let mut targets = Vec::new();
    if doors.tcp != "none" {
        let addr = open_door("the TCP door", &doors.tcp)?;
        targets.push(Target { carrier: Carrier::Tcp, addr, host: doors.tcp.clone(), path: String::new() });
    }
    if doors.websocket != "none" {
        let (host, path) = websocket_url(&doors.websocket)?;
        let addr = open_door("the WebSocket door", &host)?;
        targets.push(Target { carrier: Carrier::WebSocket, addr, host, path });
    }
    if targets.is_empty() {
        return Err(BenchError::Usage("no door to connect to: give --tcp or --ws".into()));
    }
    Ok(targets)
}

/// `host:port` and path of `ws://host:port/path`.
pub(crate) fn websocket_url(url: &str) -> Result<(String, String), BenchError> {
    let wrong = || BenchError::Usage(format!("{url:?} is no WebSocket door: wants ws://host:port/path"));
    let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
    if host.is_empty() || !host.contains(':') {
        return Err(wrong());
    }
    Ok((host.to_owned(), format!("/{path}")))
}

/// The address behind a name at which somebody answers.
pub(crate) fn open_door(what: &'static str, at: &str) -> Result<SocketAddr, BenchError> {
    let unreachable = |reason: String| BenchError::Unreachable { what, at: at.to_owned(), reason };
    let addrs = at.to_socket_addrs().map_err(|error| unreachable(error.to_string()))?;
    let mut reason = "the name has no address".to_owned();
    for addr in addrs {
        match TcpStream::connect_timeout(&addr, TRY_DEADLINE) {
            Ok(_) => return Ok(addr),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(unreachable(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::net::TcpListener;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(line: &str) -> Result<Arguments, clap::Error> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.arguments)
    }

    #[test]
    fn doors_of_websocket() {
        let check = |url: &str, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(host, path)| (host.to_owned(), path.to_owned()));
            assert_eq!(websocket_url(url).ok(), expect, "{url}");
        };
        check("ws://127.0.0.1:3102/sub", Some(("127.0.0.1:3102", "/sub")));
        check("ws://[::1]:1/", Some(("[::1]:1", "/")));
        check("ws://h:1/a/b?c", Some(("h:1", "/a/b?c")));
        for wrong in ["wss://h:1/sub", "ws://h/sub", "ws://h:1", "h:1", ""] {
            check(wrong, None);
        }
    }

    #[test]
    fn too_few_descriptors_are_said_before_anything_starts() {
        let error = arguments("--spawn --connections 4000000000").unwrap();
        let Err(error) = run(&error) else { return };
        let text = error.to_string();
        assert!(matches!(error, BenchError::Descriptors { .. }), "{text}");
        assert!(text.contains("ulimit -n") && text.contains("4000000100"), "{text}");
    }

    #[test]
    fn a_door_that_nobody_opens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        assert_eq!(open_door("the TCP door", &at).unwrap(), listener.local_addr().unwrap());
        drop(listener);
        let error = open_door("the TCP door", &at).unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert!(error.to_string().contains(&at), "{error}");
        assert_eq!(open_door("the TCP door", "nowhere").unwrap_err().exit_status(), 69);
    }

    #[test]
    fn doors_and_a_server_of_our_own_exclude_each_other() {
        assert!(arguments("--spawn --tcp 127.0.0.1:1").is_err());
        assert!(arguments("--set a=b").is_err());
        assert!(arguments("--spawn --set a=b --set c=d").is_ok());
    }
}
