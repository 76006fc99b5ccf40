//! The rows of the conformance table that need several processes, over a real Redis and a real
//! Kafka. Each process is a role in this one, with its own ports.
//!
//! The bytes in the engines are tested beside their adapters. This file tests what clients and the
//! backend see when parts stop, start, or are several.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::cluster::{Cluster, addrs_of, try_comet};
use crate::harness::kafka::Kafka;
use crate::harness::server::RUNTIME;
use crate::harness::{Client, Server, Settings, Transport, Who, eventually, unique};
use goim::cluster::start_job;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};

fn consumer(cluster: &Cluster) -> (BaseConsumer, String) {
    let config = cluster.settings().config();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", config.kafka.brokers.join(","))
        .set("group.id", &config.kafka.group)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    (consumer, config.kafka.topic)
}

const LONG: Duration = Duration::from_secs(10);

/// The records of the push log, as Kafka has them, once there are so many.
fn records(cluster: &Cluster, count: usize) -> Vec<OwnedMessage> {
    let (consumer, topic) = consumer(cluster);
    let metadata = consumer.fetch_metadata(Some(&topic), LONG).unwrap();
    let mut all = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        all.add_partition_offset(&topic, partition.id(), rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let mut records = Vec::new();
    eventually(&format!("{count} records"), || {
        records.extend(consumer.poll(Duration::from_millis(50)).map(|record| record.unwrap().detach()));
        records.len() >= count
    });
    records
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_072_a_broadcast_that_reaches_a_job_without_comets_does_no_harm() {
    let mut cluster = Cluster::without_job(&Settings::new());
    cluster.start_job();
    let server = Server::at(cluster.addrs);
    server.push_all(1000, "to nobody");
    server.push("/goim/push/all?operation=1000&speed=64", "to nobody, slowly");
    server.push_room(1000, "live://1", "to nobody's room");
    eventually("all three are read", || {
        cluster.job_metric("goim_job_dispatches_total{result=\"no_comet\"}") == Some(3.0)
    });
    cluster.start_comet();
    let server = Server::at(cluster.addrs);
    let mut client = Client::login(&server, Transport::Tcp, &Who::new().accepts(&[1000]).room("live://1"));
    server.push_all(1000, "to everybody");
    client.expect_push(1000, "to everybody");
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_101_the_count_of_a_room_is_over_all_comets() {
    let mut cluster = Cluster::without_job(&Settings::new());
    cluster.start_comet();
    let settings = cluster.settings();
    let fresh = ["comet.listen.tcp", "comet.listen.websocket", "rpc.comet"];
    let other = fresh.iter().fold(settings, |settings, key| settings.set(key, "127.0.0.1:0"));
    let other = cluster.another_comet(&other.set("comet.node.server", "h2"));
    let (here, there) = (Server::at(cluster.addrs), Server::at(addrs_of(&other)));
    let room = unique("live") + "://1";
    let who = || Who::new().room(&room);
    let clients: Vec<_> = (0..40).map(|_| Client::login(&there, Transport::Tcp, &who())).collect();
    let mut client = Client::login(&here, Transport::Tcp, &who());
    eventually("the heartbeat says 41", || client.heartbeat() == 41);
    drop(clients);
    eventually("the heartbeat says 1", || client.heartbeat() == 1);
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_109_members_on_one_comet_are_one_record_with_the_first_key() {
    let mut cluster = Cluster::without_job(&Settings::new());
    cluster.start_comet();
    let server = Server::at(cluster.addrs);
    let whos = [Who::new(), Who::new()];
    let _clients = whos.each_ref().map(|who| Client::login(&server, Transport::Tcp, who));
    server.push_mids(1000, &[whos[0].mid, whos[1].mid], "hello");
    let records = records(&cluster, 1);
    assert_eq!(records.len(), 1);
    // goim.logic.PushMsg: operation, server, keys, msg.
    let mut value = [&b"\x10\xe8\x07\x22\x02h1"[..]].concat();
    let first = records[0].key().unwrap();
    let mut keys = [whos[0].key.as_bytes(), whos[1].key.as_bytes()];
    if keys[0] != first {
        keys.reverse();
    }
    assert_eq!(keys[0], first, "the record's key is that of a session");
    for key in keys {
        value.extend([0x32, u8::try_from(key.len()).unwrap()]);
        value.extend(key);
    }
    value.extend(b"\x3a\x05hello");
    assert_eq!(records[0].payload().unwrap(), value);
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_110_without_redis_established_sessions_are_served() {
    let cluster = Cluster::start(&Settings::new().set("redis.command_timeout", "300ms"));
    let server = Server::at(cluster.addrs);
    let room = unique("live") + "://1";
    let who = Who::new().room(&room).accepts(&[1000]);
    let mut client = Client::login(&server, Transport::Tcp, &who);
    server.push_keys(1000, &[&who.key], "before");
    client.expect_push(1000, "before");

    cluster.redis.kill();
    let code = |target: &str| server.post(target, "x").text().split(',').next().unwrap().to_owned();
    assert_eq!(code(&format!("/goim/push/keys?operation=1000&keys={}", who.key)), r#"{"code":-400"#);
    assert_eq!(code(&format!("/goim/push/mids?operation=1000&mids={}", who.mid)), r#"{"code":-500"#);
    server.push_room(1000, &room, "to the room");
    client.expect_push(1000, "to the room");
    server.push_all(1000, "to all");
    client.expect_push(1000, "to all");
    client.heartbeat();
    let mut refused = Client::open(&server, Transport::Tcp);
    refused.send(&Who::new().auth());
    assert_eq!(refused.rest(), b"", "closed without a packet");

    cluster.redis.start_again();
    eventually("who was there is found again", || {
        let target = format!("/goim/push/keys?operation=1000&keys={}", who.key);
        server.post(&target, "after").text().starts_with(r#"{"code":0,"#) && client.receives("after")
    });
    Client::login(&server, Transport::Tcp, &Who::new());
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_112_a_comet_that_stops_and_starts_is_reached_again() {
    let mut cluster = Cluster::start(&Settings::new());
    let server = Server::at(cluster.addrs);
    let who = Who::new().accepts(&[1000]);
    let mut client = Client::login(&server, Transport::Tcp, &who);
    cluster.stop_comet();
    assert_eq!(client.rest(), b"", "closed without a packet");
    cluster.start_comet();
    let server = Server::at(cluster.addrs);
    let mut client = Client::login(&server, Transport::Tcp, &who);
    let arrived = Instant::now();
    eventually("a push arrives", || {
        server.push_keys(1000, &[&who.key], "again");
        client.receives("again")
    });
    assert!(arrived.elapsed() < Duration::from_secs(4), "{:?}", arrived.elapsed());
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_113_the_end_of_the_log_is_committed() {
    let cluster = Cluster::start(&Settings::new());
    let server = Server::at(cluster.addrs);
    for n in 0..50 {
        server.push_room(1000, &format!("live://{n}"), "x");
    }
    let (consumer, topic) = consumer(&cluster);
    let partitions = consumer.fetch_metadata(Some(&topic), LONG).unwrap().topics()[0].partitions().len();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_range(&topic, 0, i32::try_from(partitions).unwrap() - 1);
    let started = Instant::now();
    eventually("the offsets are at the end", || {
        let committed = consumer.committed_offsets(list.clone(), LONG).unwrap();
        let at_end = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            let (_, end) = consumer.fetch_watermarks(&topic, element.partition(), LONG).unwrap();
            assert_eq!(element.metadata(), "");
            end == 0 || element.offset() == rdkafka::Offset::Offset(end)
        };
        committed.elements().iter().all(at_end)
    });
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn row_114_what_is_pushed_while_no_job_runs_arrives_when_one_starts() {
    let mut cluster = Cluster::start(&Settings::new());
    let server = Server::at(cluster.addrs);
    let who = Who::new().accepts(&[1000]).room("live://1");
    let mut client = Client::login(&server, Transport::Tcp, &who);
    server.push_keys(1000, &[&who.key], "with a job");
    client.expect_push(1000, "with a job");
    cluster.stop_job();
    server.push_keys(1000, &[&who.key], "without");
    client.expect_nothing();
    cluster.start_job();
    client.expect_push(1000, "without");
}

/// Jobs drop messages for a comet that is not on their list: it must be listed from its first
/// announcement until its clients connect.
#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn a_comet_that_starts_is_on_the_list_without_an_interruption() {
    let cluster = Cluster::without_job(&Settings::new());
    let key = "goim:node:h1";
    let settings = cluster.settings().set("cluster.lease", "1500ms").set("cluster.refresh_interval", "1s");
    let coming = std::thread::spawn(move || try_comet(&settings));
    eventually("it is listed", || cluster.redis.has(key));
    while !coming.is_finished() {
        assert!(
            cluster.redis.has(key) || coming.is_finished(),
            "it was on the list and is not there any more"
        );
    }
    let _inside = harness::server::runtime().enter();
    drop(coming.join().unwrap().unwrap());
}

/// Two addresses that are free now and that the system does not assign: one from the ephemeral
/// range may become some connection's by the time it is listened on.
fn free_addresses() -> [String; 2] {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/free-ports.py");
    let output = std::process::Command::new(script).args(["2", "22000", "32000"]).output().unwrap();
    let ports = String::from_utf8(output.stdout).unwrap();
    let mut addresses = ports.split_whitespace().map(|port| format!("127.0.0.1:{port}"));
    [(); 2].map(|()| addresses.next().unwrap())
}

/// A cluster whose list of comets has two addresses, and the comets at them. Another program may
/// take one of the ports before a comet does; then others are tried.
fn listed_cluster() -> (Cluster, [goim::cluster::Running; 2]) {
    for _ in 0..5 {
        let rpc = free_addresses();
        let settings = Settings::new().set("cluster.directory", "list").set(
            "cluster.comets",
            &format!("[\"grpc://{}\", \"dns://{}\"]", rpc[0], rpc[1].replace("127.0.0.1", "localhost")),
        );
        let cluster = Cluster::without_job(&settings);
        let comets = [0, 1].map(|nth| {
            let settings = cluster.settings().set("comet.node.server", ["h1", "h2"][nth]);
            try_comet(&settings.set("rpc.comet", &rpc[nth]))
        });
        match comets {
            [Ok(one), Ok(other)] => return (cluster, [one, other]),
            failed => eprintln!("other ports are tried: {failed:?}"),
        }
    }
    panic!("no ports for two comets");
}

/// Two jobs with one name: the first stops with an error that names the remedy, in this process and
/// in a separate one.
#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn of_two_jobs_with_one_name_the_first_stops_with_an_error() {
    let cluster = Cluster::without_job(
        &Settings::new().set("kafka.session_timeout", "3s").set("comet.node.server", "job1"),
    );
    let settings = cluster.settings();
    let start = || RUNTIME.block_on(start_job(settings.config())).unwrap_or_else(|error| panic!("{error}"));
    let first = start();
    assert!(first.line("kafka").unwrap().ends_with(" as job1"), "{first:?}");
    let mut second = Command::new(env!("CARGO_BIN_EXE_goim"));
    second.arg("job").stdout(Stdio::piped()).stderr(Stdio::piped());
    for pair in &settings.0 {
        second.args(["--set", pair]);
    }
    let mut second = second.spawn().unwrap();
    let mut up = String::new();
    BufReader::new(second.stdout.take().unwrap()).read_line(&mut up).unwrap();
    assert!(up.contains("is up: job"), "{up}");
    let failed = RUNTIME.block_on(async { tokio::time::timeout(2 * LONG, first.failed()).await });
    let says_why = |text: &str| {
        for part in ["\"job1\"", "kafka.instance_id", "comet.node.server"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    };
    says_why(&failed.expect("the first is told").to_string());
    RUNTIME.block_on(first.drain());
    let third = start();
    let ended = second.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(64));
    says_why(&String::from_utf8_lossy(&ended.stderr));
    RUNTIME.block_on(third.drain());
}

/// A frozen broker may or may not have what was sent to it: every route answers that the outcome is
/// unknown, and not before the log itself does.
#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn what_a_silent_broker_may_have_is_answered_alike_on_every_route() {
    let kafka = Kafka::start();
    // More than logic itself waits for an append by default.
    let patience = Duration::from_secs(6);
    let settings = Settings::new().set("kafka.delivery_timeout", "6s");
    let mut cluster = Cluster::over(&kafka.broker, &settings);
    cluster.start_comet();
    cluster.start_job();
    let server = Server::at(cluster.addrs);
    let room = unique("live") + "://1";
    let who = Who::new().room(&room).accepts(&[1000]);
    let mid = who.mid;
    let mut client = Client::login(&server, Transport::Tcp, &who);
    server.push_keys(1000, &[&who.key], "before");
    client.expect_push(1000, "before");

    const UNKNOWN: &str = r#"{"code":-504,"message":"the push may or may not be in the log"}"#;
    const UNKNOWN_BUT: &str =
        r#"{"code":-504,"message":"the push may or may not be in the log","accepted":0}"#;
    let key = &who.key;
    let (kind, name) = room.split_once("://").unwrap();
    let message = |to: &str| format!(r#"{{"to":{to},"operation":1000,"body":"batch"}}"#);
    let to_all = [
        format!(r#"{{"keys":["{key}"]}}"#),
        format!(r#"{{"mids":[{mid}]}}"#),
        format!(r#"{{"room":"{room}"}}"#),
    ];
    let many: Vec<String> = to_all.iter().map(|to| message(to)).collect();
    let mut routes = vec![
        (format!("/goim/push/keys?operation=1000&keys={key}"), "keys".to_owned(), 200, UNKNOWN),
        (format!("/goim/push/mids?operation=1000&mids={mid}"), "mids".to_owned(), 200, UNKNOWN),
        (format!("/goim/push/room?operation=1000&type={kind}&room={name}"), "room".to_owned(), 200, UNKNOWN),
        ("/goim/push/all?operation=1000".to_owned(), "all".to_owned(), 200, UNKNOWN),
        ("/v1/push".to_owned(), format!(r#"{{"messages":[{}]}}"#, many[0]), 504, UNKNOWN_BUT),
        ("/v1/push".to_owned(), format!(r#"{{"messages":[{}]}}"#, many.join(",")), 504, UNKNOWN_BUT),
    ];
    // A session that these do not end is another one.
    let other = Who::new().room(&(unique("live") + "://2"));
    let _other = Client::login(&server, Transport::Ws, &other);
    for of in [format!(r#"{{"keys":["{}"]}}"#, other.key), r#"{"room":"nobody://1"}"#.to_owned()] {
        routes.push(("/v1/sessions/end".to_owned(), format!(r#"{{"of":{of}}}"#), 504, UNKNOWN));
    }
    kafka.freeze();
    std::thread::scope(|scope| {
        for (target, body, status, expected) in &routes {
            let server = &server;
            scope.spawn(move || {
                let started = Instant::now();
                let json = [("Content-Type", "application/json")];
                let response = server.request("POST", target, &json, body.as_bytes());
                let took = started.elapsed();
                eprintln!("{target}: {} {} after {took:?}", response.status, response.text());
                assert_eq!((response.status, response.text().as_str()), (*status, *expected), "{target}");
                assert!((patience..patience * 2).contains(&took), "{target}: {took:?}");
            });
        }
    });
    kafka.thaw();
    // Then it is well again, and what is answered with 0 arrives.
    eventually("pushes are accepted again", || {
        let target = format!("/goim/push/keys?operation=1000&keys={key}");
        server.post(&target, "after").text() == r#"{"code":0,"message":""}"#
    });
    eventually("it arrives", || client.receives("after"));
}

/// Two comets that are known by their addresses alone, and a room with a session on one of them.
#[test]
#[ignore = "needs Kafka: scripts/test.sh"]
fn a_list_of_addresses_is_enough_and_a_room_costs_calls_only_where_it_has_sessions() {
    let (mut cluster, comets) = listed_cluster();
    let servers = comets.each_ref().map(|comet| Server::at(addrs_of(comet)));
    cluster.start_job();
    let logic = Server::at(cluster.addrs);
    let (room, everywhere) = (unique("live") + "://1", unique("live") + "://2");
    let mut clients = [&room, &everywhere]
        .map(|room| Client::login(&servers[0], Transport::Tcp, &Who::new().room(room).accepts(&[1000])));
    let who = Who::new().room(&everywhere).accepts(&[1000]);
    let mut other = Client::login(&servers[1], Transport::Tcp, &who);
    eventually("both comets are found", || {
        logic.push_all(1000, "to all");
        clients.iter_mut().chain([&mut other]).all(|client| client.receives("to all"))
    });
    for n in 0..20 {
        logic.push_room(1000, &room, format!("to one-{n}."));
        logic.push_room(1000, &everywhere, format!("to both-{n}."));
    }
    let last = |client: &mut Client, body: &str| {
        eventually(body, || client.receives(body));
    };
    last(&mut clients[0], "to one-19.");
    last(&mut clients[1], "to both-19.");
    last(&mut other, "to both-19.");
    eventually("calls were saved", || {
        cluster.job_metric("goim_job_room_dispatches_skipped_total").is_some_and(|saved| saved >= 1.0)
    });
    // A session that joins a room receives every push from then on.
    for n in 0..20 {
        let room = unique("live") + "://new";
        let mut newcomer = Client::login(&servers[n % 2], Transport::Tcp, &Who::new().room(&room));
        logic.push_room(1000, &room, "welcome");
        newcomer.expect_push(1000, "welcome");
    }
    logic.push_keys(1000, &[&who.key], "by key");
    last(&mut other, "by key");
    // Comets without their own connection to Redis learn from logic that it has lost its data.
    cluster.redis.kill();
    cluster.redis.start_again();
    eventually("the session is entered again", || cluster.redis.has(&format!("key_{}", who.key)));
    logic.push_keys(1000, &[&who.key], "after the loss");
    last(&mut other, "after the loss");
}
