//! The member's own thread: it commits, and looks after what librdkafka leaves open.
//!
//! - *Commits*: where a partition begins as soon as it has come, and from time to time up to where
//!   it is done. Not by librdkafka, which never commits a smaller offset than before, and would
//!   write positions of a topic that is gone into the one that was made again.
//! - *A topic that was made again*: librdkafka goes on at its old position. Here the partitions are
//!   taken back to their beginning, and nothing is read until the group knows that.
//! - *Partitions that nobody reads*: the broker lets a static member come back without an
//!   agreement, also when the topic has more partitions now than the last one was about, and then
//!   nobody sees a change any more. Then one member leaves and joins again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::config::{KafkaConfig, METADATA_INTERVAL};
use super::group;
use super::member::{Member, Shared, offsets};

/// How long the brokers may take for one question.
const REQUEST: Duration = Duration::from_secs(3);
/// How often in a row partitions must be without a reader before something is done: an agreement
/// takes its time.
const UNREAD_LOOKS: u32 = 2;
/// Pause before a topic that was made again is tried anew.
const RETRY: Duration = Duration::from_millis(100);

/// What the thread works on.
pub(super) struct Keeper {
    consumer: Arc<StreamConsumer<Member>>,
    shared: Arc<Shared>,
    config: KafkaConfig,
    next_commit: Instant,
    next_look: Instant,
    unread_looks: u32,
    /// The life of the topic that was made again has begun, and is not known to the group yet.
    is_beginning: bool,
}

impl Keeper {
    pub(super) fn new(
        consumer: Arc<StreamConsumer<Member>>,
        shared: Arc<Shared>,
        config: KafkaConfig,
    ) -> Self {
        let (next_commit, next_look) =
            (Instant::now() + config.commit_interval, Instant::now() + METADATA_INTERVAL);
        Self { consumer, shared, config, next_commit, next_look, unread_looks: 0, is_beginning: false }
    }

    /// Works until the shared state says stop; then commits once more.
    pub(super) fn run(mut self) {
        loop {
            let goes_on = self.shared.wait(self.pause());
            if self.shared.is_remade.load(Ordering::SeqCst) {
                if let Err(error) = self.begin_anew() {
                    tracing::debug!(%error, "kafka: the topic that was made again is not begun yet");
                }
            } else if !goes_on || Instant::now() >= self.next_commit {
                self.commit();
                self.next_commit = Instant::now() + self.config.commit_interval;
            }
            if !goes_on {
                return;
            }
            self.look_at_begins();
            if Instant::now() >= self.next_look {
                self.look_at_group();
                self.next_look = Instant::now() + METADATA_INTERVAL;
            }
        }
    }

    /// How long there is nothing to do, unless somebody calls.
    fn pause(&self) -> Duration {
        if self.shared.is_remade.load(Ordering::SeqCst) {
            return RETRY;
        }
        self.next_commit.min(self.next_look).saturating_duration_since(Instant::now())
    }

    fn commit(&self) {
        // A commit that waits for its coordinator may find another membership there, and is fenced
        // by it.
        if self.shared.is_lost.load(Ordering::SeqCst) {
            return;
        }
        let due = self.shared.places().to_commit();
        if !due.is_empty() {
            self.try_commit(&due);
        }
    }

    fn try_commit(&self, due: &[(i32, i64)]) -> bool {
        match self.consumer.commit(&offsets(&self.config.topic, due), CommitMode::Sync) {
            Ok(()) => {
                let mut places = self.shared.places();
                due.iter().for_each(|(partition, offset)| places.committed(*partition, *offset));
                true
            }
            Err(error) => {
                // What is not committed is tried again, or comes again.
                tracing::debug!(%error, "kafka: offsets were not committed");
                false
            }
        }
    }

    /// Sees to it that the group knows where the partitions begin that have come.
    fn look_at_begins(&self) {
        let unknown = self.shared.places().without_begin();
        if unknown.is_empty() || !self.shared.is_settled.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = self.commit_begins(&unknown) {
            tracing::debug!(%error, "kafka: where partitions begin is not known yet");
        }
    }

    fn commit_begins(&self, partitions: &[i32]) -> KafkaResult<()> {
        let topic = self.config.topic.as_str();
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            asked.add_partition(topic, *partition);
        }
        for element in self.consumer.committed_offsets(asked, REQUEST)?.elements() {
            element.error()?;
            let partition = element.partition();
            if let Offset::Offset(committed) = element.offset() {
                self.shared.places().committed(partition, committed);
                continue;
            }
            let (oldest, _) = self.consumer.fetch_watermarks(topic, partition, REQUEST)?;
            // What was done meanwhile is committed in its time.
            if self.shared.places().without_begin().contains(&partition) {
                self.try_commit(&[(partition, oldest)]);
            }
        }
        Ok(())
    }

    /// Takes all partitions to the beginning of a topic that was made again.
    fn begin_anew(&mut self) -> KafkaResult<()> {
        let mut places = self.shared.places();
        if !std::mem::replace(&mut self.is_beginning, true) {
            places.begin_life();
        }
        let partitions = places.partitions();
        drop(places);
        let topic = self.config.topic.as_str();
        // A commit of the old topic's positions may have come when the new one was there already:
        // this one is over it.
        let beginnings: Vec<_> = partitions.iter().map(|partition| (*partition, 0)).collect();
        if !beginnings.is_empty() {
            self.consumer.commit(&offsets(topic, &beginnings), CommitMode::Sync)?;
        }
        for partition in &partitions {
            self.consumer.seek(topic, *partition, Offset::Beginning, REQUEST)?;
        }
        self.is_beginning = false;
        self.shared.is_remade.store(false, Ordering::SeqCst);
        tracing::warn!(
            topic,
            ?partitions,
            "kafka: the topic was deleted and made again; it is read from its beginning"
        );
        Ok(())
    }

    /// Looks whether all partitions of the topic have a reader, and begins an agreement when some
    /// have had none for long.
    fn look_at_group(&mut self) {
        if !self.shared.is_settled.load(Ordering::SeqCst) {
            self.unread_looks = 0;
            return;
        }
        let Ok(unread) = self.unread() else { return };
        self.unread_looks = if unread.is_empty() { 0 } else { self.unread_looks + 1 };
        if self.unread_looks < UNREAD_LOOKS {
            return;
        }
        self.unread_looks = 0;
        tracing::warn!(partitions = ?unread, "kafka: partitions are read by no job; the group is asked to agree anew");
        // Revoked partitions are committed on the way.
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&[self.config.topic.as_str()]) {
            tracing::error!(%error, "kafka: the topic cannot be subscribed to");
        }
    }

    /// Partitions that no member of the group has, for the one member that is to do something about
    /// it: the one with the first of those that are read.
    fn unread(&self) -> KafkaResult<BTreeSet<i32>> {
        let topic = self.config.topic.as_str();
        let metadata = self.consumer.fetch_metadata(Some(topic), REQUEST)?;
        let all = metadata.topics().iter().filter(|found| found.name() == topic);
        let all: BTreeSet<i32> =
            all.flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
        let list = self.consumer.fetch_group_list(Some(&self.config.group), REQUEST)?;
        let Some(read) = group::assigned(&list, topic) else { return Ok(BTreeSet::new()) };
        let own: BTreeSet<i32> = self.shared.places().partitions().into_iter().collect();
        if read.first().is_some_and(|first| !own.contains(first)) {
            return Ok(BTreeSet::new());
        }
        Ok(all.difference(&read).copied().collect())
    }
}
