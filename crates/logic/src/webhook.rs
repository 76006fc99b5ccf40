//! Calls to the backend over HTTP: one POST with JSON or bytes each, within a deadline, so many at a time, behind a circuit.
//!
//! What is asked and what an answer means is for the callers; here is only how a system that is slow, down or mad is kept from
//! costing more than its own callers' time.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use goim_ports::{HttpClient, HttpError, HttpRequest, HttpResponse};
use tokio::sync::Semaphore;

use crate::circuit::Circuit;
use crate::complaint::Complaint;
pub(crate) use crate::config::WebhookConfig;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WebhookError {
    /// As many calls as allowed are under way, and none has ended in time.
    #[error("too many calls are under way")]
    Busy,
    /// It has failed too often; nothing was sent.
    #[error("left alone after failures")]
    Open,
    /// Nothing came back, or not in time.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// It says itself that it cannot answer.
    #[error("it answers {0}")]
    Status(u16),
}

/// A hook.
pub(crate) struct Webhook {
    name: String,
    config: WebhookConfig,
    http: Arc<dyn HttpClient>,
    permits: Semaphore,
    circuit: Circuit,
    failing: Complaint,
    answer_bytes_max: usize,
}

impl Webhook {
    /// `name` is for the log.
    pub(crate) fn new(
        name: impl Into<String>,
        config: WebhookConfig,
        http: Arc<dyn HttpClient>,
        answer_bytes_max: usize,
    ) -> Self {
        Self {
            name: name.into(),
            permits: Semaphore::new(config.calls_max.max(1)),
            circuit: Circuit::default(),
            failing: Complaint::default(),
            config,
            http,
            answer_bytes_max,
        }
    }

    /// Makes a call. An answer of 5xx or 429 is a failure; what any other status means is for the caller.
    pub(crate) async fn post(
        &self,
        content_type: &'static str,
        more: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<HttpResponse, WebhookError> {
        let started = Instant::now();
        if !self.circuit.allows(started) {
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
        self.circuit.ended(answer.is_ok(), Instant::now());
        if let Err(error) = &answer
            && let Some(unsaid) = self.failing.say(Instant::now())
        {
            tracing::warn!(hook = self.name, url = %self.config.url, %error, unsaid, "a webhook fails");
        }
        answer
    }
}
