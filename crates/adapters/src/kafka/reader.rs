//! The reader: one member of the consumer group.
//!
//! An offset is committed only when its record, and all before it in the partition, were delivered
//! ([`PushLogReader::done`]). When partitions move, records that were read here are still
//! delivered, and read again by the next owner: at least once. A `done` for a partition that was
//! revoked, or revoked and reassigned, moves no offset.
//!
//! A static member ([`KafkaConfig::instance_id`]) does not leave the group when it stops: it
//! returns within its session timeout and continues with its partitions, or they are reassigned.

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

use super::config::{DeadLetter, KafkaConfig};
use super::group_member::{GroupMember, MemberState};
use super::group_start::{self, GroupStart};
use super::log::KafkaError;
use super::metrics::KafkaReadStats;
use super::offset_keeper::OffsetKeeper;
use super::record;

/// One of this many invalid records is logged.
const POISON_LOG_INTERVAL: u64 = 1000;

/// The reader of the push log on Kafka. Dropping it commits all progress and leaves the group,
/// which blocks for 4 s at most.
pub struct KafkaPushLogReader {
    consumer: GroupConsumer,
    state: Arc<MemberState>,
    config: KafkaConfig,
    dead_letters: Option<(String, ThreadedProducer<DefaultProducerContext>)>,
}

/// The timeout for the last commit, and for leaving the group.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for the revocation of a leaving consumer's partitions, and for a rebalance that was not
/// reported yet.
const REVOKE_TIMEOUT: Duration = Duration::from_millis(200);
const REBALANCE_GRACE: Duration = Duration::from_millis(50);
/// The interval at which a leaving consumer is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A consumer that leaves the group on another thread: with an unreachable broker that can block
/// forever.
///
/// A consumer must not be closed during a rebalance: a late response of the coordinator would
/// dereference a null pointer and crash the process (librdkafka 2.12.1,
/// `rd_kafka_cgrp_handle_LeaveGroup`). So the thread waits until the rebalance is complete, and
/// leaves the group before it closes the consumer. After a timeout it closes the consumer anyway. A
/// static member does not leave and is closed immediately.
struct GroupConsumer {
    consumer: Option<Arc<StreamConsumer<GroupMember>>>,
    keeper: Option<JoinHandle<()>>,
    is_static: bool,
}

/// Leaves the group when the rebalance is complete, or after a timeout.
fn leave_group(consumer: &StreamConsumer<GroupMember>) {
    let state = Arc::clone(&consumer.context().state);
    poll_until(consumer, LEAVE_TIMEOUT, || state.is_stable.load(Ordering::SeqCst));
    consumer.unsubscribe();
    // The revocation is reported by polling.
    poll_until(consumer, REVOKE_TIMEOUT, || !state.is_stable.load(Ordering::SeqCst));
    poll_until(consumer, REBALANCE_GRACE, || false);
}

/// Polls the consumer, which runs the rebalance callbacks, until `is_done` or a timeout. Records
/// read here are not marked as done: others read them again.
fn poll_until(consumer: &StreamConsumer<GroupMember>, timeout: Duration, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + timeout;
    let mut context = Context::from_waker(Waker::noop());
    while !is_done() {
        if Instant::now() >= deadline {
            return;
        }
        let _ = pin!(consumer.recv()).as_mut().poll(&mut context);
        std::thread::sleep(POLL_INTERVAL);
    }
}

impl GroupConsumer {
    /// Creates a consumer and its offset keeper, and joins the group.
    fn join(config: &KafkaConfig, start: GroupStart, state: &Arc<MemberState>) -> Result<Self, KafkaError> {
        let refused = |error: ClientError| super::config::refused(&error);
        let (topic, is_verbose) = (config.topic.clone(), config.is_verbose());
        let member = GroupMember { state: Arc::clone(state), topic, is_verbose };
        let consumer: StreamConsumer<GroupMember> =
            config.consumer(start).create_with_context(member).map_err(refused)?;
        consumer.subscribe(&[config.topic.as_str()]).map_err(refused)?;
        let consumer = Arc::new(consumer);
        let keeper = OffsetKeeper::new(Arc::clone(&consumer), Arc::clone(state), config.clone());
        let keeper = std::thread::Builder::new().name("kafka offsets".into()).spawn(move || keeper.run());
        let keeper = keeper.map_err(|error| KafkaError::Config(format!("cannot spawn a thread: {error}")))?;
        Ok(Self { consumer: Some(consumer), keeper: Some(keeper), is_static: config.instance_id.is_some() })
    }
}

impl std::ops::Deref for GroupConsumer {
    type Target = StreamConsumer<GroupMember>;

    fn deref(&self) -> &Self::Target {
        self.consumer.as_deref().expect("the consumer is taken only on drop")
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        let (keeper, is_static) = (self.keeper.take(), self.is_static);
        let (closed, is_closed) = std::sync::mpsc::channel();
        let leave = move || {
            consumer.context().state.stop();
            // The keeper commits a last time before it ends.
            if keeper.is_some_and(|keeper| keeper.join().is_err()) {
                tracing::error!("kafka: the thread that commits has panicked");
            }
            if !is_static {
                leave_group(&consumer);
            }
            drop(consumer);
            // The receiver may have timed out.
            let _ = closed.send(());
        };
        let thread = std::thread::Builder::new().name("kafka consumer leaves".into()).spawn(leave);
        if thread.is_ok() && is_closed.recv_timeout(LEAVE_TIMEOUT * 2).is_err() {
            tracing::warn!("kafka: leaving the group timed out; the session timeout will end the membership");
        }
    }
}

impl KafkaPushLogReader {
    /// Checks topic and group, commits the start offsets of a new group, and joins it. The first
    /// records may take some seconds to arrive: the group rebalances first.
    ///
    /// # Errors
    /// [`KafkaError`], for example [`GroupError::GoJobs`](super::GroupError::GoJobs).
    pub async fn join(config: KafkaConfig) -> Result<Self, KafkaError> {
        let joined = tokio::task::spawn_blocking(move || Self::join_blocking(config));
        joined.await.map_err(|error| KafkaError::Config(error.to_string()))?
    }

    fn join_blocking(config: KafkaConfig) -> Result<Self, KafkaError> {
        let refused = |error: ClientError| super::config::refused(&error);
        let start = group_start::ensure_start_is_committed(&config)?;
        let state = Arc::new(MemberState::default());
        let dead_letters = match &config.dead_letter {
            DeadLetter::Drop => None,
            DeadLetter::Topic(topic) => {
                let producer = config.producer().create().map_err(refused)?;
                Some((topic.clone(), producer))
            }
        };
        let consumer = GroupConsumer::join(&config, start, &state)?;
        Ok(Self { consumer, state, config, dead_letters })
    }

    /// Replaces a member that was fenced by its own next membership.
    ///
    /// When a broker is unreachable for longer than the session timeout, librdkafka begins another
    /// membership, which fences a pending commit of the previous one. That ends the consumer
    /// (2.12.1), though no other member has its name.
    fn rejoin(&mut self) -> Result<(), KafkaError> {
        tracing::info!(group = self.config.group, "kafka: the membership was lost; rejoining");
        let state = Arc::new(self.state.renewed());
        let consumer = GroupConsumer::join(&self.config, GroupStart::Committed, &state)?;
        let fenced = std::mem::replace(&mut self.consumer, consumer);
        self.state = state;
        // Closing it blocks.
        let _ = std::thread::Builder::new().name("kafka consumer ends".into()).spawn(move || drop(fenced));
        Ok(())
    }

    /// Returns a function that reads the current figures, for metrics.
    pub fn stats(&self) -> impl Fn() -> KafkaReadStats + Send + Sync + 'static {
        let counts = Arc::clone(&self.state.counts);
        move || KafkaReadStats {
            partitions: counts.partitions.get(),
            read: counts.read.get(),
            poison: counts.poison.get(),
            rebalances: counts.rebalances.get(),
            errors: counts.errors.get(),
        }
    }

    /// Simulates a coordinator that was unreachable for too long.
    #[cfg(test)]
    pub(super) fn lose_membership(&self) {
        self.state.is_membership_lost.store(true, Ordering::SeqCst);
    }

    /// Waits for the next message. `None` for a record that is no push.
    ///
    /// Errors use the same queue as rebalances; there are hundreds of them while a broker is
    /// unreachable. They must be consumed without a pause, or the rebalance queued after them is
    /// handled minutes later. librdkafka pauses between its attempts.
    async fn next(&self) -> Result<Option<LogEntry>, ReadError> {
        loop {
            // The error event occurs once, and the rebalance polling may have consumed it.
            if let Some((code, reason)) = self.consumer.client().fatal_error() {
                return Err(self.end_reason(code, &reason));
            }
            match self.consumer.recv().await {
                Ok(message) => return Ok(self.read_message(&message)),
                Err(error) => self.state.record_error(&error),
            }
        }
    }

    /// Returns the next message if one is queued.
    async fn try_next(&self) -> Option<Option<LogEntry>> {
        let mut next = pin!(self.consumer.recv());
        let polled = poll_fn(|context| {
            Poll::Ready(match next.as_mut().poll(context) {
                Poll::Ready(Ok(message)) => Some(self.read_message(&message)),
                Poll::Ready(Err(error)) => {
                    self.state.record_error(&error);
                    None
                }
                Poll::Pending => None,
            })
        });
        polled.await
    }

    /// Maps a fatal error of the consumer.
    fn end_reason(&self, code: RDKafkaErrorCode, reason: &str) -> ReadError {
        let KafkaConfig { topic, group, instance_id, .. } = &self.config;
        match (code, instance_id) {
            (RDKafkaErrorCode::FencedInstanceId, Some(name)) => ReadError::Fenced(format!(
                "another job has joined consumer group {group} with the instance id of this one, {name:?}, and replaces it: give each \
                 job of the group a unique kafka.instance_id (its default is comet.node.server, or else the host's name), or set \
                 kafka.instance_id = \"none\" for dynamic members"
            )),
            _ => ReadError::Ended(format!("kafka topic {topic} on {}: {reason}", self.config.broker_list())),
        }
    }

    /// Decodes a message. `None` when it is no push, or must not be read yet.
    fn read_message(&self, message: &BorrowedMessage<'_>) -> Option<LogEntry> {
        // A record of the recreated topic at the old position: the keeper rewinds the partition.
        if self.state.is_topic_recreated.load(Ordering::SeqCst) {
            return None;
        }
        let (partition, offset) = (message.partition(), message.offset());
        let read = record::read(message.payload().unwrap_or_default(), message.timestamp().to_millis());
        self.state.counts.read.add(1);
        self.state.record_success();
        let position = self.state.progress().read(partition, offset, read.is_ok());
        match read {
            Ok(record) => Some(LogEntry { position, record }),
            Err(poison) => {
                self.reject(message, &poison);
                None
            }
        }
    }

    /// Counts and logs a record that is no push, and writes it to the dead-letter topic.
    fn reject(&self, message: &BorrowedMessage<'_>, poison: &record::Poison) {
        let (partition, offset) = (message.partition(), message.offset());
        if self.state.counts.poison.get().is_multiple_of(POISON_LOG_INTERVAL) {
            let topic = self.config.topic.as_str();
            tracing::warn!(topic, partition, offset, %poison, "skipping a record that is no push");
        }
        self.state.counts.poison.add(1);
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
            tracing::warn!(topic, %error, "a record could not be written to the dead-letter topic");
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
                    Err(ReadError::Fenced(_)) if self.state.is_membership_lost.load(Ordering::SeqCst) => {
                        self.rejoin().map_err(|error| ReadError::Ended(error.to_string()))?;
                    }
                    Err(error) => return Err(error),
                }
            };
            let this = &*self;
            // No await from here on, so dropping the future loses no record.
            let mut entries = vec![first];
            while entries.len() < this.config.read_records_max {
                let Some(more) = this.try_next().await else { break };
                entries.extend(more);
            }
            Ok(Some(entries))
        })
    }

    fn done(&mut self, position: LogPosition) {
        self.state.progress().done(position);
    }
}
