//! The cost of a request before its sender is authenticated: nothing is read of a body that the
//! sender has no right to send, and each route reads as much as it needs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness;
use crate::harness::child::Process;
use crate::harness::{DEADLINE, Settings, number, unique};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

const SECRET: &str = "a shared secret of more than 32 bytes";
const API_KEY: &str = "the key of the backend";

/// All routes that take a body.
const ROUTES: [&str; 8] = [
    "/goim/push/keys?operation=1&keys=a",
    "/goim/push/mids?operation=1&mids=1",
    "/goim/push/room?operation=1&type=live&room=1",
    "/goim/push/all?operation=1",
    "/v1/push",
    "/v1/sessions/end",
    "/v1/ack",
    "/v1/messages/delete",
];

struct Serving {
    process: Process,
    folder: std::path::PathBuf,
}

impl Serving {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(unique(&format!("goim-bodies-{}", std::process::id())));
        let settings = Settings::new()
            .set("timelines.folder", folder.to_str().unwrap())
            .set("logic.identity.method", "jwt")
            .set("logic.identity.jwt.secrets", SECRET)
            .set("logic.http.api_keys", API_KEY);
        Self { process: Process::start(&settings), folder }
    }

    fn addr(&self) -> SocketAddr {
        self.process.server.addrs.http
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "mid": number(), "exp": now + 3600 });
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    // What waits on this side should not hide what the server takes.
    socket2::SockRef::from(&stream).set_send_buffer_size(64 * 1024).unwrap();
    stream
}

fn head(method: &str, target: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{more}\r\n")
}

/// The first line of what is answered.
fn status_line(stream: &mut TcpStream) -> String {
    let mut printed = Vec::new();
    let mut byte = [0];
    while !printed.ends_with(b"\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => printed.push(byte[0]),
            end => panic!("{end:?} behind {:?}", String::from_utf8_lossy(&printed)),
        }
    }
    String::from_utf8(printed).unwrap().trim_end().to_owned()
}

#[test]
fn who_asks_is_found_out_before_the_body() {
    let serving = Serving::start();
    for target in ROUTES {
        for more in [
            "Content-Length: 4194304\r\n",
            "Content-Length: 4194304\r\nAuthorization: Bearer nonsense\r\n",
            "Content-Length: 4194304\r\nExpect: 100-continue\r\n",
            "Content-Length: 10\r\nExpect: 100-continue\r\n",
            "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 10\r\n",
        ] {
            let mut stream = connect(serving.addr());
            let asked = Instant::now();
            stream.write_all(head("POST", target, more).as_bytes()).unwrap();
            // Not a byte of the body.
            let line = status_line(&mut stream);
            assert_eq!(line, "HTTP/1.1 401 Unauthorized", "{target} {more:?}");
            // Far from the 30 s that a body may take.
            assert!(asked.elapsed() < Duration::from_secs(10), "{target} {more:?}: {:?}", asked.elapsed());
        }
    }
}

#[test]
fn bodies_of_unknown_senders_cost_nothing() {
    const CONNECTIONS: usize = 60;
    let serving = Serving::start();
    let before = serving.process.memory();
    let addr = serving.addr();
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x1_0000], b"\r\n"].concat();
    let (mut most, mut streams) = (0, Vec::new());
    for nth in 0..CONNECTIONS {
        let mut stream = connect(addr);
        let is_chunked = nth % 2 == 0;
        let more = if is_chunked { "Transfer-Encoding: chunked\r\n" } else { "Content-Length: 67108864\r\n" };
        stream.write_all(head("POST", ROUTES[nth % ROUTES.len()], more).as_bytes()).unwrap();
        // Never the last byte: a server that collects a body would hold it. What fits into the
        // buffers between the two may be sent.
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut sent = 0;
        let part = if is_chunked { &chunk[..] } else { &chunk[7..0x1_0007] };
        while sent < 64 << 20 {
            match stream.write(part) {
                Ok(count) => sent += count,
                Err(error) => {
                    let ends = [
                        ErrorKind::ConnectionReset,
                        ErrorKind::BrokenPipe,
                        ErrorKind::WouldBlock,
                        ErrorKind::TimedOut,
                    ];
                    assert!(ends.contains(&error.kind()), "{error}");
                    break;
                }
            }
        }
        most = most.max(sent);
        streams.push(stream);
    }
    let grown = serving.process.memory().saturating_sub(before);
    eprintln!("most sent on one connection: {most} B; grown by {grown} B");
    // The buffers of the kernel on the way hold some of it.
    assert!(most < 12 << 20, "{most} B went to a server that should read 64 KiB or so");
    assert!(grown < 24 << 20, "{CONNECTIONS} bodies of nobody cost {grown} B");
}

#[test]
fn slow_acknowledgements_of_unknown_senders_are_not_collected() {
    const CONNECTIONS: usize = 60;
    let serving = Serving::start();
    let before = serving.process.memory();
    let body = vec![b'x'; (4 << 20) - 1];
    let streams: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = connect(serving.addr());
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            stream.write_all(head("POST", "/v1/ack", "Content-Length: 4194304\r\n").as_bytes()).unwrap();
            let _ = stream.write_all(&body);
            stream
        })
        .collect();
    let grown = serving.process.memory().saturating_sub(before);
    eprintln!("grown by {grown} B");
    assert!(grown < 24 << 20, "{CONNECTIONS} bodies of nobody cost {grown} B");
    drop(streams);
}

#[test]
fn each_route_reads_what_it_needs() {
    let serving = Serving::start();
    let server = &serving.process.server;
    let (backend, member) = (format!("Bearer {API_KEY}"), format!("Bearer {}", token()));
    for (target, authorization, most) in [
        ("/v1/ack", &member, 4_096),
        ("/v1/messages/delete", &backend, 4_096),
        ("/v1/sessions/end", &backend, 1 << 20),
        ("/v1/push", &backend, 4 << 20),
        ("/goim/push/all?operation=1", &backend, 4 << 20),
    ] {
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        let answer = server.request("POST", target, &headers, &vec![b' '; most]);
        assert_ne!(answer.status, 413, "{target}: {}", answer.text());
        let answer = server.request("POST", target, &headers, &vec![b' '; most + 1]);
        let expected =
            format!(r#"{{"code":-413,"message":"the request's body is larger than {most} bytes"}}"#);
        assert_eq!((answer.status, answer.text()), (413, expected), "{target}");
        if most < 4 << 20 {
            let document = server.get("/openapi.json").json();
            let path = target.split('?').next().unwrap();
            let text = document["paths"][path]["post"]["requestBody"]["description"].as_str().unwrap();
            assert!(text.ends_with(&format!("At most {most} bytes.")), "{text}");
        }
    }
}

#[test]
fn a_refused_request_sees_its_answer_and_a_small_one_keeps_its_connection() {
    let serving = Serving::start();
    let mut http = harness::http::Http::connect(serving.addr());
    for _ in 0..3 {
        assert_eq!(http.request("POST", "/v1/ack", &[], b"{}").status, 401);
        assert_eq!(http.request("POST", "/goim/push/all?operation=1", &[], &[7; 1_000]).status, 401);
    }
    // A client that sends all before it reads.
    let mut http = harness::http::Http::connect(serving.addr());
    let refused = http.request("POST", "/goim/push/all?operation=1", &[], &[7; 40_000]);
    assert_eq!((refused.status, refused.header("connection")), (401, Some("close")));
    http.expect_closed();
}
