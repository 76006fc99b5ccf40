//! The metrics of logic. All series are created at the start, so that counting is one addition and
//! no look-up.

use goim_ports::AuthFailure;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::http::table::Route;

/// The metrics of one logic.
pub(crate) struct Metrics {
    pub(crate) connects: ConnectCounters,
    /// Tokens presented by open sessions.
    pub(crate) refreshes: ConnectCounters,
    pub(crate) upstream: UpstreamCounters,
    /// By route.
    pub(crate) routes: RouteFamilies,
    pub(crate) pushes: PushCounters,
    pub(crate) requests: RequestCounters,
    /// Open HTTP connections.
    pub(crate) connections: Gauge,
    /// The time to append the records of a request to the push log.
    pub(crate) append_seconds: Histogram,
    /// Answers with old room counts, because the directory did not answer.
    pub(crate) stale_counts: Counter,
}

/// Requests for a session, or tokens presented, by result.
#[derive(Clone)]
pub(crate) struct ConnectCounters {
    family: Family<ResultLabel, Counter>,
    accepted: Counter,
    /// In the order of [`AuthFailure::ALL`].
    refused: [Counter; AuthFailure::ALL.len()],
}

impl ConnectCounters {
    /// Counts one result; `None` is success.
    pub(crate) fn count(&self, refused: Option<AuthFailure>) {
        match refused.and_then(|reason| AuthFailure::ALL.iter().position(|other| *other == reason)) {
            None => self.accepted.inc(),
            Some(index) => self.refused[index].inc(),
        };
    }
}

/// Packets from clients, by whether they had a handler.
pub(crate) struct UpstreamCounters {
    family: Family<ResultLabel, Counter>,
    pub(crate) handled: Counter,
    pub(crate) unhandled: Counter,
}

/// Packets sent to the backend, by route.
pub(crate) struct RouteFamilies {
    calls: Family<RouteLabels, Counter>,
    retries: Family<RouteLabel, Counter>,
    in_flight: Family<RouteLabel, Gauge>,
    seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    result: &'static str,
}

impl RouteFamilies {
    /// Returns the metrics of the route with this name.
    pub(crate) fn of(&self, route: &str) -> RouteMetrics {
        let label = || RouteLabel { route: route.to_owned() };
        let calls = |result| self.calls.get_or_create_owned(&RouteLabels { route: route.to_owned(), result });
        RouteMetrics {
            answered: calls("answered"),
            failed: calls("failed"),
            unavailable: calls("unavailable"),
            late: calls("late"),
            busy: calls("busy"),
            repeated: calls("repeated"),
            retries: self.retries.get_or_create_owned(&label()),
            in_flight: self.in_flight.get_or_create_owned(&label()),
            seconds: self.seconds.get_or_create_owned(&label()),
        }
    }
}

/// The metrics of a route.
#[derive(Clone)]
pub(crate) struct RouteMetrics {
    pub(crate) answered: Counter,
    pub(crate) failed: Counter,
    pub(crate) unavailable: Counter,
    pub(crate) late: Counter,
    pub(crate) busy: Counter,
    /// Replies that were those of earlier packets.
    pub(crate) repeated: Counter,
    pub(crate) retries: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) seconds: Histogram,
}

/// The kind of receivers of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushKind {
    Keys,
    Mids,
    Room,
    All,
}

/// The result of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushResult {
    Accepted,
    Invalid,
    TooLarge,
    Full,
    Unavailable,
    Unknown,
}

const PUSH_KINDS: [(PushKind, &str); 4] =
    [(PushKind::Keys, "keys"), (PushKind::Mids, "mids"), (PushKind::Room, "room"), (PushKind::All, "all")];

const PUSH_RESULTS: [(PushResult, &str); 6] = [
    (PushResult::Accepted, "accepted"),
    (PushResult::Invalid, "invalid"),
    (PushResult::TooLarge, "too_large"),
    (PushResult::Full, "full"),
    (PushResult::Unavailable, "unavailable"),
    (PushResult::Unknown, "unknown"),
];

/// Pushes, by kind and result.
#[derive(Clone)]
pub(crate) struct PushCounters {
    family: Family<PushLabels, Counter>,
    counters: [[Counter; PUSH_RESULTS.len()]; PUSH_KINDS.len()],
}

/// The status classes of HTTP responses.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// HTTP requests, by route and status class.
pub(crate) struct RequestCounters {
    family: Family<RequestLabels, Counter>,
    /// One row per route, and a last one for requests without a route.
    counters: Vec<[Counter; STATUS_CLASSES.len()]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PushLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: &'static str,
}

impl PushCounters {
    pub(crate) fn count(&self, kind: PushKind, result: PushResult) {
        self.counters[kind as usize][result as usize].inc();
    }
}

impl RequestCounters {
    /// Counts a response. `route` is the index in the table of routes; `None` for a request without
    /// a route.
    pub(crate) fn count(&self, route: Option<usize>, status: u16) {
        let row = route.unwrap_or(Route::ALL.len());
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.counters.get(row).and_then(|row| row.get(class)) {
            counter.inc();
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "goim_logic_connects",
            "Requests for a session, by result",
            self.connects.family.clone(),
        );
        registry.register(
            "goim_logic_token_refreshes",
            "Tokens presented by open sessions, by result",
            self.refreshes.family.clone(),
        );
        registry.register(
            "goim_logic_upstream_packets",
            "Packets from clients, by whether they had a handler",
            self.upstream.family.clone(),
        );
        registry.register(
            "goim_logic_route_calls",
            "Packets sent to the backend, by route and result",
            self.routes.calls.clone(),
        );
        registry.register(
            "goim_logic_route_retries",
            "Retries of packets to the backend, by route",
            self.routes.retries.clone(),
        );
        registry.register(
            "goim_logic_route_calls_in_flight",
            "Packets that wait for the backend, by route",
            self.routes.in_flight.clone(),
        );
        registry.register_with_unit(
            "goim_logic_route",
            "Time from a packet to its reply, by route",
            Unit::Seconds,
            self.routes.seconds.clone(),
        );
        registry.register(
            "goim_logic_pushes",
            "Push requests, by kind and result",
            self.pushes.family.clone(),
        );
        registry.register(
            "goim_logic_http_requests",
            "HTTP requests, by route and status class",
            self.requests.family.clone(),
        );
        registry.register("goim_logic_http_connections", "Open HTTP connections", self.connections.clone());
        registry.register_with_unit(
            "goim_logic_append",
            "Time to append the records of a request to the push log",
            Unit::Seconds,
            self.append_seconds.clone(),
        );
        registry.register(
            "goim_logic_stale_room_counts",
            "Answers with old room counts, because the room directory did not answer",
            self.stale_counts.clone(),
        );
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connects: ConnectCounters::default(),
            refreshes: ConnectCounters::default(),
            upstream: UpstreamCounters::default(),
            routes: RouteFamilies {
                calls: Family::default(),
                retries: Family::default(),
                in_flight: Family::default(),
                // 1 ms to 4 s, the longest that a route may take.
                seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 13))),
            },
            pushes: PushCounters::default(),
            requests: RequestCounters::default(),
            // 10 µs in memory to 20 s in an overloaded cluster.
            append_seconds: Histogram::new(exponential_buckets(0.000_01, 3.0, 14)),
            stale_counts: Counter::default(),
            connections: Gauge::default(),
        }
    }
}

impl Default for ConnectCounters {
    fn default() -> Self {
        let family = Family::<ResultLabel, Counter>::default();
        let of = |result| family.get_or_create_owned(&ResultLabel { result });
        Self { accepted: of("accepted"), refused: AuthFailure::ALL.map(|reason| of(reason.label())), family }
    }
}

impl Default for UpstreamCounters {
    fn default() -> Self {
        let family = Family::<ResultLabel, Counter>::default();
        let of = |result| family.get_or_create_owned(&ResultLabel { result });
        Self { handled: of("handled"), unhandled: of("unhandled"), family }
    }
}

impl Default for PushCounters {
    fn default() -> Self {
        let family = Family::<PushLabels, Counter>::default();
        let of = |kind, result| family.get_or_create_owned(&PushLabels { kind, result });
        let counters = PUSH_KINDS.map(|(_, kind)| PUSH_RESULTS.map(|(_, result)| of(kind, result)));
        Self { family, counters }
    }
}

impl Default for RequestCounters {
    fn default() -> Self {
        let family = Family::<RequestLabels, Counter>::default();
        let of =
            |route| STATUS_CLASSES.map(|status| family.get_or_create_owned(&RequestLabels { route, status }));
        let mut counters: Vec<_> = Route::ALL.iter().map(|route| of(route.path)).collect();
        counters.push(of("other"));
        Self { family, counters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_counted_under_its_own_labels() {
        let metrics = Metrics::default();
        for (kind_index, (kind, kind_label)) in PUSH_KINDS.into_iter().enumerate() {
            for (result_index, (result, result_label)) in PUSH_RESULTS.into_iter().enumerate() {
                assert_eq!((kind as usize, result as usize), (kind_index, result_index));
                metrics.pushes.count(kind, result);
                let labels = PushLabels { kind: kind_label, result: result_label };
                assert_eq!(metrics.pushes.family.get_or_create(&labels).get(), 1, "{labels:?}");
            }
        }
    }

    #[test]
    fn what_is_registered_can_be_read() {
        let metrics = Metrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        metrics.requests.count(Some(0), 200);
        metrics.requests.count(None, 404);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let first = Route::ALL[0].path;
        assert!(
            text.contains(&format!(r#"goim_logic_http_requests_total{{route="{first}",status="2xx"}} 1"#))
        );
        assert!(text.contains(r#"goim_logic_http_requests_total{route="other",status="4xx"} 1"#), "{text}");
        assert!(text.contains("goim_logic_append_seconds_bucket"), "{text}");
    }
}
