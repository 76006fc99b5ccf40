//! Reports members who have no session when a message is stored for them, in batches to a sink.
//!
//! Each member is reported once for each message. Failed reports are retried, up to a limit of
//! members; reports in memory are lost with the process. Rooms are not reported: only the backend
//! knows their offline members.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use goim_ports::{Call, HttpClient, LogicError, OfflineMember, OfflineSink, RetryQueue, RetryRules};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::webhook::{Webhook, WebhookConfig};

/// The time in which members of a report are collected.
const COLLECT_TIME: Duration = Duration::from_millis(100);
const RETRY_RULES: RetryRules = RetryRules {
    queued_max: 100_000,
    batch_max: 500,
    backoff_min: Duration::from_millis(200),
    backoff_max: Duration::from_secs(10),
};
/// Longer bodies are left out: push providers accept 4 KiB.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// The maximum size of an answer, which is ignored.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Members to be reported.
pub(super) struct OfflineQueue {
    members: RetryQueue<OfflineMember>,
    arrived: Notify,
    pub(super) notified: Counter,
    pub(super) dropped: Counter,
}

impl OfflineQueue {
    pub(super) fn new() -> Self {
        let (notified, dropped) = Default::default();
        Self { members: RetryQueue::new(RETRY_RULES), arrived: Notify::new(), notified, dropped }
    }

    /// Queues a member. Never waits; a member that exceeds the queue is dropped and counted.
    pub(super) fn push(&self, member: OfflineMember) {
        if self.members.push(member) {
            self.arrived.notify_one();
        } else {
            self.dropped.inc();
        }
    }

    /// Reports members until it is dropped.
    pub(super) async fn run(self: Arc<Self>, sink: Arc<dyn OfflineSink>) {
        loop {
            let batch = self.members.batch();
            let count = batch.len();
            if count == 0 {
                self.arrived.notified().await;
                tokio::time::sleep(COLLECT_TIME).await;
                continue;
            }
            match sink.report(batch).await {
                Ok(()) => {
                    self.members.sent(count);
                    self.notified.inc_by(count as u64);
                }
                Err(error) => {
                    tracing::debug!(%error, count, "offline members could not be reported; retrying");
                    tokio::time::sleep(self.members.failed()).await;
                }
            }
        }
    }
}

/// Returns a sink that reports by POST.
pub(crate) fn webhook_sink(config: WebhookConfig, http: Arc<dyn HttpClient>) -> Arc<dyn OfflineSink> {
    let hook = Webhook::new("timelines.offline_url", config, http, ANSWER_BYTES_MAX);
    Arc::new(OfflineWebhook(Arc::new(hook)))
}

/// Returns an offline member as JSON.
#[must_use]
pub fn offline_json(member: &OfflineMember) -> Value {
    let OfflineMember { mid, position, sender, operation, body, accepted_at } = member;
    let mut object = json!({
        "id": format!("{}-{}-{}", mid, position.epoch.0, position.seq),
        "mid": mid.0,
        "timeline": format!("mid://{mid}"),
        "epoch": position.epoch.0,
        "seq": position.seq.0,
        "sender": sender.0,
        "operation": operation.0,
        "time_ms": accepted_at.0 / 1000,
    });
    match std::str::from_utf8(body) {
        _ if body.len() > BODY_BYTES_MAX => object["body_bytes"] = body.len().into(),
        Ok(text) => object["body"] = text.into(),
        Err(_) => object["body_base64"] = STANDARD.encode(body).into(),
    }
    object
}

struct OfflineWebhook(Arc<Webhook>);

impl OfflineSink for OfflineWebhook {
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>> {
        let hook = Arc::clone(&self.0);
        Call::pending(async move {
            let list: Vec<Value> = members.iter().map(offline_json).collect();
            let body = Bytes::from(json!({ "offline": list }).to_string());
            match hook.post("application/json", Vec::new(), body).await {
                Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
                Ok(answer) => Err(LogicError::Unavailable(format!("the webhook answers {}", answer.status))),
                Err(error) => Err(LogicError::Unavailable(error.to_string())),
            }
        })
    }
}
