//! The state that the reader, the offset keeper and librdkafka's callbacks share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError as ClientError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use super::metrics::Count;
use super::partition_progress::PartitionProgress;

/// How librdkafka writes an unknown topic id.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// Counters, which outlive a single membership.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) partitions: Count,
    pub(super) read: Count,
    pub(super) poison: Count,
    pub(super) rebalances: Count,
    pub(super) errors: Count,
}

/// The state of one membership.
#[derive(Default)]
pub(super) struct MemberState {
    progress: Mutex<PartitionProgress>,
    pub(super) counts: Arc<Counts>,
    /// The rebalance is complete and no other has begun.
    pub(super) is_stable: AtomicBool,
    /// The topic was deleted and recreated, and the positions here are those of the old one.
    pub(super) is_topic_recreated: AtomicBool,
    /// The membership ended because the coordinator was unreachable for too long, and the next has
    /// not begun.
    pub(super) is_membership_lost: AtomicBool,
    /// Errors occurred since the last record.
    has_read_errors: AtomicBool,
    wakeups: Mutex<Wakeups>,
    woken: Condvar,
}

/// Why the offset keeper is woken.
#[derive(Debug, Default, Clone, Copy)]
struct Wakeups {
    is_woken: bool,
    is_stopped: bool,
}

impl MemberState {
    /// Returns the state for the member that replaces this one.
    pub(super) fn renewed(&self) -> Self {
        let progress = Mutex::new(self.progress().renewed());
        Self { counts: Arc::clone(&self.counts), progress, ..Self::default() }
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, PartitionProgress> {
        self.progress.lock()
    }

    fn wakeups(&self) -> MutexGuard<'_, Wakeups> {
        self.wakeups.lock()
    }

    /// Wakes the offset keeper.
    fn wake(&self) {
        self.wakeups().is_woken = true;
        self.woken.notify_one();
    }

    /// Stops the offset keeper.
    pub(super) fn stop(&self) {
        self.wakeups().is_stopped = true;
        self.woken.notify_one();
    }

    /// Waits until the keeper is woken, or for `time`. Returns false when it must stop.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let mut wakeups = self.wakeups();
        self.woken.wait_while_for(&mut wakeups, |wakeups| !wakeups.is_woken && !wakeups.is_stopped, time);
        wakeups.is_woken = false;
        !wakeups.is_stopped
    }

    /// Counts an error that librdkafka recovers from, and logs the first of a series.
    pub(super) fn record_error(&self, error: &ClientError) {
        self.counts.errors.add(1);
        if !self.has_read_errors.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "kafka: the push log cannot be read; retrying");
        }
    }

    /// Logs the end of a series of errors.
    pub(super) fn record_success(&self) {
        if self.has_read_errors.load(Ordering::Relaxed) && self.has_read_errors.swap(false, Ordering::Relaxed)
        {
            tracing::info!("kafka: the push log is read again");
        }
    }
}

/// Builds the list of a commit.
pub(super) fn offsets(topic: &str, of: &[(i32, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(of.len());
    for (partition, offset) in of {
        // Only special (negative) offsets are rejected.
        let _ = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
    }
    list
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(TopicPartitionListElem::partition).collect()
}

/// The callbacks: rebalances, on the polling thread, and librdkafka's log, on its own thread.
pub(super) struct GroupMember {
    pub(super) state: Arc<MemberState>,
    pub(super) topic: String,
    /// Whether librdkafka's debug log is wanted.
    pub(super) is_verbose: bool,
}

impl GroupMember {
    /// In a recreated topic librdkafka continues at the old position, and reports the new topic id
    /// only in its debug log (a FIXME in 2.12.1's `rd_kafka_topic_metadata_update`), before it
    /// fetches from the new topic.
    fn detect_recreated_topic(&self, message: &str) {
        let Some((_, rest)) = message.split_once("Topic ") else { return };
        let ids = rest.strip_prefix(&*self.topic).and_then(|rest| rest.strip_prefix(" changed id from "));
        if ids.is_some_and(|ids| !ids.starts_with(NO_ID)) {
            self.state.is_topic_recreated.store(true, Ordering::SeqCst);
            self.state.wake();
        }
    }
}

impl ClientContext for GroupMember {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => {
                self.detect_recreated_topic(message);
                if self.is_verbose {
                    tracing::debug!(target: "librdkafka", "librdkafka: {fac} {message}");
                }
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", "librdkafka: {fac} {message}")
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", "librdkafka: {fac} {message}"),
            _ => tracing::error!(target: "librdkafka", "librdkafka: {fac} {message}"),
        }
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for GroupMember {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.state.is_stable.store(false, Ordering::SeqCst);
        let Rebalance::Revoke(revoked) = rebalance else { return };
        if consumer.assignment_lost() && consumer.client().fatal_error().is_none() {
            self.state.is_membership_lost.store(true, Ordering::SeqCst);
        }
        let revoked = numbers(revoked);
        let mut due = self.state.progress().to_commit();
        due.retain(|(partition, _)| revoked.contains(partition));
        // The broker gets the commit before it reassigns the partitions: librdkafka waits for
        // pending commits. Positions of a deleted topic are not valid in the new one.
        if !due.is_empty()
            && !consumer.assignment_lost()
            && !self.state.is_topic_recreated.load(Ordering::SeqCst)
        {
            let committed = consumer.commit(&offsets(&self.topic, &due), CommitMode::Async);
            if let Err(error) = committed {
                tracing::debug!(%error, "kafka: offsets were not committed");
            }
        }
        let mut progress = self.state.progress();
        revoked.iter().for_each(|partition| progress.revoke(*partition));
        self.state.counts.partitions.set(progress.len() as u64);
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.state.counts.rebalances.add(1);
        match rebalance {
            Rebalance::Assign(assigned) => {
                self.state.is_stable.store(true, Ordering::SeqCst);
                self.state.is_membership_lost.store(false, Ordering::SeqCst);
                let mut progress = self.state.progress();
                let assigned = numbers(assigned);
                assigned.iter().for_each(|partition| progress.assign(*partition));
                self.state.counts.partitions.set(progress.len() as u64);
                drop(progress);
                // The keeper commits their start.
                self.state.wake();
                tracing::info!(partitions = ?assigned, "kafka: partitions assigned");
            }
            Rebalance::Revoke(revoked) => {
                tracing::info!(partitions = ?numbers(revoked), "kafka: partitions revoked");
            }
            Rebalance::Error(error) => tracing::warn!(%error, "kafka: rebalance failed; retrying"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // At worst records are read again.
            tracing::debug!(%error, "kafka: offsets were not committed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recreated_topic_is_distinguished_from_one_seen_for_the_first_time() {
        let is_detected = |message: &str| {
            let member = GroupMember { state: Arc::default(), topic: "push".into(), is_verbose: false };
            member.log(RDKafkaLogLevel::Debug, "METADATA", message);
            member.state.is_topic_recreated.load(Ordering::SeqCst)
        };
        assert!(is_detected("[thrd:main]: Topic push changed id from c2hvcnRpc2g to bG9uZ2lzaA"));
        assert!(!is_detected("[thrd:main]: Topic push changed id from AAAAAAAAAAAAAAAAAAAAAA to bG9uZ2lzaA"));
        assert!(!is_detected("[thrd:main]: Topic push-2 changed id from c2hvcnRpc2g to bG9uZ2lzaA"));
        assert!(!is_detected("[thrd:main]: Topic push [3] Leader 1 Epoch 0"));
    }
}
