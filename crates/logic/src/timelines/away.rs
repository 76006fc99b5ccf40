//! Members who have no session when a message is stored for them, told in batches to whoever reaches them in another way.
//!
//! Each member is told of once for each message. What cannot be told waits, up to a bound, and is tried again; a logic that dies takes with it
//! what it had not told. Rooms are not told of: who belongs to one and is away, only the backend knows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use goim_ports::{Call, LogicError, OfflineMember, OfflineSink};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Logic;
use crate::webhook::{Webhook, WebhookConfig};

/// Members that may wait to be told; more are left out and counted.
const WAITING_MAX: usize = 100_000;
/// Members of one batch.
const BATCH_MAX: usize = 500;
/// Time in which members gather.
const GATHER: Duration = Duration::from_millis(100);
/// Pauses between tries.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Longer bodies are not told: push providers take 4 KiB.
const BODY_BYTES_MAX: usize = 4 * 1024;
/// An answer says nothing that matters.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Members who wait to be told.
#[derive(Default)]
pub(super) struct Away {
    waiting: Mutex<VecDeque<OfflineMember>>,
    come: Notify,
    pub(super) told: Counter,
    pub(super) dropped: Counter,
}

impl Away {
    /// Notes a member. Never waits.
    pub(super) fn note(&self, member: OfflineMember) {
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING_MAX {
            self.dropped.inc();
            return;
        }
        waiting.push_back(member);
        drop(waiting);
        self.come.notify_one();
    }

    fn first(&self) -> Vec<OfflineMember> {
        let waiting = self.waiting.lock();
        waiting.iter().take(BATCH_MAX).cloned().collect()
    }

    /// Tells members until dropped.
    async fn run(self: Arc<Self>, sink: Arc<dyn OfflineSink>) {
        let mut retry = RETRY_MIN;
        loop {
            let batch = self.first();
            let count = batch.len();
            if count == 0 {
                self.come.notified().await;
                tokio::time::sleep(GATHER).await;
                continue;
            }
            match sink.report(batch).await {
                Ok(()) => {
                    // Only this task takes members out.
                    self.waiting.lock().drain(..count);
                    self.told.inc_by(count as u64);
                    retry = RETRY_MIN;
                }
                Err(error) => {
                    tracing::debug!(%error, count, "members who are away are told of again");
                    tokio::time::sleep(retry).await;
                    retry = RETRY_MAX.min(retry * 2);
                }
            }
        }
    }
}

impl Logic {
    /// From now on members who are away when a message is stored for them are told of there. The first that is put in stays. Nothing happens
    /// where no messages are stored. Must be called inside a tokio runtime.
    pub fn offline_url(&self, sink: Arc<dyn OfflineSink>) {
        let Some(timelines) = &self.timelines else { return };
        let away = Arc::new(Away::default());
        if timelines.away.set(Arc::clone(&away)).is_ok() {
            tokio::spawn(away.run(sink));
        }
    }

    /// Who hears of them by POST.
    #[must_use]
    pub fn away_hook(&self, config: WebhookConfig) -> Arc<dyn OfflineSink> {
        let hook = Webhook::new("timelines.offline_url", config, Arc::clone(&self.http), ANSWER_BYTES_MAX);
        Arc::new(AwayHook(Arc::new(hook)))
    }
}

/// A member who is away, as JSON.
#[must_use]
pub fn away_json(member: &OfflineMember) -> Value {
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

struct AwayHook(Arc<Webhook>);

impl OfflineSink for AwayHook {
    fn report(&self, members: Vec<OfflineMember>) -> Call<Result<(), LogicError>> {
        let hook = Arc::clone(&self.0);
        Call::pending(async move {
            let list: Vec<Value> = members.iter().map(away_json).collect();
            let body = Bytes::from(json!({ "offline": list }).to_string());
            match hook.post("application/json", Vec::new(), body).await {
                Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
                Ok(answer) => Err(LogicError::Unavailable(format!("the hook answers {}", answer.status))),
                Err(error) => Err(LogicError::Unavailable(error.to_string())),
            }
        })
    }
}
