//! What happens to sessions, and who is away, on topics. Of sessions: one record an event, JSON, the member's number or the session's key as its key, so that what
//! happens to one stays in order.

use std::time::Duration;

use goim_ports::{Call, EventSink, LifecycleEvent, LogicError, Mid, OfflineMember, OfflineSink, SessionKey};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::config::KafkaConfig;
use super::config::refused;
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
    deadline: Duration,
}

impl KafkaEvents {
    /// A topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka refuses.
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
    // All are on their way before the first is waited for.
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

/// How a member who is away is written.
pub type WriteAway = fn(&OfflineMember) -> String;

/// Members who are away, on a topic: one record a member and message, the member's number as its key.
#[derive(Clone)]
pub struct KafkaAway {
    producer: FutureProducer,
    topic: String,
    write: WriteAway,
    deadline: Duration,
}

impl KafkaAway {
    /// A topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka refuses.
    pub fn new(config: &KafkaConfig, topic: &str, write: WriteAway) -> Result<Self, KafkaError> {
        let producer = config.producer().create().map_err(|error| refused(&error))?;
        Ok(Self { producer, topic: topic.to_owned(), write, deadline: config.delivery_timeout })
    }
}

impl std::fmt::Debug for KafkaAway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaAway").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl OfflineSink for KafkaAway {
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>> {
        let Self { producer, topic, write, deadline } = self.clone();
        let record = move |member: &OfflineMember| (member.mid.to_string(), write(member));
        Call::pending(async move {
            send_all(&producer, &topic, deadline, members.iter().map(record).collect()).await
        })
    }
}
