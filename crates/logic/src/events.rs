//! What happens to sessions, on its way to who wants to know: a URL, or what composition puts in.

use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{Call, EventSink, LifecycleEvent, LogicError};
use serde_json::{Value, json};

use crate::Logic;
use crate::webhook::{Webhook, WebhookConfig, WebhookError};

/// An answer says nothing that matters.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Logic {
    /// From now on events go there. The first that is put in stays.
    pub fn events_to(&self, sink: Arc<dyn EventSink>) {
        // A second one is a mistake of composition that changes nothing.
        let _ = self.event_sink.set(sink);
    }

    /// Who hears events by POST.
    #[must_use]
    pub fn event_hook(&self, config: WebhookConfig) -> Arc<dyn EventSink> {
        Arc::new(EventHook(Arc::new(Webhook::new(
            "events",
            config,
            Arc::clone(&self.http),
            ANSWER_BYTES_MAX,
        ))))
    }
}

/// An event as JSON.
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

struct EventHook(Arc<Webhook>);

impl EventSink for EventHook {
    fn deliver(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        let hook = Arc::clone(&self.0);
        Call::pending(async move {
            let list: Vec<Value> = events.iter().map(event_json).collect();
            let body = Bytes::from(json!({ "events": list }).to_string());
            match hook.post("application/json", Vec::new(), body).await {
                Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
                // A no is no answer here: what has happened has happened.
                Ok(answer) => {
                    Err(LogicError::Unavailable(format!("the events' hook answers {}", answer.status)))
                }
                Err(
                    error @ (WebhookError::Busy
                    | WebhookError::Open
                    | WebhookError::Http(_)
                    | WebhookError::Status(_)),
                ) => Err(LogicError::Unavailable(format!("the events' hook: {error}"))),
            }
        })
    }
}
