//! One route: packets of a range of operations on their way to the backend, within a time, so many at once, behind a circuit.
//!
//! A route that hangs costs its own callers their time and nobody else anything. What has failed is made again only where the
//! operator has said that it may be done twice; what a client sends twice is answered from the first time where the operator has
//! said that marks do not repeat.

mod duplicates;
mod webhook;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{Call, HttpClient, LogicError, Secret, ServiceUrl, Upstream, UpstreamPort};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::Semaphore;

use crate::circuit_breaker::CircuitBreaker;
use crate::handler::Handler;
use crate::{Logic, Overlap};
use duplicates::DuplicateWindow;

/// Pause before the first further try; doubled before each one after it.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What an operator sets of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// The operations that go this way.
    pub operations: RangeInclusive<i32>,
    /// Where they go: `http://` or `https://`, `grpc://host:port`, `kafka://topic`.
    pub to: ServiceUrl,
    /// For HTTP: presented as `Authorization: Bearer`. Default none.
    pub secret: Option<Secret>,
    /// From the packet to its answer, all tries together. Default 2 s.
    pub timeout: Duration,
    /// Further tries of a call that was not answered: only for what may be done twice. Default 0.
    pub retries: u32,
    /// Calls under way at once. More wait for `timeout` at most. Default 256.
    pub calls_max: usize,
    /// A packet with the mark of an earlier one of the same member within this time gets the answer of that one. Default none.
    pub duplicates: Option<Duration>,
}

impl RouteConfig {
    /// These operations to this place, the rest by default.
    #[must_use]
    pub fn new(operations: RangeInclusive<i32>, to: impl Into<ServiceUrl>) -> Self {
        let to = to.into();
        let timeout = Duration::from_secs(2);
        Self { operations, to, secret: None, timeout, retries: 0, calls_max: 256, duplicates: None }
    }
}

/// What is counted of a route.
#[derive(Clone)]
pub(crate) struct RouteMetrics {
    pub(crate) answered: Counter,
    pub(crate) failed: Counter,
    pub(crate) unavailable: Counter,
    pub(crate) late: Counter,
    pub(crate) busy: Counter,
    /// Answers of earlier packets.
    pub(crate) repeated: Counter,
    pub(crate) retries: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) seconds: Histogram,
}

/// A route.
struct Route(Arc<RouteState>);

struct RouteState {
    name: String,
    config: RouteConfig,
    to: Arc<dyn UpstreamPort>,
    permits: Semaphore,
    circuit_breaker: CircuitBreaker,
    failing: RateLimitedLog,
    duplicates: Option<DuplicateWindow>,
    metrics: RouteMetrics,
}

impl Logic {
    /// Sends packets of some operations to the backend.
    ///
    /// # Errors
    /// [`Overlap`] when some of the operations go elsewhere already.
    pub fn route(&self, config: RouteConfig, to: Arc<dyn UpstreamPort>) -> Result<(), Overlap> {
        let (first, last) = (config.operations.start(), config.operations.end());
        let name = if first == last { first.to_string() } else { format!("{first}..{last}") };
        let inner = RouteState {
            metrics: self.metrics.routes.of(&name),
            name,
            to,
            permits: Semaphore::new(config.calls_max.max(1)),
            circuit_breaker: CircuitBreaker::default(),
            failing: RateLimitedLog::default(),
            duplicates: config.duplicates.map(DuplicateWindow::new),
            config: config.clone(),
        };
        self.handlers.register_range(config.operations, Arc::new(Route(Arc::new(inner))))
    }

    /// The backend behind a URL: the body by POST, what else there is in headers.
    #[must_use]
    pub fn backend_at(&self, url: &str, secret: Option<Secret>) -> Arc<dyn UpstreamPort> {
        let http: Arc<dyn HttpClient> = Arc::clone(&self.http);
        Arc::new(webhook::WebhookUpstream::new(url.to_owned(), secret, http))
    }
}

impl Handler for Route {
    fn handle(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let route = Arc::clone(&self.0);
        Call::pending(async move {
            let answer = match route.duplicates.as_ref().and_then(|window| window.reply_cell(&upstream)) {
                Some(place) => {
                    let first = !place.initialized();
                    let answer = place.get_or_try_init(|| route.ask(upstream)).await.cloned();
                    if !first && answer.is_ok() {
                        route.metrics.repeated.inc();
                    }
                    answer
                }
                None => route.ask(upstream).await,
            };
            route.count(&answer);
            answer
        })
    }
}

/// Counts a call until it is dropped: whoever asked may give up waiting.
struct InFlight<'a>(&'a Gauge);

impl<'a> InFlight<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl RouteState {
    async fn ask(&self, upstream: Upstream) -> Result<Bytes, LogicError> {
        let started = Instant::now();
        let until = started + self.config.timeout;
        let permit = tokio::time::timeout(self.config.timeout, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(LogicError::Busy(format!(
                "{} calls of route {} are under way",
                self.config.calls_max, self.name
            )));
        };
        let in_flight = InFlight::new(&self.metrics.in_flight);
        let answer = self.try_until(until, upstream).await;
        drop(in_flight);
        self.metrics.seconds.observe(started.elapsed().as_secs_f64());
        answer
    }

    async fn try_until(&self, until: Instant, upstream: Upstream) -> Result<Bytes, LogicError> {
        let (mut retries, mut pause) = (self.config.retries, RETRY_PAUSE);
        loop {
            if !self.circuit_breaker.try_acquire(Instant::now()) {
                return Err(LogicError::Unavailable(format!(
                    "route {} is left alone after failures",
                    self.name
                )));
            }
            let left = until.saturating_duration_since(Instant::now());
            let answer = tokio::time::timeout(left, self.to.send(upstream.clone(), left)).await;
            let answer = answer.unwrap_or_else(|_| Err(LogicError::Late(format!("route {}", self.name))));
            let is_down = matches!(answer, Err(LogicError::Unavailable(_) | LogicError::Late(_)));
            self.circuit_breaker.record(!is_down, Instant::now());
            if let Err(error) = &answer
                && is_down
                && let Some(suppressed) = self.failing.try_log(Instant::now())
            {
                tracing::warn!(route = self.name, to = %self.config.to, %error, suppressed, "the backend does not answer");
            }
            if !is_down || retries == 0 || Instant::now() + pause >= until {
                return answer;
            }
            retries -= 1;
            self.metrics.retries.inc();
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    fn count(&self, answer: &Result<Bytes, LogicError>) {
        let metrics = &self.metrics;
        match answer {
            Ok(_) => metrics.answered.inc(),
            Err(LogicError::Failed(_)) => metrics.failed.inc(),
            Err(LogicError::Unavailable(_)) => metrics.unavailable.inc(),
            Err(LogicError::Late(_)) => metrics.late.inc(),
            Err(LogicError::Busy(_) | LogicError::Limited { .. }) => metrics.busy.inc(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_no_longer_under_way() {
        let gauge = Gauge::default();
        let call = async {
            let _under_way = InFlight::new(&gauge);
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
        assert_eq!(gauge.get(), 0);
    }
}
