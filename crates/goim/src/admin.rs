//! The admin endpoints: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` answers as long as the process can answer at all; if it does not, restart the
//! process. `/readyz` answers whether new clients should be sent here, and if not, why: one reason
//! per line. During startup the reason is what the process waits for; later every
//! [condition](ServerState::add_condition) is evaluated on each request.
//!
//! Reasons are for operators. They contain no address, user or password; the log has those.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

/// Returns why no client should be sent here, if none should. The reason begins with the name of
/// the dependency.
type Condition = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Whether the process is starting, ready or draining, and its metrics.
#[derive(Default)]
pub(crate) struct ServerState {
    metrics: OnceLock<Registry>,
    draining: AtomicBool,
    /// What the startup waits for.
    waiting: Mutex<Option<String>>,
    conditions: Mutex<Vec<Condition>>,
}

impl std::fmt::Debug for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerState").field("not_ready", &self.not_ready()).finish_non_exhaustive()
    }
}

impl ServerState {
    /// Marks the end of the startup: `/readyz` answers yes unless a condition objects, and
    /// `/metrics` shows `metrics`.
    pub(crate) fn set_ready(&self, metrics: Registry) {
        // A second call would be a bug of the composition; the first registry stays.
        let _ = self.metrics.set(metrics);
    }

    /// Marks the process as draining: `/readyz` answers no.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Sets what the startup waits for; `None` when it continues.
    pub(crate) fn set_waiting(&self, reason: Option<String>) {
        *self.waiting.lock() = reason;
    }

    /// Makes the process ready only while `condition` returns `None`. It must not block.
    pub(crate) fn add_condition(&self, condition: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.conditions.lock().push(Box::new(condition));
    }

    /// Returns why no client should be sent here, if none should.
    fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining\n".to_owned());
        }
        let startup = self.metrics.get().is_none().then(|| match &*self.waiting.lock() {
            Some(reason) => format!("starting: waits for {reason}\n"),
            None => "starting\n".to_owned(),
        });
        let conditions = self.conditions.lock();
        let reasons = conditions.iter().filter_map(|condition| condition()).map(|reason| reason + "\n");
        let reasons: String = startup.into_iter().chain(reasons).collect();
        (!reasons.is_empty()).then_some(reasons)
    }
}

/// The admin endpoints, to be served beside the HTTP API.
pub(crate) fn router(state: Arc<ServerState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(state)
}

async fn metrics(State(state): State<Arc<ServerState>>) -> Response {
    let mut text = String::new();
    let encoded =
        state.metrics.get().map(|registry| prometheus_client::encoding::text::encode(&mut text, registry));
    match encoded {
        Some(Ok(())) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Some(Err(_)) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
    }
}

async fn ready(State(state): State<Arc<ServerState>>) -> Response {
    match state.not_ready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

/// The endpoints during startup, in place of the API: the admin endpoints, and 503 for everything
/// else.
///
/// Every connection gets one response, because the next request must reach the API that takes over.
pub(crate) fn router_while_starting(state: Arc<ServerState>) -> Router {
    let starting = async || (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "starting\n");
    let closing = async |mut response: Response| {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        response
    };
    router(state).fallback(starting).layer(axum::middleware::map_response(closing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_startup_conditions_and_drain() {
        let state = ServerState::default();
        let check = |expected: Option<&str>| assert_eq!(state.not_ready().as_deref(), expected);
        check(Some("starting\n"));
        state.set_waiting(Some("redis: it does not answer".to_owned()));
        check(Some("starting: waits for redis: it does not answer\n"));
        let is_healthy = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_healthy);
        state.add_condition(move || {
            (!seen.load(Ordering::Relaxed)).then(|| "redis rejects writes".to_owned())
        });
        state.add_condition(|| None);
        check(Some("starting: waits for redis: it does not answer\nredis rejects writes\n"));
        state.set_waiting(None);
        state.set_ready(Registry::default());
        check(Some("redis rejects writes\n"));
        is_healthy.store(true, Ordering::Relaxed);
        check(None);
        state.add_condition(|| Some("logic: none answers".to_owned()));
        check(Some("logic: none answers\n"));
        state.begin_drain();
        check(Some("draining\n"));
    }
}
