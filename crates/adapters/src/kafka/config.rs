//! What an operator can set of the push log on Kafka, with the reasons for the defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use goim_ports::Secret;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as ClientError;

use super::group_start::GroupStart;
use super::log::KafkaError;

/// How soon new partitions are noticed, and a topic that was made again.
pub(super) const METADATA_INTERVAL: Duration = Duration::from_secs(5);

/// Settings of both ends.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port` of some brokers; the others are found by them. Default `127.0.0.1:9092`.
    pub brokers: Vec<String>,
    /// The topic, as goim's `kafka.topic`. Default `goim-push-topic`.
    pub topic: String,
    /// The consumer group, as goim's `kafka.group`. Default `goim-push-group-job`.
    pub group: String,
    /// The name of this member, which no other of the group may have: back within `session_timeout`
    /// it goes on with the partitions that it had, and nobody else notices. Default none: a member
    /// without a name leaves when it stops.
    pub instance_id: Option<String>,
    /// Where a group begins that has committed nothing. Default [`OffsetReset::Latest`], as goim. It is
    /// committed before the first member joins; partitions that come later are read from their
    /// beginning.
    pub auto_offset_reset: OffsetReset,
    /// Where records go that are no pushes. Default nowhere: they are counted, logged and passed over.
    pub dead_letter: DeadLetter,
    /// Records that wait for their acknowledgement. Default 65,536.
    pub records_max: usize,
    /// The same in bytes. Default 64 MiB.
    pub bytes_max: usize,
    /// Appends that may wait for room at once. Default 1,024. One more is refused at once.
    pub waiting_max: usize,
    /// How long an append waits for room before it is refused. Default 3 s.
    pub append_timeout: Duration,
    /// How long a record is tried before its publisher is told that it may or may not be in the log. Default 10 s: longer than
    /// a broker takes to elect another leader.
    pub delivery_timeout: Duration,
    /// Size of one record in bytes, counted as goim's client counts it: 26 and the lengths of key and value. Default
    /// 1,000,000, as in goim.
    pub record_bytes_max: usize,
    /// Records that one read gives at most. Default 1024.
    pub read_records_max: usize,
    /// How long a member of the group may be silent before its partitions go to others. Default 10 s; goim has 30 s.
    pub session_timeout: Duration,
    /// How often offsets are committed. Default 1 s, as goim: that much comes again after a crash.
    pub commit_interval: Duration,
    /// Properties of librdkafka, for what has no setting of its own (`security.protocol` and its like). Default none. They cannot
    /// undo what the log promises: those that do are set after them.
    pub properties: BTreeMap<String, Secret>,
}

/// Where a group begins that has committed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OffsetReset {
    /// With what is pushed from now on.
    #[default]
    Latest,
    /// With what the topic still has.
    Earliest,
}

/// What becomes of records that are no pushes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeadLetter {
    /// Counted, logged, passed over.
    #[default]
    Drop,
    /// That, and written to this topic as they were, with their origin in the headers `goim-topic`, `goim-partition`, `goim-offset`
    /// and `goim-error`.
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
    /// The brokers as librdkafka and people want them.
    pub(super) fn broker_list(&self) -> String {
        self.brokers.join(",")
    }

    /// True when somebody wants librdkafka's own log at length.
    pub(super) fn is_verbose(&self) -> bool {
        self.properties.contains_key("debug")
    }

    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "goim");
        // A broker that is back is found at once; the default comes to wait ten seconds between two tries.
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

    /// Of the writing end.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut client = self.client();
        // What goim's producers and consumers understand: its partitions, and nothing compressed that an old client cannot read.
        client.set("partitioner", "fnv1a").set("compression.type", "none");
        // All replicas, once, in order: retries neither double nor overtake.
        client.set("acks", "all").set("enable.idempotence", "true");
        // No waiting for company: what comes while a request is out travels together.
        client.set("linger.ms", "0");
        client.set("message.timeout.ms", millis(self.delivery_timeout));
        client.set("message.max.bytes", (self.record_bytes_max + 1024).to_string());
        // The bound is ours; librdkafka's must not be met before it.
        client.set("queue.buffering.max.messages", "0");
        client.set("queue.buffering.max.kbytes", (self.bytes_max / 512 + 65_536).to_string());
        client.set("socket.nagle.disable", "true");
        client
    }

    /// Of the reading end.
    pub(super) fn consumer(&self, group_start: GroupStart) -> ClientConfig {
        let mut client = self.client();
        client.set("group.id", &self.group);
        // Sticky and step by step: a member that comes or goes stops only those partitions that move.
        client.set("partition.assignment.strategy", "cooperative-sticky");
        client.set("session.timeout.ms", millis(self.session_timeout));
        client.set("heartbeat.interval.ms", millis(self.session_timeout / 4));
        if let Some(name) = &self.instance_id {
            client.set("group.instance.id", name);
        }
        // What the group knows nothing of has come while it lives, and what has gone beyond reach
        // is behind it.
        let is_latest = group_start == GroupStart::Unknown && self.auto_offset_reset == OffsetReset::Latest;
        client.set("auto.offset.reset", if is_latest { "latest" } else { "earliest" });
        // The keeper commits, when the comets took a record.
        client.set("enable.auto.offset.store", "false").set("enable.auto.commit", "false");
        // That a topic was made again is said in this log only.
        let debug = self.properties.get("debug").map_or(String::new(), |debug| format!("{debug},"));
        client.set("debug", format!("{debug}metadata")).set_log_level(RDKafkaLogLevel::Debug);
        client.set("fetch.wait.max.ms", "100").set("fetch.message.max.bytes", "1048576");
        client.set("queued.max.messages.kbytes", "16384");
        client.set("socket.nagle.disable", "true");
        client
    }
}

/// Why librdkafka takes no client, without the value of a property: it may be a password.
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
