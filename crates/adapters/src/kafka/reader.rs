//! The reading end: one member of the consumer group.
//!
//! An offset is committed only when the record, and all before it in its partition, were handed
//! over ([`PushLogReader::done`]). When partitions move, what was read here and is not handed over
//! yet is handed over all the same, and read again by their next owner: at least once, never less.
//! What is said to be done about a partition that has left, or has left and come back, does not
//! move its offset.
//!
//! A member with a name ([`KafkaConfig::instance_id`]) does not leave when it stops: it is back
//! before its time is over, and goes on with what it had, or the others get it then.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goim_ports::{BoxFuture, LogEntry, LogPosition, PushLogReader, ReadError};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use super::begin::{self, Begin};
use super::config::{DeadLetter, KafkaConfig};
use super::keeper::Keeper;
use super::log::KafkaError;
use super::member::{Member, Shared};
use super::metrics::KafkaReadStats;
use super::record;

/// Poison records that are described in the log, of each thousand.
const POISON_SAID_EVERY: u64 = 1000;

/// The reading end of the push log on Kafka. Dropping it commits what is done and ends the
/// membership, which blocks for 4 s at most.
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
/// While the group is agreeing on who reads what, a consumer that leaves must not be closed: the
/// answer of the coordinator that comes after its end reaches for the coordinator that is no longer
/// there (librdkafka 2.12.1: `rd_kafka_cgrp_handle_LeaveGroup` reads through a null pointer, and
/// the process is gone). So the end of the agreement is waited for, and the group is left before
/// the consumer is closed: an agreement that began without a word ends meanwhile. When the others
/// do not agree in time it is closed all the same. A static member does not leave, and is closed at
/// once.
struct Leaving {
    consumer: Option<Arc<StreamConsumer<Member>>>,
    keeper: Option<JoinHandle<()>>,
    is_static: bool,
}

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

impl Leaving {
    /// Makes a consumer, its keeper, and a member of the group of them.
    fn join(config: &KafkaConfig, begin: Begin, shared: &Arc<Shared>) -> Result<Self, KafkaError> {
        let refused = |error: ClientError| super::config::refused(&error);
        let (topic, is_verbose) = (config.topic.clone(), config.is_verbose());
        let member = Member { shared: Arc::clone(shared), topic, is_verbose };
        let consumer: StreamConsumer<Member> =
            config.consumer(begin).create_with_context(member).map_err(refused)?;
        consumer.subscribe(&[config.topic.as_str()]).map_err(refused)?;
        let consumer = Arc::new(consumer);
        let keeper = Keeper::new(Arc::clone(&consumer), Arc::clone(shared), config.clone());
        let keeper = std::thread::Builder::new().name("kafka keeper".into()).spawn(move || keeper.run());
        let keeper = keeper.map_err(|error| KafkaError::Config(format!("no thread can be made: {error}")))?;
        Ok(Self { consumer: Some(consumer), keeper: Some(keeper), is_static: config.instance_id.is_some() })
    }
}

impl std::ops::Deref for Leaving {
    type Target = StreamConsumer<Member>;

    fn deref(&self) -> &Self::Target {
        self.consumer.as_deref().expect("taken when it is dropped, and not before")
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        let (keeper, is_static) = (self.keeper.take(), self.is_static);
        let (gone, is_gone) = std::sync::mpsc::channel();
        let leave = move || {
            consumer.context().shared.stop();
            // Its last commit is the last of all, but for that of a rebalance.
            if keeper.is_some_and(|keeper| keeper.join().is_err()) {
                tracing::error!("kafka: the thread that commits has panicked");
            }
            if !is_static {
                leave_group(&consumer);
            }
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

impl KafkaPushLogReader {
    /// Looks at topic and group, commits where a new group begins, and joins it. The first records
    /// may take some seconds to come: the group has to agree first.
    ///
    /// # Errors
    /// [`KafkaError`]; among them that goim's own jobs are in the group.
    pub async fn join(config: KafkaConfig) -> Result<Self, KafkaError> {
        let joined = tokio::task::spawn_blocking(move || Self::join_here(config));
        joined.await.map_err(|error| KafkaError::Config(error.to_string()))?
    }

    fn join_here(config: KafkaConfig) -> Result<Self, KafkaError> {
        let refused = |error: ClientError| super::config::refused(&error);
        let begin = begin::settle(&config)?;
        let shared = Arc::new(Shared::default());
        let dead_letters = match &config.dead_letter {
            DeadLetter::Drop => None,
            DeadLetter::Topic(topic) => {
                let producer = config.producer().create().map_err(refused)?;
                Some((topic.clone(), producer))
            }
        };
        let consumer = Leaving::join(&config, begin, &shared)?;
        Ok(Self { consumer, shared, config, dead_letters })
    }

    /// Joins anew in the place of a member that has fenced itself.
    ///
    /// When a broker was away for longer than the session, librdkafka begins another membership,
    /// and a commit of the one before that waited for the coordinator is fenced by it: that is the
    /// end of the consumer (2.12.1), though nobody else has its name.
    fn join_again(&mut self) -> Result<(), KafkaError> {
        tracing::info!(
            group = self.config.group,
            "kafka: the membership was lost with the broker; joining again"
        );
        let shared = Arc::new(self.shared.renewed());
        let consumer = Leaving::join(&self.config, Begin::Known, &shared)?;
        let gone = std::mem::replace(&mut self.consumer, consumer);
        self.shared = shared;
        // It ends in its own time.
        let _ = std::thread::Builder::new().name("kafka consumer ends".into()).spawn(move || drop(gone));
        Ok(())
    }

    /// The figures at this moment; for metrics, to be asked while the reader is elsewhere.
    pub fn stats(&self) -> impl Fn() -> KafkaReadStats + Send + Sync + 'static {
        let counts = Arc::clone(&self.shared.counts);
        move || KafkaReadStats {
            partitions: counts.partitions.get(),
            read: counts.read.get(),
            poison: counts.poison.get(),
            rebalances: counts.rebalances.get(),
            errors: counts.errors.get(),
        }
    }

    /// As when the coordinator was not heard of for too long.
    #[cfg(test)]
    pub(super) fn loses_its_membership(&self) {
        self.shared.is_lost.store(true, Ordering::SeqCst);
    }

    /// The next record, waited for.
    ///
    /// Errors come through the same queue as rebalances, hundreds of them while a broker is away. Each must be taken at once,
    /// or the rebalance behind them is heard of minutes later: librdkafka makes its own pauses between tries.
    async fn next(&self) -> Result<Option<LogEntry>, ReadError> {
        loop {
            // Said once, and perhaps heard where nobody could tell.
            if let Some((code, reason)) = self.consumer.client().fatal_error() {
                return Err(self.ended(code, &reason));
            }
            match self.consumer.recv().await {
                Ok(message) => return Ok(self.take(&message)),
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

    /// librdkafka has given this consumer up.
    fn ended(&self, code: RDKafkaErrorCode, reason: &str) -> ReadError {
        let KafkaConfig { topic, group, instance_id, .. } = &self.config;
        match (code, instance_id) {
            (RDKafkaErrorCode::FencedInstanceId, Some(name)) => ReadError::Fenced(format!(
                "another job has joined consumer group {group} under the name of this one, {name:?}, and reads in its place: give each \
                 job of the group a name of its own with kafka.instance_id (without it the name is comet.node.server, or else the \
                 host's), or set kafka.instance_id = \"none\" for jobs without names"
            )),
            _ => ReadError::Ended(format!("kafka topic {topic} on {}: {reason}", self.config.broker_list())),
        }
    }

    /// A message as a record; `None` when it is none and was put aside, or is not to be read yet.
    fn take(&self, message: &BorrowedMessage<'_>) -> Option<LogEntry> {
        // Of the new topic, at the position of the old one: it is read from its beginning in a
        // moment.
        if self.shared.is_remade.load(Ordering::SeqCst) {
            return None;
        }
        let (partition, offset) = (message.partition(), message.offset());
        let read = record::read(message.payload().unwrap_or_default(), message.timestamp().to_millis());
        self.shared.counts.read.add(1);
        self.shared.is_well();
        let position = self.shared.places().read(partition, offset, read.is_ok());
        match read {
            Ok(record) => Some(LogEntry { position, record }),
            Err(poison) => {
                self.put_aside(message, &poison);
                None
            }
        }
    }

    /// Counts a record that is no push, says so, and writes it where such records go.
    fn put_aside(&self, message: &BorrowedMessage<'_>, poison: &record::Poison) {
        let (partition, offset) = (message.partition(), message.offset());
        if self.shared.counts.poison.get().is_multiple_of(POISON_SAID_EVERY) {
            let topic = self.config.topic.as_str();
            tracing::warn!(topic, partition, offset, %poison, "a record is no push and is put aside");
        }
        self.shared.counts.poison.add(1);
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
}

impl std::fmt::Debug for KafkaPushLogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPushLogReader").field("topic", &self.config.topic).finish_non_exhaustive()
    }
}

impl PushLogReader for KafkaPushLogReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>> {
        Box::pin(async {
            let first = loop {
                match self.next().await {
                    Ok(Some(entry)) => break entry,
                    Ok(None) => {}
                    Err(ReadError::Fenced(_)) if self.shared.is_lost.load(Ordering::SeqCst) => {
                        self.join_again().map_err(|error| ReadError::Ended(error.to_string()))?;
                    }
                    Err(error) => return Err(error),
                }
            };
            let this = &*self;
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
        self.shared.places().done(position);
    }
}
