//! Calls of the backend over HTTP: one POST each, with a timeout, a limit of concurrent calls and a
//! circuit breaker.
//!
//! Callers define the request and interpret the answer. This module ensures that a slow, dead or
//! misbehaving backend costs no more than its callers' time.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use goim_ports::{HttpClient, HttpError, HttpRequest, HttpResponse, RateLimitedLog};
use tokio::sync::Semaphore;

use crate::circuit_breaker::CircuitBreaker;
pub(crate) use crate::config::WebhookConfig;

/// Why a call has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WebhookError {
    /// The limit of concurrent calls was reached and none ended in time.
    #[error("too many calls are in flight")]
    Busy,
    /// The circuit breaker is open; nothing was sent.
    #[error("the circuit breaker is open after failures")]
    Open,
    /// No answer, or not in time.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A status that means failure: 5xx or 429.
    #[error("it answers {0}")]
    Status(u16),
}

/// A webhook.
pub(crate) struct Webhook {
    name: String,
    config: WebhookConfig,
    http: Arc<dyn HttpClient>,
    permits: Semaphore,
    circuit_breaker: CircuitBreaker,
    failure_log: RateLimitedLog,
    answer_bytes_max: usize,
}

impl Webhook {
    /// `name` is used in the log.
    pub(crate) fn new(
        name: impl Into<String>,
        config: WebhookConfig,
        http: Arc<dyn HttpClient>,
        answer_bytes_max: usize,
    ) -> Self {
        Self {
            name: name.into(),
            permits: Semaphore::new(config.calls_max.max(1)),
            circuit_breaker: CircuitBreaker::default(),
            failure_log: RateLimitedLog::default(),
            config,
            http,
            answer_bytes_max,
        }
    }

    /// Makes a call. A status of 5xx or 429 is an error; the caller interprets every other one.
    pub(crate) async fn post(
        &self,
        content_type: &'static str,
        more: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<HttpResponse, WebhookError> {
        let started = Instant::now();
        if !self.circuit_breaker.try_acquire(started) {
            return Err(WebhookError::Open);
        }
        let timeout = self.config.timeout;
        let permit = tokio::time::timeout(timeout, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(WebhookError::Busy) };
        let mut headers = vec![("content-type", content_type.to_owned())];
        if let Some(secret) = &self.config.secret {
            headers.push(("authorization", format!("Bearer {}", secret.reveal())));
        }
        headers.extend(more);
        let request = HttpRequest {
            body: Some(body),
            url: self.config.url.reveal().to_owned(),
            headers,
            timeout: timeout.saturating_sub(started.elapsed()),
            answer_bytes_max: self.answer_bytes_max,
        };
        let answer = match self.http.send(request).await {
            Ok(answer) if answer.status >= 500 || answer.status == 429 => {
                Err(WebhookError::Status(answer.status))
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(error.into()),
        };
        self.circuit_breaker.record(answer.is_ok(), Instant::now());
        if let Err(error) = &answer
            && let Some(suppressed) = self.failure_log.try_log(Instant::now())
        {
            tracing::warn!(hook = self.name, url = %self.config.url, %error, suppressed, "a webhook fails");
        }
        answer
    }
}
