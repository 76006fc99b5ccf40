//! The writer: sends records in the order of their appends, and completes an append when all
//! replicas have the record.
//!
//! The bounds are enforced here and not in librdkafka: records and bytes in flight, and appends
//! that wait for budget. An append with budget is passed to librdkafka immediately; others queue,
//! and a task sends them in order as acknowledgements arrive. Both happen under one lock, so no
//! append overtakes another.

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

/// How long startup waits for the topic.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two requests.
const START_PAUSE: Duration = Duration::from_millis(200);
/// The memory that a record in flight takes besides its key and value, in bytes.
const RECORD_OVERHEAD: usize = 256;

/// Why the push log on Kafka cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// librdkafka rejects a property.
    #[error("kafka: {0}")]
    Config(String),
    /// No broker answers.
    #[error("kafka brokers {brokers} do not answer: {reason}")]
    Unavailable {
        /// Which brokers were asked.
        brokers: String,
        /// The error of the client.
        reason: String,
    },
    /// The topic does not exist, and the brokers do not create it.
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

type AppendOutcome = Result<(), AppendError>;

/// The writer of the push log on Kafka.
pub struct KafkaPushLog {
    state: Arc<WriterState>,
    _admit_task: AbortOnDropHandle<()>,
}

struct WriterState {
    config: KafkaConfig,
    budget: Arc<InFlightBudget>,
    queue: Mutex<SendQueue>,
}

/// The producer, and the appends that wait for budget, in order.
struct SendQueue {
    producer: ThreadedProducer<DeliveryContext>,
    waiting: VecDeque<WaitingAppend>,
}

/// An append that waits for budget.
struct WaitingAppend {
    record: EncodedRecord,
    answer: oneshot::Sender<AppendOutcome>,
    deadline: Instant,
}

/// A record as it is sent.
struct EncodedRecord {
    key: String,
    value: Vec<u8>,
    timestamp: i64,
}

/// The records and bytes in flight, and the counters of the writer.
#[derive(Default)]
struct InFlightBudget {
    in_flight: Mutex<InFlight>,
    /// Notified when budget is released, and when an append begins to wait.
    freed: Notify,
    /// librdkafka reported a fatal error: the producer must be replaced.
    is_fatal: AtomicBool,
    appended: Count,
    failed: Count,
    rejected_full: Count,
    rejected_too_large: Count,
}

#[derive(Debug, Default, Clone, Copy)]
struct InFlight {
    records: usize,
    bytes: usize,
}

/// The state of one record in flight.
struct PendingDelivery {
    answer: oneshot::Sender<AppendOutcome>,
    bytes: usize,
}

/// The callbacks of librdkafka, which run on its thread.
struct DeliveryContext {
    budget: Arc<InFlightBudget>,
    timeout_text: String,
}

impl ClientContext for DeliveryContext {
    fn error(&self, error: ClientError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.budget.is_fatal.store(true, Ordering::Release);
            tracing::error!(reason, "kafka: fatal producer error; replacing the producer");
        } else {
            tracing::debug!(%error, reason, "kafka");
        }
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Box<PendingDelivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<PendingDelivery>) {
        let PendingDelivery { answer, bytes } = *delivery;
        let outcome = match result {
            Ok(_) => {
                self.budget.appended.add(1);
                Ok(())
            }
            Err((error, _)) => {
                self.budget.failed.add(1);
                Err(self.append_error(error, bytes))
            }
        };
        self.budget.release(bytes);
        // A caller that dropped its call does not want the result.
        let _ = answer.send(outcome);
    }
}

impl DeliveryContext {
    /// Maps the error of a record in flight. Everything but a clear refusal is
    /// [`AppendError::Unknown`].
    fn append_error(&self, error: &ClientError, bytes: usize) -> AppendError {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                let size = bytes.saturating_sub(RECORD_OVERHEAD);
                AppendError::TooLarge { size, limit: size.saturating_sub(1) }
            }
            Some(RDKafkaErrorCode::MessageTimedOut) => AppendError::Unknown(self.timeout_text.clone()),
            Some(code) if is_refusal(code) => AppendError::Unavailable(format!("kafka: {error}")),
            _ => AppendError::Unknown(format!("kafka: {error}")),
        }
    }
}

/// Returns whether the error means that the broker has not written the record and will not.
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

impl InFlightBudget {
    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock()
    }

    /// Reserves budget for a record. An empty budget accepts a record of any size.
    fn try_reserve(&self, bytes: usize, config: &KafkaConfig) -> bool {
        let mut out = self.in_flight();
        let fits = out.records < config.records_max && out.bytes.saturating_add(bytes) <= config.bytes_max;
        if fits || out.records == 0 {
            *out = InFlight { records: out.records + 1, bytes: out.bytes + bytes };
            return true;
        }
        false
    }

    fn release(&self, bytes: usize) {
        let mut out = self.in_flight();
        *out = InFlight { records: out.records.saturating_sub(1), bytes: out.bytes.saturating_sub(bytes) };
        drop(out);
        self.freed.notify_one();
    }
}

impl EncodedRecord {
    fn new(record: &PushRecord) -> Self {
        let key = record.partition_key().into_owned();
        Self { key, value: record::value(record), timestamp: record::timestamp(record) }
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + RECORD_OVERHEAD
    }
}

impl KafkaPushLog {
    /// Connects and checks that the topic exists. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`KafkaError`], after 10 s at most.
    pub async fn start(config: KafkaConfig) -> Result<Arc<Self>, KafkaError> {
        let budget = Arc::new(InFlightBudget::default());
        let producer = producer(&config, &budget)?;
        let topic = config.topic.clone();
        let brokers = config.broker_list();
        let checked = tokio::task::spawn_blocking(move || {
            let found = wait_for_topic(producer.client(), &topic, &brokers);
            found.map(|_| producer)
        });
        let producer = checked.await.map_err(|error| KafkaError::Config(error.to_string()))??;
        let queue = Mutex::new(SendQueue { producer, waiting: VecDeque::new() });
        let state = Arc::new(WriterState { config, budget, queue });
        let admit_task = AbortOnDropHandle::new(tokio::spawn(admit_waiting(Arc::clone(&state))));
        Ok(Arc::new(Self { state, _admit_task: admit_task }))
    }

    /// Returns the current figures.
    #[must_use]
    pub fn stats(&self) -> KafkaWriteStats {
        let budget = &self.state.budget;
        let in_flight = *budget.in_flight();
        KafkaWriteStats {
            records: in_flight.records,
            bytes: in_flight.bytes,
            waiting: self.state.queue().waiting.len(),
            appended: budget.appended.get(),
            rejected_full: budget.rejected_full.get(),
            rejected_too_large: budget.rejected_too_large.get(),
            failed: budget.failed.get(),
        }
    }
}

impl std::fmt::Debug for KafkaPushLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaPushLog").field("topic", &self.state.config.topic).finish_non_exhaustive()
    }
}

fn producer(
    config: &KafkaConfig,
    budget: &Arc<InFlightBudget>,
) -> Result<ThreadedProducer<DeliveryContext>, KafkaError> {
    let timeout_text = format!(
        "kafka topic {} on {} did not acknowledge within {:?}",
        config.topic,
        config.broker_list(),
        config.delivery_timeout,
    );
    let deliveries = DeliveryContext { budget: Arc::clone(budget), timeout_text };
    config.producer().create_with_context(deliveries).map_err(|error| refused(&error))
}

/// Waits until the topic exists, and returns the number of its partitions. Brokers that create
/// topics automatically take a moment.
pub(super) fn wait_for_topic<C: ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    brokers: &str,
) -> Result<i32, KafkaError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let metadata = client.fetch_metadata(Some(topic), left.max(START_PAUSE)).map_err(|error| {
            KafkaError::Unavailable { brokers: brokers.to_owned(), reason: error.to_string() }
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(0, |found| found.partitions().len());
        if partitions > 0 {
            return Ok(i32::try_from(partitions).unwrap_or(i32::MAX));
        }
        if Instant::now() >= deadline {
            return Err(KafkaError::NoTopic { topic: topic.to_owned(), brokers: brokers.to_owned() });
        }
        std::thread::sleep(START_PAUSE);
    }
}

impl WriterState {
    fn queue(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock()
    }

    /// Passes a record to librdkafka. Its budget is reserved.
    fn send(&self, queue: &mut SendQueue, record: EncodedRecord, answer: oneshot::Sender<AppendOutcome>) {
        if self.budget.is_fatal.swap(false, Ordering::AcqRel) {
            match producer(&self.config, &self.budget) {
                // Dropping a producer blocks until its records have failed.
                Ok(new) => drop_in_background(std::mem::replace(&mut queue.producer, new)),
                Err(error) => tracing::error!(%error, "the producer cannot be replaced"),
            }
        }
        let bytes = record.bytes();
        let out = BaseRecord::with_opaque_to(&self.config.topic, Box::new(PendingDelivery { answer, bytes }))
            .key(&record.key)
            .payload(&record.value)
            .timestamp(record.timestamp);
        if let Err((error, back)) = queue.producer.send(out) {
            let PendingDelivery { answer, bytes } = *back.delivery_opaque;
            let refused = match queue.producer.context().append_error(&error, bytes) {
                // The record was not sent.
                AppendError::Unknown(reason) => AppendError::Unavailable(reason),
                refused => refused,
            };
            self.budget.failed.add(1);
            self.budget.release(bytes);
            let _ = answer.send(Err(refused));
        }
    }

    /// Sends a checked record, or queues it.
    fn append(
        &self,
        queue: &mut SendQueue,
        record: EncodedRecord,
    ) -> Result<oneshot::Receiver<AppendOutcome>, AppendError> {
        let (answer, outcome) = oneshot::channel();
        if queue.waiting.is_empty() && self.budget.try_reserve(record.bytes(), &self.config) {
            self.send(queue, record, answer);
            return Ok(outcome);
        }
        if self.config.append_timeout.is_zero() || queue.waiting.len() >= self.config.waiting_max {
            self.budget.rejected_full.add(1);
            return Err(AppendError::Full);
        }
        let deadline = Instant::now() + self.config.append_timeout;
        queue.waiting.push_back(WaitingAppend { record, answer, deadline });
        // The task must learn the new deadline.
        self.budget.freed.notify_one();
        Ok(outcome)
    }

    fn check(&self, record: &PushRecord) -> Result<(), AppendError> {
        let (size, limit) = (kafka_len(record), self.config.record_bytes_max);
        if size > limit {
            self.budget.rejected_too_large.add(1);
            return Err(AppendError::TooLarge { size, limit });
        }
        Ok(())
    }

    /// Sends waiting appends that have budget, refuses those past their deadline, and returns the
    /// next deadline.
    fn admit(&self) -> Option<Instant> {
        let mut queue = self.queue();
        loop {
            let front = queue.waiting.front()?;
            let (bytes, deadline) = (front.record.bytes(), front.deadline);
            let is_cancelled = front.answer.is_closed();
            let is_late = Instant::now() >= deadline;
            if !is_cancelled && !is_late && !self.budget.try_reserve(bytes, &self.config) {
                return Some(deadline);
            }
            let WaitingAppend { record, answer, .. } = queue.waiting.pop_front()?;
            if is_cancelled {
                continue;
            }
            if is_late {
                self.budget.rejected_full.add(1);
                let _ = answer.send(Err(AppendError::Full));
                continue;
            }
            self.send(&mut queue, record, answer);
        }
    }
}

/// Drops a producer on another thread.
fn drop_in_background(producer: ThreadedProducer<DeliveryContext>) {
    // Without a thread it is dropped here, which blocks for longer.
    let _ = std::thread::Builder::new().name("kafka producer ends".into()).spawn(move || drop(producer));
}

/// Admits waiting appends as acknowledgements free budget and as deadlines pass.
async fn admit_waiting(state: Arc<WriterState>) {
    loop {
        match state.admit() {
            Some(deadline) => {
                let _ = tokio::time::timeout_at(deadline.into(), state.budget.freed.notified()).await;
            }
            None => state.budget.freed.notified().await,
        }
    }
}

fn stopped() -> AppendError {
    AppendError::Unknown("the push log has stopped".to_owned())
}

impl PushLog for KafkaPushLog {
    /// # Cancel safety
    /// A dropped call that still waits for budget leaves nothing in the log. A record that was sent
    /// may still be written.
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>> {
        if let Err(error) = self.state.check(&record) {
            return Call::Ready(Err(error));
        }
        let prepared = EncodedRecord::new(&record);
        let appended = self.state.append(&mut self.state.queue(), prepared);
        match appended {
            Ok(outcome) => Call::pending(async move { outcome.await.unwrap_or_else(|_| Err(stopped())) }),
            Err(error) => Call::Ready(Err(error)),
        }
    }

    /// All records are sent under one lock, in order. They may go to several partitions, and Kafka
    /// acknowledges each one separately. When one fails, later ones may be in the log although they
    /// are not counted; the error is then [`AppendError::Unknown`].
    ///
    /// # Cancel safety
    /// A dropped call may leave any of the records in the log.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let mut error = None;
        let mut prepared = Vec::with_capacity(records.len());
        for record in &records {
            match self.state.check(record) {
                Ok(()) => prepared.push(EncodedRecord::new(record)),
                Err(wrong) => {
                    error = Some(wrong);
                    break;
                }
            }
        }
        let mut outcomes = Vec::with_capacity(prepared.len());
        let mut queue = self.state.queue();
        for record in prepared {
            match self.state.append(&mut queue, record) {
                Ok(outcome) => outcomes.push(outcome),
                Err(full) => {
                    error = Some(full);
                    break;
                }
            }
        }
        drop(queue);
        Call::pending(async move {
            let (mut accepted, mut failed, mut is_clear) = (0, None, true);
            for outcome in outcomes {
                match (outcome.await.unwrap_or_else(|_| Err(stopped())), &failed) {
                    (Ok(()), None) => accepted += 1,
                    (Err(first), None) => failed = Some(first),
                    // A later record is in the log, or may be.
                    (Ok(()) | Err(AppendError::Unknown(_)), Some(_)) => is_clear = false,
                    (Err(_), Some(_)) => {}
                }
            }
            let error = failed.or(error).map(|error| if is_clear { error } else { error.in_part() });
            Appended { accepted, error }
        })
    }
}
