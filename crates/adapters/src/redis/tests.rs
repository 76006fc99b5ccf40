//! The directories on a real Redis: a single server, a cluster, a master with Sentinels; each test
//! starts its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    DirectoryError, Mid, NodeDirectory, RoomCounts, RoomDirectory, ServerId, SessionDirectory, SessionKey,
    SessionRef,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::Commands;

use super::*;
use crate::conformance;

/// Redis servers for one test, stopped on drop.
struct Own {
    folder: PathBuf,
    tls: RedisTls,
    urls: Vec<String>,
    kind: &'static str,
}

impl Own {
    /// Starts servers of a kind: `single`, `cluster` or `sentinel`.
    fn start(kind: &'static str) -> Self {
        Self::start_as(kind, false)
    }

    /// Starts servers that accept only TLS with a client certificate.
    fn start_with_tls(kind: &'static str) -> Self {
        Self::start_as(kind, true)
    }

    fn start_as(kind: &'static str, has_tls: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("goim-redis-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let tls = if has_tls { certify(&folder) } else { RedisTls::default() };
        let mut own = Self { folder, tls, urls: Vec::new(), kind };
        let output = own.script(&["start"], &[kind]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        own.urls = printed.split_whitespace().map(str::to_owned).collect();
        own
    }

    fn script(&self, before: &[&str], behind: &[&str]) -> std::process::Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/redis.sh");
        let mut command = Command::new(script);
        if self.tls.ca_file.is_some() {
            command.env("REDIS_TLS", self.folder.join("tls"));
        }
        command.args(before).arg(&self.folder).args(behind).output().unwrap()
    }

    fn config(&self) -> RedisConfig {
        let place = match self.kind {
            "single" => RedisPlace::Single(self.urls[0].clone()),
            "cluster" => RedisPlace::Cluster(self.urls.clone()),
            _ => RedisPlace::Sentinel {
                sentinels: self.urls.clone(),
                master: "goim".to_owned(),
                sign_in: self.urls[0].clone(),
            },
        };
        RedisConfig { place, tls: self.tls.clone(), ..RedisConfig::default() }
    }

    async fn store(&self) -> RedisStore {
        RedisStore::connect(self.config()).await.unwrap()
    }

    /// Connects, and empties all masters.
    async fn empty(&self) -> RedisStore {
        let store = self.store().await;
        for mut master in self.masters() {
            let _: () = redis::cmd("FLUSHALL").query(&mut master).unwrap();
        }
        store
    }

    fn masters(&self) -> Vec<redis::Connection> {
        let connect = |url: &String| self.connect(url);
        match self.kind {
            "single" => vec![connect(&self.urls[0])],
            "cluster" => self.urls.iter().map(connect).filter_map(master_only).collect(),
            _ => vec![connect(&self.sentinel_master())],
        }
    }

    fn sentinel_master(&self) -> String {
        let mut sentinel = self.connect(&self.urls[0]);
        let (host, port): (String, String) =
            redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg("goim").query(&mut sentinel).unwrap();
        let (scheme, _) = self.urls[0].split_once(':').unwrap();
        format!("{scheme}://{host}:{port}")
    }

    fn connect(&self, url: &str) -> redis::Connection {
        let config = self.config();
        super::clients::ClientFactory::new(&config).unwrap().single(url).unwrap().get_connection().unwrap()
    }

    fn pid_of(&self, url: &str) -> String {
        let port = url.rsplit(':').next().unwrap();
        std::fs::read_to_string(self.folder.join(port).join("pid")).unwrap().trim().to_owned()
    }

    fn signal(&self, url: &str, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid_of(url)).status().unwrap();
        assert!(status.success());
    }
}

/// Creates a CA and one certificate in the folder "tls" of this one.
fn certify(folder: &Path) -> RedisTls {
    let folder = folder.join("tls");
    std::fs::create_dir_all(&folder).unwrap();
    let [ca_key, key] = [(), ()].map(|()| KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // The CA needs its own name: a certificate with its issuer's name counts as self-signed.
    ca.distinguished_name.push(DnType::CommonName, "who signs");
    let ca_cert = ca.self_signed(&ca_key).unwrap().pem();
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let cert = own.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem();
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = (write("cert.pem", cert), write("key.pem", key.serialize_pem()));
    RedisTls { ca_file: Some(write("ca.pem", ca_cert)), identity: Some(identity) }
}

fn master_only(mut connection: redis::Connection) -> Option<redis::Connection> {
    let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut connection).unwrap();
    (role[0] == redis::Value::BulkString(b"master".to_vec())).then_some(connection)
}

impl Drop for Own {
    fn drop(&mut self) {
        self.script(&["stop"], &[]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn session(mid: i64, key: &str, server: &str) -> SessionRef {
    SessionRef { mid: Mid(mid), key: key.into(), server: server.into() }
}

async fn server_of(sessions: &RedisSessions, key: &str) -> Option<String> {
    let found = sessions.servers_of(&[SessionKey::from(key)]).await.unwrap();
    found[0].as_ref().map(ServerId::to_string)
}

async fn conforms(own: &Own) {
    conformance::sessions(async || RedisSessions::new(own.empty().await)).await;
    let names = ["a", "b", "c", "one", "two", "comet", "comet01", "s", "s1", "s2"];
    let servers: Servers = Arc::new(move || names.into_iter().map(ServerId::from).collect());
    conformance::rooms(async || RedisRooms::new(own.empty().await, servers.clone(), Duration::ZERO)).await;
    let nodes = async |config| RedisNodes::start(own.empty().await, config, None).await.unwrap();
    conformance::nodes(async || nodes(RedisNodesConfig::default()).await).await;
    let lease = Duration::from_secs(2);
    let config = RedisNodesConfig { lease, refresh: Duration::from_millis(50) };
    conformance::nodes_expire(async || nodes(config).await, lease, tokio::time::sleep).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn one_server_conforms() {
    conforms(&Own::start("single")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_cluster_conforms() {
    conforms(&Own::start("cluster")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_master_with_sentinels_conforms() {
    conforms(&Own::start("sentinel")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_server_inside_tls_conforms() {
    conforms(&Own::start_with_tls("single")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_cluster_inside_tls_conforms() {
    conforms(&Own::start_with_tls("cluster")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_master_with_sentinels_inside_tls_conforms() {
    conforms(&Own::start_with_tls("sentinel")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_server_inside_tls_is_not_taken_for_another_and_wants_to_know_who_asks() {
    let own = Own::start_with_tls("single");
    let good = own.config();
    let plain = RedisPlace::Single(own.urls[0].replace("rediss:", "redis:"));
    let missing = Path::new("/nonexistent/ca.pem").to_owned();
    let cases = [
        ("nobody known signed it", RedisTls { ca_file: None, ..own.tls.clone() }, good.place.clone()),
        ("it asks for a certificate", RedisTls { identity: None, ..own.tls.clone() }, good.place.clone()),
        (
            "a file that is not there",
            RedisTls { ca_file: Some(missing), ..own.tls.clone() },
            good.place.clone(),
        ),
        ("no TLS", own.tls.clone(), plain),
    ];
    for (what, tls, place) in cases {
        let config = RedisConfig { tls, place, deadline: Duration::from_secs(1), ..good.clone() };
        let error = RedisStore::connect(config).await.map(|_| what).unwrap_err().to_string();
        let named =
            if what.contains("file") { "/nonexistent/ca.pem" } else { &own.urls[0]["rediss://".len()..] };
        assert!(error.contains(named), "{what}: {error}");
    }
    RedisStore::connect(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn sessions_that_nobody_touches_go() {
    let own = Own::start("single");
    let lifetime = Duration::from_secs(4);
    let make = async || {
        let config = RedisConfig { session_ttl: lifetime, ..own.config() };
        RedisSessions::new(RedisStore::connect(config).await.unwrap())
    };
    conformance::sessions_expire(make, lifetime, async |time| tokio::time::sleep(time).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn row_077_what_stands_in_redis_is_goims() {
    let own = Own::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(5, "k", "s")).await.unwrap();
    sessions.add(session(0, "nobody", "s")).await.unwrap();
    let mut redis = own.masters().remove(0);
    let member: HashMap<String, String> = redis.hgetall("mid_5").unwrap();
    assert_eq!(member, HashMap::from([("k".to_owned(), "s".to_owned())]));
    for (key, value) in [("key_k", "s"), ("key_nobody", "s")] {
        assert_eq!(redis.get::<_, String>(key).unwrap(), value);
    }
    for key in ["mid_5", "key_k", "key_nobody"] {
        let ttl: i64 = redis.ttl(key).unwrap();
        assert!((1795..=1800).contains(&ttl), "{key}: {ttl}");
    }
    assert!(!redis.exists::<_, bool>("mid_0").unwrap(), "nobody in particular has no sessions");
    assert!(sessions.remove(session(5, "k", "s")).await.unwrap());
    let left: Vec<String> = redis.keys("*k*").unwrap();
    let left: Vec<_> =
        left.iter().filter(|key| key.starts_with("key_k") || key.starts_with("mid_5")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Compares the commands that goim's processes sent with those of this adapter.
#[test]
#[ignore = "needs Redis: scripts/test.sh"]
fn the_commands_of_connect_and_heartbeat_are_goims() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/redis.json");
    let captured: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let own = Own::start("single");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut compared = 0;
    for operation in captured["operations"].as_array().unwrap() {
        let name = operation["operation"].as_str().unwrap();
        let commands: Vec<Vec<String>> = serde_json::from_value(operation["commands"].clone()).unwrap();
        let sent = match name {
            "Connect, mid > 0" => {
                let mid = commands[0][1].strip_prefix("mid_").unwrap().parse().unwrap();
                let session = session(mid, &commands[0][2], &commands[0][3]);
                runtime.block_on(watched(&own, async |sessions| sessions.add(session.clone()).await.unwrap()))
            }
            "Connect, no mid" => {
                let key = commands[0][1].strip_prefix("key_").unwrap();
                let session = session(0, key, &commands[0][2]);
                runtime.block_on(watched(&own, async |sessions| sessions.add(session.clone()).await.unwrap()))
            }
            _ => continue,
        };
        assert_eq!(sent[..commands.len()], commands, "{name}: goim's come first, as goim sends them");
        assert!(sent[commands.len()..].iter().all(|command| command[1].starts_with("goim:")), "{sent:?}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

/// Returns the commands that Redis executes during `act`.
async fn watched(own: &Own, act: impl AsyncFn(&RedisSessions)) -> Vec<Vec<String>> {
    use std::io::{BufRead, Write};
    let sessions = RedisSessions::new(own.empty().await);
    let address = own.urls[0].strip_prefix("redis://").unwrap();
    let mut monitor = std::net::TcpStream::connect(address).unwrap();
    monitor.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    monitor.write_all(b"MONITOR\r\n").unwrap();
    let mut lines = std::io::BufReader::new(monitor).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "+OK");
    act(&sessions).await;
    let mut last = own.masters().remove(0);
    let _: String = redis::cmd("ECHO").arg("that was all").query(&mut last).unwrap();
    let mut commands = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let words: Vec<String> = line.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        match words.first().map(String::as_str) {
            Some("ECHO") => break,
            // Connection setup and health checks.
            Some("CLIENT" | "HELLO" | "PING" | "FLUSHALL" | "INFO") | None => {}
            Some("SET") if words[1].starts_with("goim:canary") => {}
            Some(_) => commands.push(words),
        }
    }
    commands
}

#[test]
fn row_073_a_report_is_goims() {
    let rooms = HashMap::from([("live://1000".into(), 3)]);
    let records = rooms::records(&"comet01".into(), &rooms, 1_795_447_219);
    let text = r#"{"server":"comet01","room_count":{"live://1000":3},"updated":1795447219}"#;
    assert_eq!(records, [(43, text.to_owned())]);
    let odd = HashMap::from([("a://<&>".into(), 1)]);
    let text = rooms::records(&"s".into(), &odd, 1).remove(0).1;
    assert!(text.contains(r"a://\u003c\u0026\u003e"), "as Go writes it: {text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn rows_073_to_075_reports_in_redis() {
    let own = Own::start("single");
    let servers: Servers = Arc::new(|| vec!["comet01".into(), "old".into(), "go".into()]);
    let rooms = RedisRooms::new(own.store().await, servers, Duration::ZERO);
    let mut redis = own.masters().remove(0);
    let counts = |count| -> RoomCounts { Arc::new(HashMap::from([("live://1000".into(), count)])) };
    rooms.report("comet01".into(), counts(3)).await.unwrap();
    let record: String = redis.hget("ol_comet01", "43").unwrap();
    assert!(
        record.starts_with(r#"{"server":"comet01","room_count":{"live://1000":3},"updated":"#),
        "{record}"
    );
    assert!((1795..=1800).contains(&redis.ttl::<_, i64>("ol_comet01").unwrap()));

    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let of_age = |server: &str, age: u64| {
        format!(r#"{{"server":"{server}","room_count":{{"live://1000":40}},"updated":{}}}"#, now - age)
    };
    let _: () = redis.hset("ol_go", "43", of_age("go", 10)).unwrap();
    let _: () = redis.hset("ol_go", "7", "not json").unwrap();
    let _: () = redis.hset("ol_old", "43", of_age("old", 302)).unwrap();
    assert_eq!(
        rooms.totals().await.unwrap().get("live://1000"),
        Some(&43),
        "row 101: with a Go comet's report"
    );
    assert!(!redis.exists::<_, bool>("ol_old").unwrap(), "row 75: too old, deleted");

    rooms.report("comet01".into(), RoomCounts::default()).await.unwrap();
    assert_eq!(rooms.totals().await.unwrap().get("live://1000"), Some(&40), "row 74: no ghosts");
    assert!(!redis.exists::<_, bool>("ol_comet01").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_key_that_another_member_has_on_the_same_comet_is_no_longer_the_first_ones() {
    let own = Own::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "s")).await.unwrap();
    sessions.add(session(2, "k", "s")).await.unwrap();
    assert!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().is_empty());
    assert_eq!(sessions.sessions_of(vec![Mid(2)]).await.unwrap().len(), 1);
    // A Go logic does not record the member of a key: goim's records are trusted.
    let mut redis = own.masters().remove(0);
    let _: () = redis.hset("mid_7", "go", "s").unwrap();
    let _: () = redis.set("key_go", "s").unwrap();
    assert_eq!(sessions.sessions_of(vec![Mid(7)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_comet_that_died_is_swept_completely_and_nobody_else_is() {
    for kind in ["single", "cluster"] {
        let own = Own::start(kind);
        let sessions = RedisSessions::new(own.store().await);
        const COUNT: i64 = 1500;
        for n in 0..COUNT {
            sessions.add(session(n % 100, &format!("k{n}"), "dead")).await.unwrap();
        }
        // Some have reconnected to another comet.
        for n in 0..10 {
            sessions.add(session(n % 100, &format!("k{n}"), "alive")).await.unwrap();
        }
        let swept = sessions.sweep(&"dead".into(), || true).await.unwrap();
        assert_eq!(swept, COUNT as usize);
        for n in 0..COUNT {
            let expected = (n < 10).then(|| "alive".to_owned());
            assert_eq!(server_of(&sessions, &format!("k{n}")).await, expected, "k{n}");
        }
        let left: usize =
            own.masters().iter_mut().map(|master| redis::cmd("DBSIZE").query::<usize>(master).unwrap()).sum();
        let what = "mids 1 to 9, ten keys, the sessions of the one that lives, the note of the sweep";
        assert_eq!(left, 9 + 10 + 1 + 1, "{what}");

        sessions.add(session(1, "again", "dead")).await.unwrap();
        assert_eq!(sessions.sweep(&"dead".into(), || false).await.unwrap(), 0, "it is back");
        assert_eq!(server_of(&sessions, "again").await, Some("dead".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn row_110_a_redis_that_comes_back_empty_is_filled_by_heartbeats() {
    let own = Own::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "s")).await.unwrap();
    own.script(&["stop"], &[]);
    let asked = Instant::now();
    let error = sessions.add(session(1, "other", "s")).await.unwrap_err();
    let DirectoryError::Unavailable(text) = error;
    assert!(text.contains(own.urls[0].strip_prefix("redis://").unwrap()), "{text}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let back = own.script(&["start"], &["single"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = sessions.touch(session(1, "k", "s")).await {
        assert!(Instant::now() < until, "{error}");
    }
    assert_eq!(server_of(&sessions, "k").await, Some("s".to_owned()));
    assert_eq!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_redis_that_hangs_is_an_error_within_the_deadline_and_bounded() {
    let own = Own::start("single");
    let config = RedisConfig { deadline: Duration::from_millis(300), commands_max: 16, ..own.config() };
    let sessions = RedisSessions::new(RedisStore::connect(config).await.unwrap());
    own.signal(&own.urls[0], "STOP");
    let asked = Instant::now();
    let calls: Vec<_> = (0..200)
        .map(|n| tokio::spawn(sessions.add(session(1, &format!("k{n}"), "s")).into_future()))
        .collect();
    for call in calls {
        let DirectoryError::Unavailable(text) = call.await.unwrap().unwrap_err();
        assert!(text.contains("within 300ms") || text.contains("timed out"), "{text}");
    }
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    own.signal(&own.urls[0], "CONT");
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = sessions.add(session(1, "after", "s")).await {
        assert!(Instant::now() < until, "{error}");
    }
    assert_eq!(server_of(&sessions, "after").await, Some("s".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn sentinels_lead_to_the_new_master() {
    let own = Own::start("sentinel");
    let config = RedisConfig { deadline: Duration::from_millis(500), ..own.config() };
    let sessions = RedisSessions::new(RedisStore::connect(config).await.unwrap());
    sessions.add(session(1, "k", "s")).await.unwrap();
    let old = own.sentinel_master();
    own.signal(&old, "KILL");
    let until = Instant::now() + Duration::from_secs(30);
    while let Err(error) = sessions.touch(session(1, "k", "s")).await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(own.sentinel_master(), old);
    assert_eq!(server_of(&sessions, "k").await, Some("s".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_at_the_start_is_said_in_words() {
    // No server listens on this port.
    let nobody = "127.0.0.1:1";
    let cases = [
        (RedisPlace::Single(format!("redis://:secret@{nobody}")), nobody.to_string()),
        (RedisPlace::Single("http://x".to_owned()), "http://x".to_owned()),
        (RedisPlace::Cluster(vec![format!("redis://{nobody}")]), nobody.to_string()),
        (
            RedisPlace::Sentinel {
                sentinels: vec![format!("redis://{nobody}")],
                master: "goim".to_owned(),
                sign_in: "redis://:secret@x".to_owned(),
            },
            "master goim".to_owned(),
        ),
    ];
    for (place, named) in cases {
        let config = RedisConfig { place, deadline: Duration::from_millis(500), ..RedisConfig::default() };
        let text = RedisStore::connect(config).await.unwrap_err().to_string();
        assert!(text.contains(&named) && !text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_redis_that_has_lost_everything_makes_nobody_disappear() {
    let own = Own::start("single");
    let store = own.store().await;
    let lease = Duration::from_secs(3);
    let config = RedisNodesConfig { lease, refresh: Duration::from_millis(20) };
    let nodes = RedisNodes::start(store.clone(), config, None).await.unwrap();
    let mut losses = nodes.losses();
    let sessions = RedisSessions::new(store);
    for server in ["a", "b", "gone"] {
        nodes.announce(conformance::node(server)).await.unwrap();
    }
    nodes.withdraw("gone".into()).await.unwrap();
    sessions.add(session(1, "k", "a")).await.unwrap();
    assert_eq!(server_of(&sessions, "nobody").await, None);
    assert!(!losses.has_changed().unwrap());

    let _: () = redis::cmd("FLUSHALL").query(&mut own.masters()[0]).unwrap();
    let lost = |error: DirectoryError| {
        let DirectoryError::Unavailable(text) = error;
        assert!(text.contains("has lost its sessions"), "{text}");
    };
    lost(sessions.servers_of(&["k".into()]).await.unwrap_err());
    lost(sessions.sessions_of(vec![Mid(1)]).await.unwrap_err());
    losses.changed().await.unwrap();
    // A session that is registered again is found; absence is not trusted yet.
    sessions.touch(session(1, "k", "a")).await.unwrap();
    assert_eq!(server_of(&sessions, "k").await, Some("a".to_owned()));
    lost(sessions.servers_of(&["k".into(), "nobody".into()]).await.unwrap_err());
    // One comet announces itself; the other stays listed for a lease.
    nodes.announce(conformance::node("a")).await.unwrap();
    let names = || -> Vec<String> {
        let mut names: Vec<_> = nodes.comets().iter().map(|node| node.server.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["a", "b"]);
    let until = Instant::now() + lease * 2;
    while names() != ["a"] {
        assert!(Instant::now() < until, "{:?}", names());
        nodes.announce(conformance::node("a")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(*losses.borrow() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_loss_and_a_sweep_show_in_the_generation_of_who_is_concerned() {
    let own = Own::start("single");
    let sessions = RedisSessions::new(own.store().await);
    let generation = async |server: &str| sessions.generation(server.into()).await.unwrap();
    let before = [generation("a").await, generation("b").await];
    sessions.add(session(1, "k", "a")).await.unwrap();
    assert_eq!([generation("a").await, generation("b").await], before);
    assert_eq!(sessions.sweep(&"a".into(), || true).await.unwrap(), 1);
    let swept = generation("a").await;
    assert_ne!(swept, before[0]);
    assert!(before[0].swept_at().is_none() && swept.swept_at().is_some(), "a comet that is alive finds out");
    // A sweep without sessions is not recorded.
    assert_eq!(generation("b").await, before[1], "its sessions were left alone");
    assert_eq!(sessions.sweep(&"b".into(), || true).await.unwrap(), 0);
    assert_eq!(generation("b").await.swept_at(), None);
    let b = generation("b").await;
    let _: () = redis::cmd("FLUSHALL").query(&mut own.masters()[0]).unwrap();
    let lost = generation("a").await;
    assert_ne!(lost.mark(), swept.mark());
    assert_eq!(lost.swept_at(), None, "a memory that was lost is no sweep");
    assert_ne!(generation("b").await, b);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn nothing_is_swept_when_the_comet_could_not_find_out() {
    let own = Own::start("single");
    let sessions = RedisSessions::new(own.store().await);
    sessions.add(session(1, "k", "a")).await.unwrap();
    let before = sessions.generation("a".into()).await.unwrap();
    // Deletes would succeed, writes do not.
    let set = |name: &str, value: &str| {
        let mut command = redis::cmd("CONFIG");
        let _: () = command.arg("SET").arg(name).arg(value).query(&mut own.masters()[0]).unwrap();
    };
    set("maxmemory", "1");
    assert!(sessions.sweep(&"a".into(), || true).await.is_err());
    set("maxmemory", "0");
    let found = sessions.servers_of(&["k".into()]).await.unwrap();
    assert_eq!(found, [Some("a".into())]);
    assert_eq!(sessions.generation("a".into()).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn an_announcement_that_redis_takes_too_late_counts_as_a_loss() {
    let own = Own::start("single");
    let mut config = own.config();
    config.deadline = Duration::from_millis(100);
    let store = RedisStore::connect(config).await.unwrap();
    let lease = Duration::from_millis(500);
    let nodes_config = RedisNodesConfig { lease, refresh: Duration::from_secs(60) };
    let nodes = RedisNodes::start(store, nodes_config, None).await.unwrap();
    let losses = nodes.losses();
    nodes.announce(conformance::node("a")).await.unwrap();
    own.signal(&own.urls[0], "STOP");
    // The announcement is in Redis's socket and will run after the lease has expired, restoring the
    // record.
    nodes.announce(conformance::node("a")).await.unwrap_err();
    tokio::time::sleep(lease).await;
    own.signal(&own.urls[0], "CONT");
    assert!(!losses.has_changed().unwrap());
    let until = Instant::now() + Duration::from_secs(10);
    while nodes.announce(conformance::node("a")).await.is_err() {
        assert!(Instant::now() < until);
    }
    assert!(losses.has_changed().unwrap(), "its sessions may have been swept meanwhile");
}

/// The commands that make a master refuse writes and accept them again, and its error code
/// meanwhile.
const REFUSALS: [(&str, &[&str], &[&str]); 3] = [
    ("OOM", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
    (
        "NOREPLICAS",
        &["CONFIG", "SET", "min-replicas-to-write", "3"],
        &["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
    ("READONLY", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
];

fn carry_out(words: &[&str], master: &mut redis::Connection) {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(*word);
    });
    let _: () = command.query(master).unwrap();
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names(nodes: &RedisNodes) -> Vec<String> {
    let mut names: Vec<_> = nodes.comets().iter().map(|node| node.server.to_string()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_redis_that_refuses_writes_is_not_believed_that_somebody_is_not_there() {
    let settling = Duration::from_millis(600);
    for (kind, refusals) in [("single", &REFUSALS[..]), ("sentinel", &REFUSALS[..2])] {
        let own = Own::start(kind);
        for (code, refuse, take) in refusals {
            let what = format!("{kind}, {code}");
            let times = RedisConfig {
                settling,
                recovery_grace: settling,
                check_interval: Duration::from_millis(20),
                ..own.config()
            };
            let store = RedisStore::connect(times).await.unwrap();
            let lease = Duration::from_millis(400);
            let config = RedisNodesConfig { lease, refresh: Duration::from_millis(20) };
            let answers: CometProbe =
                Arc::new(|node| goim_ports::Call::Ready(node.server.as_str() == "alive"));
            let nodes = RedisNodes::start(store.clone(), config, Some(answers.clone())).await.unwrap();
            for server in ["alive", "dead"] {
                nodes.announce(conformance::node(server)).await.unwrap();
            }
            let sessions = RedisSessions::new(store.clone());
            sessions.add(session(1, "k", "alive")).await.unwrap();
            assert_eq!(server_of(&sessions, "nobody").await, None);
            assert!(sessions.is_trusted() && store.fault().is_none());

            carry_out(refuse, &mut own.masters()[0]);
            until("it is known", async || store.fault().is_some()).await;
            let fault = store.fault().unwrap();
            let text = fault.to_string();
            assert!(matches!(fault, RedisFault::RefusesWrites(_)) && text.contains(code), "{what}: {text}");
            assert!(store.stats().refuses_writes && store.stats().refused > 0);
            sessions.add(session(2, "new", "alive")).await.unwrap_err();
            assert_eq!(server_of(&sessions, "k").await.as_deref(), Some("alive"), "{what}");
            assert_eq!(sessions.sessions_of(vec![Mid(1)]).await.unwrap().len(), 1, "{what}");
            let doubted = |error: DirectoryError| {
                let DirectoryError::Unavailable(text) = error;
                assert!(text.contains(code), "{what}: {text}");
            };
            doubted(sessions.servers_of(&["nobody".into()]).await.unwrap_err());
            doubted(sessions.servers_of(&["k".into(), "nobody".into()]).await.unwrap_err());
            doubted(sessions.sessions_of(vec![Mid(7)]).await.unwrap_err());
            doubted(sessions.sessions_of(vec![Mid(1), Mid(7)]).await.unwrap_err());
            assert!(!sessions.is_trusted());

            // Leases cannot be renewed: a comet that responds stays listed, one that was silent for
            // a lease is removed.
            until("only the one that answers is listed", async || names(&nodes) == ["alive"]).await;
            tokio::time::sleep(lease * 2).await;
            assert_eq!(names(&nodes), ["alive"], "{what}");
            assert_eq!(store.stats().without_lease, 1);
            // The same holds for a process that starts now.
            let other = RedisNodes::start(store.clone(), config, Some(answers)).await.unwrap();
            assert!(names(&other).contains(&"alive".to_owned()), "{what}");
            drop(other);

            carry_out(take, &mut own.masters()[0]);
            until("it is over", async || store.fault().is_none()).await;
            sessions.servers_of(&["nobody".into()]).await.unwrap_err();
            assert!(!sessions.is_trusted(), "comets must have had time to say what they have");
            nodes.announce(conformance::node("alive")).await.unwrap();
            until("absence is believed again", async || {
                sessions.servers_of(&["nobody".into()]).await.is_ok()
            })
            .await;
            until("a member is found", async || {
                sessions.sessions_of(vec![Mid(1)]).await.is_ok_and(|found| found.len() == 1)
            })
            .await;
            assert!(sessions.is_trusted());
            nodes.withdraw("alive".into()).await.unwrap();
            assert!(names(&nodes).is_empty(), "{what}: who says farewell goes at once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn one_master_of_a_cluster_that_refuses_writes_is_enough() {
    let own = Own::start("cluster");
    let config = RedisConfig { check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let sessions = RedisSessions::new(store.clone());
    for nth in 0..own.masters().len() {
        let count = store.stats().refused;
        carry_out(REFUSALS[0].1, &mut own.masters()[nth]);
        // Every round detects it, whatever the other masters answer.
        until("several rounds have seen it", async || store.stats().refused > count + 5).await;
        assert!(store.stats().refuses_writes, "master {nth}");
        sessions.servers_of(&["nobody".into()]).await.unwrap_err();
        carry_out(REFUSALS[0].2, &mut own.masters()[nth]);
        until("it is over", async || store.fault().is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_redis_that_comes_back_with_what_it_had_some_time_ago_has_lost_the_rest() {
    let own = Own::start("single");
    let config = RedisConfig { check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let sessions = RedisSessions::new(store.clone());
    let mut losses = store.losses();
    // The snapshot contains the epoch.
    sessions.generation("s".into()).await.unwrap();
    sessions.add(session(1, "old", "s")).await.unwrap();
    let _: () = redis::cmd("SAVE").query(&mut own.masters()[0]).unwrap();
    sessions.add(session(1, "new", "s")).await.unwrap();
    until("the server's run id is known", async || store.knows_servers()).await;
    own.signal(&own.urls[0], "KILL");
    let back = own.script(&["start"], &["single"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    tokio::time::timeout(Duration::from_secs(20), losses.changed()).await.unwrap().unwrap();
    assert_eq!(server_of(&sessions, "old").await.as_deref(), Some("s"));
    sessions.servers_of(&["new".into()]).await.unwrap_err();
    sessions.sessions_of(vec![Mid(1)]).await.unwrap_err();
    assert!(store.stats().losses >= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn a_wrong_password_and_a_certificate_that_nobody_trusts_are_not_mended_by_waiting() {
    let own = Own::start("single");
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("right").query(&mut own.masters()[0]).unwrap();
    let address = own.urls[0].strip_prefix("redis://").unwrap();
    for url in [
        own.urls[0].clone(),
        format!("redis://:wrong@{address}"),
        format!("redis://somebody:right@{address}"),
    ] {
        let config = RedisConfig { place: RedisPlace::Single(url.clone()), ..RedisConfig::default() };
        let error = RedisStore::connect(config).await.unwrap_err();
        assert!(matches!(error, RedisError::Rejected { .. }), "{url}: {error}");
    }
    let right = RedisPlace::Single(format!("redis://:right@{address}"));
    RedisStore::connect(RedisConfig { place: right, ..RedisConfig::default() }).await.unwrap();

    let own = Own::start_with_tls("single");
    let untrusted = RedisConfig { tls: RedisTls::default(), ..own.config() };
    let error = RedisStore::connect(untrusted).await.unwrap_err();
    assert!(matches!(error, RedisError::Rejected { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis: scripts/test.sh"]
async fn counts_that_cannot_be_renewed_are_not_taken_for_old() {
    let own = Own::start("single");
    let settling = Duration::from_millis(300);
    let config = RedisConfig { settling, check_interval: Duration::from_millis(20), ..own.config() };
    let store = RedisStore::connect(config).await.unwrap();
    let servers: Servers = Arc::new(|| vec!["a".into()]);
    let rooms = RedisRooms::new(store.clone(), servers, Duration::ZERO);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let old = format!(r#"{{"server":"a","room_count":{{"live://1":7}},"updated":{}}}"#, now - 400);
    let mut master = own.masters().remove(0);
    let _: () = master.hset("ol_a", "1", old).unwrap();
    carry_out(REFUSALS[0].1, &mut master);
    until("it is known", async || store.fault().is_some()).await;
    assert_eq!(rooms.totals().await.unwrap().get("live://1"), Some(&7));
    carry_out(REFUSALS[0].2, &mut master);
    until("nobody has renewed it", async || rooms.totals().await.unwrap().is_empty()).await;
}
