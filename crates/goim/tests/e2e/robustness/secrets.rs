//! A secret of the configuration is in nothing that the binary prints: not at its start, not when
//! the start fails, not in its log, and not in its answers while an engine is unavailable.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::child::Process;
use crate::harness::postgres::Postgres;
use crate::harness::proto::Writer;
use crate::harness::{Client, DEADLINE, Packet, Settings, Transport, number, unique};
use serde_json::json;

const SECRET: &str = "SESAME-open-6f1d";

fn goim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goim"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GOIM_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end; one that starts is stopped after a while.
fn run(mut command: Command) -> Output {
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[track_caller]
fn check(what: &str, command: Command) -> String {
    let output = run(command);
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(!printed.contains(SECRET), "{what}: {printed}");
    // Nor in another form.
    assert!(!printed.contains("SESAME"), "{what}: {printed}");
    printed
}

/// Nothing listens there, as long as this process has it.
fn nowhere() -> (TcpListener, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let listener: TcpListener = socket.into();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

const PORTS: [&str; 9] = [
    "comet.listen.tcp=127.0.0.1:0",
    "comet.listen.websocket=127.0.0.1:0",
    "http.listen=127.0.0.1:0",
    "rpc.comet=127.0.0.1:0",
    "rpc.logic=127.0.0.1:0",
    "cluster.comet_admin_listen=127.0.0.1:0",
    "cluster.job_admin_listen=127.0.0.1:0",
    "redis.command_timeout=200ms",
    "log.level=trace",
];

fn with<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![command];
    for pair in PORTS.iter().chain(more) {
        arguments.extend(["--set", pair]);
    }
    arguments
}

#[test]
fn a_setting_with_a_secret_is_not_shown_whatever_is_wrong_with_it() {
    let (_held, nobody) = nowhere();
    let postgres = [
        format!("postgres://goim:{SECRET}@{nobody}/goim"),
        format!("postgres://{nobody}/goim?user=goim&password={SECRET}"),
        format!("postgres://goim:p@{SECRET}@{nobody}/goim"),
        format!("postgres://goim:%53{SECRET}@{nobody}/goim"),
        format!("postgresql://goim:{SECRET}@{nobody},{nobody}/goim?connect_timeout=1"),
        format!("host=127.0.0.1 port={} user=goim password={SECRET}", nobody.port()),
        format!("host=127.0.0.1 port={} user=goim password='{SECRET} x'", nobody.port()),
        format!("user=goim password={SECRET} host=/nonexistent"),
        format!("postgres://goim:{SECRET}@%2Fnonexistent/goim"),
        format!("postgres://goim:{SECRET}@127.0.0.1:port/goim"),
        format!("postgres://goim:{SECRET}@{nobody}/goim?nonsense={SECRET}"),
        format!("postgres://goim:{SECRET}"),
        format!("host=127.0.0.1 {SECRET}"),
        format!("password={SECRET}"),
        SECRET.to_owned(),
        format!("mysql://goim:{SECRET}@{nobody}/goim"),
    ];
    for url in &postgres {
        let setting = format!("timelines.postgres={url}");
        let printed = check(url, goim(&with("serve", &[&setting])));
        assert!(printed.contains("timelines.postgres"), "{url}: it says what is wrong: {printed}");
        check(url, goim(&["config", "--effective", "--check", "--set", &setting]));
    }
    let redis = [
        format!("redis://:{SECRET}@{nobody}"),
        format!("redis://:p@{SECRET}@{nobody}"),
        format!("redis://user:{SECRET}@{nobody}/1"),
        format!("rediss://user:{SECRET}@{nobody}"),
        format!("redis://{nobody}?password={SECRET}"),
        format!("redis+unix:///nonexistent?pass={SECRET}"),
        format!("unix:///nonexistent?pass={SECRET}"),
        format!("redis://:{SECRET}@127.0.0.1:port"),
        format!("redis://:{SECRET}@{nobody}/database"),
        format!("http://:{SECRET}@{nobody}"),
        format!(":{SECRET}@{nobody}"),
        SECRET.to_owned(),
    ];
    for url in &redis {
        for key in ["redis.url", "redis.cluster", "redis.sentinels"] {
            let setting = format!("{key}={url}");
            for role in ["logic", "comet", "job"] {
                // One is enough for most: they open it alike.
                if role == "logic" || key == "redis.url" {
                    check(url, goim(&with(role, &[&setting])));
                }
            }
            check(url, goim(&["config", "--effective", "--check", "--set", &setting]));
        }
    }
}

#[test]
fn no_error_about_a_wrong_configuration_contains_a_secret() {
    let sets = [
        format!(
            "logic.upstream.routes=[{{ operations = \"1000\", to = \"http://x\", secret = \"{SECRET}\", x = 1 }}]"
        ),
        format!("logic.upstream.routes=[{{ operations = \"1000\", to = \"ftp://u:{SECRET}@x\" }}]"),
        format!(
            "logic.upstream.routes=[{{ operations = \"1\", to = \"http://u:{SECRET}@x\", secret = \"{SECRET}\" }}]"
        ),
        format!("logic.upstream.routes={SECRET}"),
        format!("logic.upstream.routes=[{{ operations = \"1000\", to = \"grpc://u:{SECRET}@x:1\" }}]"),
        format!("logic.identity.webhook.url=ftp://u:{SECRET}@x"),
        format!("logic.identity.jwt.jwks_url=ftp://u:{SECRET}@x?k={SECRET}"),
        format!("logic.timelines.send_webhook.url=u:{SECRET}@x"),
        format!("events.url=ftp://u:{SECRET}@x"),
        format!("timelines.offline_url=ftp://u:{SECRET}@x"),
        format!("logic.http.api_keys={}", &SECRET[..15]),
        format!("logic.identity.jwt.secrets={SECRET}"),
        format!("logic.identity.jwt.secret={SECRET}"),
        format!("timelines.postgress={SECRET}"),
        format!("redis.url:{SECRET}"),
        SECRET.to_owned(),
        format!("kafka.properties={{ \"sasl.password\" = \"{SECRET}\", }}x"),
        format!("kafka.properties={{ \"sasl.password\" = [\"{SECRET}\"] }}"),
        format!("kafka.properties={SECRET}"),
        format!("cluster.logic=grpc://u:{SECRET}@x"),
    ];
    for set in &sets {
        check(set, goim(&with("serve", &[set])));
        check(set, goim(&with("comet", &[set])));
        check(set, goim(&["config", "--effective", "--check", "--set", set]));
    }
    // Good ones are not shown either.
    let hook = format!("https://u:{SECRET}@x/hook?key={SECRET}");
    for set in [
        format!("logic.identity.webhook.url={hook}"),
        format!("logic.identity.jwt.jwks_url={hook}"),
        format!("events.url={hook}"),
        format!("events.secret={SECRET}"),
        format!("timelines.offline_url={hook}"),
        format!("timelines.offline_secret={SECRET}"),
        format!(
            "logic.upstream.routes=[{{ operations = \"1000\", to = \"{hook}\", secret = \"{SECRET}\" }}]"
        ),
        format!("logic.http.api_keys={SECRET}"),
        format!("logic.identity.webhook.secret={SECRET}"),
        format!("logic.timelines.send_webhook.secret={SECRET}"),
    ] {
        check(&set, goim(&["config", "--effective", "--check", "--set", &set]));
        check(&set, goim(&with("serve", &[&set])));
    }
    for properties in [
        format!("kafka.properties={{ \"sasl.passwrd\" = \"{SECRET}\" }}"),
        format!("kafka.properties={{ \"sasl.mechanism\" = \"{SECRET}\", \"debug\" = \"{SECRET}\" }}"),
        format!("kafka.properties={{ \"security.protocol\" = \"{SECRET}\" }}"),
    ] {
        let to_kafka = "events.url=kafka://topic";
        let printed = check(&properties, goim(&with("serve", &[&properties, to_kafka])));
        assert!(printed.contains("is not taken"), "{properties}: {printed}");
    }
    let mut file = std::env::temp_dir().join(unique(&format!("goim-secrets-{}", std::process::id())));
    file.set_extension("toml");
    for text in [
        format!("[redis]\nurl = redis://:{SECRET}@x\n"),
        format!("[redis]\nurl = \"redis://:{SECRET}@x\n"),
        format!("[redis]\nurl = 'redis://:{SECRET}@x\"\n"),
        format!("[timelines]\npostgres = {SECRET}\n"),
        format!("[timelines]\npostgres = \"{SECRET}\"\npostgres = \"{SECRET}\"\n"),
        format!("[timelines]\npostgres = [\"{SECRET}\"]\n"),
        format!("[redis.url]\nx = \"{SECRET}\"\n"),
        format!("[kafka]\nproperties = {{ \"sasl.password\" = \"{SECRET}\"\n"),
        format!("[logic.http]\napi_keys = [\"{SECRET}\", 5]\n"),
        format!("[logic.http]\napi_keys = \"{SECRET}\"\n"),
        format!("[logic.identity.jwt]\nsecrets = [\"{SECRET}\\q\"]\n"),
        format!("[[logic.upstream.routes]]\noperations = \"x\"\nto = \"http://x\"\nsecret = \"{SECRET}\"\n"),
        format!("{SECRET}\n"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let name = file.to_str().unwrap();
        let printed = check(&text, goim(&["serve", "--config", name]));
        assert!(
            printed.contains(name) || printed.contains("the configuration cannot be used"),
            "{text}: {printed}"
        );
        check(&text, goim(&["config", "--effective", "--config", name]));
    }
    std::fs::remove_file(&file).unwrap();
    // Arguments in the wrong place, and the environment.
    let stray = format!("redis.url=redis://:{SECRET}@x");
    check("an argument", goim(&["serve", &stray]));
    check("an option", goim(&["serve", &format!("--{stray}")]));
    for (name, value) in [
        ("GOIM_TIMELINES_POSTGRES", format!("postgres://goim:{SECRET}@127.0.0.1:port/x")),
        ("GOIM_TIMELINES_POSTGRESS", SECRET.to_owned()),
        ("GOIM_LOGIC_UPSTREAM_ROUTES", format!("[{{ secret = \"{SECRET}\" }}]")),
    ] {
        let mut command = goim(&with("serve", &[]));
        command.env(name, value);
        check(name, command);
    }
}

/// A way to an engine that can be cut.
struct Way {
    addr: SocketAddr,
    is_open: Arc<AtomicBool>,
}

impl Way {
    fn to(engine: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let is_open = Arc::new(AtomicBool::new(true));
        let may = Arc::clone(&is_open);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if may.load(Ordering::SeqCst)
                    && let Ok(other) = std::net::TcpStream::connect(engine)
                {
                    for (mut from, mut to) in [
                        (stream.try_clone().unwrap(), other.try_clone().unwrap()),
                        (other.try_clone().unwrap(), stream.try_clone().unwrap()),
                    ] {
                        let may = Arc::clone(&may);
                        std::thread::spawn(move || {
                            from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                            let mut buffer = [0; 4096];
                            while may.load(Ordering::SeqCst) {
                                match from.read(&mut buffer) {
                                    Ok(0) => break,
                                    Ok(count) => {
                                        if std::io::Write::write_all(&mut to, &buffer[..count]).is_err() {
                                            break;
                                        }
                                    }
                                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                                    Err(_) => break,
                                }
                            }
                            let _ = from.shutdown(std::net::Shutdown::Both);
                            let _ = to.shutdown(std::net::Shutdown::Both);
                        });
                    }
                }
            }
        });
        Self { addr, is_open }
    }
}

#[test]
fn while_the_store_is_unavailable_no_answer_contains_its_address() {
    let postgres = Postgres::shared();
    let url = postgres.database();
    let (before, after) = url.split_once("@").unwrap_or_else(|| url.split_once("://").unwrap());
    let (host, database) = after.split_once('/').unwrap();
    let user = before.rsplit_once("://").map_or("postgres", |(_, user)| user.split(':').next().unwrap());
    let user = if user.is_empty() { "postgres" } else { user };
    let way = Way::to(host.parse().unwrap());
    let database = database.split('?').next().unwrap();
    // Trusted there, so that any password will do: in the form that has no `@`.
    let given = format!("postgres://{}/{database}?user={user}&password={SECRET}", way.addr);
    let process =
        Process::start(&Settings::new().set("timelines.postgres", &given).set("log.level", "debug"));
    let server = &process.server;
    let mid = number();
    let token = json!({ "mid": mid, "key": unique("k"), "protover": 3, "resume": {} });
    let (mut client, _) = Client::present(server, Transport::Tcp, token.to_string());
    way.is_open.store(false, Ordering::SeqCst);
    let mut printed = String::new();
    let timeline = format!("mid://{mid}");
    let place = json!({ "timeline": timeline, "seq": 1 }).to_string();
    let message = json!({ "messages": [{ "to": { "mids": [mid] }, "operation": 1000, "body": "x", "delivery": "stored" }] });
    let json_type = [("content-type", "application/json")];
    let stream = [("accept", "text/event-stream")];
    for (method, target, headers, body) in [
        ("GET", format!("/v1/sync?timeline={timeline}&mid={mid}"), &json_type, ""),
        ("GET", format!("/v1/sync?timeline={timeline}&mid={mid}&wait=3s"), &json_type, ""),
        ("GET", format!("/v1/sync?timeline={timeline}&mid={mid}"), &stream, ""),
        ("GET", format!("/v1/history?timeline={timeline}&mid={mid}"), &json_type, ""),
        ("GET", format!("/v1/unread?timelines={timeline}&mid={mid}"), &json_type, ""),
        ("POST", format!("/v1/ack?mid={mid}"), &json_type, place.as_str()),
        ("POST", "/v1/messages/delete".to_owned(), &json_type, place.as_str()),
        ("POST", format!("/goim/push/mids?operation=1000&mids={mid}&delivery=stored"), &json_type, "x"),
        ("POST", "/v1/push".to_owned(), &json_type, &message.to_string()),
    ] {
        let answer = server.request(method, &target, headers, body.as_bytes());
        assert_eq!(answer.status, 503, "{target}: {}", answer.text());
        printed.push_str(&answer.text());
    }
    for op in [21, 23, 4] {
        let body = Writer::default().bytes(1, &timeline).number(2, 1).done();
        let body = if op == 21 { Writer::default().bytes(1, &timeline).done() } else { body };
        let reply = client.ask(&Packet::new(op, 5, body));
        printed.push_str(&String::from_utf8_lossy(&reply.body));
    }
    printed.push_str(&server.get("/metrics").text());
    printed.push_str(&server.get("/readyz").text());
    assert!(!printed.contains("SESAME") && !printed.contains("password"), "{printed}");
    let port = way.addr.port().to_string();
    assert!(!printed.contains(&format!(":{port}")), "where the store is, is nobody's business: {printed}");
    assert!(DEADLINE > Duration::ZERO);
}
