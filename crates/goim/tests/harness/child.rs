//! goim in a process of its own: what it costs, and how it ends.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
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

/// Ports that were free a moment ago.
fn free_addrs<const N: usize>() -> [SocketAddr; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

impl Process {
    /// Starts `goim serve` and waits until it is ready.
    pub fn start(settings: &Settings) -> Self {
        Self::start_with(settings, None)
    }

    /// The same with a limit of open descriptors.
    pub fn start_with(settings: &Settings, descriptors: Option<u32>) -> Self {
        let [tcp, websocket, http, comet_rpc, logic_rpc] = free_addrs();
        Self::start_at(settings, descriptors, Addrs { tcp, websocket, http, comet_rpc, logic_rpc })
    }

    /// The same at given addresses, to start a server again where it was.
    pub fn start_at(settings: &Settings, descriptors: Option<u32>, addrs: Addrs) -> Self {
        let settings = settings
            .clone()
            .set("comet.listen.tcp", &addrs.tcp.to_string())
            .set("comet.listen.websocket", &addrs.websocket.to_string())
            .set("http.listen", &addrs.http.to_string())
            .set("rpc.comet", &addrs.comet_rpc.to_string())
            .set("rpc.logic", &addrs.logic_rpc.to_string());
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
        // What it says is passed on to the test's own output, line by line.
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| eprintln!("out: {line}"))
        });
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| eprintln!("err: {line}"))
        });
        let mut process = Self { child, server: Server::at(addrs) };
        eventually("the server is ready", || {
            assert!(process.child.try_wait().unwrap().is_none(), "the server ended while starting");
            TcpStream::connect(process.server.addrs.http).is_ok()
                && process.server.get("/readyz").status == 200
        });
        process
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
