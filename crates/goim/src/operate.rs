//! The operator's pages: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` answers as long as the process can answer at all; a restart is the cure when it does not. `/readyz` says
//! whether new clients should come here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

/// What the pages say, filled in as the process comes up and goes down.
#[derive(Debug, Default)]
pub(crate) struct Operation {
    metrics: OnceLock<Registry>,
    draining: AtomicBool,
}

impl Operation {
    /// Everything listens: `/readyz` says yes and `/metrics` has this to show.
    pub(crate) fn is_up(&self, metrics: Registry) {
        // A second call would be a bug of the composition; the first registry stays.
        let _ = self.metrics.set(metrics);
    }

    /// The process is on its way out: `/readyz` says no.
    pub(crate) fn is_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why no client should come here, if none should.
    fn not_ready(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Relaxed) {
            Some("draining\n")
        } else if self.metrics.get().is_none() {
            Some("starting\n")
        } else {
            None
        }
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
