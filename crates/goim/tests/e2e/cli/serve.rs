//! `goim serve`: start, output and stop.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::binary::{FREE_PORTS, Lines, Serving, check_refused, run};

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
    assert!(serving.printed.contains("this machine only"), "{}", serving.printed);
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
    let curl = serving.printed.lines().find(|line| line.trim_start().starts_with("curl")).unwrap();
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
    assert!(serving.printed.contains("$GOIM_API_KEY"), "{}", serving.printed);
    let push =
        |more: &[&str]| run(&[&["push", "all", "--body", "hello", "--server", serving.api()], more].concat());
    let refused = push(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("API key"), "{refused:?}");
    let accepted = push(&["--api-key", key]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    let printed = serving.printed.clone();
    serving.signal("INT");
    let (status, log) = serving.ended();
    assert_eq!(status, Some(0), "{log}");
    assert!(!log.contains(key) && !printed.contains(key), "{log}");
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "no JSON: {line}");
    }
}

/// A certificate for this machine in a temporary folder.
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

    /// Generates a new pair.
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
    let clients = serving.printed.lines().find(|line| line.contains("clients")).unwrap().to_owned();
    let connects = |scheme: &str| {
        let url = clients.split_whitespace().find(|notification| notification.starts_with(scheme)).unwrap();
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
        &["comet.tls", "key"],
    );
}

#[test]
fn draining_takes_its_pace_until_a_second_signal() {
    let serving = Serving::start(&["--set", "comet.drain.sessions_per_second=1"], &[]);
    let clients = serving.printed.lines().find(|line| line.contains("clients")).unwrap();
    let addr =
        clients.split_whitespace().find_map(|notification| notification.strip_prefix("tcp://")).unwrap();
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
    assert!(log.contains("stopped immediately"), "{log}");
    drop(sessions);
}

/// A session of a client that knows goim's protocol only.
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
