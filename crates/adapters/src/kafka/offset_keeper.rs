//! The thread that commits offsets and handles what librdkafka leaves open.
//!
//! - *Commits*: the start of a partition when it is assigned, and its progress periodically.
//!   librdkafka's auto-commit is not used: it never commits a smaller offset, and it would commit
//!   positions of a deleted topic to the recreated one.
//! - *Recreated topics*: librdkafka continues at the old position. Here the partitions are rewound
//!   to the beginning, and nothing is read until that is committed.
//! - *Unread partitions*: a static member rejoins without a rebalance, also when partitions were
//!   added since the last one, and then no member notices. One member leaves and rejoins to start a
//!   rebalance.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::config::{KafkaConfig, METADATA_INTERVAL};
use super::group;
use super::group_member::{GroupMember, MemberState, offsets};

/// The deadline of one request.
const REQUEST: Duration = Duration::from_secs(3);
/// The number of consecutive checks that must find unread partitions before a rebalance is started:
/// a running one takes time.
const UNREAD_CHECKS: u32 = 2;
/// Pause between two attempts to rewind a recreated topic.
const RETRY: Duration = Duration::from_millis(100);

/// The thread's state.
pub(super) struct OffsetKeeper {
    consumer: Arc<StreamConsumer<GroupMember>>,
    state: Arc<MemberState>,
    config: KafkaConfig,
    next_commit: Instant,
    next_check: Instant,
    unread_checks: u32,
    /// The incarnation of the recreated topic has begun and is not committed yet.
    has_begun_incarnation: bool,
}

impl OffsetKeeper {
    pub(super) fn new(
        consumer: Arc<StreamConsumer<GroupMember>>,
        state: Arc<MemberState>,
        config: KafkaConfig,
    ) -> Self {
        let (next_commit, next_check) =
            (Instant::now() + config.commit_interval, Instant::now() + METADATA_INTERVAL);
        Self {
            consumer,
            state,
            config,
            next_commit,
            next_check,
            unread_checks: 0,
            has_begun_incarnation: false,
        }
    }

    /// Runs until the shared state is stopped, and commits once more.
    pub(super) fn run(mut self) {
        loop {
            let is_running = self.state.wait(self.pause());
            if self.state.is_topic_recreated.load(Ordering::SeqCst) {
                if let Err(error) = self.restart_topic() {
                    tracing::debug!(%error, "kafka: the recreated topic could not be rewound yet");
                }
            } else if !is_running || Instant::now() >= self.next_commit {
                self.commit();
                self.next_commit = Instant::now() + self.config.commit_interval;
            }
            if !is_running {
                return;
            }
            self.ensure_starts_are_committed();
            if Instant::now() >= self.next_check {
                self.check_unread_partitions();
                self.next_check = Instant::now() + METADATA_INTERVAL;
            }
        }
    }

    /// Returns the time until the next work, unless the thread is woken.
    fn pause(&self) -> Duration {
        if self.state.is_topic_recreated.load(Ordering::SeqCst) {
            return RETRY;
        }
        self.next_commit.min(self.next_check).saturating_duration_since(Instant::now())
    }

    fn commit(&self) {
        // A commit that waits for the coordinator may be fenced by the next membership.
        if self.state.is_membership_lost.load(Ordering::SeqCst) {
            return;
        }
        let due = self.state.progress().to_commit();
        if !due.is_empty() {
            self.try_commit(&due);
        }
    }

    fn try_commit(&self, due: &[(i32, i64)]) -> bool {
        match self.consumer.commit(&offsets(&self.config.topic, due), CommitMode::Sync) {
            Ok(()) => {
                let mut progress = self.state.progress();
                due.iter().for_each(|(partition, offset)| progress.committed(*partition, *offset));
                true
            }
            Err(error) => {
                // The commit is retried; at worst records are read again.
                tracing::debug!(%error, "kafka: offsets were not committed");
                false
            }
        }
    }

    /// Commits the start of newly assigned partitions.
    fn ensure_starts_are_committed(&self) {
        let unknown = self.state.progress().without_committed_start();
        if unknown.is_empty() || !self.state.is_stable.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.commit_starts(&unknown) {
            tracing::debug!(%error, "kafka: the start of partitions could not be committed yet");
        }
    }

    fn commit_starts(&self, partitions: &[i32]) -> KafkaResult<()> {
        let topic = self.config.topic.as_str();
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            asked.add_partition(topic, *partition);
        }
        for element in self.consumer.committed_offsets(asked, REQUEST)?.elements() {
            element.error()?;
            let partition = element.partition();
            if let Offset::Offset(committed) = element.offset() {
                self.state.progress().committed(partition, committed);
                continue;
            }
            let (oldest, _) = self.consumer.fetch_watermarks(topic, partition, REQUEST)?;
            // If it is known meanwhile, the periodic commit handles it.
            if self.state.progress().without_committed_start().contains(&partition) {
                self.try_commit(&[(partition, oldest)]);
            }
        }
        Ok(())
    }

    /// Rewinds all partitions to the beginning of a recreated topic.
    fn restart_topic(&mut self) -> KafkaResult<()> {
        let mut progress = self.state.progress();
        if !std::mem::replace(&mut self.has_begun_incarnation, true) {
            progress.begin_incarnation();
        }
        let partitions = progress.numbers();
        drop(progress);
        let topic = self.config.topic.as_str();
        // A commit of the old topic's positions may have been applied to the new one: overwrite it.
        let beginnings: Vec<_> = partitions.iter().map(|partition| (*partition, 0)).collect();
        if !beginnings.is_empty() {
            self.consumer.commit(&offsets(topic, &beginnings), CommitMode::Sync)?;
        }
        for partition in &partitions {
            self.consumer.seek(topic, *partition, Offset::Beginning, REQUEST)?;
        }
        self.has_begun_incarnation = false;
        self.state.is_topic_recreated.store(false, Ordering::SeqCst);
        tracing::warn!(
            topic,
            ?partitions,
            "kafka: the topic was deleted and recreated; reading it from its beginning"
        );
        Ok(())
    }

    /// Checks whether all partitions of the topic are assigned, and starts a rebalance when some
    /// have been unassigned for several checks.
    fn check_unread_partitions(&mut self) {
        if !self.state.is_stable.load(Ordering::SeqCst) {
            self.unread_checks = 0;
            return;
        }
        let Ok(unread) = self.unread_partitions() else { return };
        self.unread_checks = if unread.is_empty() { 0 } else { self.unread_checks + 1 };
        if self.unread_checks < UNREAD_CHECKS {
            return;
        }
        self.unread_checks = 0;
        tracing::warn!(partitions = ?unread, "kafka: no job reads these partitions; starting a rebalance");
        // The rebalance callback commits the revoked partitions.
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&[self.config.topic.as_str()]) {
            tracing::error!(%error, "kafka: the topic cannot be subscribed to");
        }
    }

    /// Returns the partitions that no member has. Only the member with the lowest assigned
    /// partition gets a result, so that one member acts.
    fn unread_partitions(&self) -> KafkaResult<BTreeSet<i32>> {
        let topic = self.config.topic.as_str();
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST)?;
        let all = metadata.topics().iter().filter(|found| found.name() == topic);
        let all: BTreeSet<i32> =
            all.flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
        let list = self.consumer.fetch_group_list(Some(&self.config.group), REQUEST)?;
        let Some(read) = group::assigned(&list, topic) else { return Ok(BTreeSet::new()) };
        let own: BTreeSet<i32> = self.state.progress().numbers().into_iter().collect();
        if read.first().is_some_and(|first| !own.contains(first)) {
            return Ok(BTreeSet::new());
        }
        Ok(all.difference(&read).copied().collect())
    }
}
