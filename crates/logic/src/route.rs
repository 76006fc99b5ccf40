//! A route: sends packets of a range of operations to the backend, with a timeout, a limit of
//! concurrent calls and a circuit breaker.
//!
//! A route that hangs delays only its own callers. A failed call is retried only where the operator
//! allows it, because the backend may see it twice. A packet that a client repeats gets the first
//! reply where the operator has set a window for it.

pub(crate) mod config;
mod duplicates;
mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{Call, HttpClient, LogicError, RateLimitedLog, Secret, Upstream, UpstreamPort};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use crate::circuit_breaker::CircuitBreaker;
use crate::handler::{Handler, Overlap};
use crate::logic::Logic;
use crate::metrics::RouteMetrics;
use config::RouteConfig;
use duplicates::DuplicateWindow;

/// The pause before the first retry; doubled before each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The handler of a route.
struct RouteHandler(Arc<RouteState>);

struct RouteState {
    name: String,
    config: RouteConfig,
    to: Arc<dyn UpstreamPort>,
    permits: Semaphore,
    circuit_breaker: CircuitBreaker,
    failure_log: RateLimitedLog,
    duplicates: Option<DuplicateWindow>,
    metrics: RouteMetrics,
}

impl Logic {
    /// Sends packets of some operations to the backend.
    ///
    /// # Errors
    /// [`Overlap`] when some of the operations already have a handler.
    pub fn route(&self, config: RouteConfig, to: Arc<dyn UpstreamPort>) -> Result<(), Overlap> {
        let (first, last) = (config.operations.start(), config.operations.end());
        let name = if first == last { first.to_string() } else { format!("{first}..{last}") };
        let inner = RouteState {
            metrics: self.metrics.routes.of(&name),
            name,
            to,
            permits: Semaphore::new(config.calls_max.max(1)),
            circuit_breaker: CircuitBreaker::default(),
            failure_log: RateLimitedLog::default(),
            duplicates: config.duplicates.map(DuplicateWindow::new),
            config: config.clone(),
        };
        self.handlers.register_range(config.operations, Arc::new(RouteHandler(Arc::new(inner))))
    }

    /// Returns a backend behind a URL. The packet's body is the body of a POST; everything else is
    /// in headers.
    #[must_use]
    pub fn webhook_backend(&self, url: &str, secret: Option<Secret>) -> Arc<dyn UpstreamPort> {
        let http: Arc<dyn HttpClient> = Arc::clone(&self.http);
        Arc::new(webhook::WebhookUpstream::new(url.to_owned(), secret, http))
    }
}

impl Handler for RouteHandler {
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

/// Counts a call as in flight until it is dropped. A caller may stop waiting.
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
                "{} calls of route {} are in flight",
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
                    "the circuit breaker of route {} is open after failures",
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
                && let Some(suppressed) = self.failure_log.try_log(Instant::now())
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
    async fn a_dropped_call_is_no_longer_in_flight() {
        let gauge = Gauge::default();
        let call = async {
            let _under_way = InFlight::new(&gauge);
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
        assert_eq!(gauge.get(), 0);
    }
}
