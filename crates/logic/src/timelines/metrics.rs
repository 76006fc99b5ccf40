//! The metrics of timelines.

use goim_ports::TimelineError;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::error::TimelineRequestError;
use super::long_poll::LongPolls;

/// The metrics of timelines.
pub(super) struct TimelineMetrics {
    pub(super) appended: Counter,
    pub(super) duplicates: Counter,
    pub(super) append_seconds: Histogram,
    pub(super) read: Counter,
    pub(super) gaps: Counter,
    /// Messages whose sessions could not be notified.
    pub(super) notify_failed: Counter,
    /// Long polls that were refused.
    pub(super) long_polls_refused: Counter,
    /// Long polls that the backend ended.
    pub(super) long_polls_ended: Counter,
    pub(super) requests: Family<Vec<(&'static str, &'static str)>, Counter>,
    /// Messages of members that exceed a quota, by quota.
    pub(super) limited: Family<Vec<(&'static str, &'static str)>, Counter>,
}

/// The number of long polls, read when metrics are collected.
pub(super) struct LongPollCount(pub(super) LongPolls);

impl std::fmt::Debug for LongPollCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LongPollCount")
    }
}

impl Collector for LongPollCount {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(self.0.count()).unwrap_or(i64::MAX));
        let help = "Streams and requests that wait for messages";
        let encoder = encoder.encode_descriptor("goim_logic_long_polls", help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }
}

impl Default for TimelineMetrics {
    fn default() -> Self {
        let (appended, duplicates, read, gaps, notify_failed, requests, limited) = Default::default();
        let (long_polls_refused, long_polls_ended) = Default::default();
        // 100 µs on a fast disk to 13 s on an overloaded one.
        let append_seconds = Histogram::new(exponential_buckets(0.000_1, 2.5, 14));
        Self {
            appended,
            duplicates,
            append_seconds,
            read,
            gaps,
            notify_failed,
            long_polls_refused,
            long_polls_ended,
            requests,
            limited,
        }
    }
}

impl TimelineMetrics {
    pub(super) fn request(&self, kind: &'static str, result: &Result<(), &TimelineRequestError>) {
        let result = match result {
            Ok(()) => "ok",
            Err(TimelineRequestError::Forbidden(_) | TimelineRequestError::Reserved(_)) => "forbidden",
            Err(TimelineRequestError::Limited { .. }) => "limited",
            Err(
                TimelineRequestError::None
                | TimelineRequestError::Invalid(_)
                | TimelineRequestError::TooLarge { .. },
            ) => "invalid",
            Err(TimelineRequestError::Store(TimelineError::Busy(_)) | TimelineRequestError::LongPoll(_)) => {
                "busy"
            }
            Err(TimelineRequestError::Store(_) | TimelineRequestError::Undecided(_)) => "unavailable",
        };
        self.requests.get_or_create(&vec![("kind", kind), ("result", result)]).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "goim_logic_timeline_requests",
            "Requests about timelines, by kind and result",
            self.requests.clone(),
        );
        registry.register(
            "goim_logic_timeline_sends_limited",
            "Messages of members that exceeded a quota, by quota",
            self.limited.clone(),
        );
        registry.register(
            "goim_logic_timeline_appended",
            "Messages appended to timelines",
            self.appended.clone(),
        );
        registry.register(
            "goim_logic_timeline_duplicates",
            "Messages that were already stored, by their idempotency key",
            self.duplicates.clone(),
        );
        registry.register_with_unit(
            "goim_logic_timeline_append",
            "Time until the messages of a request were durable",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        registry.register("goim_logic_timeline_read", "Messages read from timelines", self.read.clone());
        registry.register(
            "goim_logic_timeline_gaps",
            "Syncs from a position after which messages are missing",
            self.gaps.clone(),
        );
        registry.register(
            "goim_logic_long_polls_refused",
            "Long polls and streams that were refused, because a limit was reached",
            self.long_polls_refused.clone(),
        );
        registry.register(
            "goim_logic_long_polls_ended",
            "Long polls and streams that the backend ended",
            self.long_polls_ended.clone(),
        );
        registry.register(
            "goim_logic_timeline_notify_failed",
            "Messages whose sessions could not be notified; the next sync finds them",
            self.notify_failed.clone(),
        );
    }
}
