//! Members over HTTP follow the rules of sockets: a stream or a long poll ends with its token and
//! with the backend's order, counts against limits, and never works without waiting.
//!
//! The test reads the bytes of a stream itself: it counts events and does not time them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::child::Process;
use crate::harness::cluster::Cluster;
use crate::harness::http::Http;
use crate::harness::postgres::Postgres;
use crate::harness::proto::{Fields, Writer};
use crate::harness::server::runtime;
use crate::harness::{BOTH, Client, DEADLINE, Packet, Server, Settings, eventually, number, unique};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

const SECRET: &str = "a shared secret of more than 32 bytes";
const API_KEY: &str = "the key of the backend";

/// Where messages are stored: a folder for one process, PostgreSQL for a cluster. Removed with the
/// test.
enum Place {
    Folder(PathBuf),
    Postgres(String, #[expect(dead_code, reason = "held")] Arc<Postgres>),
}

impl Place {
    fn new() -> Self {
        if std::env::var_os("TEST_CLUSTER").is_some() { Self::postgres() } else { Self::folder() }
    }

    fn folder() -> Self {
        Self::Folder(std::env::temp_dir().join(unique(&format!("goim-members-{}", std::process::id()))))
    }

    fn postgres() -> Self {
        let postgres = Postgres::shared();
        Self::Postgres(postgres.database(), postgres)
    }

    fn settings(&self) -> Settings {
        match self {
            Self::Folder(folder) => Settings::new().set("timelines.folder", folder.to_str().unwrap()),
            Self::Postgres(url, _) => Settings::new().set("timelines.postgres", url),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Folder(folder) = self {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Members present tokens, the backend a key.
fn signed(settings: Settings) -> Settings {
    settings
        .set("logic.identity.method", "jwt")
        .set("logic.identity.jwt.secrets", SECRET)
        .set("logic.identity.jwt.leeway", "0s")
        .set("logic.http.api_keys", API_KEY)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn token_of(mid: u32) -> String {
    token(&json!({ "mid": mid, "exp": now() + 3600 }))
}

fn store(addr: SocketAddr, to: &Value, body: &str) {
    let message = json!({ "to": to, "operation": 1000, "body": body, "delivery": "stored" });
    let key = format!("Bearer {API_KEY}");
    let headers = [("content-type", "application/json"), ("authorization", key.as_str())];
    let body = json!({ "messages": [message] }).to_string();
    let answer = Http::connect(addr).request("POST", "/v1/push", &headers, body.as_bytes()).json();
    assert_eq!(answer["code"], json!(0), "{answer}");
}

fn end(addr: SocketAddr, order: &Value) {
    let key = format!("Bearer {API_KEY}");
    let headers = [("authorization", key.as_str())];
    let answer =
        Http::connect(addr).request("POST", "/v1/sessions/end", &headers, order.to_string().as_bytes());
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"code":0,"message":""}"#), "{order}");
}

fn metric(addr: SocketAddr, name: &str) -> f64 {
    let text = Http::connect(addr).request("GET", "/metrics", &[], b"").text();
    text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).sum()
}

/// An event of a stream.
#[derive(Debug)]
struct Event {
    kind: String,
    data: Value,
}

/// A stream of events as it arrives.
struct Stream {
    socket: TcpStream,
    /// What has arrived and is no complete event yet.
    unread: String,
    status: u16,
    head: String,
    /// All bytes that have arrived.
    bytes: usize,
    has_ended: bool,
}

impl Stream {
    fn open(addr: SocketAddr, query: &str, token: &str, last: &str) -> Self {
        let mut socket = TcpStream::connect(addr).unwrap();
        let last = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
        let bearer =
            if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        write!(
            socket,
            "GET /v1/sync?{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{bearer}{last}\r\n"
        )
        .unwrap();
        let (unread, head) = Default::default();
        let mut stream = Self { socket, unread, status: 0, head, bytes: 0, has_ended: false };
        let until = Instant::now() + DEADLINE;
        while !stream.unread.contains("\r\n\r\n") {
            assert!(!stream.has_ended && Instant::now() < until, "no head: {:?}", stream.unread);
            stream.fill(Duration::from_millis(50));
        }
        let (head, rest) = stream.unread.split_once("\r\n\r\n").unwrap();
        let (head, rest) = (head.to_ascii_lowercase(), rest.to_owned());
        stream.status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (stream.head, stream.unread) = (head, rest);
        stream
    }

    fn fill(&mut self, time: Duration) {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 64 * 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.has_ended = true,
            Ok(count) => {
                self.bytes += count;
                self.unread.push_str(&String::from_utf8_lossy(&buffer[..count]));
                // The last chunk.
                self.has_ended = self.status != 0 && self.unread.ends_with("\r\n0\r\n\r\n");
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.has_ended = true,
            Err(error) => panic!("{error}"),
        }
    }

    /// An event that has arrived already.
    fn take(&mut self) -> Option<Event> {
        loop {
            let end = self.unread.find("\n\n")?;
            let text: String = self.unread.drain(..end + 2).collect();
            let field = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
            };
            if let Ok(data) = serde_json::from_str(&field("data:")) {
                return Some(Event { kind: field("event:"), data });
            }
        }
    }

    /// The next event; `None` at the end of the stream.
    fn next(&mut self) -> Option<Event> {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.take() {
                return Some(event);
            }
            if self.has_ended {
                return None;
            }
            assert!(Instant::now() < until, "no event");
            self.fill(Duration::from_millis(50));
        }
    }

    /// All events that arrive in a time, at most so many bytes.
    fn events_for(&mut self, time: Duration, bytes_max: usize) -> Vec<Event> {
        let until = Instant::now() + time;
        let mut events = Vec::new();
        while Instant::now() < until && self.bytes < bytes_max && !self.has_ended {
            self.fill(Duration::from_millis(20));
            events.extend(std::iter::from_fn(|| self.take()));
        }
        events
    }

    /// The next event is messages with this body.
    #[track_caller]
    fn expect(&mut self, body: &str) {
        let event = self.next().expect("the stream goes on");
        assert_eq!((event.kind.as_str(), &event.data["messages"][0]["body"]), ("messages", &json!(body)));
    }

    /// The stream reports why it ends, and ends.
    #[track_caller]
    fn expect_end(&mut self, code: u16, reconnect: bool) {
        let event = self.next().expect("a word of the end");
        assert_eq!(event.kind, "end", "{event:?}");
        assert_eq!(
            (&event.data["code"], &event.data["reconnect"]),
            (&json!(code), &json!(reconnect)),
            "{event:?}"
        );
        assert!(self.next().is_none(), "nothing behind the end");
    }
}

/// Positions that no timeline has: in the query, and in `Last-Event-ID`.
const NOWHERE: [(&str, &str); 9] = [
    ("epoch=1&seq=1", ""),
    ("", "1:1"),
    ("epoch=9223372036854775807&seq=9223372036854775807", ""),
    ("", "18446744073709551615:18446744073709551615"),
    ("epoch=0&seq=5", ""),
    ("epoch=5&seq=0", ""),
    ("", "0:18446744073709551615"),
    ("epoch=-1&seq=-1", ""),
    ("", "text:text"),
];

#[test]
fn a_stream_from_an_unknown_position_reports_the_gap_once_and_waits() {
    let place = Place::new();
    let server = Server::start(&signed(place.settings()));
    let addr = server.addrs.http;
    for (query, last) in NOWHERE {
        for is_there in [false, true] {
            let mid = number();
            let to = json!({ "mids": [mid] });
            if is_there {
                store(addr, &to, "before");
            }
            let resets = metric(addr, "goim_logic_timeline_gaps_total");
            let mut stream =
                Stream::open(addr, &format!("timeline=mid://{mid}&{query}"), &token_of(mid), last);
            let events = stream.events_for(Duration::from_millis(400), 1 << 20);
            let made = metric(addr, "goim_logic_timeline_gaps_total") - resets;
            let what = format!("{query} {last} {is_there}: {} events, {made} resets", events.len());
            eprintln!("{what}");
            assert!(events.len() <= 1 && made <= 2.0, "{what}");
            assert!(stream.bytes < 4_096, "{what}");
            store(addr, &to, "after");
            stream.expect("after");
        }
    }
}

#[test]
fn a_read_from_an_unknown_position_has_one_answer() {
    let place = Place::new();
    let server = Server::start(&place.settings());
    for transport in BOTH {
        for (epoch, seq) in [(1, 1), (u64::MAX, u64::MAX), (0, 5), (5, 0), (0, u64::MAX)] {
            let mid = number();
            let token = json!({ "mid": mid, "key": unique("k"), "protover": 3, "resume": {} });
            let (mut client, reply) = Client::present(&server, transport, token.to_string());
            assert_eq!(reply.expect("a session").op, 8);
            let position = Writer::default().number(1, epoch).number(2, seq).done();
            let body = Writer::default().bytes(1, format!("mid://{mid}")).bytes(2, position).done();
            let reply = client.ask(&Packet::new(21, 7, body));
            assert_eq!((reply.op, reply.seq), (22, 7), "{epoch} {seq}");
            let reply = Fields::read(&reply.body);
            assert_eq!(
                (reply.number(6), reply.messages(3).len()),
                (1, 0),
                "{epoch} {seq}: a reset, and nothing"
            );
            client.expect_nothing();
        }
        // In a token too.
        let mid = number();
        let positions = json!({ format!("mid://{mid}"): { "epoch": 1, "seq": 1 } });
        let token = json!({ "mid": mid, "key": unique("k"), "protover": 3, "resume": positions });
        let (mut client, reply) = Client::present(&server, transport, token.to_string());
        assert_eq!(reply.expect("a session").op, 8);
        assert_eq!(client.packet().op, 22);
        client.expect_nothing();
    }
}

#[test]
fn long_polls_beyond_the_limit_are_refused_with_retry_after() {
    let place = Place::new();
    let server = Server::start(&signed(place.settings()).set("logic.timelines.long_polls_max", "1"));
    let addr = server.addrs.http;
    let mid = number();
    let (query, token) = (format!("timeline=mid://{mid}"), token_of(mid));
    let mut first = Stream::open(addr, &query, &token, "");
    assert_eq!(first.status, 200);
    let mut second = Stream::open(addr, &query, &token, "");
    let printed = second.events_for(Duration::from_millis(300), 1 << 20);
    assert_eq!(second.status, 503, "{} bytes, {} events", second.bytes, printed.len());
    assert!(second.head.contains("retry-after: "), "{}", second.head);
    let bearer = format!("Bearer {token}");
    let poll = |wait: &str| {
        let headers = [("authorization", bearer.as_str())];
        Http::connect(addr).request("GET", &format!("/v1/sync?{query}{wait}"), &headers, b"")
    };
    let refused = poll("&wait=20s");
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true), "{}", refused.text());
    assert_eq!(poll("").status, 200, "who does not wait is answered");
    store(addr, &json!({ "mids": [mid] }), "there");
    first.expect("there");
    assert_eq!(poll("&wait=20s").json()["data"]["messages"][0]["body"], json!("there"));
    end(addr, &json!({ "of": { "mids": [mid] } }));
    first.expect_end(3505, false);
    assert_eq!(Stream::open(addr, &query, &token, "").status, 200, "there is room again");
}

#[test]
fn a_member_and_an_address_wait_so_often() {
    let place = Place::new();
    let settings = signed(place.settings())
        .set("logic.timelines.long_polls_per_member_max", "2")
        .set("logic.timelines.long_polls_per_address_max", "3");
    let server = Server::start(&settings);
    let addr = server.addrs.http;
    let [one, other] = [number(), number()];
    let open = |mid: u32| Stream::open(addr, &format!("timeline=mid://{mid}"), &token_of(mid), "");
    let held = [open(one), open(one), open(other)];
    assert!(held.iter().all(|stream| stream.status == 200));
    for mid in [one, other] {
        let refused = open(mid);
        assert_eq!(refused.status, 429, "{mid}");
        assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    }
    let bearer = format!("Bearer {}", token_of(one));
    let target = format!("/v1/sync?timeline=mid://{one}&wait=20s");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(Http::connect(addr).request("GET", &target, &headers, b"").status, 429);
    end(addr, &json!({ "of": { "mids": [one] } }));
    for mut stream in held.into_iter().take(2) {
        stream.expect_end(3505, false);
    }
    assert_eq!(open(one).status, 200, "there is room again");
}

#[test]
fn streams_and_waiting_requests_end_with_their_token() {
    let place = Place::new();
    let server = Server::start(&signed(place.settings()));
    let addr = server.addrs.http;
    let mid = number();
    let query = format!("timeline=mid://{mid}");
    let short = token(&json!({ "mid": mid, "exp": now() + 2 }));
    let mut stream = Stream::open(addr, &query, &short, "");
    assert_eq!(stream.status, 200);
    let headers = [("authorization", format!("Bearer {short}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let poll = Http::connect(addr).request("GET", &format!("/v1/sync?{query}&wait=15s"), &headers, b"");
    assert_eq!(poll.status, 401, "{}", poll.text());
    assert!(poll.text().contains("expired"), "{}", poll.text());
    stream.expect_end(3201, true);
    store(addr, &json!({ "mids": [mid] }), "too late");
    assert_eq!(Stream::open(addr, &query, &short, "").status, 401);
}

#[test]
fn streams_and_waiting_requests_end_by_order() {
    let place = Place::new();
    let server = Server::start(&signed(place.settings()));
    let addr = server.addrs.http;
    for (reason, code, reconnect, status) in [("revoked", 3208, true, 401), ("kicked", 3505, false, 403)] {
        let (mid, stays, key, room) = (number(), number(), unique("k"), unique("live://r"));
        let keyed = token(&json!({ "mid": mid, "exp": now() + 3600, "key": key }));
        let [inbox, other] = [mid, stays].map(|mid| format!("timeline=mid://{mid}"));
        let in_room = format!("timeline={room}");
        for (of, query, token, mine) in [
            (json!({ "mids": [1, mid] }), inbox.as_str(), token_of(mid), token_of(stays)),
            (json!({ "mids": [mid] }), in_room.as_str(), token_of(mid), token_of(stays)),
            (json!({ "keys": ["other", key] }), inbox.as_str(), keyed.clone(), token_of(stays)),
            (json!({ "room": room }), in_room.as_str(), token_of(mid), token_of(stays)),
        ] {
            let mut stream = Stream::open(addr, query, &token, "");
            let mut unharmed = Stream::open(addr, &other, &mine, "");
            assert_eq!((stream.status, unharmed.status), (200, 200));
            let waits = metric(addr, "goim_logic_long_polls");
            let poll = {
                let target = format!("/v1/sync?{query}&wait=19s");
                let bearer = format!("Bearer {token}");
                std::thread::spawn(move || {
                    let headers = [("authorization", bearer.as_str())];
                    Http::connect(addr).request("GET", &target, &headers, b"")
                })
            };
            eventually("the request waits", || metric(addr, "goim_logic_long_polls") > waits);
            end(addr, &json!({ "of": of, "reason": reason }));
            stream.expect_end(code, reconnect);
            let answer = poll.join().unwrap();
            assert_eq!(answer.status, status, "{of}: {}", answer.text());
            assert!(answer.text().contains(reason), "{}", answer.text());
            store(addr, &json!({ "mids": [stays] }), "still here");
            unharmed.expect("still here");
            // A client that connects after the order is not concerned, as over sockets.
            assert_eq!(Stream::open(addr, query, &token, "").status, 200);
        }
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn an_order_at_one_logic_ends_what_is_open_at_another() {
    let place = Place::postgres();
    let cluster = Cluster::without_job(&signed(place.settings()));
    let other = cluster.settings().set("http.listen", "127.0.0.1:0").set("rpc.logic", "127.0.0.1:0");
    let other = runtime().block_on(goim::cluster::start_logic(other.config())).unwrap();
    let (here, there) = (cluster.addrs.http, other.line("http").unwrap().parse().unwrap());
    let room = unique("live://r");
    let [mid, with_key, stays] = [number(), number(), number()];
    let key = unique("k");
    let keyed = token(&json!({ "mid": with_key, "exp": now() + 3600, "key": key }));
    let [inbox, of_key, own] = [mid, with_key, stays].map(|mid| format!("timeline=mid://{mid}"));
    let in_room = format!("timeline={room}");
    for (of, query, token) in [
        (json!({ "mids": [mid] }), &inbox, token_of(mid)),
        (json!({ "keys": [key] }), &of_key, keyed),
        (json!({ "room": room }), &in_room, token_of(mid)),
    ] {
        let mut stream = Stream::open(there, query, &token, "");
        let mut unharmed = Stream::open(there, &own, &token_of(stays), "");
        assert_eq!((stream.status, unharmed.status), (200, 200));
        let ordered = Instant::now();
        end(here, &json!({ "of": of, "reason": "revoked" }));
        stream.expect_end(3208, true);
        eprintln!("{of}: ended after {:?}", ordered.elapsed());
        store(here, &json!({ "mids": [stays] }), "still here");
        unharmed.expect("still here");
    }
    let _inside = runtime().enter();
    drop(other);
}

#[test]
fn a_token_is_judged_as_over_sockets() {
    let place = Place::new();
    let settings = signed(place.settings())
        .set("logic.identity.jwt.audience", "chat")
        .set("logic.identity.jwt.issuer", "login");
    let server = Server::start(&settings);
    let mid = number();
    let good = || json!({ "mid": mid, "exp": now() + 3600, "aud": "chat", "iss": "login" });
    let with = |name: &str, value: Value| {
        let mut claims = good();
        claims[name] = value;
        token(&claims)
    };
    let inbox = format!("mid://{mid}");
    let scoped = with("rooms_allowed", json!(["live://allowed*"]));
    for (what, token, timeline, expected) in [
        ("good", token(&good()), inbox.as_str(), 200),
        ("ended", with("exp", json!(now() - 1)), inbox.as_str(), 401),
        ("not yet", with("nbf", json!(now() + 3600)), inbox.as_str(), 401),
        ("for others", with("aud", json!("shop")), inbox.as_str(), 401),
        ("of others", with("iss", json!("elsewhere")), inbox.as_str(), 401),
        ("no token", String::new(), inbox.as_str(), 401),
        ("somebody else's inbox", token(&good()), "mid://1", 403),
        ("a room of the scope", scoped.clone(), "live://allowed-1", 200),
        ("a room beyond the scope", scoped, "live://other", 403),
    ] {
        let stream = Stream::open(server.addrs.http, &format!("timeline={timeline}"), &token, "");
        assert_eq!(stream.status, expected, "{what}: stream");
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let body = json!({ "timeline": timeline, "seq": 0 }).to_string();
        for (method, target, body) in [
            ("GET", format!("/v1/sync?timeline={timeline}"), ""),
            ("GET", format!("/v1/history?timeline={timeline}"), ""),
            ("GET", format!("/v1/unread?timelines={timeline}"), ""),
            ("POST", "/v1/ack".to_owned(), body.as_str()),
        ] {
            let answer = server.request(method, &target, &headers, body.as_bytes());
            assert_eq!(answer.status, expected, "{what}: {target}: {}", answer.text());
        }
    }
}

#[test]
fn an_idle_timeout_does_not_cut_a_stream() {
    let place = Place::new();
    let settings = signed(place.settings())
        .set("logic.http.idle_timeout", "300ms")
        .set("logic.http.header_timeout", "100ms")
        .set("logic.http.request_timeout", "400ms");
    let server = Server::start(&settings);
    let addr = server.addrs.http;
    let mid = number();
    let mut stream = Stream::open(addr, &format!("timeline=mid://{mid}"), &token_of(mid), "");
    for turn in 0..15 {
        store(addr, &json!({ "mids": [mid] }), &format!("busy {turn}"));
        stream.expect(&format!("busy {turn}"));
        std::thread::sleep(Duration::from_millis(100));
    }
    // Nor one on which nothing happens.
    stream.events_for(Duration::from_millis(1_200), usize::MAX);
    assert!(!stream.has_ended, "a quiet stream was cut");
    store(addr, &json!({ "mids": [mid] }), "after silence");
    stream.expect("after silence");
}

#[test]
fn streams_end_when_the_server_stops() {
    let place = Place::folder();
    let mut process = Process::start(&signed(place.settings()));
    let addr = process.server.addrs.http;
    let mid = number();
    let query = format!("timeline=mid://{mid}");
    let mut stream = Stream::open(addr, &query, &token_of(mid), "");
    store(addr, &json!({ "mids": [mid] }), "first");
    stream.expect("first");
    let bearer = format!("Bearer {}", token_of(mid));
    let poll = {
        let target = "/v1/sync?timeline=live://quiet&wait=19s";
        std::thread::spawn(move || {
            let headers = [("authorization", bearer.as_str())];
            Http::connect(addr).request("GET", target, &headers, b"")
        })
    };
    eventually("both wait", || metric(addr, "goim_logic_long_polls") == 2.0);
    process.terminate();
    stream.expect_end(3002, true);
    assert_eq!(poll.join().unwrap().json()["data"]["messages"], json!([]));
    assert_eq!(process.wait().code(), Some(0));
}
