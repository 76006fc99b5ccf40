//! The push log on Kafka: goim's topic, keys, values and partitions, so that logic and job of
//! either kind share it.
//!
//! Logic writes with [`KafkaPushLog`], job reads with [`KafkaPushLogReader`]. `record` has the
//! format, which is byte for byte goim's. The guarantees are stronger: an append completes when all
//! replicas have the record, a retry does not write it twice, and its offset is committed only
//! after the comets accepted it.

mod config;
mod events;
mod group;
mod group_member;
mod group_start;
mod log;
mod metrics;
mod offset_keeper;
mod partition_progress;
mod reader;
mod record;
mod upstream;

pub use config::{DeadLetter, KafkaConfig, OffsetReset};
pub use events::{KafkaEvents, KafkaOffline, WriteEvent, WriteOffline};
pub use group::GroupError;
pub use log::{KafkaError, KafkaPushLog};
pub use metrics::{KafkaReadStats, KafkaWriteStats};
pub use reader::KafkaPushLogReader;
pub use upstream::KafkaUpstream;

#[cfg(test)]
mod tests;
