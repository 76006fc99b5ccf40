//! Stored messages: pushes to timelines, and the sink of offline members.

use std::sync::Arc;

use goim_ports::OfflineSink;

use crate::logic::Logic;
use crate::timelines::push::{AppendedMessage, StoredPush};
use crate::timelines::{self, TimelineRequestError};
use crate::webhook::WebhookConfig;

impl Logic {
    /// Stores messages, all or none, and notifies the sessions. Returns for each message, in order,
    /// its positions.
    ///
    /// # Errors
    /// [`TimelineRequestError`] with the index of the message. Nothing is stored, unless the
    /// outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropping the future during the append does not cancel it: the messages are stored and the
    /// sessions notified.
    pub async fn push_stored(
        &self,
        pushes: Vec<StoredPush>,
    ) -> Result<Vec<Vec<AppendedMessage>>, (usize, TimelineRequestError)> {
        match &self.timelines {
            Some(timelines) => timelines.push(pushes).await,
            None => Err((0, TimelineRequestError::None)),
        }
    }

    /// Sets the sink for members who are offline when a message is stored for them. Later calls are
    /// ignored, and all calls on a server without a timeline store. Must be called inside a tokio
    /// runtime.
    pub fn set_offline_sink(&self, sink: Arc<dyn OfflineSink>) {
        if let Some(timelines) = &self.timelines {
            timelines.set_offline_sink(sink);
        }
    }

    /// Returns a sink that reports by POST.
    #[must_use]
    pub fn offline_webhook(&self, config: WebhookConfig) -> Arc<dyn OfflineSink> {
        timelines::webhook_sink(config, Arc::clone(&self.http))
    }
}
