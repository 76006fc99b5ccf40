//! Client packets as records on a Kafka topic: the value is `goim.backend.HandleReq`, the key is
//! the member's id, or the session key of an anonymous session, so that the packets of one sender
//! stay in order.
//!
//! A topic has no replies: the empty reply confirms that the record is written.

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

/// An upstream that writes packets to a topic.
#[derive(Clone)]
pub struct KafkaUpstream {
    producer: FutureProducer,
    topic: String,
}

impl KafkaUpstream {
    /// Creates the upstream for a topic on the brokers of the push log.
    ///
    /// # Errors
    /// [`KafkaError::Config`] for a property that librdkafka rejects. A missing topic is reported
    /// with the first packet.
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

/// Maps an error. Unless it is a clear refusal, the packet may have been written.
fn failed(error: &ClientError) -> LogicError {
    match error.rdkafka_error_code() {
        Some(code) if is_refusal(code) || code == RDKafkaErrorCode::QueueFull => {
            LogicError::Unavailable(error.to_string())
        }
        _ => LogicError::Late(error.to_string()),
    }
}
