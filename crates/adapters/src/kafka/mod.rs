//! The push log on Kafka: goim's topic, keys, values and partitions, so that logic and job of either kind share it.
//!
//! [`KafkaPushLog`] is logic's end, [`KafkaPushLogReader`] job's. What a record looks like is in `record`, and is goim's to the
//! byte. What is ours is how much is promised: a record is acknowledged by all replicas before its publisher hears so, written once
//! though the connection breaks in between, and its offset is committed only after the comets took it.

mod begin;
mod config;
mod events;
mod group;
mod keeper;
mod log;
mod member;
mod metrics;
mod places;
mod reader;
mod record;
mod upstream;

pub use config::{DeadLetter, KafkaConfig, OffsetReset};
pub use events::{KafkaAway, KafkaEvents, WriteAway, WriteEvent};
pub use group::GroupError;
pub use log::{KafkaError, KafkaPushLog};
pub use metrics::{KafkaReadStats, KafkaWriteStats};
pub use reader::KafkaPushLogReader;
pub use upstream::KafkaUpstream;

#[cfg(test)]
mod tests;
