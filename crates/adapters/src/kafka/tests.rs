//! The push log on a real broker, which `scripts/test.sh` starts. Tests that stop a broker start
//! their own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{AppendError, Operation, PushLog, PushLogReader, PushRecord};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::*;
use crate::conformance::{self, record_for_key, record_for_room};

mod child_process;
mod start_offsets;
mod static_members;

/// The broker of all tests.
fn broker() -> String {
    let broker = std::env::var("TEST_KAFKA").ok().filter(|broker| !broker.is_empty());
    broker.expect("TEST_KAFKA names no broker: run scripts/test.sh")
}

/// A broker for one test, stopped on drop.
struct TestBroker(PathBuf);

impl TestBroker {
    fn start() -> (Self, String) {
        let folder = std::env::temp_dir().join(unique("goim-kafka"));
        let own = Self(folder);
        let broker = own.script("start");
        (own, broker)
    }

    fn script(&self, verb: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/engines/kafka.sh");
        let output = Command::new(script).arg(verb).arg(&self.0).output().unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl TestBroker {
    /// Sends a signal to the broker, to stop or continue it.
    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.0.join("pid")).unwrap();
        assert!(Command::new("kill").args([signal, pid.trim()]).status().unwrap().success());
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        self.script("kill");
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Creates a topic, and returns settings for it.
async fn with_topic(broker: &str, partitions: i32) -> KafkaConfig {
    with_named_topic(broker, &unique("push"), partitions).await
}

/// Creates a topic with a given name.
async fn with_named_topic(broker: &str, topic: &str, partitions: i32) -> KafkaConfig {
    let topic = topic.to_owned();
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", broker).create().unwrap();
    // The records of these tests have old timestamps: with the default retention the broker would
    // delete them within minutes.
    let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    KafkaConfig {
        brokers: vec![broker.to_owned()],
        group: format!("{topic}-job"),
        topic,
        auto_offset_reset: OffsetReset::Earliest,
        session_timeout: Duration::from_secs(3),
        commit_interval: Duration::from_millis(100),
        ..KafkaConfig::default()
    }
}

async fn both_ends(config: &KafkaConfig) -> (Arc<KafkaPushLog>, KafkaPushLogReader) {
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    (log, KafkaPushLogReader::join(config.clone()).await.unwrap())
}

fn raw_producer(broker: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new().set("bootstrap.servers", broker).create().unwrap()
}

/// Reads a topic's records without a group, until there are `count`.
fn records_of(broker: &str, topic: &str, count: usize) -> Vec<rdkafka::message::OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", unique("looker"))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let (mut records, until) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while records.len() < count {
        assert!(Instant::now() < until, "{} of {count} records in {topic}", records.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            records.push(message.detach());
        }
    }
    records
}

/// Returns the sum of the committed offsets of all partitions.
fn committed(config: &KafkaConfig, partitions: i32) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", config.broker_list())
        .set("group.id", &config.group)
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_range(&config.topic, 0, partitions - 1);
    let list = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
    list.elements().iter().filter_map(|element| element.offset().to_raw()).filter(|offset| *offset > 0).sum()
}

async fn becomes(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "not in 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn read(reader: &mut KafkaPushLogReader, count: usize) -> Vec<goim_ports::LogEntry> {
    let mut entries = Vec::new();
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while entries.len() < count {
        let more = tokio::time::timeout_at(until, reader.read()).await;
        let more = more.unwrap_or_else(|_| panic!("{} of {count} records in 30 s", entries.len()));
        // A restarting broker is a temporary failure.
        if let Ok(more) = more {
            entries.extend(more.expect("the log is open"));
        }
    }
    entries
}

fn bodies(entries: &[goim_ports::LogEntry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8_lossy(entry.record.payload.primary_bytes()).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn conforms() {
    let broker = broker();
    let make = async || both_ends(&with_topic(&broker, 3).await).await;
    conformance::push_log::<KafkaPushLog, _>(make).await;
}

#[test]
fn rows_65_to_67_values_are_goims() {
    let cases = [
        (
            record_for_room("live://1000", "hello"),
            "080110e8072a0b6c6976653a2f2f313030303a0568656c6c6f",
            "live://1000",
        ),
        (
            PushRecord {
                target: goim_ports::PushTarget::Keys {
                    server: "comet01".into(),
                    keys: vec!["k1".into(), "k2".into()],
                },
                ..record_for_key("k1", "hello")
            },
            "10e8072207636f6d6574303132026b3132026b323a0568656c6c6f",
            "k1",
        ),
        (
            PushRecord {
                target: goim_ports::PushTarget::All { speed: std::num::NonZeroU32::new(64) },
                ..record_for_key("", "hello")
            },
            "080210e80718403a0568656c6c6f",
            "1000",
        ),
    ];
    for (record, value, key) in cases {
        assert_eq!(hex(&record::value(&record)), value);
        assert_eq!(record.partition_key(), key);
        let back = record::read(&record::value(&record), Some(record::timestamp(&record))).unwrap();
        assert_eq!(back, record);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The records that goim's logic wrote, with the partitions that its producer chose.
fn captured() -> Vec<(i32, String, Vec<u8>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/kafka.json");
    let captured: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let record = |record: &serde_json::Value| {
        let partition = i32::try_from(record["partition"].as_i64().unwrap()).unwrap();
        let key = String::from_utf8(from_hex(record["key_hex"].as_str().unwrap())).unwrap();
        (partition, key, from_hex(record["value"].as_str().unwrap()))
    };
    captured["records"].as_array().unwrap().iter().map(record).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn keys_values_and_partitions_are_those_that_goims_logic_wrote() {
    let broker = broker();
    let config = with_topic(&broker, 8).await;
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let captured = captured();
    assert!(captured.len() > 60);
    // goim stores a negative speed, which means none; here none is omitted.
    let negative_speed = |value: &[u8]| hex(value).contains("18ffffffffffffffffff01");
    let mut expected = Vec::new();
    for (partition, key, value) in captured.into_iter().filter(|(_, _, value)| !negative_speed(value)) {
        let record = record::read(&value, None).unwrap();
        assert_eq!(record.partition_key(), key);
        log.append(record).await.unwrap();
        expected.push((partition, key, hex(&value)));
    }
    let mut written: Vec<_> = records_of(&broker, &config.topic, expected.len())
        .iter()
        .map(|record| {
            assert!(record.headers().is_none(), "goim's records have none");
            let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
            (record.partition(), key, hex(record.payload().unwrap()))
        })
        .collect();
    expected.sort();
    written.sort();
    assert_eq!(written, expected);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn row_113_an_offset_is_committed_only_after_its_record_was_delivered() {
    let broker = broker();
    let config = with_topic(&broker, 1).await;
    let (log, mut reader) = both_ends(&config).await;
    for n in 0..10 {
        log.append(record_for_key("k", format!("{n}"))).await.unwrap();
    }
    let entries = read(&mut reader, 10).await;
    reader.done(entries[3].position);
    becomes("four are committed", || committed(&config, 1) == 4).await;
    // The next owner gets the records that were read and not delivered.
    drop(reader);
    let mut next = KafkaPushLogReader::join(config.clone()).await.unwrap();
    let entries = read(&mut next, 6).await;
    assert_eq!(bodies(&entries), ["4", "5", "6", "7", "8", "9"]);
    next.done(entries[5].position);
    becomes("all are committed", || committed(&config, 1) == 10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn joining_and_leaving_members_lose_nothing_and_keep_the_order() {
    let broker = broker();
    const KEYS: usize = 16;
    const EACH: usize = 150;
    let config = with_topic(&broker, 8).await;
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let seen: Arc<parking_lot::Mutex<Vec<(String, usize)>>> = Arc::default();
    let spawn_member = |config: KafkaConfig| {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut reader = KafkaPushLogReader::join(config).await.unwrap();
            loop {
                for entry in reader.read().await.unwrap().unwrap() {
                    let number =
                        String::from_utf8_lossy(entry.record.payload.primary_bytes()).parse().unwrap();
                    seen.lock().push((entry.record.partition_key().into_owned(), number));
                    reader.done(entry.position);
                }
            }
        })
    };
    let mut members = vec![spawn_member(config.clone())];
    for n in 0..EACH {
        for key in 0..KEYS {
            log.append(record_for_key(&format!("k{key}"), format!("{n}"))).await.unwrap();
        }
        match n {
            30 | 60 => members.push(spawn_member(config.clone())),
            90 => members.remove(0).abort(),
            _ => {}
        }
    }
    let all = |seen: &[(String, usize)]| {
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        distinct.len() == KEYS * EACH
    };
    becomes("every record was seen", || all(&seen.lock())).await;
    let seen = seen.lock();
    let doubled = seen.len() - KEYS * EACH;
    eprintln!("{doubled} of {} were read twice", KEYS * EACH);
    // Records may be read again from some point on; none is read before its predecessors.
    for key in 0..KEYS {
        let key = format!("k{key}");
        let mut next = 0;
        for (_, number) in seen.iter().filter(|(of, _)| *of == key) {
            assert!(*number <= next, "{key}: {number} came before {next}");
            next = next.max(number + 1);
        }
    }
    members.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_member_may_leave_during_a_rebalance() {
    let broker = broker();
    let config = with_topic(&broker, 8).await;
    // librdkafka crashes when a consumer is closed at certain moments of a rebalance.
    for nth in 0..30 {
        let leaves = KafkaPushLogReader::join(config.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(nth * 5)).await;
        tokio::task::spawn_blocking(move || drop(leaves)).await.unwrap();
    }
    // The next member is alone, and reads.
    let (log, mut reader) = both_ends(&config).await;
    log.append(record_for_room("live://1", "after")).await.unwrap();
    assert_eq!(read(&mut reader, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn client_packets_are_written_to_the_upstream_topic() {
    use goim_ports::{LogicError, Mid, PacketBuf, Schema, Sequence, Upstream, UpstreamPort};
    use prost::Message as _;
    let broker = broker();
    let config = with_topic(&broker, 4).await;
    let backend = KafkaUpstream::new(&config, &config.topic).unwrap();
    let upstream = |mid, sequence| Upstream {
        mid: Mid(mid),
        key: "k1".into(),
        packet: PacketBuf { sequence: Sequence(sequence), ..PacketBuf::push(Operation(2000), "body".into()) },
        schema: Schema(2),
        negotiated: true,
    };
    for (mid, sequence) in [(7, 1), (0, 2)] {
        assert_eq!(backend.send(upstream(mid, sequence), Duration::from_secs(4)).await, Ok("".into()));
    }
    let mut records = records_of(&broker, &config.topic, 2);
    records.sort_by_key(|record| std::cmp::Reverse(record.key().unwrap().len()));
    let read = |record: &rdkafka::message::OwnedMessage| {
        let value = crate::grpc::proto::backend::HandleReq::decode(record.payload().unwrap()).unwrap();
        (record.key().unwrap().to_vec(), value.mid, value.sequence, value.schema, value.body)
    };
    let expected = [(b"k1".to_vec(), 0, 2, 2, "body".into()), (b"7".to_vec(), 7, 1, 2, "body".into())];
    assert_eq!(records.iter().map(read).collect::<Vec<_>>(), expected);
    let unreachable =
        KafkaUpstream::new(&KafkaConfig { brokers: vec!["127.0.0.1:1".to_owned()], ..config }, "x").unwrap();
    let late = tokio::time::timeout(Duration::from_secs(1), async {
        unreachable.send(upstream(7, 3), Duration::from_millis(200)).await
    });
    assert!(!matches!(late.await, Ok(Ok(_) | Err(LogicError::Failed(_)))));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn session_events_are_written_to_their_topic() {
    use goim_ports::{AcceptedAt, EventKind, EventSink, LifecycleEvent, Mid};
    let broker = broker();
    let config = with_topic(&broker, 4).await;
    let event = |mid, nth: u64| LifecycleEvent {
        id: format!("e{nth}"),
        kind: EventKind::Connect,
        mid: Mid(mid),
        key: "k1".into(),
        server: "s1".into(),
        rooms: Vec::new(),
        reason: String::new(),
        at: AcceptedAt::now(),
    };
    let events = KafkaEvents::new(&config, &config.topic, |event| event.id.clone()).unwrap();
    let batch = vec![event(7, 1), event(0, 2), event(7, 3)];
    assert_eq!(events.deliver(batch.clone()).await, Ok(()));
    let mut written: Vec<(String, String)> = records_of(&broker, &config.topic, 3)
        .iter()
        .map(|record| [record.key().unwrap(), record.payload().unwrap()])
        .map(|[key, value]| (String::from_utf8_lossy(key).into(), String::from_utf8_lossy(value).into()))
        .collect();
    // Events of one member keep the order of the topic; the order of members is undefined.
    written.sort_by(|(one, _), (other, _)| one.cmp(other));
    let expected = [("7", "e1"), ("7", "e3"), ("k1", "e2")].map(|(key, value)| (key.into(), value.into()));
    assert_eq!(written, expected);
    let unreachable = KafkaConfig {
        brokers: vec!["127.0.0.1:1".to_owned()],
        delivery_timeout: Duration::from_millis(300),
        ..config
    };
    let unreachable = KafkaEvents::new(&unreachable, "x", |event| event.id.clone()).unwrap();
    assert!(unreachable.deliver(batch).await.is_err(), "undelivered events fail");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn invalid_records_are_counted_and_skipped() {
    let broker = broker();
    let config = with_topic(&broker, 1).await;
    let dead = format!("{}-dead", config.topic);
    let config = KafkaConfig { dead_letter: DeadLetter::Topic(dead.clone()), ..config };
    let (log, mut reader) = both_ends(&config).await;
    let stats = reader.stats();
    let producer = raw_producer(&broker);
    let poison: [&[u8]; 4] = [b"\xff\xff\xff", b"\x08\x07", b"", b"\x10\xe8\x07"];
    for value in poison {
        producer.send(BaseRecord::to(&config.topic).key("k").payload(value)).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    log.append(record_for_key("k", "after")).await.unwrap();
    let entries = read(&mut reader, 1).await;
    assert_eq!(bodies(&entries), ["after"]);
    assert_eq!(stats().poison, 4);
    reader.done(entries[0].position);
    becomes("all are committed", || committed(&config, 1) == 5).await;
    let letters = records_of(&broker, &dead, 4);
    for (letter, value) in letters.iter().zip(poison) {
        assert_eq!(letter.payload().unwrap_or_default(), value);
        let headers: Vec<&str> = letter.headers().unwrap().iter().map(|header| header.key).collect();
        assert_eq!(headers, ["goim-topic", "goim-partition", "goim-offset", "goim-error"]);
    }
    // Invalid records after the last push are committed without a `done`.
    producer.send(BaseRecord::to(&config.topic).key("k").payload(poison[0])).unwrap();
    producer.flush(Duration::from_secs(10)).unwrap();
    log.append(record_for_key("k", "last")).await.unwrap();
    let last = read(&mut reader, 1).await;
    reader.done(last[0].position);
    becomes("the last is committed", || committed(&config, 1) == 7).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn row_111_a_broker_restart_loses_no_acknowledged_record() {
    let (own, broker) = TestBroker::start();
    let config = KafkaConfig { delivery_timeout: Duration::from_secs(2), ..with_topic(&broker, 2).await };
    let (log, mut reader) = both_ends(&config).await;
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for n in 0..60 {
        match n {
            20 => drop(own.script("kill")),
            // Two appends were refused by then.
            22 => assert_eq!(own.script("start"), broker),
            _ => {}
        }
        match log.append(record_for_key(&format!("k{}", n % 5), format!("{n}"))).await {
            Ok(()) => acknowledged.push(n.to_string()),
            Err(AppendError::Unknown(reason)) => {
                assert!(reason.contains(&config.topic) && reason.contains(&broker), "{reason}");
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((1..40).contains(&refused), "{refused} were refused");
    let mut missing: std::collections::BTreeSet<_> = acknowledged.into_iter().collect();
    while !missing.is_empty() {
        for entry in read(&mut reader, 1).await {
            missing.remove(&*String::from_utf8_lossy(entry.record.payload.primary_bytes()));
            reader.done(entry.position);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn appends_to_an_unresponsive_broker_are_unknown() {
    let (own, broker) = TestBroker::start();
    let config = KafkaConfig { delivery_timeout: Duration::from_secs(2), ..with_topic(&broker, 4).await };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    log.append(record_for_key("k", "before")).await.unwrap();
    own.signal("-STOP");
    let started = Instant::now();
    let one = log.append(record_for_key("k", "one"));
    let many = log.append_all((0..4).map(|n| record_for_key(&format!("k{n}"), format!("{n}"))).collect());
    let one = one.await;
    assert!(matches!(&one, Err(AppendError::Unknown(reason)) if reason.contains(&config.topic)), "{one:?}");
    let many = many.await;
    assert!(matches!(&many.error, Some(AppendError::Unknown(_))) && many.accepted == 0, "{many:?}");
    let took = started.elapsed();
    assert!((config.delivery_timeout..Duration::from_secs(5)).contains(&took), "{took:?}");
    own.signal("-CONT");
    // Records sent before the broker was stopped may be in the log: their publishers got `Unknown`.
    while log.append(record_for_key("k", "after")).await.is_err() {}
    let size = kafka_record_too_large(&config);
    assert!(matches!(log.append(size).await, Err(AppendError::TooLarge { .. })));
}

fn kafka_record_too_large(config: &KafkaConfig) -> PushRecord {
    record_for_key("k", "x".repeat(config.record_bytes_max))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn without_a_broker_the_log_fills_up_and_keeps_its_order() {
    let (own, broker) = TestBroker::start();
    let config = KafkaConfig {
        records_max: 10,
        waiting_max: 20,
        append_timeout: Duration::from_millis(300),
        delivery_timeout: Duration::from_secs(30),
        ..with_topic(&broker, 1).await
    };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    own.script("kill");
    let append = |n: usize| log.append(record_for_key("k", format!("{n}")));
    let out: Vec<_> = (0..10).map(&append).collect();
    let waiting: Vec<_> = (10..30).map(&append).collect();
    assert_eq!(append(30).await, Err(AppendError::Full), "as many wait as may");
    for call in waiting {
        assert_eq!(call.await, Err(AppendError::Full), "it took too long");
    }
    assert_eq!(log.stats().rejected_full, 21);
    own.script("start");
    for call in out {
        assert_eq!(call.await, Ok(()));
    }
    append(31).await.unwrap();
    let written = records_of(&broker, &config.topic, 11);
    let numbers: Vec<_> = written
        .iter()
        .map(|record| record::read(record.payload().unwrap(), None).unwrap())
        .map(|record| String::from_utf8_lossy(record.payload.primary_bytes()).into_owned())
        .collect();
    let expected: Vec<_> = (0..10).chain([31]).map(|n| n.to_string()).collect();
    assert_eq!(numbers, expected, "in order, once");
    assert_eq!(log.stats().records, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn two_members_resume_soon_after_a_broker_restart() {
    let (own, broker) = TestBroker::start();
    let config = with_topic(&broker, 4).await;
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    let seen: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let (mut members, mut stats) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
        stats.push(reader.stats());
        let seen = Arc::clone(&seen);
        members.push(tokio::spawn(async move {
            loop {
                let Ok(entries) = reader.read().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                for entry in entries.unwrap() {
                    seen.lock()
                        .push(String::from_utf8_lossy(entry.record.payload.primary_bytes()).into_owned());
                    reader.done(entry.position);
                }
            }
        }));
    }
    let reach_all = async |round: &str| {
        for n in 0..8 {
            let body = format!("{round}-{n}");
            while log.append(record_for_key(&format!("k{n}"), body.clone())).await.is_err() {}
            becomes(&body, || seen.lock().contains(&body)).await;
        }
    };
    reach_all("before").await;
    let errors: Vec<u64> = stats.iter().map(|stats| stats().errors).collect();
    own.script("kill");
    becomes("both members have lost the broker", || {
        stats.iter().zip(&errors).all(|(stats, before)| stats().errors > *before)
    })
    .await;
    own.script("start");
    let returned = Instant::now();
    reach_all("after").await;
    eprintln!("read on {:?} after the broker's return", returned.elapsed());
    members.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A Go job as the group sees it: it sends the captured requests of one, with names of the same
/// length in place of goim's.
struct GoJob {
    stream: TcpStream,
    group: String,
    topic: String,
    member: Option<String>,
}

impl GoJob {
    fn connect(broker: &str, group: &str, topic: &str) -> Self {
        let stream = TcpStream::connect(broker).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, group: group.to_owned(), topic: topic.to_owned(), member: None }
    }

    /// Sends the first captured request of this kind after index `from`, and returns the response
    /// from the correlation id on.
    fn ask(&mut self, api: &str, from: usize, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/goim-v2/kafka.json");
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let requests = file["group"].as_array().unwrap();
        let found = requests.iter().skip(from).find(|request| request["api"] == api).unwrap();
        let mut request = from_hex(found["request_hex"].as_str().unwrap());
        replace(&mut request, b"goim-push-group-job", self.group.as_bytes());
        replace(&mut request, b"goim-push-topic", self.topic.as_bytes());
        if let Some(member) = &self.member {
            let at = |request: &[u8], from: usize| {
                let found = request[from..].windows(7).position(|bytes| bytes == b"sarama-");
                found.map(|at| from + at)
            };
            let mut from = 0;
            while let Some(found) = at(&request, from) {
                request[found..found + member.len()].copy_from_slice(member.as_bytes());
                from = found + member.len();
            }
        }
        change(&mut request);
        self.stream.write_all(&request).unwrap();
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut answer).unwrap();
        answer
    }

    /// Joins as the only member, and takes the only partition.
    fn join(&mut self) {
        let until = Instant::now() + Duration::from_secs(30);
        let joined = loop {
            // A broker creates the coordinator when it is first asked for it, not when a member
            // joins.
            self.ask("FindCoordinator", 0, |_| ());
            let joined = self.ask("JoinGroup", 3, |_| ());
            match joined[4..6] {
                [0, 0] => break joined,
                // The coordinator is not available yet, or not on this broker yet.
                _ => assert!(Instant::now() < until, "{}", hex(&joined)),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        assert_eq!(joined[6..10], [0, 0, 0, 1], "the first generation, as in the captured requests");
        let member = joined.windows(7).position(|bytes| bytes == b"sarama-").unwrap();
        self.member = Some(String::from_utf8(joined[member..member + 43].to_vec()).unwrap());
        let synced = self.ask("SyncGroup", 4, |_| ());
        assert_eq!(synced[4..6], [0, 0], "{}", hex(&synced));
    }

    /// Commits an offset.
    fn commit(&mut self, offset: i64) {
        let committed = self.ask("OffsetCommit", 9, |request| {
            let at = request.len() - 10;
            request[at..at + 8].copy_from_slice(&offset.to_be_bytes());
        });
        assert!(committed.ends_with(&[0, 0]), "{}", hex(&committed));
    }

    fn leave(&mut self) {
        let left = self.ask("LeaveGroup", 30, |_| ());
        assert_eq!(left[4..6], [0, 0], "{}", hex(&left));
    }
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    for at in 0..bytes.len().saturating_sub(old.len() - 1) {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_group_with_go_jobs_is_not_joined_and_continues_at_their_offsets() {
    let broker = broker();
    // The names must be as long as goim's.
    let own = std::process::id() % 1000;
    let (group, topic) = (format!("goim-push-group-{own:03}"), format!("goim-push-go{own:03}"));
    let config = KafkaConfig { group, ..with_named_topic(&broker, &topic, 1).await };
    let log = KafkaPushLog::start(config.clone()).await.unwrap();
    for body in ["pushed by Go, done", "pushed by Go, done too", "not done"] {
        log.append(record_for_key("k", body)).await.unwrap();
    }
    let mut go_job = GoJob::connect(&broker, &config.group, &config.topic);
    tokio::task::block_in_place(|| {
        go_job.join();
        go_job.commit(2);
    });
    let error = KafkaPushLogReader::join(config.clone()).await.unwrap_err();
    assert!(matches!(&error, KafkaError::Group(GroupError::GoJobs { members: 1, .. })), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&config.group) && text.contains("stop the Go jobs first"), "{text}");
    tokio::task::block_in_place(|| go_job.leave());
    let mut reader = KafkaPushLogReader::join(config.clone()).await.unwrap();
    log.append(record_for_key("k", "next")).await.unwrap();
    assert_eq!(bodies(&read(&mut reader, 2).await), ["not done", "next"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn a_go_job_is_refused_by_our_group_which_continues() {
    let broker = broker();
    // The names must be as long as goim's.
    let own = std::process::id() % 1000;
    let (group, topic) = (format!("goim-push-grown-{own:03}"), format!("goim-push-gr{own:03}"));
    let config = KafkaConfig { group, ..with_named_topic(&broker, &topic, 1).await };
    let (log, mut reader) = both_ends(&config).await;
    log.append(record_for_key("k", "before")).await.unwrap();
    assert_eq!(bodies(&read(&mut reader, 1).await), ["before"]);
    let mut go_job = GoJob::connect(&broker, &config.group, &config.topic);
    let joined = tokio::task::block_in_place(|| go_job.ask("JoinGroup", 3, |_| ()));
    assert_eq!(joined[4..6], [0, 23], "INCONSISTENT_GROUP_PROTOCOL: {}", hex(&joined));
    log.append(record_for_key("k", "after")).await.unwrap();
    assert_eq!(bodies(&read(&mut reader, 1).await), ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: scripts/test.sh"]
async fn startup_errors_name_the_cause() {
    let broker = broker();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = KafkaConfig { brokers: vec![closed.clone()], ..KafkaConfig::default() };
    let error = KafkaPushLog::start(config).await.unwrap_err().to_string();
    assert!(error.contains(&closed) && error.contains("do not answer"), "{error}");

    let config =
        KafkaConfig { brokers: vec![broker.clone()], topic: unique("missing"), ..KafkaConfig::default() };
    let error = KafkaPushLogReader::join(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&config.topic) && error.contains("does not exist"), "{error}");

    let properties = [("no.such.property".to_owned(), "sesame".into())].into();
    let config = KafkaConfig { brokers: vec![broker], properties, ..KafkaConfig::default() };
    let error = KafkaPushLog::start(config).await.unwrap_err().to_string();
    assert!(error.contains("no.such.property"), "{error}");
}

#[test]
fn invalid_records_are_recognised() {
    let cases: [(&[u8], Option<&str>); 6] = [
        (b"\xff", Some("no goim.logic.PushMsg")),
        (b"\x08\x07", Some("of type 7")),
        (b"", Some("names none")),
        (b"\x08\x02", None),
        (b"\x08\x01", None),
        (b"\x08\x02\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
    ];
    for (value, expected) in cases {
        let error = record::read(value, None).err().map(|poison| poison.to_string());
        match (&error, expected) {
            (Some(error), Some(text)) => assert!(error.contains(text), "{error}"),
            (None, None) => {}
            other => panic!("{}: {other:?}", hex(value)),
        }
    }
    let none = record::read(b"\x08\x02\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None).unwrap();
    assert_eq!(none.target, goim_ports::PushTarget::All { speed: None });
    assert_eq!(none.operation, Operation(0));
}
