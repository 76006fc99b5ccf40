//! Metrics of the push log between logic and job, read on each scrape.

use std::fmt;
use std::sync::Arc;

use goim_adapters::memory::{MemoryPushLog, PushLogStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Adds them to `registry`.
pub(crate) fn register(registry: &mut Registry, log: Arc<MemoryPushLog>) {
    registry.register_collector(Box::new(Depth(log)));
}

#[derive(Debug)]
struct Depth(Arc<MemoryPushLog>);

impl Collector for Depth {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let PushLogStats {
            records,
            bytes,
            records_peak,
            bytes_peak,
            waiting,
            appended,
            rejected_full,
            rejected_too_large,
        } = self.0.stats();
        for (name, help, value) in [
            ("goim_push_log_records", "Records accepted and not delivered yet", records),
            ("goim_push_log_records_peak", "The highest number of records so far", records_peak),
            ("goim_push_log_bytes", "Bytes of those records, with their overhead", bytes),
            ("goim_push_log_bytes_peak", "The highest number of bytes so far", bytes_peak),
            ("goim_push_log_waiting", "Pushes waiting for space in the log", waiting),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in [
            ("goim_push_log_appended", "Records accepted", appended),
            ("goim_push_log_rejected_full", "Records rejected because the log was full", rejected_full),
            (
                "goim_push_log_rejected_too_large",
                "Records rejected because of their size",
                rejected_too_large,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
