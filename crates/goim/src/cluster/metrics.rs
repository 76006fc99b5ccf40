//! Metrics of the push log on Kafka and of Redis, read on each scrape.

use std::fmt;
use std::sync::Arc;

use goim_adapters::kafka::{KafkaPushLog, KafkaReadStats};
use goim_adapters::redis::RedisStore;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Adds those of the producer.
pub(super) fn register_log(registry: &mut Registry, log: Arc<KafkaPushLog>) {
    let read = move || {
        let stats = log.stats();
        let gauges = vec![
            ("goim_push_log_records", "Records waiting for their acknowledgement", stats.records as u64),
            ("goim_push_log_bytes", "Bytes of those records, with their overhead", stats.bytes as u64),
            ("goim_push_log_waiting", "Pushes waiting for space in the log", stats.waiting as u64),
        ];
        let counters = vec![
            ("goim_push_log_appended", "Records acknowledged", stats.appended),
            (
                "goim_push_log_failed",
                "Records with an unknown outcome: they may or may not be in the log",
                stats.failed,
            ),
            ("goim_push_log_rejected_full", "Records rejected because the log was full", stats.rejected_full),
            (
                "goim_push_log_rejected_too_large",
                "Records rejected because of their size",
                stats.rejected_too_large,
            ),
        ];
        (gauges, counters)
    };
    registry.register_collector(Box::new(Figures(Box::new(read))));
}

/// Adds those of the consumer.
pub(super) fn register_reader(
    registry: &mut Registry,
    stats: impl Fn() -> KafkaReadStats + Send + Sync + 'static,
) {
    let read = move || {
        let stats = stats();
        let gauges = vec![("goim_kafka_partitions", "Partitions assigned to this process", stats.partitions)];
        let counters = vec![
            ("goim_kafka_read", "Records read", stats.read),
            ("goim_kafka_poison", "Records skipped because they are not pushes", stats.poison),
            ("goim_kafka_rebalances", "Rebalances of the partitions of this process", stats.rebalances),
            ("goim_kafka_read_errors", "Errors of brokers and connections while reading", stats.errors),
        ];
        (gauges, counters)
    };
    registry.register_collector(Box::new(Figures(Box::new(read))));
}

/// Adds those of Redis.
pub(super) fn register_redis(registry: &mut Registry, store: RedisStore) {
    let read = move || {
        let stats = store.stats();
        let gauges = vec![
            (
                "goim_redis_refuses_writes",
                "1 while Redis answers but rejects writes",
                u64::from(stats.refuses_writes),
            ),
            ("goim_redis_unavailable", "1 while Redis does not answer", u64::from(stats.is_unavailable)),
            (
                "goim_redis_comets_without_lease",
                "Comets that are listed without a lease because they answer probes",
                stats.without_lease,
            ),
        ];
        let counters = vec![
            ("goim_redis_writes_refused", "Commands that Redis rejected", stats.refused),
            ("goim_redis_losses", "Detected losses of the data on Redis", stats.losses),
        ];
        (gauges, counters)
    };
    registry.register_collector(Box::new(Figures(Box::new(read))));
}

type Rows = Vec<(&'static str, &'static str, u64)>;

/// Gauges and counters, read together.
struct Figures(Box<dyn Fn() -> (Rows, Rows) + Send + Sync>);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (gauges, counters) = (self.0)();
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
