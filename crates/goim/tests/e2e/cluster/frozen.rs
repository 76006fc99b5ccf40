//! A comet that was taken for dead and was not: frozen for longer than its lease, it notifies its
//! sessions when it resumes. And cases that must not be taken for that: Redis that is unavailable,
//! restarts empty, or refuses writes.
//!
//! One comet is a separate process, which can be frozen; the other comet, logic and job run in this
//! process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::cluster::Cluster;
use crate::harness::postgres::Postgres;
use crate::harness::proto::Writer;
use crate::harness::server::Addrs;
use crate::harness::{BOTH, Client, Packet, Server, Settings, Transport, eventually, number, unique};
use serde_json::{Value, json};

const LEASE: Duration = Duration::from_secs(2);
const NOTIFY: i32 = 20;

/// A comet in a separate process; it is killed when this is dropped.
struct Frozen {
    child: Child,
    server: Server,
}

impl Frozen {
    fn start(settings: &Settings) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goim"));
        command.arg("comet").args(settings.0.iter().flat_map(|pair| ["--set", pair]));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut of = |name: &str| loop {
            let line = printed.next().expect("the comet says where it is").unwrap();
            if let [label, value] = line.split_whitespace().collect::<Vec<_>>()[..]
                && label == name
            {
                return value.parse().unwrap();
            }
        };
        let (tcp, websocket, comet_rpc) = (of("tcp"), of("websocket"), of("rpc"));
        std::thread::spawn(move || printed.for_each(drop));
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::at(Addrs { tcp, websocket, comet_rpc, http: nobody, logic_rpc: nobody });
        Self { child, server }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct World {
    cluster: Cluster,
    frozen: Frozen,
    _postgres: std::sync::Arc<Postgres>,
}

impl World {
    fn start() -> Self {
        let postgres = Postgres::shared();
        let settings = Settings::new()
            .set("timelines.postgres", &postgres.database())
            .set("cluster.lease", "2s")
            .set("redis.command_timeout", "500ms")
            .set("redis.recovery_grace", "1s")
            .set("comet.recovery.sessions_per_second", "50");
        let cluster = Cluster::start(&settings);
        let fresh = ["comet.listen.tcp", "comet.listen.websocket", "rpc.comet"];
        let of_frozen =
            fresh.iter().fold(cluster.settings(), |settings, key| settings.set(key, "127.0.0.1:0"));
        let frozen = Frozen::start(&of_frozen.set("comet.node.server", "frozen"));
        eventually("both are listed", || cluster.redis.has("goim:node:frozen"));
        Self { cluster, frozen, _postgres: postgres }
    }

    fn logic(&self) -> Server {
        Server::at(self.cluster.addrs)
    }

    /// Sessions on a comet, of goim's clients and extended ones, over both transports.
    fn sessions(server: &Server, room: &str) -> Vec<(bool, Client)> {
        let both = BOTH.iter().flat_map(|transport| [(*transport, false), (*transport, true)]);
        both.map(|(transport, negotiated)| {
            let mut who = json!({ "mid": number(), "key": unique("k"), "room_id": room, "accepts": [1000] });
            if negotiated {
                who["protover"] = json!(1);
            }
            (negotiated, login(server, transport, &who).0)
        })
        .collect()
    }
}

fn login(server: &Server, transport: Transport, who: &Value) -> (Client, Value) {
    let (client, reply) = Client::present(server, transport, who.to_string());
    let reply = reply.expect("a session");
    assert_eq!(reply.op, 8);
    (client, serde_json::from_slice(&reply.body).unwrap_or_default())
}

fn is_undisturbed(client: &mut Client) -> bool {
    client.send(&Packet::new(2, 77, ""));
    client.packet_or_end().is_some_and(|packet| (packet.op, packet.seq) == (3, 77))
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn sessions_of_a_frozen_comet_resync_or_reconnect() {
    let world = World::start();
    let logic = world.logic();
    let room = unique("live://r");
    let others = Server::at(world.cluster.addrs);
    let mut undisturbed = World::sessions(&others, &unique("live://other"));
    let mut frozen = World::sessions(&world.frozen.server, &room);
    let mut syncing: Vec<(i64, Client)> = BOTH
        .iter()
        .map(|transport| {
            let mid = i64::from(number());
            let who = json!({ "mid": mid, "key": unique("k"), "protover": 3, "resume": {}, "accepts": [] });
            (mid, login(&world.frozen.server, *transport, &who).0)
        })
        .collect();
    world.frozen.signal("-STOP");
    let sweep = |server: &str| world.cluster.redis.has(&format!("goim:swept:{server}"));
    eventually("it is swept", || sweep("frozen"));
    // Accepted, and lost to those who do not sync.
    logic.push_room(1000, &room, "missed");
    for (mid, _) in &syncing {
        let message =
            json!({ "to": { "mids": [mid] }, "operation": 1000, "body": "kept", "delivery": "stored" });
        let body = json!({ "messages": [message] }).to_string();
        let headers = [("content-type", "application/json")];
        let answer = logic.request("POST", "/v1/push", &headers, body.as_bytes()).json();
        assert_eq!(answer["code"], json!(0), "{answer}");
    }
    std::thread::sleep(LEASE / 2);
    world.frozen.signal("-CONT");
    let thawed = Instant::now();
    for (negotiated, client) in &mut frozen {
        // Messages that had reached its socket may still be delivered.
        let mut last = None;
        while let Some(packet) = client.packet_or_end() {
            last = Some(packet);
        }
        let code = last
            .filter(|packet| packet.op == 6)
            .map(|packet| serde_json::from_slice::<Value>(&packet.body).unwrap());
        assert_eq!(code.is_some(), *negotiated, "{code:?}");
        if let Some(code) = code {
            assert_eq!((&code["code"], &code["reconnect"]), (&json!(3006), &json!(true)), "{code}");
        }
    }
    for (mid, client) in &mut syncing {
        let looks = client.pushed_or_notification();
        assert_eq!((looks.op, looks.body.as_slice()), (NOTIFY, &b""[..]), "{looks:?}");
        let request = Writer::default().bytes(1, format!("mid://{mid}")).done();
        let mut reply = client.ask(&Packet::new(21, 5, request));
        while reply.op != 22 {
            reply = client.packet();
        }
        assert!(String::from_utf8_lossy(&reply.body).contains("kept"), "{reply:?}");
        // It is in the directory again: the next message is announced.
        let message =
            json!({ "to": { "mids": [mid] }, "operation": 1000, "body": "next", "delivery": "stored" });
        let body = json!({ "messages": [message] }).to_string();
        let headers = [("content-type", "application/json")];
        logic.request("POST", "/v1/push", &headers, body.as_bytes());
        loop {
            let packet = client.packet();
            if String::from_utf8_lossy(&packet.body).contains("next") {
                break;
            }
            assert_eq!(packet.op, NOTIFY, "{packet:?}");
        }
    }
    eprintln!("all were told within {:?}", thawed.elapsed());
    for (_, client) in &mut undisturbed {
        assert!(is_undisturbed(client), "a session of another comet was disturbed");
    }
    // A session that reconnects stays.
    let mut back = World::sessions(&world.frozen.server, &room);
    eventually("who is back is reached", || {
        logic.push_room(1000, &room, "after");
        back.iter_mut().all(|(_, client)| client.pushed().body == b"after")
    });
    std::thread::sleep(LEASE);
    logic.push_room(1000, &room, "mark");
    for (_, client) in &mut back {
        while client.pushed().body != b"mark" {}
    }
}

/// Sessions on both comets, and a check that none of them is disturbed.
fn no_session_is_ended(world: &World) -> impl FnMut(&str) {
    let room = unique("live://r");
    let servers = [Server::at(world.cluster.addrs), Server::at(world.frozen.server.addrs)];
    let mut sessions: Vec<(bool, Client)> =
        servers.iter().flat_map(|server| World::sessions(server, &room)).collect();
    move |what| {
        for (_, client) in &mut sessions {
            assert!(is_undisturbed(client), "after {what}");
        }
    }
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn redis_that_was_unavailable_or_restarts_empty_ends_no_session() {
    let world = World::start();
    let mut check = no_session_is_ended(&world);
    check("nothing");
    world.cluster.redis.kill();
    std::thread::sleep(LEASE * 2);
    check("redis was away for two leases");
    world.cluster.redis.start_again();
    eventually("the comets say that they are there", || {
        ["h1", "frozen"].iter().all(|name| world.cluster.redis.has(&format!("goim:node:{name}")))
    });
    std::thread::sleep(LEASE);
    check("redis came back empty");
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn redis_that_refuses_writes_ends_no_session() {
    let world = World::start();
    let mut check = no_session_is_ended(&world);
    let config = |name: &str, value: &str| {
        let url = &world.cluster.redis.url;
        let output =
            Command::new("redis-cli").args(["-u", url, "config", "set", name, value]).output().unwrap();
        assert!(output.status.success());
    };
    let room = unique("live://x");
    for (name, wrong, right) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "3", "0")] {
        config(name, wrong);
        let until = Instant::now() + LEASE * 2;
        while Instant::now() < until {
            world.logic().push_room(1000, &room, "to a room that nobody is in");
            std::thread::sleep(Duration::from_millis(50));
        }
        check(&format!("redis refused writes by {name}"));
        config(name, right);
        std::thread::sleep(LEASE * 2);
        check(&format!("redis took writes again after {name}"));
    }
    let text = world.cluster.comet_metrics();
    for cause in ["swept", "given_up"] {
        assert!(text.contains(&format!("goim_comet_recoveries_total{{cause=\"{cause}\"}} 0")), "{text}");
    }
}
