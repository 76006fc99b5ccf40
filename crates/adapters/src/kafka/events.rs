//! What happens to sessions, on a topic: one record an event, JSON, the member's number or the session's key as its key, so that what
//! happens to one stays in order.

use goim_ports::{Call, EventSink, LifecycleEvent, LogicError, Mid, SessionKey};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::config::KafkaConfig;
use super::log::KafkaError;

/// How an event is written.
pub type WriteEvent = fn(&LifecycleEvent) -> String;

/// The key of a record about a session: the member, so that what is of one stays in order, or the session's own where there is none.
pub(super) fn key_of(mid: Mid, key: &SessionKey) -> String {
    if mid.is_anonymous() { key.to_string() } else { mid.0.to_string() }
}

/// The writing end of the events' topic.
#[derive(Clone)]
pub struct KafkaEvents {
    producer: FutureProducer,
    topic: String,
    write: WriteEvent,
    deadline: std::time::Duration,
}

impl KafkaEvents {
    /// A topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka refuses.
    pub fn new(config: &KafkaConfig, topic: &str, write: WriteEvent) -> Result<Self, KafkaError> {
        let producer = config.producer().create().map_err(|error| KafkaError::Config(error.to_string()))?;
        Ok(Self { producer, topic: topic.to_owned(), write, deadline: config.acknowledge_deadline })
    }
}

impl std::fmt::Debug for KafkaEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaEvents").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl EventSink for KafkaEvents {
    fn deliver(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        let Self { producer, topic, write, deadline } = self.clone();
        Call::pending(async move {
            let records: Vec<(String, String)> =
                events.iter().map(|event| (key_of(event.mid, &event.key), write(event))).collect();
            // All are on their way before the first is waited for.
            let sent: Vec<_> = records
                .iter()
                .map(|(key, value)| {
                    producer.send(FutureRecord::to(&topic).key(key).payload(value), Timeout::After(deadline))
                })
                .collect();
            for record in sent {
                record.await.map_err(|(error, _)| LogicError::Unavailable(error.to_string()))?;
            }
            Ok(())
        })
    }
}
