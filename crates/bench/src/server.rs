//! The server under test, as a process: starting and ending it, and what `/proc` says it uses.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::error::BenchError;
use crate::machine::{field, kibibytes, on_processors};

/// How long a server may take to say where it listens.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a server may take to end before it is made to.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Where a server can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doors {
    /// `host:port`.
    pub(crate) tcp: String,
    /// `ws://host:port/path`.
    pub(crate) websocket: String,
    /// `http://host:port`.
    pub(crate) http: String,
}

/// A server that we have started. Ends with this.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    pub(crate) doors: Doors,
}

impl Spawned {
    /// Starts `goim serve` from this same binary on free ports, with further settings (`key=value`).
    ///
    /// # Errors
    /// When it does not come up; its own words are on standard error.
    pub(crate) fn start(settings: &[String], processors: &[usize]) -> Result<Self, BenchError> {
        let failed = |error| BenchError::failed("cannot start a server", error);
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("serve");
        let own = [
            "comet.listen.tcp=127.0.0.1:0",
            "comet.listen.websocket=127.0.0.1:0",
            "http.listen=127.0.0.1:0",
            "rpc.comet=none",
            "rpc.logic=none",
            "log.level=warn",
        ];
        for setting in own.into_iter().chain(settings.iter().map(String::as_str)) {
            command.args(["--set", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = on_processors(processors, || command.spawn())?;
        match doors(&mut child) {
            Some(doors) => Ok(Self { child, doors }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(BenchError::Failed("the server did not come up".into()))
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Asks a child to end, and makes it when it does not.
pub(crate) fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // It may be gone already.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the server has said on standard output where it listens. Goes on reading behind that, so that it never
/// waits for a reader.
fn doors(child: &mut Child) -> Option<Doors> {
    let lines = BufReader::new(child.stdout.take()?).lines();
    let (sender, receiver) = mpsc::channel();
    let reading = move || {
        let mut text = String::new();
        let mut found = false;
        for line in lines.map_while(Result::ok) {
            if found {
                continue;
            }
            text.push_str(&line);
            text.push('\n');
            if let Some(doors) = find_doors(&text) {
                found = true;
                // Nobody waits any more when it took too long.
                let _ = sender.send(doors);
            }
        }
    };
    std::thread::Builder::new().name("server output".into()).spawn(reading).ok()?;
    receiver.recv_timeout(START_DEADLINE).ok()
}

/// The three addresses in what a server says when it is up.
fn find_doors(text: &str) -> Option<Doors> {
    let find = |scheme: &str| text.split_whitespace().find(|word| word.starts_with(scheme));
    Some(Doors {
        tcp: find("tcp://")?.trim_start_matches("tcp://").to_owned(),
        websocket: find("ws://")?.to_owned(),
        http: find("http://")?.to_owned(),
    })
}

/// What a process uses at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// Memory in RAM, in bytes.
    pub(crate) rss_bytes: u64,
    /// The same, with shared pages divided among their users.
    pub(crate) pss_bytes: u64,
    /// Processor time so far, in microseconds, in steps of the system's tick (mostly 10 ms).
    pub(crate) cpu_us: u64,
    /// Processor time of all the kernel's own soft interrupt threads, in microseconds: work on sockets that is charged to
    /// nobody.
    pub(crate) softirq_us: u64,
}

/// What the process uses now; `None` when it is not there or another user's.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(Usage {
        rss_bytes: field(&status, "VmRSS").and_then(kibibytes)?,
        pss_bytes: field(&rollup, "Pss").and_then(kibibytes).unwrap_or_default(),
        cpu_us: cpu_us(&stat)?,
        softirq_us: softirq_us(),
    })
}

/// User and system time in a line of `/proc/PID/stat`, in microseconds. The name in parentheses may hold anything.
fn cpu_us(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let ticks = times.next()?.checked_add(times.next()?)?;
    Some(ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1))
}

fn softirq_us() -> u64 {
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let paths = processes.flatten().map(|entry| entry.path());
    let threads = paths.filter(|path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
    });
    let nanos = threads.filter_map(|path| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_what_a_server_says() {
        let up = "goim 0.1.0 is up: comet, logic and job in one process\n\n\
                  \x20 clients    tcp://127.0.0.1:4101  ws://127.0.0.1:4102/sub\n";
        let api = "  push API   http://127.0.0.1:4111  from this machine only\n";
        assert_eq!(find_doors(up), None);
        let doors = Doors {
            tcp: "127.0.0.1:4101".into(),
            websocket: "ws://127.0.0.1:4102/sub".into(),
            http: "http://127.0.0.1:4111".into(),
        };
        assert_eq!(find_doors(&format!("{up}{api}")), Some(doors));
    }

    #[test]
    fn processor_time_of_a_line_of_stat() {
        let line = "7 (a (b) c) S 1 7 7 0 -1 4194304 1 2 3 4 250 50 9 9 20 0 1 0 5 6 7";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_us(line), Some(300 * 1_000_000 / ticks));
        assert_eq!(cpu_us("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0, "{usage:?}");
        assert_eq!(super::usage(u32::MAX), None);
    }
}
