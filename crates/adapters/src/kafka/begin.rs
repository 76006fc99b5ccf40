//! Where a group begins that has committed nothing.
//!
//! The start is committed for all partitions at once before the first job joins, so that it is the
//! same for every job of the group and whatever becomes of them. From then on a partition about
//! which the group knows nothing is a new one, made by raising the number or by making the topic
//! again, and is read from its beginning: what it has was accepted while the group lived.
//!
//! The commit is one without membership, which the broker takes only while the group is empty. Of
//! jobs that start at once the later ones are refused, or commit a position that is no later than
//! what was accepted after the first commit: the ends are looked up before the question whether
//! anything is committed.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError as ClientError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::config::{KafkaConfig, OffsetReset};
use super::group::{self, GroupError};
use super::log::{KafkaError, look_for_topic};

/// How long the brokers may take for all that is looked up before a job joins.
const DEADLINE: Duration = Duration::from_secs(10);
/// For one request.
const REQUEST: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether the group knows where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// It does.
    Known,
    /// Others are in the group, and have committed nothing: jobs that do not commit their start.
    /// Then it is as they have it: where nothing is committed, the start of the settings counts.
    Open,
}

/// Looks at topic and group before a job joins, and commits where a new group begins. Blocks for
/// some 20 s at most.
pub(super) fn settle(config: &KafkaConfig) -> Result<Begin, KafkaError> {
    let mut client: ClientConfig = config.client();
    client.set("group.id", &config.group).set("enable.auto.commit", "false");
    let consumer: BaseConsumer = client.create().map_err(|error| super::config::refused(&error))?;
    let brokers = config.broker_list();
    let partitions = look_for_topic(consumer.client(), &config.topic, &brokers)?;
    group::check(&consumer, &config.group, &brokers, DEADLINE)?;
    let until = Instant::now() + DEADLINE;
    loop {
        match begin(&consumer, config, partitions) {
            Ok(true) => return Ok(Begin::Known),
            // Somebody else has begun, and is about to say where.
            Ok(false) if Instant::now() < until => {}
            Ok(false) => {
                tracing::warn!(
                    group = config.group,
                    "kafka: jobs are in the group that have committed nothing; partitions without an offset are read from kafka.auto_offset_reset \
                     until this job starts again"
                );
                return Ok(Begin::Open);
            }
            Err(_) if Instant::now() < until => {}
            Err(error) => {
                let (group, reason) = (config.group.clone(), error.to_string());
                return Err(GroupError::Unavailable { group, brokers, reason }.into());
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// True when the group knows where it begins; false when it does not, and is not empty.
fn begin(consumer: &BaseConsumer, config: &KafkaConfig, partitions: i32) -> KafkaResult<bool> {
    if knows_begin(consumer, config, partitions)? {
        return Ok(true);
    }
    let topic = config.topic.as_str();
    let mut start = TopicPartitionList::new();
    for partition in 0..partitions {
        let (oldest, end) = consumer.fetch_watermarks(topic, partition, REQUEST)?;
        let offset = match config.auto_offset_reset {
            OffsetReset::Latest => end,
            OffsetReset::Earliest => oldest,
        };
        start.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    // Whoever has committed since then has begun before these ends.
    if knows_begin(consumer, config, partitions)? {
        return Ok(true);
    }
    match consumer.commit(&start, CommitMode::Sync) {
        Ok(()) => {
            tracing::info!(group = config.group, topic, start = ?config.auto_offset_reset, "kafka: the group is new; its start is committed");
            Ok(true)
        }
        Err(ClientError::ConsumerCommit(
            RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::RebalanceInProgress,
        )) => Ok(false),
        Err(error) => Err(error),
    }
}

/// True when the group has committed something in any partition.
fn knows_begin(consumer: &BaseConsumer, config: &KafkaConfig, partitions: i32) -> KafkaResult<bool> {
    let mut all = TopicPartitionList::new();
    all.add_partition_range(&config.topic, 0, partitions - 1);
    for element in consumer.committed_offsets(all, REQUEST)?.elements() {
        element.error()?;
        if matches!(element.offset(), Offset::Offset(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}
