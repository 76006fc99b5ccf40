//! What the reader, its keeper and librdkafka's callbacks share.

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
use super::places::Places;

/// How librdkafka writes the id of a topic that it did not know.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// What is counted, whatever becomes of the member.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) partitions: Count,
    pub(super) read: Count,
    pub(super) poison: Count,
    pub(super) rebalances: Count,
    pub(super) errors: Count,
}

/// What one member of the group knows of itself.
#[derive(Default)]
pub(super) struct Shared {
    places: Mutex<Places>,
    pub(super) counts: Arc<Counts>,
    /// The group has agreed, and nothing has begun another agreement since.
    pub(super) is_settled: AtomicBool,
    /// The topic was deleted and made again, and the positions here are still those of the old one.
    pub(super) is_remade: AtomicBool,
    /// The membership is over since nothing was heard of the coordinator for too long, and the next
    /// has not begun.
    pub(super) is_lost: AtomicBool,
    /// Since the last record there were errors.
    is_troubled: AtomicBool,
    calls: Mutex<Calls>,
    called: Condvar,
}

/// What the keeper is called for.
#[derive(Debug, Default, Clone, Copy)]
struct Calls {
    at_once: bool,
    stop: bool,
}

impl Shared {
    /// Of the member that takes the place of this one.
    pub(super) fn renewed(&self) -> Self {
        let places = Mutex::new(self.places().renewed());
        Self { counts: Arc::clone(&self.counts), places, ..Self::default() }
    }

    pub(super) fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock()
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock()
    }

    /// The keeper does its rounds now.
    fn call(&self) {
        self.calls().at_once = true;
        self.called.notify_one();
    }

    /// The keeper ends.
    pub(super) fn stop(&self) {
        self.calls().stop = true;
        self.called.notify_one();
    }

    /// Waits until the keeper is called, or this long. False when it is to end.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let mut calls = self.calls();
        self.called.wait_while_for(&mut calls, |calls| !calls.at_once && !calls.stop, time);
        calls.at_once = false;
        !calls.stop
    }

    /// Counts an error that librdkafka gets over by itself, and tells of the first of a row.
    pub(super) fn note(&self, error: &ClientError) {
        self.counts.errors.add(1);
        if !self.is_troubled.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "kafka: the push log cannot be read; trying again");
        }
    }

    pub(super) fn is_well(&self) {
        if self.is_troubled.load(Ordering::Relaxed) && self.is_troubled.swap(false, Ordering::Relaxed) {
            tracing::info!("kafka: the push log is read again");
        }
    }
}

/// A list for a commit.
pub(super) fn offsets(topic: &str, of: &[(i32, i64)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(of.len());
    for (partition, offset) in of {
        // An offset is never one of those that mean something else.
        let _ = list.add_partition_offset(topic, *partition, Offset::Offset(*offset));
    }
    list
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(TopicPartitionListElem::partition).collect()
}

/// Hears of rebalances, on the thread that polls, and of what librdkafka logs, on its own.
pub(super) struct Member {
    pub(super) shared: Arc<Shared>,
    pub(super) topic: String,
    /// Somebody wants to see what librdkafka says at length.
    pub(super) is_verbose: bool,
}

impl Member {
    /// librdkafka goes on at the old position in a topic that was made again, and says so in its
    /// debug log only (a FIXME in 2.12.1's `rd_kafka_topic_metadata_update`). It does so before it
    /// fetches from the new one.
    fn look_for_another_topic(&self, message: &str) {
        let Some((_, behind)) = message.split_once("Topic ") else { return };
        let ids = behind.strip_prefix(&*self.topic).and_then(|rest| rest.strip_prefix(" changed id from "));
        if ids.is_some_and(|ids| !ids.starts_with(NO_ID)) {
            self.shared.is_remade.store(true, Ordering::SeqCst);
            self.shared.call();
        }
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => {
                self.look_for_another_topic(message);
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

impl ConsumerContext for Member {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.shared.is_settled.store(false, Ordering::SeqCst);
        let Rebalance::Revoke(leaving) = rebalance else { return };
        if consumer.assignment_lost() && consumer.client().fatal_error().is_none() {
            self.shared.is_lost.store(true, Ordering::SeqCst);
        }
        let leaving = numbers(leaving);
        let mut due = self.shared.places().to_commit();
        due.retain(|(partition, _)| leaving.contains(partition));
        // The broker has it before it gives the partitions away: librdkafka waits for commits that
        // are out. Positions of a topic that is gone are none of the new one.
        if !due.is_empty() && !consumer.assignment_lost() && !self.shared.is_remade.load(Ordering::SeqCst) {
            let committed = consumer.commit(&offsets(&self.topic, &due), CommitMode::Async);
            if let Err(error) = committed {
                tracing::debug!(%error, "kafka: offsets were not committed");
            }
        }
        let mut places = self.shared.places();
        leaving.iter().for_each(|partition| places.leave(*partition));
        self.shared.counts.partitions.set(places.len() as u64);
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.shared.counts.rebalances.add(1);
        match rebalance {
            Rebalance::Assign(coming) => {
                self.shared.is_settled.store(true, Ordering::SeqCst);
                self.shared.is_lost.store(false, Ordering::SeqCst);
                let mut places = self.shared.places();
                let coming = numbers(coming);
                coming.iter().for_each(|partition| places.come(*partition));
                self.shared.counts.partitions.set(places.len() as u64);
                drop(places);
                // Where they begin is to be durable.
                self.shared.call();
                tracing::info!(partitions = ?coming, "kafka: partitions have come");
            }
            Rebalance::Revoke(leaving) => {
                tracing::info!(partitions = ?numbers(leaving), "kafka: partitions have left");
            }
            Rebalance::Error(error) => tracing::warn!(%error, "kafka: rebalance failed; it is tried again"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // What is not committed comes again.
            tracing::debug!(%error, "kafka: offsets were not committed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_is_another_one_is_told_from_one_that_is_seen_first() {
        let heard = |message: &str| {
            let member = Member { shared: Arc::default(), topic: "push".into(), is_verbose: false };
            member.log(RDKafkaLogLevel::Debug, "METADATA", message);
            member.shared.is_remade.load(Ordering::SeqCst)
        };
        assert!(heard("[thrd:main]: Topic push changed id from c2hvcnRpc2g to bG9uZ2lzaA"));
        assert!(!heard("[thrd:main]: Topic push changed id from AAAAAAAAAAAAAAAAAAAAAA to bG9uZ2lzaA"));
        assert!(!heard("[thrd:main]: Topic push-2 changed id from c2hvcnRpc2g to bG9uZ2lzaA"));
        assert!(!heard("[thrd:main]: Topic push [3] Leader 1 Epoch 0"));
    }
}
