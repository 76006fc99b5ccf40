//! The reading end: one member of the consumer group.
//!
//! An offset is committed only when the record, and all before it in its partition, were handed over ([`PushLogReader::done`]).
//! When partitions move, what was read here and is not handed over yet is handed over all the same, and read again by
//! their next owner: at least once, never less. What is said to be done about a partition that has left, or has left and
//! come back, does not move its offset.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use goim_ports::{BoxFuture, LogEntry, LogPosition, PushLogReader, ReadError};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError as ClientError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, TopicPartitionList};

use super::config::{DeadLetter, KafkaConfig};
use super::log::{KafkaError, look_for_topic};
use super::metrics::{Count, KafkaReadStats};
use super::{group, record};

/// How long the brokers are asked for the members of the group.
const GROUP_DEADLINE: Duration = Duration::from_secs(10);
/// Poison records that are described in the log, of each thousand.
const POISON_SAID_EVERY: u64 = 1000;

/// The reading end of the push log on Kafka. Dropping it leaves the group, which blocks for 4 s at most.
pub struct KafkaPushLogReader {
    consumer: Leaving,
    shared: Arc<Shared>,
    config: KafkaConfig,
    dead_letters: Option<(String, ThreadedProducer<DefaultProducerContext>)>,
}

/// How long is waited for the last commit and the farewell to the group.
const FAREWELL: Duration = Duration::from_secs(2);
/// Until the partitions of a consumer that leaves are taken from it, and until an agreement is over that nobody has told of.
const REVOCATION: Duration = Duration::from_millis(200);
const AGREEMENT: Duration = Duration::from_millis(50);
/// How often is looked whether the group has agreed.
const LOOK: Duration = Duration::from_millis(5);

/// A consumer that says farewell elsewhere: with a broker that has gone that can take for ever.
///
/// While the group is agreeing on who reads what, a consumer must not be closed: the answer of the coordinator that comes after its
/// end reaches for the coordinator that is no longer there (librdkafka 2.12.1: `rd_kafka_cgrp_handle_LeaveGroup` reads through a null
/// pointer, and the process is gone). So the end of the agreement is waited for, and the group is left before the consumer is closed:
/// an agreement that began without a word ends meanwhile. When the others do not agree in time it is closed all the same.
struct Leaving(Option<StreamConsumer<Member>>);

/// Leaves the group when it has agreed, or when that has taken too long.
fn leave_group(consumer: &StreamConsumer<Member>) {
    let shared = Arc::clone(&consumer.context().shared);
    hears(consumer, FAREWELL, || shared.is_settled.load(Ordering::SeqCst));
    consumer.unsubscribe();
    // Without partitions there is nothing to hear.
    hears(consumer, REVOCATION, || !shared.is_settled.load(Ordering::SeqCst));
    hears(consumer, AGREEMENT, || false);
}

/// Hears of rebalances until something is so, or the time has passed. What is read here is not said to be done: others read it again.
fn hears(consumer: &StreamConsumer<Member>, time: Duration, is_so: impl Fn() -> bool) {
    let until = Instant::now() + time;
    let mut context = Context::from_waker(Waker::noop());
    while !is_so() {
        if Instant::now() >= until {
            return;
        }
        let _ = pin!(consumer.recv()).as_mut().poll(&mut context);
        std::thread::sleep(LOOK);
    }
}

impl std::ops::Deref for Leaving {
    type Target = StreamConsumer<Member>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("taken when it is dropped, and not before")
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(consumer) = self.0.take() else { return };
        let (gone, is_gone) = std::sync::mpsc::channel();
        let leave = move || {
            leave_group(&consumer);
            drop(consumer);
            // Nobody may wait any longer.
            let _ = gone.send(());
        };
        let thread = std::thread::Builder::new().name("kafka consumer leaves".into()).spawn(leave);
        if thread.is_ok() && is_gone.recv_timeout(FAREWELL * 2).is_err() {
            tracing::warn!("kafka: the group was not left in time; it will notice");
        }
    }
}

/// What the reader and librdkafka's callbacks share.
#[derive(Default)]
struct Shared {
    /// The partitions that are read here.
    places: Mutex<HashMap<i32, Place>>,
    partitions: Count,
    read: Count,
    poison: Count,
    rebalances: Count,
    errors: Count,
    /// The group has agreed, and nothing has begun another agreement since.
    is_settled: AtomicBool,
    /// Since the last record there were errors.
    is_troubled: AtomicBool,
}

/// How far a partition is, since it came.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    /// The first record that was read.
    first: Option<i64>,
    /// The last push that was read.
    last_push: Option<i64>,
    /// The last record that was read, push or not.
    last: i64,
    /// The last push that was handed over.
    done: Option<i64>,
}

impl Place {
    fn read(&mut self, offset: i64, is_push: bool) {
        self.first.get_or_insert(offset);
        self.last = offset;
        if is_push {
            self.last_push = Some(offset);
        }
    }

    /// A push was handed over; up to where that makes the partition done, if it does.
    fn done(&mut self, offset: i64) -> Option<i64> {
        // From before the partition left and came back.
        let is_of_now = self.first.is_some_and(|first| first <= offset) && offset <= self.last;
        if !is_of_now || self.done.is_some_and(|done| offset <= done) {
            return None;
        }
        self.done = Some(offset);
        Some(self.up_to(offset))
    }

    /// What is put aside needs no handing over: done, when everything before it is.
    fn put_aside(&self) -> Option<i64> {
        (self.last_push == self.done).then_some(self.last)
    }

    /// With the last push, what was put aside behind it is done too.
    fn up_to(&self, offset: i64) -> i64 {
        if self.last_push == Some(offset) { self.last } else { offset }
    }
}

impl Shared {
    fn places(&self) -> MutexGuard<'_, HashMap<i32, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an error that librdkafka gets over by itself, and tells of the first of a row.
    fn note(&self, error: &ClientError) {
        self.errors.add(1);
        if !self.is_troubled.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "kafka: the push log cannot be read; trying again");
        }
    }

    fn is_well(&self) {
        if self.is_troubled.load(Ordering::Relaxed) && self.is_troubled.swap(false, Ordering::Relaxed) {
            tracing::info!("kafka: the push log is read again");
        }
    }
}

/// Hears of rebalances, on the thread that polls.
struct Member {
    shared: Arc<Shared>,
}

impl ClientContext for Member {
    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.shared.is_settled.store(false, Ordering::SeqCst);
        if let Rebalance::Revoke(leaving) = rebalance {
            let mut places = self.shared.places();
            for element in leaving.elements() {
                places.remove(&element.partition());
            }
            self.shared.partitions.set(places.len() as u64);
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.shared.rebalances.add(1);
        match rebalance {
            Rebalance::Assign(coming) => {
                self.shared.is_settled.store(true, Ordering::SeqCst);
                let mut places = self.shared.places();
                for element in coming.elements() {
                    places.insert(element.partition(), Place::default());
                }
                self.shared.partitions.set(places.len() as u64);
                tracing::info!(partitions = ?numbers(coming), "kafka: partitions have come");
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

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

impl KafkaPushLogReader {
    /// Looks at topic and group, and joins it. The first records may take some seconds to come: the group has to agree first.
    ///
    /// # Errors
    /// [`KafkaError`]; among them that goim's own jobs are in the group.
    pub async fn join(config: KafkaConfig) -> Result<Self, KafkaError> {
        let joined = tokio::task::spawn_blocking(move || Self::join_here(config));
        joined.await.map_err(|error| KafkaError::Config(error.to_string()))?
    }

    fn join_here(config: KafkaConfig) -> Result<Self, KafkaError> {
        let refused = |error: ClientError| super::config::refused(&error);
        let shared = Arc::new(Shared::default());
        let member = Member { shared: Arc::clone(&shared) };
        let consumer: StreamConsumer<Member> =
            config.consumer().create_with_context(member).map_err(refused)?;
        let brokers = config.broker_list();
        look_for_topic(consumer.client(), &config.topic, &brokers)?;
        group::check(&consumer, &config.group, &brokers, GROUP_DEADLINE)?;
        let dead_letters = match &config.dead_letter {
            DeadLetter::Drop => None,
            DeadLetter::Topic(topic) => {
                let producer = config.producer().create().map_err(refused)?;
                Some((topic.clone(), producer))
            }
        };
        consumer.subscribe(&[config.topic.as_str()]).map_err(refused)?;
        Ok(Self { consumer: Leaving(Some(consumer)), shared, config, dead_letters })
    }

    /// The figures at this moment; for metrics, to be asked while the reader is elsewhere.
    pub fn stats(&self) -> impl Fn() -> KafkaReadStats + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || KafkaReadStats {
            partitions: shared.partitions.get(),
            read: shared.read.get(),
            poison: shared.poison.get(),
            rebalances: shared.rebalances.get(),
            errors: shared.errors.get(),
        }
    }

    /// The next record, waited for.
    ///
    /// Errors come through the same queue as rebalances, hundreds of them while a broker is away. Each must be taken at once,
    /// or the rebalance behind them is heard of minutes later: librdkafka makes its own pauses between tries.
    async fn next(&self) -> Result<Option<LogEntry>, ReadError> {
        loop {
            match self.consumer.recv().await {
                Ok(message) => return Ok(self.take(&message)),
                Err(error @ ClientError::MessageConsumptionFatal(_)) => return Err(self.failed(&error)),
                Err(error) => self.shared.note(&error),
            }
        }
    }

    /// The next record, if one is there.
    async fn next_now(&self) -> Option<Option<LogEntry>> {
        let mut next = pin!(self.consumer.recv());
        let polled = poll_fn(|context| {
            Poll::Ready(match next.as_mut().poll(context) {
                Poll::Ready(Ok(message)) => Some(self.take(&message)),
                Poll::Ready(Err(error)) => {
                    self.shared.note(&error);
                    None
                }
                Poll::Pending => None,
            })
        });
        polled.await
    }

    fn failed(&self, error: &ClientError) -> ReadError {
        let Self { config, .. } = self;
        ReadError::Unavailable(format!("kafka topic {} on {}: {error}", config.topic, config.broker_list()))
    }

    /// A message as a record; `None` when it is none and was put aside.
    fn take(&self, message: &BorrowedMessage<'_>) -> Option<LogEntry> {
        let position = LogPosition { partition: message.partition(), offset: message.offset() };
        let read = record::read(message.payload().unwrap_or_default(), message.timestamp().to_millis());
        self.shared.read.add(1);
        self.shared.is_well();
        let mut places = self.shared.places();
        let place = places.entry(position.partition).or_default();
        place.read(position.offset, read.is_ok());
        match read {
            Ok(record) => Some(LogEntry { position, record }),
            Err(poison) => {
                let aside = place.put_aside();
                drop(places);
                self.put_aside(message, &poison);
                if let Some(offset) = aside {
                    self.store(LogPosition { offset, ..position });
                }
                None
            }
        }
    }

    /// Counts a record that is no push, says so, and writes it where such records go.
    fn put_aside(&self, message: &BorrowedMessage<'_>, poison: &record::Poison) {
        let (partition, offset) = (message.partition(), message.offset());
        if self.shared.poison.get().is_multiple_of(POISON_SAID_EVERY) {
            let topic = self.config.topic.as_str();
            tracing::warn!(topic, partition, offset, %poison, "a record is no push and is put aside");
        }
        self.shared.poison.add(1);
        let Some((topic, producer)) = &self.dead_letters else { return };
        let (partition, offset, poison) = (partition.to_string(), offset.to_string(), poison.to_string());
        let headers = [
            ("goim-topic", self.config.topic.as_str()),
            ("goim-partition", &partition),
            ("goim-offset", &offset),
            ("goim-error", &poison),
        ];
        let headers = headers
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }));
        let mut letter = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        letter.key = message.key();
        letter.payload = message.payload();
        if let Err((error, _)) = producer.send(letter) {
            tracing::warn!(topic, %error, "a record that is no push could not be kept");
        }
    }

    /// Has everything of the partition up to this record committed at the next occasion.
    fn store(&self, done: LogPosition) {
        // Fails when the partition has just left: then it is read again elsewhere.
        if let Err(error) = self.consumer.store_offset(&self.config.topic, done.partition, done.offset) {
            tracing::debug!(%error, partition = done.partition, "kafka: an offset was not stored");
        }
    }
}

impl std::fmt::Debug for KafkaPushLogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPushLogReader").field("topic", &self.config.topic).finish_non_exhaustive()
    }
}

impl PushLogReader for KafkaPushLogReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>> {
        Box::pin(async {
            let this = &*self;
            let first = loop {
                if let Some(entry) = this.next().await? {
                    break entry;
                }
            };
            // From here on nothing waits, so that dropping the future loses nothing.
            let mut entries = vec![first];
            while entries.len() < this.config.read_records_max {
                let Some(more) = this.next_now().await else { break };
                entries.extend(more);
            }
            Ok(Some(entries))
        })
    }

    fn done(&mut self, position: LogPosition) {
        let up_to =
            self.shared.places().get_mut(&position.partition).and_then(|place| place.done(position.offset));
        if let Some(offset) = up_to {
            self.store(LogPosition { offset, ..position });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_done_up_to_what_was_handed_over_and_what_was_put_aside_behind_it() {
        let mut place = Place::default();
        place.read(5, false);
        assert_eq!(place.put_aside(), Some(5), "nothing before it");
        place.read(6, true);
        place.read(7, false);
        assert_eq!(place.put_aside(), None, "6 is on its way");
        place.read(8, true);
        place.read(9, false);
        assert_eq!(place.done(6), Some(6));
        assert_eq!(place.done(8), Some(9));
        assert_eq!(place.done(6), None, "never back");
        place.read(10, false);
        assert_eq!(place.put_aside(), Some(10));
    }

    #[test]
    fn what_was_done_before_a_partition_left_and_came_back_counts_no_more() {
        let mut place = Place::default();
        assert_eq!(place.done(3), None, "nothing was read yet");
        place.read(20, true);
        assert_eq!(place.done(3), None, "from before");
        assert_eq!(place.done(25), None, "not read here");
        assert_eq!(place.done(20), Some(20));
    }
}
