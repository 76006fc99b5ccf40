//! A server that is started for a benchmark and stopped with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::certificate::Certificate;
use crate::endpoints::Endpoints;
use crate::error::BenchError;
use crate::machine::bound_to_cpus;

/// How long a server may take to print its addresses.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// Settings of every server that is started: free ports, nothing for a cluster.
const SETTINGS: [&str; 6] = [
    "comet.listen.tcp=127.0.0.1:0",
    "comet.listen.websocket=127.0.0.1:0",
    "http.listen=127.0.0.1:0",
    "rpc.comet=none",
    "rpc.logic=none",
    "log.level=warn",
];

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub(crate) struct Spawned {
    child: Child,
    pub(crate) endpoints: Endpoints,
    /// Its files exist as long as the server.
    _certificate: Option<Certificate>,
}

impl Spawned {
    /// Starts `goim serve` with further settings (`key=value`), and with TLS listeners where `tls`
    /// is true.
    ///
    /// # Errors
    /// When it does not start. Its own message is on standard error.
    pub(crate) fn start(
        program: Option<&Path>,
        settings: &[String],
        tls: bool,
        cpus: &[usize],
    ) -> Result<Self, BenchError> {
        let certificate = if tls { Some(Certificate::create()?) } else { None };
        let program = program.map_or_else(default_program, Path::to_owned);
        let mut command = Command::new(&program);
        command.arg("serve");
        let of_tls = certificate.as_ref().map(Certificate::settings).unwrap_or_default();
        let own = SETTINGS.into_iter().map(str::to_owned).chain(of_tls);
        for setting in own.chain(settings.iter().cloned()) {
            command.args(["--set", &setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = bound_to_cpus(cpus, || command.spawn())
            .map_err(|error| BenchError::failed(format!("cannot start {}", program.display()), error))?;
        match endpoints(&mut child) {
            Some(endpoints) => Ok(Self { child, endpoints, _certificate: certificate }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(BenchError::Failed("the server did not start".into()))
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Returns `goim` in the folder of this program, or the name alone, which is then looked up in
/// PATH.
fn default_program() -> PathBuf {
    let beside = std::env::current_exe().map(|program| program.with_file_name("goim"));
    beside.ok().filter(|program| program.exists()).unwrap_or_else(|| PathBuf::from("goim"))
}

/// Sends SIGTERM to a child process, and kills it when it does not end in time.
pub(crate) fn stop(child: &mut Child) {
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
    // Fails when the process has just ended.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the server has printed its addresses. Continues reading its output, so that the pipe
/// never fills.
fn endpoints(child: &mut Child) -> Option<Endpoints> {
    let lines = BufReader::new(child.stdout.take()?).lines();
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut text = String::new();
        let mut found = false;
        for line in lines.map_while(Result::ok) {
            if found {
                continue;
            }
            text.push_str(&line);
            text.push('\n');
            if let Some(endpoints) = find_endpoints(&text) {
                found = true;
                // Fails when the deadline has passed.
                let _ = sender.send(endpoints);
            }
        }
    };
    std::thread::Builder::new().name("server output".into()).spawn(read).ok()?;
    receiver.recv_timeout(START_DEADLINE).ok()
}

/// Finds the addresses in the output of a server. `None` until TCP, WebSocket and HTTP are known.
fn find_endpoints(text: &str) -> Option<Endpoints> {
    let find = |scheme: &str| text.split_whitespace().find(|part| part.starts_with(scheme));
    Some(Endpoints {
        tcp: find("tcp://")?.trim_start_matches("tcp://").to_owned(),
        ws: find("ws://")?.to_owned(),
        tls: find("tls://").unwrap_or_default().trim_start_matches("tls://").to_owned(),
        wss: find("wss://").unwrap_or_default().to_owned(),
        http: find("http://")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_the_output_of_a_server() {
        let up = "goim 0.1.0 is up: comet, logic and job in one process\n\n\
                  \x20 clients    tcp://127.0.0.1:4101  ws://127.0.0.1:4102/sub\n";
        let api = "  push API   http://127.0.0.1:4111  from this machine only\n";
        assert_eq!(find_endpoints(up), None);
        let endpoints = Endpoints {
            tcp: "127.0.0.1:4101".into(),
            ws: "ws://127.0.0.1:4102/sub".into(),
            tls: String::new(),
            wss: String::new(),
            http: "http://127.0.0.1:4111".into(),
        };
        assert_eq!(find_endpoints(&format!("{up}{api}")), Some(endpoints));
    }
}
