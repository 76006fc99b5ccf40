//! The binary as a user has it: its arguments, its exit status, what it says, and how it comes and goes.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The binary without the environment's own settings.
fn goim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goim"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GOIM_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    goim(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn check_refused(arguments: &[&str], status: i32, says: &[&str]) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
    for part in says {
        assert!(errors.contains(part), "{arguments:?}: {part:?} is not in {errors}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
}

/// Free ports for everything.
const FREE_PORTS: [&str; 10] = [
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

/// A `goim serve` that has said that it is up. Killed when the test fails.
struct Serving {
    child: Child,
    said: String,
}

impl Serving {
    fn start(more: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments = [&["serve"], FREE_PORTS.as_slice(), more].concat();
        let mut command = goim(&arguments);
        command.envs(environment.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // The curl is the last line.
        while !said.contains("curl") {
            let mut line = String::new();
            if out.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("goim serve has ended: {said}{errors}");
            }
            said.push_str(&line);
        }
        Self { child, said }
    }

    /// `http://127.0.0.1:PORT` of the push API.
    fn api(&self) -> &str {
        let line = self.said.lines().find(|line| line.contains("push API")).unwrap();
        line.split_whitespace().find(|word| word.starts_with("http://")).unwrap()
    }

    /// The status and the body that a GET gets.
    fn get(&self, path: &str) -> (u16, String) {
        let authority = self.api().trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(authority).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
        (status, body)
    }

    fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Exit status and log after it has ended by itself.
    fn ended(mut self) -> (Option<i32>, String) {
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

#[test]
fn wrong_arguments_end_with_64() {
    check_refused(&["fly"], 64, &["unrecognized subcommand 'fly'"]);
    check_refused(&["serve", "--port", "1"], 64, &["unexpected argument '--port'"]);
    check_refused(&[], 64, &["Usage: goim"]);
    check_refused(&["push", "room", "live"], 64, &["wants type://room"]);
    check_refused(
        &["push", "room", "live://1", "--body", "x", "--server", "localhost"],
        64,
        &["http://host:port"],
    );
    check_refused(&["push", "room", "live://1", "--file", "/nonexistent"], 64, &["/nonexistent"]);
}

#[test]
fn wrong_configuration_is_refused_before_a_port_opens() {
    check_refused(
        &["serve", "--set", "comet.limits.handshake_timout=8s"],
        64,
        &[
            "unknown setting `comet.limits.handshake_timout`",
            "did you mean `comet.limits.handshake_timeout`?",
        ],
    );
    check_refused(
        &["serve", "--set", "comet.listen.tcp=3101"],
        64,
        &["comet.listen.tcp = \"3101\"", "wants a list"],
    );
    check_refused(
        &["serve", "--config", "/nonexistent.toml"],
        64,
        &["cannot read the configuration file /nonexistent.toml"],
    );
    check_refused(
        &["serve", "--set", "comet.listen.tcp_tls=:0", "--set", "comet.limits.handshake_timeout=0s"],
        64,
        &["comet.listen.tcp_tls needs comet.tls.cert_file", "handshake_timeout: wants more than zero"],
    );
}

#[test]
fn the_environment_is_read_and_checked() {
    let output = goim(&["config", "--effective"]).env("GOIM_COMET_SHARDS", "3").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("# from the environment, GOIM_COMET_SHARDS\nshards = 3\n"), "{text}");
    let output = goim(&["config", "--check"]).env("GOIM_COMET_SHARD", "3").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("unknown environment variable `GOIM_COMET_SHARD`; did you mean `GOIM_COMET_SHARDS`?"),
        "{errors}"
    );
}

#[test]
fn the_printed_configuration_passes_the_check() {
    let path = std::env::temp_dir().join(format!("goim-cli-{}.toml", std::process::id()));
    std::fs::write(&path, run(&["config"]).stdout).unwrap();
    let output = run(&["config", "--check", "--config", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"the configuration is good\n");
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in
        [&["--help"][..], &["--version"], &["version"], &["serve", "--help"], &["push", "room", "--help"]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_taken_port_is_named_with_its_setting_and_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    for setting in ["comet.listen.tcp", "comet.listen.websocket", "http.listen", "rpc.comet", "rpc.logic"] {
        let pair = format!("{setting}={addr}");
        let arguments = [&["serve"], FREE_PORTS.as_slice(), &["--set", &pair]].concat();
        let says =
            [format!("cannot listen on {addr} ({setting})"), format!("choose another with --set {setting}=")];
        let says: Vec<&str> = says.iter().map(String::as_str).collect();
        check_refused(&arguments, 1, &says);
    }
}

#[test]
fn serves_answers_and_drains() {
    let serving = Serving::start(&[], &[]);
    assert!(serving.said.contains("this machine only"), "{}", serving.said);
    assert_eq!(serving.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(serving.get("/readyz"), (200, "ready\n".to_owned()));
    let (status, metrics) = serving.get("/metrics");
    assert_eq!(status, 200);
    for name in [
        "goim_comet_",
        "goim_logic_",
        "goim_job_",
        "goim_push_log_records 0",
        "process_open_fds",
        "goim_build_info",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let pushed = run(&["push", "room", "live://1000", "--body", "hello", "--server", serving.api()]);
    assert_eq!(pushed.status.code(), Some(0), "{}", String::from_utf8_lossy(&pushed.stderr));
    serving.signal("HUP");
    serving.signal("TERM");
    let (status, log) = serving.ended();
    assert_eq!(status, Some(0), "{log}");
    assert!(
        log.contains("worst-case memory") && log.contains("identity is open") && log.contains("drained"),
        "{log}"
    );
}

#[test]
fn the_curl_that_is_shown_works() {
    let serving = Serving::start(&[], &[]);
    let curl = serving.said.lines().find(|line| line.trim_start().starts_with("curl")).unwrap();
    // Where there is no curl the line cannot be tried; the request itself is, by the other tests.
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return;
    }
    let output = Command::new("sh").args(["-c", curl]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), r#"{"code":0,"message":""}"#, "{curl}");
}

#[test]
fn keys_open_the_push_api_and_are_not_logged() {
    let key = "a-key-of-sixteen-bytes-and-more";
    let serving = Serving::start(&["--set", "log.format=json"], &[("GOIM_LOGIC_HTTP_API_KEYS", key)]);
    assert!(serving.said.contains("$GOIM_API_KEY"), "{}", serving.said);
    let push =
        |more: &[&str]| run(&[&["push", "all", "--body", "hello", "--server", serving.api()], more].concat());
    let refused = push(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("API key"), "{refused:?}");
    let accepted = push(&["--api-key", key]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    let said = serving.said.clone();
    serving.signal("INT");
    let (status, log) = serving.ended();
    assert_eq!(status, Some(0), "{log}");
    assert!(!log.contains(key) && !said.contains(key), "{log}");
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "no JSON: {line}");
    }
}

/// Lines as they come, with a limit on waiting for one.
struct Lines(mpsc::Receiver<String>);

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }

    #[track_caller]
    fn next(&self) -> String {
        self.0.recv_timeout(Duration::from_secs(30)).expect("one more line")
    }
}

/// A `goim connect` with its output as it comes.
struct Connected {
    child: Child,
    out: Lines,
}

impl Connected {
    fn start(url: &str, more: &[&str]) -> Self {
        let mut command = goim(&[&["connect", "--url", url], more].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = Lines::of(child.stderr.take().unwrap());
        let out = Lines::of(child.stdout.take().unwrap());
        let connected = Self { child, out };
        let line = errors.next();
        assert!(line.starts_with("connected to "), "{line}");
        connected
    }

    fn types(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    #[track_caller]
    fn shows(&self) -> String {
        self.out.next()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn connects_sends_and_shows_what_is_pushed() {
    let serving = Serving::start(&[], &[]);
    let clients = serving.said.lines().find(|line| line.contains("clients")).unwrap();
    for scheme in ["tcp://", "ws://"] {
        let url = clients.split_whitespace().find(|word| word.starts_with(scheme)).unwrap();
        let room = format!("test{}", scheme.trim_end_matches("://"));
        let mut client =
            Connected::start(url, &["--room", &format!("{room}://1"), "--key", &room, "--accepts", "1000"]);
        let push = |target: &[&str], body: &str| {
            let output = run(&[&["push"], target, &["--body", body, "--server", serving.api()]].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        };
        push(&["room", &format!("{room}://1")], "to the room");
        assert_eq!(client.shows(), "push  op=1000  to the room");
        push(&["keys", &room], "to the key");
        assert_eq!(client.shows(), "push  op=1000  to the key");
        // The reply to a packet after a change comes after the change.
        client.types(&format!("/room {room}://2"));
        client.types("/sub 1001");
        client.types("/unsub 1000");
        client.types("/send 1002 question");
        assert_eq!(client.shows(), "reply op=1002");
        client.types("plain");
        assert_eq!(client.shows(), "reply op=4");
        push(&["room", &format!("{room}://1")], "not seen");
        push(&["keys", &room, "--operation", "1000"], "not wanted");
        push(&["keys", &room, "--operation", "1001"], "\u{1b}[31m");
        assert_eq!(client.shows(), "push  op=1001  0x1b5b33316d");
        client.types("/quit");
        assert_eq!(client.child.wait().unwrap().code(), Some(0), "{scheme}");
    }
}

#[test]
fn a_pipe_ends_the_client_when_it_has_its_reply() {
    let serving = Serving::start(&[], &[]);
    let clients = serving.said.lines().find(|line| line.contains("clients")).unwrap();
    let url = clients.split_whitespace().find(|word| word.starts_with("tcp://")).unwrap();
    let mut client = goim(&["connect", "--url", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"/send 1000 one\n/hex 1001 00ff\n/nonsense\n").unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reply op=1000\nreply op=1001\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no command /nonsense"), "{output:?}");
}

#[test]
fn nobody_there_is_69() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = format!("http://{free}");
    check_refused(
        &["push", "room", "live://1", "--body", "x", "--server", &server],
        69,
        &[&server, "goim serve"],
    );
}

/// A certificate for this machine in a folder of its own.
struct Certificate {
    folder: std::path::PathBuf,
}

impl Certificate {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("goim-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let certificate = Self { folder };
        certificate.write();
        certificate
    }

    /// Draws a new pair.
    fn write(&self) {
        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(self.path("cert"), pair.cert.pem()).unwrap();
        std::fs::write(self.path("key"), pair.signing_key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn settings(&self) -> [String; 2] {
        [
            format!("comet.tls.cert_file={}", self.path("cert")),
            format!("comet.tls.key_file={}", self.path("key")),
        ]
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn tls_is_served_and_a_new_certificate_taken_over() {
    let certificate = Certificate::new("tls");
    let [cert, key] = certificate.settings();
    let listen = ["comet.listen.tcp_tls=127.0.0.1:0", "comet.listen.websocket_tls=127.0.0.1:0"];
    let set = [&cert, &key, listen[0], listen[1]].map(|pair| ["--set", pair]).concat();
    let mut serving = Serving::start(&set, &[]);
    let log = Lines::of(serving.child.stderr.take().unwrap());
    let clients = serving.said.lines().find(|line| line.contains("clients")).unwrap().to_owned();
    let connects = |scheme: &str| {
        let url = clients.split_whitespace().find(|word| word.starts_with(scheme)).unwrap();
        let output = run(&["connect", "--url", url, "--ca", &certificate.path("cert")]);
        assert_eq!(output.status.code(), Some(0), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        let output = run(&["connect", "--url", url]);
        assert_eq!(output.status.code(), Some(69), "{url} is trusted though nobody vouches for it");
    };
    connects("tls://");
    connects("wss://");
    // A file system may keep whole seconds only.
    certificate.write();
    serving.signal("HUP");
    while !log.next().contains("the new certificate is in use") {}
    connects("tls://");
    connects("wss://");
}

#[test]
fn a_broken_certificate_is_refused_with_64() {
    let certificate = Certificate::new("broken");
    std::fs::write(certificate.path("key"), "no key").unwrap();
    let [cert, key] = certificate.settings();
    let arguments = [&["serve"], FREE_PORTS.as_slice(), &["--set", &cert, "--set", &key]].concat();
    check_refused(
        &[&arguments[..], &["--set", "comet.listen.websocket_tls=127.0.0.1:0"]].concat(),
        64,
        &["TLS"],
    );
}

#[test]
fn draining_takes_its_pace_until_a_second_signal() {
    let serving = Serving::start(&["--set", "comet.drain.sessions_per_second=1"], &[]);
    let clients = serving.said.lines().find(|line| line.contains("clients")).unwrap();
    let addr = clients.split_whitespace().find_map(|word| word.strip_prefix("tcp://")).unwrap();
    let sessions: Vec<_> = (0..30).map(|_| authenticated(addr)).collect();
    serving.signal("TERM");
    let until = Instant::now() + Duration::from_secs(20);
    while serving.get("/readyz") != (503, "draining\n".to_owned()) {
        assert!(Instant::now() < until, "/readyz says yes");
    }
    assert_eq!(serving.get("/healthz").0, 200);
    serving.signal("TERM");
    let began = Instant::now();
    let (status, log) = serving.ended();
    assert_eq!(status, Some(0), "{log}");
    // Thirty sessions at one a second would have taken far longer.
    assert!(began.elapsed() < Duration::from_secs(15), "{log}");
    assert!(log.contains("stopped at once"), "{log}");
    drop(sessions);
}

/// A session of somebody who knows goim's protocol only.
fn authenticated(addr: &str) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let token = br#"{"mid":1}"#;
    let mut packet = Vec::new();
    packet.extend_from_slice(&(16 + u32::try_from(token.len()).unwrap()).to_be_bytes());
    packet.extend_from_slice(&[0, 16, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1]);
    packet.extend_from_slice(token);
    stream.write_all(&packet).unwrap();
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[8..12], [0, 0, 0, 8], "{reply:?}");
    stream
}
