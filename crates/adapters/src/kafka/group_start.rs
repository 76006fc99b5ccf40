//! The start offsets of a new consumer group.
//!
//! They are committed for all partitions before the first job joins, so that all jobs of the group
//! start at the same place. A partition without an offset is then a new one (added, or of a
//! recreated topic) and is read from its beginning: all its records were accepted while the group
//! existed.
//!
//! The commit has no membership; the broker accepts it only while the group is empty. When jobs
//! start concurrently the later commits are refused, or are not later than records accepted after
//! the first commit: the end offsets are fetched before the check for committed offsets.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError as ClientError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::config::{KafkaConfig, OffsetReset};
use super::group::{self, GroupError};
use super::log::{KafkaError, wait_for_topic};

/// The timeout of all requests before a job joins.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of one request.
const REQUEST: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether the group has committed its start offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupStart {
    /// It has.
    Committed,
    /// The group has members that have committed nothing: jobs that do not commit their start.
    /// Partitions without an offset are then read from the configured start.
    Unknown,
}

/// Checks topic and group before a job joins, and commits the start offsets of a new group. Blocks
/// for about 20 s at most.
pub(super) fn ensure_start_is_committed(config: &KafkaConfig) -> Result<GroupStart, KafkaError> {
    let mut client: ClientConfig = config.client();
    client.set("group.id", &config.group).set("enable.auto.commit", "false");
    let consumer: BaseConsumer = client.create().map_err(|error| super::config::refused(&error))?;
    let brokers = config.broker_list();
    let partitions = wait_for_topic(consumer.client(), &config.topic, &brokers)?;
    group::check(&consumer, &config.group, &brokers, TIMEOUT)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match commit_start(&consumer, config, partitions) {
            Ok(true) => return Ok(GroupStart::Committed),
            // Another job has joined and is about to commit its offsets.
            Ok(false) if Instant::now() < deadline => {}
            Ok(false) => {
                tracing::warn!(
                    group = config.group,
                    "kafka: the group has members but no committed offsets; partitions without an offset are read from kafka.auto_offset_reset \
                     until this job restarts"
                );
                return Ok(GroupStart::Unknown);
            }
            Err(_) if Instant::now() < deadline => {}
            Err(error) => {
                let (group, reason) = (config.group.clone(), error.to_string());
                return Err(GroupError::Unavailable { group, brokers, reason }.into());
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Commits the start offsets unless some are committed. Returns false when none are and the group
/// is not empty.
fn commit_start(consumer: &BaseConsumer, config: &KafkaConfig, partitions: i32) -> KafkaResult<bool> {
    if has_committed(consumer, config, partitions)? {
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
    // Offsets that were committed meanwhile are before these ends.
    if has_committed(consumer, config, partitions)? {
        return Ok(true);
    }
    match consumer.commit(&start, CommitMode::Sync) {
        Ok(()) => {
            tracing::info!(group = config.group, topic, start = ?config.auto_offset_reset, "kafka: new group; its start offsets are committed");
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

/// Returns whether the group has a committed offset in any partition.
fn has_committed(consumer: &BaseConsumer, config: &KafkaConfig, partitions: i32) -> KafkaResult<bool> {
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
