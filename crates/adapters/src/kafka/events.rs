//! Session events and offline members as records on Kafka topics.
//!
//! A session event has the member's id as its key, or the session key of an anonymous session, so
//! that the events of one member or session stay in order.

use std::time::Duration;

use goim_ports::{Call, EventSink, LifecycleEvent, LogicError, Mid, OfflineMember, OfflineSink, SessionKey};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::config::KafkaConfig;
use super::config::refused;
use super::log::KafkaError;

/// Encodes an event as JSON.
pub type WriteEvent = fn(&LifecycleEvent) -> String;

/// Returns the key of a record about a session: the member's id, or the session key of an anonymous
/// session.
pub(super) fn key_of(mid: Mid, key: &SessionKey) -> String {
    if mid.is_anonymous() { key.to_string() } else { mid.0.to_string() }
}

/// A sink that writes session events to a topic.
#[derive(Clone)]
pub struct KafkaEvents {
    producer: FutureProducer,
    topic: String,
    write: WriteEvent,
    deadline: Duration,
}

impl KafkaEvents {
    /// Creates the sink for a topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka rejects.
    pub fn new(config: &KafkaConfig, topic: &str, write: WriteEvent) -> Result<Self, KafkaError> {
        let producer = config.producer().create().map_err(|error| refused(&error))?;
        Ok(Self { producer, topic: topic.to_owned(), write, deadline: config.delivery_timeout })
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
        let record = move |event: &LifecycleEvent| (key_of(event.mid, &event.key), write(event));
        Call::pending(async move {
            send_all(&producer, &topic, deadline, events.iter().map(record).collect()).await
        })
    }
}

async fn send_all(
    producer: &FutureProducer,
    topic: &str,
    deadline: Duration,
    records: Vec<(String, String)>,
) -> Result<(), LogicError> {
    // All records are sent before the first acknowledgement is awaited.
    let sent: Vec<_> = records
        .iter()
        .map(|(key, value)| {
            producer.send(FutureRecord::to(topic).key(key).payload(value), Timeout::After(deadline))
        })
        .collect();
    for record in sent {
        record.await.map_err(|(error, _)| LogicError::Unavailable(error.to_string()))?;
    }
    Ok(())
}

/// Encodes an offline member as JSON.
pub type WriteOffline = fn(&OfflineMember) -> String;

/// A sink that writes offline members to a topic: one record per member and message, with the
/// member's id as its key.
#[derive(Clone)]
pub struct KafkaOffline {
    producer: FutureProducer,
    topic: String,
    write: WriteOffline,
    deadline: Duration,
}

impl KafkaOffline {
    /// Creates the sink for a topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka rejects.
    pub fn new(config: &KafkaConfig, topic: &str, write: WriteOffline) -> Result<Self, KafkaError> {
        let producer = config.producer().create().map_err(|error| refused(&error))?;
        Ok(Self { producer, topic: topic.to_owned(), write, deadline: config.delivery_timeout })
    }
}

impl std::fmt::Debug for KafkaOffline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaOffline").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl OfflineSink for KafkaOffline {
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>> {
        let Self { producer, topic, write, deadline } = self.clone();
        let record = move |member: &OfflineMember| (member.mid.to_string(), write(member));
        Call::pending(async move {
            send_all(&producer, &topic, deadline, members.iter().map(record).collect()).await
        })
    }
}
