//! Roles whose engines are unavailable when they start, each as a separate process: they wait,
//! report what they wait for, and start once it is available.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::cluster::Redis;
use crate::harness::http::Http;
use crate::harness::kafka::broker;
use crate::harness::postgres::Postgres;
use crate::harness::server::Addrs;
use crate::harness::{BOTH, Client, DEADLINE, Server, unique};

/// An address where nothing answers until it is opened; then connections are forwarded to an
/// engine.
struct Gate {
    addr: SocketAddr,
    /// Holds the port while nothing answers.
    held: Option<socket2::Socket>,
}

impl Gate {
    fn shut() -> Self {
        let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let addr = held.local_addr().unwrap().as_socket().unwrap();
        Self { addr, held: Some(held) }
    }

    fn listen(&mut self) -> TcpListener {
        let held = self.held.take().expect("it is shut");
        held.listen(128).unwrap();
        held.into()
    }

    /// From now on this engine answers.
    fn open(&mut self, engine: &str) {
        let (listener, engine) = (self.listen(), engine.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&engine) else { continue };
                pass(client.try_clone().unwrap(), server.try_clone().unwrap());
                pass(server, client);
            }
        });
    }

    /// From now on every request gets this answer, until `engine` is named.
    fn answer(&mut self, text: &'static str, engine: Arc<Mutex<Option<String>>>) {
        let listener = self.listen();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let engine = engine.lock().unwrap().clone();
                std::thread::spawn(move || match engine {
                    Some(engine) => {
                        let Ok(server) = TcpStream::connect(&engine) else { return };
                        pass(client.try_clone().unwrap(), server.try_clone().unwrap());
                        pass(server, client);
                    }
                    None => {
                        let mut asked = [0; 4096];
                        while let Ok(1..) = client.read(&mut asked) {
                            if client.write_all(text.repeat(8).as_bytes()).is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

/// A role in a separate process.
struct Role {
    child: Child,
    pages: SocketAddr,
}

impl Role {
    fn start(role: &str, settings: &[(&str, &str)]) -> Self {
        let pages = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let of_pages = match role {
            "comet" => "cluster.comet_admin_listen",
            "job" => "cluster.job_admin_listen",
            _ => "http.listen",
        };
        let fixed = [
            ("comet.listen.tcp", "127.0.0.1:0"),
            ("comet.listen.websocket", "127.0.0.1:0"),
            ("comet.listen.websocket_tls", ""),
            ("rpc.comet", "127.0.0.1:0"),
            ("rpc.logic", "127.0.0.1:0"),
            ("cluster.refresh_interval", "20ms"),
            ("comet.report_interval", "50ms"),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_goim"));
        command.arg(role).args(["--set", &format!("{of_pages}={pages}")]);
        for (key, value) in fixed.iter().chain(settings) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, pages }
    }

    /// Status and text of a page; `None` when nothing answers.
    fn page(&self, page: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.pages).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\nHost: goim\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// It is not ready, but alive, and reports what it waits for.
    fn waits_for(&mut self, reason: &str) {
        let began = Instant::now();
        loop {
            let says = self.page("/readyz");
            if let Some((503, text)) = &says
                && text.contains(reason)
            {
                break;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it has ended instead of waiting for {reason:?}: {status}: {}", self.printed());
            }
            assert!(began.elapsed() < DEADLINE, "it should wait for {reason:?} and says {says:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.page("/healthz"), Some((200, "ok\n".to_owned())));
    }

    fn is_ready_soon(&mut self) {
        let began = Instant::now();
        loop {
            let says = self.page("/readyz");
            if says.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            if began.elapsed() > DEADLINE {
                self.child.kill().unwrap();
                panic!("it is not ready: {says:?}: {}", self.printed());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn printed(&mut self) -> String {
        let mut printed = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        printed
    }

    /// Asks it to stop, and gives how it ended.
    fn stop(self) -> Output {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let began = Instant::now();
        let output = self.end();
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to stop", began.elapsed());
        output
    }

    /// Waits for its end.
    fn end(mut self) -> Output {
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(40) {
                self.child.kill().unwrap();
                panic!("it does not end: {}", self.printed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let child = std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
        child.wait_with_output().unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn address(redis: &Redis) -> String {
    redis.url.strip_prefix("redis://").unwrap().to_owned()
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn a_role_waits_for_redis_and_then_for_kafka_and_is_ready_when_they_are_available() {
    let broker = broker();
    let real = Redis::start();
    // The logic makes it.
    let topic = unique(&format!("waits-{}", std::process::id()));
    for role in ["logic", "job"] {
        let (mut redis, mut kafka) = (Gate::shut(), Gate::shut());
        let (redis_url, kafka_addr) = (format!("redis://{}", redis.addr), kafka.addr.to_string());
        let settings = [
            ("redis.url", redis_url.as_str()),
            ("kafka.brokers", &kafka_addr),
            ("kafka.topic", &topic),
            ("kafka.group", &topic),
        ];
        let mut process = Role::start(role, &settings);
        let of_redis = if role == "logic" { "redis" } else { "the list of comets" };
        process.waits_for("waits for redis: it does not answer");
        if role == "logic" {
            let answer =
                Http::connect(process.pages).request("POST", "/goim/push/all?operation=1000", &[], b"x");
            assert_eq!(answer.status, 503, "{}", answer.text());
        }
        redis.open(&address(&real));
        process.waits_for("waits for kafka");
        kafka.open(&broker);
        process.is_ready_soon();
        let output = process.stop();
        assert_eq!(output.status.code(), Some(0));
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        let count = |text: &str| {
            printed
                .lines()
                .filter(|line| line.contains(text) && line.contains(&format!("what=\"{of_redis}\"")))
                .count()
        };
        assert_eq!((count("startup waits"), count("startup continues")), (1, 1), "{printed}");
    }
}

#[test]
fn a_comet_waits_for_redis_and_is_not_ready_without_a_logic() {
    let real = Redis::start();
    let (mut redis, logic) = (Gate::shut(), Gate::shut());
    let settings = [
        ("redis.url", format!("redis://{}", redis.addr)),
        ("cluster.logic", format!("grpc://{}", logic.addr)),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut process = Role::start("comet", &settings);
    process.waits_for("waits for redis");
    redis.open(&address(&real));
    process.waits_for("logic: none does what it is asked");
    assert_eq!(process.stop().status.code(), Some(0));
}

/// No logic has read the token then: the comet itself detects that the client is a negotiated one.
#[test]
fn a_client_that_connects_while_no_logic_answers_is_asked_to_retry() {
    let real = Redis::start();
    let (away, mut hanging) = (Gate::shut(), Gate::shut());
    let _listener = hanging.listen();
    for (what, logic) in [("away", away.addr), ("hanging", hanging.addr)] {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (tcp, websocket) = (free(), free());
        let settings = [
            ("redis.url", real.url.clone()),
            ("cluster.logic", format!("grpc://{logic}")),
            ("comet.listen.tcp", tcp.to_string()),
            ("comet.listen.websocket", websocket.to_string()),
            ("comet.limits.handshake_timeout", "2s".to_owned()),
        ];
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut process = Role::start("comet", &settings);
        process.waits_for("logic: none");
        let server = Server::at(Addrs { tcp, websocket, http: tcp, comet_rpc: tcp, logic_rpc: tcp });
        for transport in BOTH {
            let (_client, told) = Client::present(&server, transport, r#"{"mid":7,"key":"k","protover":1}"#);
            let told = told.unwrap_or_else(|| panic!("{what}, {transport:?}: cut without a word"));
            let printed: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
            assert_eq!((told.op, printed["code"].as_u64()), (6, Some(3101)), "{what}, {transport:?}");
            let (mut client, told) = Client::present(&server, transport, r#"{"mid":7,"key":"k"}"#);
            assert!(told.is_none(), "one of goim's sees the end");
            client.expect_closed_politely();
        }
    }
}

#[test]
fn a_role_that_waits_stops_on_a_signal() {
    let nobody = Gate::shut();
    let url = format!("redis://{}", nobody.addr);
    for role in ["logic", "comet", "job"] {
        let logic = ("cluster.logic", "grpc://127.0.0.1:1");
        let mut process = Role::start(role, &[("redis.url", &url), logic]);
        process.waits_for("waits for redis");
        let output = process.stop();
        assert_eq!(output.status.code(), Some(0), "{role}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let discovery = nobody.addr.to_string();
    let settings = [
        ("cluster.directory", "discovery"),
        ("cluster.discovery", discovery.as_str()),
        ("comet.node.zone", "z"),
        ("comet.node.env", "e"),
    ];
    let mut process = Role::start("comet", &settings);
    process.waits_for("waits for discovery");
    assert_eq!(process.stop().status.code(), Some(0));
}

#[test]
fn what_waiting_does_not_mend_ends_a_role_with_its_reason() {
    let real = Redis::start();
    real.cli(&["config", "set", "requirepass", "right"]);
    let addr = address(&real);
    let wrong = format!("redis://:wrong-one@{addr}");
    let cases = [
        (real.url.as_str(), Some(69), "rejects the "),
        (&wrong, Some(69), "rejects the "),
        ("http://x", Some(69), "http://x"),
    ];
    for role in ["logic", "comet", "job"] {
        for (url, status, text) in &cases {
            let settings = [("redis.url", *url), ("cluster.logic", "grpc://127.0.0.1:1")];
            let output = Role::start(role, &settings).end();
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), *status, "{role} {url}: {printed}");
            assert!(printed.contains(text) && !printed.contains("wrong-one"), "{role} {url}: {printed}");
        }
    }
    // Wrong settings are reported although Redis is unavailable.
    let nobody = Gate::shut();
    let url = format!("redis://{}", nobody.addr);
    let output = Role::start("comet", &[("redis.url", &url), ("cluster.logic", "")]).end();
    assert_eq!(output.status.code(), Some(64));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cluster.logic = [] (--set): must name a logic")
    );
    // The password again, and now the right one.
    let right = format!("redis://:right@{addr}");
    let mut process = Role::start("comet", &[("redis.url", &right), ("cluster.logic", "grpc://127.0.0.1:1")]);
    process.waits_for("logic: none");
}

#[test]
fn a_redis_that_loads_or_refuses_writes_is_waited_for() {
    let real = Redis::start();
    let mut loading = Gate::shut();
    let engine = Arc::new(Mutex::new(None));
    loading.answer("-LOADING Redis is loading the dataset in memory\r\n", Arc::clone(&engine));
    let url = format!("redis://{}", loading.addr);
    let settings = [("redis.url", url.as_str()), ("cluster.logic", "grpc://127.0.0.1:1")];
    let mut process = Role::start("comet", &settings);
    process.waits_for("waits for redis");
    real.cli(&["config", "set", "maxmemory", "1"]);
    *engine.lock().unwrap() = Some(address(&real));
    process.waits_for("waits for the list of comets");
    process.waits_for("redis refuses writes: OOM");
    real.cli(&["config", "set", "maxmemory", "0"]);
    process.waits_for("logic: none");
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn postgres_is_waited_for_by_a_logic_and_by_goim_serve() {
    let broker = broker();
    let postgres = Postgres::shared();
    let url = postgres.database();
    let (before, behind) =
        url.rsplit_once('@').map_or(("postgres://", &*url), |(before, behind)| (before, behind));
    let (engine, database) = behind.split_once('/').unwrap();
    let real = Redis::start();
    for role in ["serve", "logic"] {
        let mut gate = Gate::shut();
        let by_gate = format!("{before}@{}/{database}", gate.addr);
        let topic = unique(&format!("waits-{}", std::process::id()));
        let settings = [
            ("timelines.postgres", by_gate.as_str()),
            ("redis.url", &real.url),
            ("kafka.brokers", &broker),
            ("kafka.topic", &topic),
        ];
        let mut process = Role::start(role, &settings);
        process.waits_for("waits for postgres");
        gate.open(engine);
        process.is_ready_soon();
        assert_eq!(process.stop().status.code(), Some(0), "{role}");
    }
    let wrong = format!("{before}@{engine}/no_such_database");
    let output = Role::start("serve", &[("timelines.postgres", &wrong)]).end();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{printed}");
    assert!(printed.contains("rejects the ") && printed.contains("no_such_database"), "{printed}");
}
