//! Packets of clients on a topic of the backend: the value is `goim.backend.HandleReq`, the key the member's number, or the session's
//! key where there is none, so that what one sends stays in order. Nobody answers on a topic: the reply is empty, and says that the
//! record is there.

use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, LogicError, Upstream, UpstreamPort};
use prost::Message as _;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;

use super::config::KafkaConfig;
use super::config::refused;
use super::events::key_of;
use super::log::{KafkaError, is_refusal};
use crate::grpc::convert::handle_req_of;

/// The writing end of the backend's topic.
#[derive(Clone)]
pub struct KafkaUpstream {
    producer: FutureProducer,
    topic: String,
}

impl KafkaUpstream {
    /// A topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka refuses. Whether the topic is there shows with the first packet.
    pub fn new(config: &KafkaConfig, topic: &str) -> Result<Self, KafkaError> {
        let producer = config.producer().create().map_err(|error| refused(&error))?;
        Ok(Self { producer, topic: topic.to_owned() })
    }
}

impl std::fmt::Debug for KafkaUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaUpstream").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl UpstreamPort for KafkaUpstream {
    fn send(&self, upstream: Upstream, timeout: Duration) -> Call<Result<Bytes, LogicError>> {
        let Self { producer, topic } = self.clone();
        Call::pending(async move {
            let key = key_of(upstream.mid, &upstream.key);
            let value = handle_req_of(upstream).encode_to_vec();
            let record = FutureRecord::to(&topic).key(&key).payload(&value);
            match producer.send(record, Timeout::After(timeout)).await {
                Ok(_) => Ok(Bytes::new()),
                Err((error, _)) => Err(failed(&error)),
            }
        })
    }
}

/// Whatever is not a clear refusal leaves open whether the backend gets the packet.
fn failed(error: &ClientError) -> LogicError {
    match error.rdkafka_error_code() {
        Some(code) if is_refusal(code) || code == RDKafkaErrorCode::QueueFull => {
            LogicError::Unavailable(error.to_string())
        }
        _ => LogicError::Late(error.to_string()),
    }
}
