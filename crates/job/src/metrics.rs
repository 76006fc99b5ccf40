//! The metrics of a job, all named `job_…`.

use goim_ports::PushTarget;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = [(&'static str, &'static str); 1];

/// The result of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The comet has accepted it.
    Delivered,
    /// The comet is not in the pool. Its sessions have ended.
    NoComet,
    /// The comet rejected it as invalid.
    Refused,
    /// All attempts failed, or the comet was down.
    Undeliverable,
}

/// The counters of a job, shared by all its workers.
#[derive(Debug)]
pub(crate) struct Metrics {
    records: Family<Labels, Counter>,
    read_keys: Counter,
    read_room: Counter,
    read_all: Counter,
    dispatches: Family<Labels, Counter>,
    delivered: Counter,
    no_comet: Counter,
    refused: Counter,
    undeliverable: Counter,
    pub(crate) read_errors: Counter,
    pub(crate) retries: Counter,
    pub(crate) worker_panics: Counter,
    pub(crate) room_dispatches_skipped: Counter,
    pub(crate) room_batch_messages: Histogram,
    pub(crate) call_seconds: Histogram,
    pub(crate) lane_calls: Gauge,
    pub(crate) losses_notified: Counter,
    pub(crate) comets_down: Gauge,
    pub(crate) in_flight_records: Gauge,
    pub(crate) in_flight_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let records = Family::<Labels, Counter>::default();
        let dispatches = Family::<Labels, Counter>::default();
        let record = |kind| records.get_or_create_owned(&[("kind", kind)]);
        let dispatch = |result| dispatches.get_or_create_owned(&[("result", result)]);
        Self {
            read_keys: record("keys"),
            read_room: record("room"),
            read_all: record("all"),
            delivered: dispatch("delivered"),
            no_comet: dispatch("no_comet"),
            refused: dispatch("refused"),
            undeliverable: dispatch("undeliverable"),
            records,
            dispatches,
            read_errors: Counter::default(),
            retries: Counter::default(),
            worker_panics: Counter::default(),
            room_dispatches_skipped: Counter::default(),
            room_batch_messages: Histogram::new([1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0]),
            call_seconds: Histogram::new(exponential_buckets(0.0005, 4.0, 8)),
            lane_calls: Gauge::default(),
            losses_notified: Counter::default(),
            comets_down: Gauge::default(),
            in_flight_records: Gauge::default(),
            in_flight_bytes: Gauge::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("job");
        registry.register("records_read", "Records read from the push log", self.records.clone());
        registry.register(
            "dispatches",
            "Deliveries to comets by result; a record for several comets counts for each",
            self.dispatches.clone(),
        );
        registry.register("read_errors", "Failed reads from the push log", self.read_errors.clone());
        registry.register("retries", "Repeated calls to comets", self.retries.clone());
        registry.register(
            "room_dispatches_skipped",
            "Room batches not sent because the comet had no session in the room",
            self.room_dispatches_skipped.clone(),
        );
        registry.register("worker_panics", "Lane workers that ended by a panic", self.worker_panics.clone());
        registry.register(
            "room_batch_messages",
            "Messages per room batch and comet",
            self.room_batch_messages.clone(),
        );
        registry.register(
            "call_seconds",
            "Duration of calls to comets that were not answered immediately",
            self.call_seconds.clone(),
        );
        registry.register("lane_calls", "Deliveries queued in lanes or in flight", self.lane_calls.clone());
        registry.register(
            "losses_notified",
            "Comets notified that messages for them were dropped",
            self.losses_notified.clone(),
        );
        registry.register(
            "comets_down",
            "Comets that are down: deliveries to them are dropped until they answer",
            self.comets_down.clone(),
        );
        registry.register(
            "in_flight_records",
            "Records read and not yet delivered",
            self.in_flight_records.clone(),
        );
        registry.register(
            "in_flight_bytes",
            "Bytes of records read and not yet delivered",
            self.in_flight_bytes.clone(),
        );
    }

    /// Counts deliveries on the fast path, which the comet accepted immediately.
    pub(crate) fn delivered(&self, calls: usize) {
        self.delivered.inc_by(calls as u64);
    }

    /// Counts a record that was read, by its target.
    pub(crate) fn record_read(&self, target: &PushTarget) {
        match target {
            PushTarget::Keys { .. } => &self.read_keys,
            PushTarget::Room(_) => &self.read_room,
            PushTarget::All { .. } => &self.read_all,
        }
        .inc();
    }

    /// Counts a delivery by its outcome.
    pub(crate) fn delivery_ended(&self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => &self.delivered,
            Outcome::NoComet => &self.no_comet,
            Outcome::Refused => &self.refused,
            Outcome::Undeliverable => &self.undeliverable,
        }
        .inc();
    }
}
