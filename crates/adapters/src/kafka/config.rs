//! The settings of the push log on Kafka, with the reasons for the defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use goim_ports::Secret;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as ClientError;

use super::group_start::GroupStart;
use super::log::KafkaError;

/// How often metadata is refreshed: new partitions and a recreated topic are noticed within this
/// time.
pub(super) const METADATA_INTERVAL: Duration = Duration::from_secs(5);

/// Settings of the producer and the consumer.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port` of some brokers; they name the others. Default `127.0.0.1:9092`.
    pub brokers: Vec<String>,
    /// The topic, as goim's `kafka.topic`. Default `goim-push-topic`.
    pub topic: String,
    /// The consumer group, as goim's `kafka.group`. Default `goim-push-group-job`.
    pub group: String,
    /// The name of this member, unique in the group. A member that returns within `session_timeout`
    /// continues with its partitions, without a rebalance. Default none: a member without a name
    /// leaves the group when it stops.
    pub instance_id: Option<String>,
    /// Where a group starts that has committed no offset. Default [`OffsetReset::Latest`], as goim.
    /// The offset is committed before the first member joins; partitions that are added later are
    /// read from their beginning.
    pub auto_offset_reset: OffsetReset,
    /// The destination of records that are not pushes. Default none: they are counted, logged and
    /// dropped.
    pub dead_letter: DeadLetter,
    /// The maximum number of unacknowledged records. Default 65,536.
    pub records_max: usize,
    /// The maximum size of these records. Default 64 MiB.
    pub bytes_max: usize,
    /// The maximum number of appends that wait for space. Default 1,024. Further ones are rejected
    /// immediately.
    pub waiting_max: usize,
    /// How long an append waits for space before it is rejected. Default 3 s.
    pub append_timeout: Duration,
    /// How long a record is retried before its publisher learns that it may or may not be in the
    /// log. Default 10 s: longer than a broker takes to elect another leader.
    pub delivery_timeout: Duration,
    /// The maximum size of one record in bytes, counted as goim's client counts it: 26 and the
    /// lengths of key and value. Default 1,000,000, as in goim.
    pub record_bytes_max: usize,
    /// The maximum number of records of one read. Default 1,024.
    pub read_records_max: usize,
    /// How long a member of the group may be silent before its partitions move to others. Default
    /// 10 s; goim has 30 s.
    pub session_timeout: Duration,
    /// How often offsets are committed. Default 1 s, as goim. Records since the last commit are
    /// repeated after a crash.
    pub commit_interval: Duration,
    /// Properties of librdkafka that have no setting here, such as `security.protocol`. Default
    /// none. Properties that order and durability depend on cannot be changed: they are set after
    /// these.
    pub properties: BTreeMap<String, Secret>,
}

/// Where a group starts that has committed no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffsetReset {
    /// At the end: only new pushes are read.
    #[default]
    Latest,
    /// At the oldest record of the topic.
    Earliest,
}

/// What happens to records that are not pushes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeadLetter {
    /// They are counted, logged and dropped.
    #[default]
    Drop,
    /// They are also written to this topic unchanged, with their origin in the headers
    /// `goim-topic`, `goim-partition`, `goim-offset` and `goim-error`.
    Topic(String),
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            topic: "goim-push-topic".to_owned(),
            group: "goim-push-group-job".to_owned(),
            instance_id: None,
            auto_offset_reset: OffsetReset::default(),
            dead_letter: DeadLetter::default(),
            records_max: 65_536,
            bytes_max: 64 * 1024 * 1024,
            waiting_max: 1_024,
            append_timeout: Duration::from_secs(3),
            delivery_timeout: Duration::from_secs(10),
            record_bytes_max: 1_000_000,
            read_records_max: 1_024,
            session_timeout: Duration::from_secs(10),
            commit_interval: Duration::from_secs(1),
            properties: BTreeMap::new(),
        }
    }
}

impl KafkaConfig {
    /// The brokers as librdkafka expects them.
    pub(super) fn broker_list(&self) -> String {
        self.brokers.join(",")
    }

    /// True if the whole log of librdkafka is wanted.
    pub(super) fn is_verbose(&self) -> bool {
        self.properties.contains_key("debug")
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "goim");
        // Reconnects quickly; the default backs off to ten seconds.
        client.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "500");
        client
            .set("retry.backoff.ms", "100")
            .set("topic.metadata.refresh.interval.ms", millis(METADATA_INTERVAL));
        for (name, value) in &self.properties {
            client.set(name, value.reveal());
        }
        client.set("bootstrap.servers", self.broker_list());
        client
    }

    /// The properties of the producer.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        // As goim's producers and consumers: its partitioner, and no compression that an old client
        // cannot read.
        client.set("partitioner", "fnv1a").set("compression.type", "none");
        // Acknowledged by all replicas, once and in order: retries neither duplicate nor reorder.
        client.set("acks", "all").set("enable.idempotence", "true");
        // No linger: records that arrive while a request is in flight are sent together anyway.
        client.set("linger.ms", "0");
        client.set("message.timeout.ms", millis(self.delivery_timeout));
        client.set("message.max.bytes", (self.record_bytes_max + 1024).to_string());
        // `records_max` and `bytes_max` are the bounds; librdkafka's must not be reached before
        // them.
        client.set("queue.buffering.max.messages", "0");
        client.set("queue.buffering.max.kbytes", (self.bytes_max / 512 + 65_536).to_string());
        client.set("socket.nagle.disable", "true");
        client
    }

    /// The properties of the consumer.
    pub(super) fn consumer(&self, group_start: GroupStart) -> ClientConfig {
        let mut client = self.client();
        client.set("group.id", &self.group);
        // Cooperative: a member that joins or leaves interrupts only the partitions that move.
        client.set("partition.assignment.strategy", "cooperative-sticky");
        client.set("session.timeout.ms", millis(self.session_timeout));
        client.set("heartbeat.interval.ms", millis(self.session_timeout / 4));
        if let Some(name) = &self.instance_id {
            client.set("group.instance.id", name);
        }
        // A partition without an offset was added while the group runs, and an offset out of range
        // is before the oldest record: both are read from the beginning.
        let is_latest = group_start == GroupStart::Unknown && self.auto_offset_reset == OffsetReset::Latest;
        client.set("auto.offset.reset", if is_latest { "latest" } else { "earliest" });
        // Offsets are committed after the comets have accepted a record.
        client.set("enable.auto.offset.store", "false").set("enable.auto.commit", "false");
        // A recreated topic is visible only in this log.
        let debug = self.properties.get("debug").map_or(String::new(), |debug| format!("{debug},"));
        client.set("debug", format!("{debug}metadata")).set_log_level(RDKafkaLogLevel::Debug);
        client.set("fetch.wait.max.ms", "100").set("fetch.message.max.bytes", "1048576");
        client.set("queued.max.messages.kbytes", "16384");
        client.set("socket.nagle.disable", "true");
        client
    }
}

/// Why librdkafka rejects a configuration, without the value of a property, which may be a
/// password.
pub(super) fn refused(error: &ClientError) -> KafkaError {
    KafkaError::Config(match error {
        ClientError::ClientConfig(kind, _, name, _) => {
            format!("the property {name:?} is not taken ({kind:?}); see kafka.properties")
        }
        other => other.to_string(),
    })
}

fn millis(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}
