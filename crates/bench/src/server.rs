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
    /// `host:port`; empty when there is none.
    pub(crate) tls: String,
    /// `wss://host:port/path`; empty when there is none.
    pub(crate) websocket_tls: String,
    /// `http://host:port`.
    pub(crate) http: String,
}

/// A server that we have started. Ends with this.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    pub(crate) doors: Doors,
    /// The files live as long as the server.
    _certificate: Option<crate::certificate::Certificate>,
}

impl Spawned {
    /// The same with the doors of one transport open besides the usual ones.
    ///
    /// # Errors
    /// As [`Spawned::start`].
    pub(crate) fn start_over(
        over: crate::control::Carrier,
        settings: &[String],
        processors: &[usize],
    ) -> Result<Self, BenchError> {
        if !over.is_tls() {
            return Self::start(settings, processors);
        }
        let certificate = crate::certificate::Certificate::make()?;
        let mut with_tls = certificate.settings();
        with_tls.extend_from_slice(settings);
        let mut spawned = Self::start(&with_tls, processors)?;
        spawned._certificate = Some(certificate);
        Ok(spawned)
    }

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
            Some(doors) => Ok(Self { child, doors, _certificate: None }),
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
        tls: find("tls://").unwrap_or_default().trim_start_matches("tls://").to_owned(),
        websocket_tls: find("wss://").unwrap_or_default().to_owned(),
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
    /// The part of it that belongs to the process alone and to no file.
    pub(crate) anonymous_bytes: u64,
    /// Processor time so far of all threads, those that have ended too, in microseconds.
    pub(crate) cpu_us: u64,
    /// Processor time of all the kernel's own soft interrupt threads, in microseconds: work on sockets that is charged to
    /// nobody.
    pub(crate) softirq_us: u64,
}

/// What the process uses now; `None` when it is not there or another user's.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Some(Usage {
        rss_bytes: field(&status, "VmRSS").and_then(kibibytes)?,
        pss_bytes: field(&rollup, "Pss").and_then(kibibytes).unwrap_or_default(),
        anonymous_bytes: field(&status, "RssAnon").and_then(kibibytes).unwrap_or_default(),
        cpu_us: crate::clock::cpu_of(pid)?.as_micros().try_into().ok()?,
        softirq_us: softirq_us(&[]),
    })
}

/// Processor time of the kernel's soft interrupt threads on these processors, in microseconds; on all when none is named.
pub(crate) fn softirq_us(processors: &[usize]) -> u64 {
    let names: Vec<String> = processors.iter().map(|number| format!("ksoftirqd/{number}")).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let paths = processes.flatten().map(|entry| entry.path());
    let threads = paths.filter(|path| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let name = name.trim_end();
        name.starts_with("ksoftirqd/") && (names.is_empty() || names.iter().any(|wanted| wanted == name))
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
            tls: String::new(),
            websocket_tls: String::new(),
            http: "http://127.0.0.1:4111".into(),
        };
        assert_eq!(find_doors(&format!("{up}{api}")), Some(doors));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0, "{usage:?}");
        assert_eq!(super::usage(u32::MAX), None);
    }
}
