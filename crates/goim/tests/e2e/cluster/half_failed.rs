//! A cluster whose Redis has half failed: it answers reads and refuses writes, or it was
//! unavailable and has its data back. No connected session may be lost, and no session that cannot
//! be registered is accepted.

use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, Who, eventually, unique};
use serde_json::json;

const LEASE: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings::new().set("cluster.lease", "1s").set("redis.recovery_grace", "1s")
}

/// A client that is connected all the time, and the messages accepted for it.
struct Subscriber {
    who: Who,
    room: String,
    client: Client,
    accepted: Vec<String>,
    heard: Vec<u8>,
}

impl Subscriber {
    fn come(server: &Server, transport: Transport) -> Self {
        let room = unique("live") + "://1";
        let who = Who::new().accepts(&[1000]).room(&room);
        let client = Client::login(server, transport, &who);
        Self { who, room, client, accepted: Vec::new(), heard: Vec::new() }
    }

    /// The targets that reach it: key, member, room.
    fn targets(&self) -> [(&'static str, String); 3] {
        let (kind, room) = self.room.split_once("://").unwrap();
        [
            ("key", format!("/goim/push/keys?operation=1000&keys={}", self.who.key)),
            ("mid", format!("/goim/push/mids?operation=1000&mids={}", self.who.mid)),
            ("room", format!("/goim/push/room?operation=1000&type={kind}&room={room}")),
        ]
    }

    /// Pushes once by each way. Gives the ways that were refused.
    fn push(&mut self, server: &Server, name: &str) -> Vec<String> {
        let mut refused = Vec::new();
        for (way, target) in self.targets() {
            let body = format!("<{way} {name}>");
            let answer = server.post(&target, &body).text();
            if answer.starts_with(r#"{"code":0,"#) {
                self.accepted.push(body);
            } else {
                refused.push(format!("{way}: {answer}"));
            }
        }
        refused
    }

    /// Receives until everything that was accepted has arrived, or fails with what is missing.
    fn has_everything(&mut self) {
        let began = Instant::now();
        let mut is_over = false;
        loop {
            let heard = String::from_utf8_lossy(&self.heard);
            let missing: Vec<_> = self.accepted.iter().filter(|body| !heard.contains(&***body)).collect();
            if missing.is_empty() {
                return;
            }
            let (count, of) = (missing.len(), self.accepted.len());
            assert!(
                began.elapsed() < Duration::from_secs(20) && !is_over,
                "{:?}: {count} of {of} accepted were lost: {:?} and so on",
                self.client.transport(),
                &missing[..count.min(5)],
            );
            is_over = self.is_over();
        }
    }

    /// Receives for a fifth of a second. True when the connection has ended.
    fn is_over(&mut self) -> bool {
        use std::io::Read;
        self.client.stream().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut bytes = [0; 16 * 1024];
        match self.client.stream().read(&mut bytes) {
            Ok(0) => true,
            Ok(count) => {
                self.heard.extend(&bytes[..count]);
                false
            }
            Err(_) => false,
        }
    }
}

/// New clients get no session: a negotiated client receives the reason, and a goim v2 client sees
/// the end.
fn all_are_refused(server: &Server) {
    for transport in BOTH {
        let who = Who::new();
        let token = json!({"mid": who.mid, "key": who.key, "protover": 1, "accepts": [1000]}).to_string();
        let (_client, told) = Client::present(server, transport, token);
        let told: Packet = told.unwrap_or_else(|| panic!("{transport:?}: cut without a word"));
        let printed: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!(
            (told.op, &printed["code"], &printed["reconnect"]),
            (6, &json!(3101), &json!(true)),
            "{transport:?}"
        );
        let mut refused = Client::open(server, transport);
        refused.send(&Who::new().auth());
        refused.expect_closed_politely();
    }
}

fn all_are_ready(cluster: &Cluster) {
    eventually("all are ready", || {
        let readiness = cluster.readiness();
        let are_ready = readiness.iter().all(|(_, status, _)| *status == 200);
        if !are_ready {
            std::thread::sleep(Duration::from_millis(100));
        }
        are_ready
    });
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn while_redis_refuses_writes_nothing_that_was_accepted_is_lost() {
    let mut cluster = Cluster::start(&settings());
    let server = Server::at(cluster.addrs);
    let ways: [(&str, &[&str], &[&str]); 3] = [
        ("OOM", &["config", "set", "maxmemory", "1"], &["config", "set", "maxmemory", "0"]),
        (
            "NOREPLICAS",
            &["config", "set", "min-replicas-to-write", "3"],
            &["config", "set", "min-replicas-to-write", "0"],
        ),
        ("READONLY", &["replicaof", "127.0.0.1", "1"], &["replicaof", "no", "one"]),
    ];
    for (code, refuse, take) in ways {
        all_are_ready(&cluster);
        let mut subscribers = BOTH.map(|transport| Subscriber::come(&server, transport));
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.push(&server, "before"), Vec::<String>::new());
        }
        cluster.redis.cli(refuse);
        eventually("all say that they are not ready, and why", || {
            let expected = format!("redis refuses writes: {code}");
            cluster.readiness().iter().all(|(_, status, text)| *status == 503 && text.contains(&expected))
        });
        assert_eq!(cluster.logic_metric("goim_redis_refuses_writes"), Some(1.0));
        let began = Instant::now();
        let mut round = 0;
        while began.elapsed() < LEASE * 4 {
            for subscriber in &mut subscribers {
                let refused = subscriber.push(&server, &format!("{code} {round}"));
                assert_eq!(refused, Vec::<String>::new(), "who is found is pushed to");
            }
            round += 1;
            std::thread::sleep(Duration::from_millis(30));
        }
        all_are_refused(&server);
        for target in ["keys?operation=1000&keys=nobody", "mids?operation=1000&mids=987654321"] {
            let answer = server.post(&format!("/goim/push/{target}"), "x").text();
            assert!(!answer.starts_with(r#"{"code":0,"#), "{code}, {target}: {answer}");
        }
        // A job that starts meanwhile finds the comet all the same.
        cluster.stop_job();
        cluster.start_job();
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.push(&server, &format!("{code} with another job")), Vec::<String>::new());
            subscriber.has_everything();
        }
        cluster.redis.cli(take);
        all_are_ready(&cluster);
        eventually("members are found again", || {
            subscribers.iter_mut().all(|subscriber| subscriber.push(&server, "after").is_empty())
        });
        subscribers.iter_mut().for_each(Subscriber::has_everything);
        assert_eq!(cluster.logic_metric("goim_redis_refuses_writes"), Some(0.0));
        eventually("that nobody is there can be said again", || {
            let answer = server.post("/goim/push/keys?operation=1000&keys=nobody", "x").text();
            answer.starts_with(r#"{"code":0,"#)
        });
        Client::login(&server, Transport::Tcp, &Who::new());
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn a_redis_that_returns_with_its_data_after_a_lease_loses_no_session() {
    let cluster = Cluster::start(&settings().set("redis.command_timeout", "300ms"));
    let server = Server::at(cluster.addrs);
    let mut subscribers = BOTH.map(|transport| Subscriber::come(&server, transport));
    for round in 0..3 {
        cluster.redis.signal("STOP");
        let began = Instant::now();
        eventually("all say that they are not ready, and why", || {
            let says = |(_, status, text): &(_, u16, String)| *status == 503 && text.contains("redis");
            cluster.readiness().iter().all(says)
        });
        all_are_refused(&server);
        while began.elapsed() < LEASE * 2 {
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster.redis.signal("CONT");
        let began = Instant::now();
        let mut nth = 0;
        while began.elapsed() < LEASE * 2 {
            for subscriber in &mut subscribers {
                // Some may be refused at first; what is accepted must arrive.
                subscriber.push(&server, &format!("round {round} push {nth}"));
            }
            nth += 1;
            std::thread::sleep(Duration::from_millis(10));
        }
        all_are_ready(&cluster);
        eventually("all are found again", || {
            subscribers.iter_mut().all(|subscriber| subscriber.push(&server, "after").is_empty())
        });
        subscribers.iter_mut().for_each(Subscriber::has_everything);
    }
}

/// A job that reads before the comets are on the list again drops what is for them.
#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn a_job_that_finds_an_emptied_redis_waits_for_the_comets() {
    let mut cluster = Cluster::start(&Settings::new().set("comet.report_interval", "2s"));
    let server = Server::at(cluster.addrs);
    let mut subscribers = BOTH.map(|transport| Subscriber::come(&server, transport));
    cluster.stop_job();
    cluster.redis.cli(&["FLUSHALL"]);
    for subscriber in &mut subscribers {
        // Members and keys that are not found are refused; only comets know who is in a room.
        subscriber.push(&server, "while redis is empty");
        assert!(subscriber.accepted.iter().any(|body| body.contains("room")), "{:?}", subscriber.accepted);
    }
    cluster.start_job();
    subscribers.iter_mut().for_each(Subscriber::has_everything);
    for subscriber in &mut subscribers {
        assert!(!subscriber.is_over(), "nobody was ended: nothing was missed");
    }
}
