//! Orders to end sessions, shared by all logics: each logic ends its own long polls.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, CloseReason, DirectoryError, EndTarget, Operation, Payload, PushRecord, PushTarget,
    RateLimitedLog, SessionDirectory, SessionEnd,
};

use crate::deadline::{directory_late, with_timeout};

/// The interval in which a logic reads the orders of other logics.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The orders in the session directory.
pub(crate) struct SessionEnds {
    sessions: Arc<dyn SessionDirectory>,
    timeout: Duration,
    /// A random number that marks the orders of this logic.
    origin: u64,
}

impl SessionEnds {
    pub(crate) fn new(sessions: Arc<dyn SessionDirectory>, timeout: Duration) -> Self {
        Self { sessions, timeout, origin: RandomState::new().hash_one(0_u8) }
    }

    /// Publishes an order to the other logics.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub(crate) async fn publish(&self, of: EndTarget, reason: CloseReason) -> Result<(), DirectoryError> {
        let noted = self.sessions.note_end(SessionEnd { of, reason, origin: self.origin });
        with_timeout(self.timeout, noted, directory_late).await
    }

    /// Calls `end` with each order of other logics, for as long as the future is polled. What
    /// begins within half a second after an order may be ended by it too.
    pub(crate) async fn watch(&self, end: impl Fn(&EndTarget, CloseReason)) {
        let (mut cursor, failure_log) = (None, RateLimitedLog::default());
        loop {
            let orders = self.sessions.ends_after(cursor.clone());
            match with_timeout(self.timeout, orders, directory_late).await {
                Ok((next, ends)) => {
                    cursor = Some(next);
                    for order in ends.iter().filter(|order| order.origin != self.origin) {
                        end(&order.of, order.reason);
                    }
                }
                Err(error) => {
                    if let Some(suppressed) = failure_log.try_log(Instant::now()) {
                        let what = "orders to end sessions cannot be read: streams over HTTP are not ended";
                        tracing::warn!(%error, suppressed, "{what}");
                    }
                }
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

/// Returns the record that ends sessions for this reason.
pub(crate) fn disconnect_record(target: PushTarget, reason: CloseReason) -> PushRecord {
    PushRecord {
        target,
        operation: Operation::DISCONNECT,
        payload: Payload::Disconnect(reason),
        accepted_at: AcceptedAt::now(),
    }
}
