//! The writing end: records go out in the order of their appends, and whoever appended hears when all replicas have them.
//!
//! What waits is bounded here and not in librdkafka: by records and bytes that are out, and by appends that wait for room. An
//! append that finds room is handed to librdkafka on the spot; one that does not stands in a row, which a task of its own
//! empties from the front as acknowledgements come in. Both happen under one lock, so that nobody is overtaken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{AppendError, Appended, Call, PushLog, PushRecord};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::{Notify, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::config::KafkaConfig;
use super::config::refused;
use super::metrics::{Count, KafkaWriteStats};
use super::record;
use crate::push_size::kafka_len;

/// How long the brokers are asked for the topic at the start.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two questions.
const START_PAUSE: Duration = Duration::from_millis(200);
/// What a record that is out takes in memory besides its key and value.
const RECORD_OVERHEAD: usize = 256;

/// Why the push log on Kafka does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// A property that librdkafka refuses.
    #[error("kafka: {0}")]
    Config(String),
    /// No broker answers.
    #[error("kafka brokers {brokers} do not answer: {reason}")]
    Unavailable {
        /// Which brokers were asked.
        brokers: String,
        /// What the client says.
        reason: String,
    },
    /// The topic does not exist, and the brokers do not make it by themselves.
    #[error(
        "kafka topic {topic} does not exist on {brokers}; create it, with as many partitions as jobs may run at once"
    )]
    NoTopic {
        /// The topic.
        topic: String,
        /// Which brokers were asked.
        brokers: String,
    },
    /// The group cannot be joined.
    #[error(transparent)]
    Group(#[from] super::GroupError),
}

type Answer = Result<(), AppendError>;

/// The writing end of the push log on Kafka.
pub struct KafkaPushLog {
    shared: Arc<Shared>,
    _admit_task: AbortOnDropHandle<()>,
}

struct Shared {
    config: KafkaConfig,
    room: Arc<Room>,
    order: Mutex<Order>,
}

/// Everything that must happen in the order of the appends.
struct Order {
    producer: ThreadedProducer<Deliveries>,
    waiting: VecDeque<Waiting>,
}

/// An append that waits for room.
struct Waiting {
    record: Prepared,
    answer: oneshot::Sender<Answer>,
    until: Instant,
}

/// A record as it goes out.
struct Prepared {
    key: String,
    value: Vec<u8>,
    timestamp: i64,
}

/// What may be out, and what is.
#[derive(Default)]
struct Room {
    out: Mutex<Out>,
    freed: Notify,
    /// librdkafka has given up this producer; another one is wanted.
    fatal: AtomicBool,
    appended: Count,
    failed: Count,
    rejected_full: Count,
    rejected_too_large: Count,
}

#[derive(Debug, Default, Clone, Copy)]
struct Out {
    records: usize,
    bytes: usize,
}

/// One record that is out.
struct Delivery {
    answer: oneshot::Sender<Answer>,
    bytes: usize,
}

/// Hears from librdkafka, on its thread.
struct Deliveries {
    room: Arc<Room>,
    late: String,
}

impl ClientContext for Deliveries {
    fn error(&self, error: ClientError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.room.fatal.store(true, Ordering::Release);
            tracing::error!(reason, "kafka: the producer is given up and made anew");
        } else {
            tracing::debug!(%error, reason, "kafka");
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let Delivery { answer, bytes } = *delivery;
        let outcome = match result {
            Ok(_) => {
                self.room.appended.add(1);
                Ok(())
            }
            Err((error, _)) => {
                self.room.failed.add(1);
                Err(self.append_error(error, bytes))
            }
        };
        self.room.give_back(bytes);
        // Who has dropped the call does not want to know.
        let _ = answer.send(outcome);
    }
}

impl Deliveries {
    /// What has become of a record that was on its way. Whatever is not a clear refusal leaves it
    /// open.
    fn append_error(&self, error: &ClientError, bytes: usize) -> AppendError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                let size = bytes.saturating_sub(RECORD_OVERHEAD);
                AppendError::TooLarge { size, limit: size.saturating_sub(1) }
            }
            Some(RDKafkaErrorCode::MessageTimedOut) => AppendError::Unknown(self.late.clone()),
            Some(code) if is_refusal(code) => AppendError::Unavailable(format!("kafka: {error}")),
            _ => AppendError::Unknown(format!("kafka: {error}")),
        }
    }
}

/// True for errors with which a broker says that it has not written a record, and will not.
pub(super) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidRecord
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::InvalidRequiredAcks
            | Code::InvalidTimestamp
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::UnsupportedForMessageFormat
            | Code::PolicyViolation
    )
}

impl Room {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock()
    }

    /// Takes room for a record, if there is; one record always has room.
    fn take(&self, bytes: usize, config: &KafkaConfig) -> bool {
        let mut out = self.out();
        let fits = out.records < config.records_max && out.bytes.saturating_add(bytes) <= config.bytes_max;
        if fits || out.records == 0 {
            *out = Out { records: out.records + 1, bytes: out.bytes + bytes };
            return true;
        }
        false
    }

    fn give_back(&self, bytes: usize) {
        let mut out = self.out();
        *out = Out { records: out.records.saturating_sub(1), bytes: out.bytes.saturating_sub(bytes) };
        drop(out);
        self.freed.notify_one();
    }
}

impl Prepared {
    fn new(record: &PushRecord) -> Self {
        let key = record.partition_key().into_owned();
        Self { key, value: record::value(record), timestamp: record::timestamp(record) }
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + RECORD_OVERHEAD
    }
}

impl KafkaPushLog {
    /// Connects, and looks whether the topic is there. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`KafkaError`], after 10 s at most.
    pub async fn start(config: KafkaConfig) -> Result<Arc<Self>, KafkaError> {
        let room = Arc::new(Room::default());
        let producer = producer(&config, &room)?;
        let topic = config.topic.clone();
        let brokers = config.broker_list();
        let looked = tokio::task::spawn_blocking(move || {
            let found = look_for_topic(producer.client(), &topic, &brokers);
            found.map(|_| producer)
        });
        let producer = looked.await.map_err(|error| KafkaError::Config(error.to_string()))??;
        let order = Mutex::new(Order { producer, waiting: VecDeque::new() });
        let shared = Arc::new(Shared { config, room, order });
        let admit_task = AbortOnDropHandle::new(tokio::spawn(admit_waiting(Arc::clone(&shared))));
        Ok(Arc::new(Self { shared, _admit_task: admit_task }))
    }

    /// The log's figures at this moment.
    #[must_use]
    pub fn stats(&self) -> KafkaWriteStats {
        let room = &self.shared.room;
        let out = *room.out();
        KafkaWriteStats {
            records: out.records,
            bytes: out.bytes,
            waiting: self.shared.order().waiting.len(),
            appended: room.appended.get(),
            rejected_full: room.rejected_full.get(),
            rejected_too_large: room.rejected_too_large.get(),
            failed: room.failed.get(),
        }
    }
}

impl std::fmt::Debug for KafkaPushLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPushLog").field("topic", &self.shared.config.topic).finish_non_exhaustive()
    }
}

fn producer(config: &KafkaConfig, room: &Arc<Room>) -> Result<ThreadedProducer<Deliveries>, KafkaError> {
    let late = format!(
        "kafka topic {} on {} did not acknowledge within {:?}",
        config.topic,
        config.broker_list(),
        config.acknowledge_deadline,
    );
    let deliveries = Deliveries { room: Arc::clone(room), late };
    config.producer().create_with_context(deliveries).map_err(|error| refused(&error))
}

/// Asks for the topic until it is there: brokers that make topics by themselves take a moment.
/// Gives how many partitions it has.
pub(super) fn look_for_topic<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    brokers: &str,
) -> Result<i32, KafkaError> {
    let until = Instant::now() + START_DEADLINE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let metadata = client.fetch_metadata(Some(topic), left.max(START_PAUSE)).map_err(|error| {
            KafkaError::Unavailable { brokers: brokers.to_owned(), reason: error.to_string() }
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(0, |found| found.partitions().len());
        if partitions > 0 {
            return Ok(i32::try_from(partitions).unwrap_or(i32::MAX));
        }
        if Instant::now() >= until {
            return Err(KafkaError::NoTopic { topic: topic.to_owned(), brokers: brokers.to_owned() });
        }
        std::thread::sleep(START_PAUSE);
    }
}

impl Shared {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock()
    }

    /// Hands a record, whose room is taken, to librdkafka.
    fn send(&self, order: &mut Order, record: Prepared, answer: oneshot::Sender<Answer>) {
        if self.room.fatal.swap(false, Ordering::AcqRel) {
            match producer(&self.config, &self.room) {
                // Dropping it takes a moment: what is still in it fails.
                Ok(new) => drop_elsewhere(std::mem::replace(&mut order.producer, new)),
                Err(error) => tracing::error!(%error, "no producer can be made"),
            }
        }
        let bytes = record.bytes();
        let out = BaseRecord::with_opaque_to(&self.config.topic, Box::new(Delivery { answer, bytes }))
            .key(&record.key)
            .payload(&record.value)
            .timestamp(record.timestamp);
        if let Err((error, back)) = order.producer.send(out) {
            let Delivery { answer, bytes } = *back.delivery_opaque;
            let refused = match order.producer.context().append_error(&error, bytes) {
                // It has not left.
                AppendError::Unknown(reason) => AppendError::Unavailable(reason),
                refused => refused,
            };
            self.room.failed.add(1);
            self.room.give_back(bytes);
            let _ = answer.send(Err(refused));
        }
    }

    /// Takes one append, whose size is right, in its place.
    fn append(&self, order: &mut Order, record: Prepared) -> Result<oneshot::Receiver<Answer>, AppendError> {
        let (answer, outcome) = oneshot::channel();
        if order.waiting.is_empty() && self.room.take(record.bytes(), &self.config) {
            self.send(order, record, answer);
            return Ok(outcome);
        }
        if self.config.append_deadline.is_zero() || order.waiting.len() >= self.config.waiting_max {
            self.room.rejected_full.add(1);
            return Err(AppendError::Full);
        }
        let until = Instant::now() + self.config.append_deadline;
        order.waiting.push_back(Waiting { record, answer, until });
        // The task has to know of the deadline.
        self.room.freed.notify_one();
        Ok(outcome)
    }

    fn check(&self, record: &PushRecord) -> Result<(), AppendError> {
        let (size, limit) = (kafka_len(record), self.config.record_bytes_max);
        if size > limit {
            self.room.rejected_too_large.add(1);
            return Err(AppendError::TooLarge { size, limit });
        }
        Ok(())
    }

    /// Sends what waits and has room, refuses what has waited too long, and says until when the next may wait.
    fn admit(&self) -> Option<Instant> {
        let mut order = self.order();
        loop {
            let front = order.waiting.front()?;
            let (bytes, until) = (front.record.bytes(), front.until);
            let gone = front.answer.is_closed();
            let late = Instant::now() >= until;
            if !gone && !late && !self.room.take(bytes, &self.config) {
                return Some(until);
            }
            let Waiting { record, answer, .. } = order.waiting.pop_front()?;
            if gone {
                continue;
            }
            if late {
                self.room.rejected_full.add(1);
                let _ = answer.send(Err(AppendError::Full));
                continue;
            }
            self.send(&mut order, record, answer);
        }
    }
}

fn drop_elsewhere(producer: ThreadedProducer<Deliveries>) {
    // Without a thread it is dropped here, which only takes longer.
    let _ = std::thread::Builder::new().name("kafka producer ends".into()).spawn(move || drop(producer));
}

/// Admits waiting appends as acknowledgements free budget and as deadlines pass.
async fn admit_waiting(shared: Arc<Shared>) {
    loop {
        match shared.admit() {
            Some(until) => {
                let _ = tokio::time::timeout_at(until.into(), shared.room.freed.notified()).await;
            }
            None => shared.room.freed.notified().await,
        }
    }
}

fn stopped() -> AppendError {
    AppendError::Unknown("the push log has stopped".to_owned())
}

impl PushLog for KafkaPushLog {
    /// # Cancel safety
    /// A dropped call that still waits for room leaves nothing in the log; one that has left may.
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>> {
        if let Err(error) = self.shared.check(&record) {
            return Call::Ready(Err(error));
        }
        let prepared = Prepared::new(&record);
        let appended = self.shared.append(&mut self.shared.order(), prepared);
        match appended {
            Ok(outcome) => Call::pending(async move { outcome.await.unwrap_or_else(|_| Err(stopped())) }),
            Err(error) => Call::Ready(Err(error)),
        }
    }

    /// All of them go out under one lock, one behind the other. They may be for several partitions,
    /// and Kafka acknowledges each by itself: when one fails, some behind it may be in the log
    /// although they are not counted. The error is then [`AppendError::Unknown`].
    ///
    /// # Cancel safety
    /// A dropped call may leave any of them in the log.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let mut error = None;
        let mut prepared = Vec::with_capacity(records.len());
        for record in &records {
            match self.shared.check(record) {
                Ok(()) => prepared.push(Prepared::new(record)),
                Err(wrong) => {
                    error = Some(wrong);
                    break;
                }
            }
        }
        let mut outcomes = Vec::with_capacity(prepared.len());
        let mut order = self.shared.order();
        for record in prepared {
            match self.shared.append(&mut order, record) {
                Ok(outcome) => outcomes.push(outcome),
                Err(full) => {
                    error = Some(full);
                    break;
                }
            }
        }
        drop(order);
        Call::pending(async move {
            let (mut accepted, mut failed, mut is_clear) = (0, None, true);
            for outcome in outcomes {
                match (outcome.await.unwrap_or_else(|_| Err(stopped())), &failed) {
                    (Ok(()), None) => accepted += 1,
                    (Err(first), None) => failed = Some(first),
                    // Behind the one that failed.
                    (Ok(()) | Err(AppendError::Unknown(_)), Some(_)) => is_clear = false,
                    (Err(_), Some(_)) => {}
                }
            }
            let error = failed.or(error).map(|error| if is_clear { error } else { error.in_part() });
            Appended { accepted, error }
        })
    }
}
