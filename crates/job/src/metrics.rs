//! What an operator can see of a job.

use goim_ports::PushTarget;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = [(&'static str, &'static str); 1];

/// What became of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The comet has it.
    Delivered,
    /// The comet is not, or no longer, known. Its sessions are gone.
    NoComet,
    /// The comet says that it makes no sense.
    Refused,
    /// The comet did not take it however often it was asked, or was given up before.
    Undeliverable,
}

/// The job's counters. Shared by all its workers.
#[derive(Debug)]
pub(crate) struct Metrics {
    records: Family<Labels, Counter>,
    read_keys: Counter,
    read_room: Counter,
    read_all: Counter,
    handovers: Family<Labels, Counter>,
    delivered: Counter,
    no_comet: Counter,
    refused: Counter,
    undeliverable: Counter,
    pub(crate) read_errors: Counter,
    pub(crate) retries: Counter,
    pub(crate) worker_panics: Counter,
    pub(crate) room_calls_saved: Counter,
    pub(crate) room_batch_messages: Histogram,
    pub(crate) call_seconds: Histogram,
    pub(crate) lane_calls: Gauge,
    pub(crate) losses_told: Counter,
    pub(crate) comets_down: Gauge,
    pub(crate) in_flight_records: Gauge,
    pub(crate) in_flight_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let records = Family::<Labels, Counter>::default();
        let handovers = Family::<Labels, Counter>::default();
        let record = |kind| records.get_or_create_owned(&[("kind", kind)]);
        let handover = |result| handovers.get_or_create_owned(&[("result", result)]);
        Self {
            read_keys: record("keys"),
            read_room: record("room"),
            read_all: record("all"),
            delivered: handover("delivered"),
            no_comet: handover("no_comet"),
            refused: handover("refused"),
            undeliverable: handover("undeliverable"),
            records,
            handovers,
            read_errors: Counter::default(),
            retries: Counter::default(),
            worker_panics: Counter::default(),
            room_calls_saved: Counter::default(),
            room_batch_messages: Histogram::new([1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0]),
            call_seconds: Histogram::new(exponential_buckets(0.0005, 4.0, 8)),
            lane_calls: Gauge::default(),
            losses_told: Counter::default(),
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
            "Calls to comets by what became of them; a record for several comets counts for each",
            self.handovers.clone(),
        );
        registry.register("read_errors", "Failed reads from the push log", self.read_errors.clone());
        registry.register("retries", "Calls to comets that were made again", self.retries.clone());
        registry.register(
            "room_dispatches_skipped",
            "Calls that messages of rooms did not need, since nobody of the room is on that comet",
            self.room_calls_saved.clone(),
        );
        registry.register("worker_panics", "Workers that ended by a bug", self.worker_panics.clone());
        registry.register(
            "room_batch_messages",
            "Messages in one batch of a room for one comet",
            self.room_batch_messages.clone(),
        );
        registry.register(
            "call_seconds",
            "Time until a comet answered, for calls that were not answered on the spot",
            self.call_seconds.clone(),
        );
        registry.register("lane_calls", "Calls that wait in lanes or are under way", self.lane_calls.clone());
        registry.register(
            "losses_notified",
            "Comets that were told that messages for them were dropped",
            self.losses_told.clone(),
        );
        registry.register(
            "comets_down",
            "Comets that were given up until they answer",
            self.comets_down.clone(),
        );
        registry.register(
            "in_flight_records",
            "Records read and not handed over",
            self.in_flight_records.clone(),
        );
        registry.register("in_flight_bytes", "Bytes of those records", self.in_flight_bytes.clone());
    }

    /// Calls that were answered on the spot.
    pub(crate) fn delivered(&self, calls: usize) {
        self.delivered.inc_by(calls as u64);
    }

    pub(crate) fn read(&self, target: &PushTarget) {
        match target {
            PushTarget::Keys { .. } => &self.read_keys,
            PushTarget::Room(_) => &self.read_room,
            PushTarget::All { .. } => &self.read_all,
        }
        .inc();
    }

    pub(crate) fn handed_over(&self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => &self.delivered,
            Outcome::NoComet => &self.no_comet,
            Outcome::Refused => &self.refused,
            Outcome::Undeliverable => &self.undeliverable,
        }
        .inc();
    }
}
