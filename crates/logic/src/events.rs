//! Delivers session events to a webhook or to another sink that composition sets.

use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{Call, EventSink, LifecycleEvent, LogicError};
use serde_json::{Value, json};

use crate::logic::Logic;
use crate::webhook::{Webhook, WebhookConfig, WebhookError};

/// The maximum size of an answer, which is ignored.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Logic {
    /// Sets the sink of events. Later calls are ignored.
    pub fn set_event_sink(&self, sink: Arc<dyn EventSink>) {
        // A second sink is a mistake of composition that changes nothing.
        let _ = self.event_sink.set(sink);
    }

    /// Returns a sink that delivers events by POST.
    #[must_use]
    pub fn event_webhook(&self, config: WebhookConfig) -> Arc<dyn EventSink> {
        Arc::new(EventWebhook(Arc::new(Webhook::new(
            "events",
            config,
            Arc::clone(&self.http),
            ANSWER_BYTES_MAX,
        ))))
    }
}

/// Returns an event as JSON.
#[must_use]
pub fn event_json(event: &LifecycleEvent) -> Value {
    let rooms: Vec<&str> = event.rooms.iter().map(goim_ports::RoomId::as_str).collect();
    json!({
        "id": event.id,
        "kind": event.kind.name(),
        "mid": event.mid.0,
        "key": event.key.as_str(),
        "server": event.server.as_str(),
        "rooms": rooms,
        "reason": event.reason,
        "at_ms": event.at.0 / 1000,
    })
}

struct EventWebhook(Arc<Webhook>);

impl EventSink for EventWebhook {
    fn deliver(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        let hook = Arc::clone(&self.0);
        Call::pending(async move {
            let list: Vec<Value> = events.iter().map(event_json).collect();
            let body = Bytes::from(json!({ "events": list }).to_string());
            match hook.post("application/json", Vec::new(), body).await {
                Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
                // A refusal is treated as a failure: the events did happen, so they are retried.
                Ok(answer) => {
                    Err(LogicError::Unavailable(format!("the event webhook answers {}", answer.status)))
                }
                Err(
                    error @ (WebhookError::Busy
                    | WebhookError::Open
                    | WebhookError::Http(_)
                    | WebhookError::Status(_)),
                ) => Err(LogicError::Unavailable(format!("the event webhook: {error}"))),
            }
        })
    }
}
