//! The operator's pages: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` answers as long as the process can answer at all; a restart is the cure when it does
//! not. `/readyz` says whether new clients should come here, and if not why: one reason a line.
//! While the process starts it says what is waited for; later, each
//! [condition](Operation::depends_on) is asked whenever the page is.
//!
//! Reasons are for operators, and quote no address, user or password: those stand in the log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

/// Says why no client should come, if none should: in a few words, with the name of what is in the
/// way first.
type Condition = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What the pages say, filled in as the process comes up and goes down.
#[derive(Default)]
pub(crate) struct Operation {
    metrics: OnceLock<Registry>,
    draining: AtomicBool,
    /// What the start waits for.
    waiting: Mutex<Option<String>>,
    conditions: Mutex<Vec<Condition>>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation").field("not_ready", &self.not_ready()).finish_non_exhaustive()
    }
}

impl Operation {
    /// Everything listens: `/readyz` says yes, unless a condition says no, and `/metrics` has this
    /// to show.
    pub(crate) fn is_up(&self, metrics: Registry) {
        // A second call would be a bug of the composition; the first registry stays.
        let _ = self.metrics.set(metrics);
    }

    /// The process is on its way out: `/readyz` says no.
    pub(crate) fn is_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The start waits for this; `None` when it goes on.
    pub(crate) fn waits_for(&self, reason: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// The process is ready only while `condition` has no reason against it. Must not wait for
    /// anything.
    pub(crate) fn depends_on(&self, condition: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(condition));
    }

    /// Why no client should come here, if none should.
    fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining\n".to_owned());
        }
        let start = self.metrics.get().is_none().then(|| {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            match &*waiting {
                Some(reason) => format!("starting: waits for {reason}\n"),
                None => "starting\n".to_owned(),
            }
        });
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons = conditions.iter().filter_map(|says| says()).map(|reason| reason + "\n");
        let reasons: String = start.into_iter().chain(reasons).collect();
        (!reasons.is_empty()).then_some(reasons)
    }
}

/// The pages, to be served beside the HTTP API.
pub(crate) fn router(operation: Arc<Operation>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(operation)
}

async fn metrics(State(operation): State<Arc<Operation>>) -> Response {
    let mut text = String::new();
    let encoded = operation
        .metrics
        .get()
        .map(|registry| prometheus_client::encoding::text::encode(&mut text, registry));
    match encoded {
        Some(Ok(())) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Some(Err(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

async fn ready(State(operation): State<Arc<Operation>>) -> Response {
    match operation.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

/// What stands in for the API while the process starts: the pages, and 503 for everything else. One
/// answer for each connection: the next request is for who takes over.
pub(crate) fn router_while_starting(operation: Arc<Operation>) -> Router {
    let starting = async || (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "starting\n");
    let closing = async |mut response: Response| {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        response
    };
    router(operation).fallback(starting).layer(axum::middleware::map_response(closing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_come_from_the_start_from_conditions_and_from_the_end() {
        let operation = Operation::default();
        let says = |expected: Option<&str>| assert_eq!(operation.not_ready().as_deref(), expected);
        says(Some("starting\n"));
        operation.waits_for(Some("redis: it does not answer".to_owned()));
        says(Some("starting: waits for redis: it does not answer\n"));
        let is_well = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_well);
        operation
            .depends_on(move || (!seen.load(Ordering::Relaxed)).then(|| "redis refuses writes".to_owned()));
        operation.depends_on(|| None);
        says(Some("starting: waits for redis: it does not answer\nredis refuses writes\n"));
        operation.waits_for(None);
        operation.is_up(Registry::default());
        says(Some("redis refuses writes\n"));
        is_well.store(true, Ordering::Relaxed);
        says(None);
        operation.depends_on(|| Some("logic: none answers".to_owned()));
        says(Some("logic: none answers\n"));
        operation.is_draining();
        says(Some("draining\n"));
    }
}
