//! The binary under test: run to its end, or as a server that has reported that it is up.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The binary without the environment's own settings.
pub(super) fn goim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goim"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GOIM_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end, without input.
pub(super) fn run(arguments: &[&str]) -> Output {
    goim(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Expects this exit status, these texts on standard error, and nothing on standard output.
#[track_caller]
pub(super) fn check_refused(arguments: &[&str], status: i32, says: &[&str]) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
    for part in says {
        assert!(errors.contains(part), "{arguments:?}: {part:?} is not in {errors}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
}

/// Free ports for everything.
pub(super) const FREE_PORTS: [&str; 10] = [
    "--set",
    "comet.listen.tcp=127.0.0.1:0",
    "--set",
    "comet.listen.websocket=127.0.0.1:0",
    "--set",
    "http.listen=127.0.0.1:0",
    "--set",
    "rpc.comet=127.0.0.1:0",
    "--set",
    "rpc.logic=127.0.0.1:0",
];

/// A `goim serve` that has reported that it is up. Killed when the test fails.
pub(super) struct Serving {
    pub(super) child: Child,
    pub(super) printed: String,
}

impl Serving {
    pub(super) fn start(more: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments = [&["serve"], FREE_PORTS.as_slice(), more].concat();
        let mut command = goim(&arguments);
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut printed = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // The curl is the last line.
        while !printed.contains("curl") {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("goim serve has ended: {printed}{errors}");
            }
            printed.push_str(&line);
        }
        Self { child, printed }
    }

    /// `http://127.0.0.1:PORT` of the push API.
    pub(super) fn api(&self) -> &str {
        let line = self.printed.lines().find(|line| line.contains("push API")).unwrap();
        line.split_whitespace().find(|notification| notification.starts_with("http://")).unwrap()
    }

    /// The status and the body that a GET gets.
    pub(super) fn get(&self, path: &str) -> (u16, String) {
        let authority = self.api().trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(authority).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    pub(super) fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Exit status and log after it has ended by itself.
    pub(super) fn ended(mut self) -> (Option<i32>, String) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "goim serve goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines as they are printed, with a limit on the wait for one.
pub(super) struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub(super) fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }

    #[track_caller]
    pub(super) fn next(&self) -> String {
        self.0.recv_timeout(Duration::from_secs(30)).expect("one more line")
    }
}
