//! goim in a separate process: its cost, and how it stops.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::server::{Addrs, Server, Settings};
use super::{DEADLINE, eventually};

/// A running binary. It is killed when this is dropped.
pub struct Process {
    child: Child,
    /// Where it listens.
    pub server: Server,
}

impl Process {
    /// Starts `goim serve` on free ports and waits until it is ready.
    pub fn start(settings: &Settings) -> Self {
        Self::launch(settings, None).expect("a server on free ports")
    }

    /// The same with a limit of open descriptors.
    pub fn start_with(settings: &Settings, descriptors: u32) -> Self {
        Self::launch(settings, Some(descriptors)).expect("a server on free ports")
    }

    /// Starts a server where one was before.
    pub fn start_again(settings: &Settings, addrs: Addrs) -> Self {
        let settings = settings
            .clone()
            .set("comet.listen.tcp", &addrs.tcp.to_string())
            .set("comet.listen.websocket", &addrs.websocket.to_string())
            .set("http.listen", &addrs.http.to_string())
            .set("rpc.comet", &addrs.comet_rpc.to_string())
            .set("rpc.logic", &addrs.logic_rpc.to_string());
        let started = Instant::now();
        loop {
            // Meanwhile another connection may have got one of the ports.
            match Self::launch(&settings, None) {
                Some(process) => return process,
                None => assert!(started.elapsed() < DEADLINE, "the ports are taken"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// `None` when the server ended instead of starting.
    fn launch(settings: &Settings, descriptors: Option<u32>) -> Option<Self> {
        let binary = env!("CARGO_BIN_EXE_goim");
        let mut command = match descriptors {
            None => Command::new(binary),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args([
                    "-c",
                    "ulimit -n \"$1\" && shift && exec \"$@\"",
                    "sh",
                    &limit.to_string(),
                    binary,
                ]);
                shell
            }
        };
        command.arg("serve");
        for pair in &settings.0 {
            command.args(["--set", pair]);
        }
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        std::thread::spawn(|| pass_on("err", stderr));
        let mut stdout = BufReader::new(stdout);
        let Some(addrs) = read_addrs(&mut stdout) else {
            child.wait().unwrap();
            return None;
        };
        std::thread::spawn(|| pass_on("out", stdout));
        let process = Self { child, server: Server::at(addrs) };
        eventually("the server is ready", || process.server.get("/readyz").status == 200);
        Some(process)
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("a running process").count()
    }

    /// Memory that it occupies, in bytes.
    pub fn memory(&self) -> usize {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a running process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Ends it at once.
    pub fn kill(mut self) {
        self.signal("-KILL");
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }

    fn signal(&self, signal: &str) {
        let status =
            Command::new("sh").args(["-c", &format!("kill {signal} {}", self.id())]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(DEADLINE)
    }

    /// Waits for its end, at most this long.
    pub fn wait_within(&mut self, time: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < time, "the server did not end within {time:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The listeners' addresses, which a server prints when it is up.
fn read_addrs(stdout: &mut impl BufRead) -> Option<Addrs> {
    let mut printed = String::new();
    while !printed.contains("gRPC ") {
        if stdout.read_line(&mut printed).expect("text") == 0 {
            return None;
        }
    }
    let after = |label: &str| -> SocketAddr {
        // The last: the names of the roles stand in the greeting as well.
        let rest =
            printed.rsplit_once(label).unwrap_or_else(|| panic!("{label} in {printed}")).1.trim_start();
        let end = rest.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(rest.len());
        rest[..end].parse().unwrap_or_else(|error| panic!("{error} behind {label} in {printed}"))
    };
    Some(Addrs {
        tcp: after("tcp://"),
        websocket: after("ws://"),
        http: after("http://"),
        comet_rpc: after(" comet "),
        logic_rpc: after(" logic "),
    })
}

/// Copies a server's output to the test's own output, line by line.
fn pass_on(label: &str, lines: impl Read) {
    BufReader::new(lines).lines().map_while(Result::ok).for_each(|line| eprintln!("{label}: {line}"));
}
