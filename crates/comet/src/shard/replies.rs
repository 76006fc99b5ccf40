//! Replies that the shard itself makes: to control requests, and to requests that have failed.

use std::time::Duration;

use goim_ports::Operation;
use goim_session::ReconnectPolicy;

use super::Shard;

/// How long a client waits before it repeats a request that failed temporarily.
const RETRY_AFTER_MS: u64 = 1000;

impl Shard {
    /// Replies to a control request with a JSON body.
    pub(super) fn reply_control(&mut self, slot: u32, reply: &serde_json::Value) {
        let body = reply.to_string();
        let connection = &mut self.connections[slot];
        if let Some(operation) = connection.session.reply_control(self.egress.pool(), body.as_bytes()) {
            self.stats.packets_out(operation, 1, goim_wire::HEADER_LEN + body.len());
        }
        self.stage(slot);
    }

    /// Reports to a negotiated client that its request has failed. For a v2 client nothing is done,
    /// and false returned.
    pub(super) fn fail_request(&mut self, slot: u32, code: u16, label: &str, detail: &str) -> bool {
        self.fail_request_until(slot, code, label, detail, None)
    }

    /// The same for a request that may be repeated after a known time.
    pub(super) fn fail_request_until(
        &mut self,
        slot: u32,
        code: u16,
        label: &str,
        detail: &str,
        retry_after: Option<Duration>,
    ) -> bool {
        let later = ReconnectPolicy::for_code(code) == ReconnectPolicy::Backoff;
        // Rounded up: a client that is a moment too early is refused again.
        let wait = |after: Duration| u64::try_from(after.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let retry_after_ms = retry_after.map_or(RETRY_AFTER_MS, wait);
        let mut body_len = 0;
        let failed = self.connections[slot].session.reply_error(self.egress.pool(), |operation| {
            let message = if detail.is_empty() { label.to_owned() } else { format!("{label}: {detail}") };
            let body = serde_json::json!({
                "code": code,
                "message": message,
                "retry_after_ms": later.then_some(retry_after_ms),
                "op": operation.0,
            })
            .to_string()
            .into_bytes();
            body_len = body.len();
            body
        });
        if failed.is_some() {
            self.stats.packets_out(Operation::ERROR, 1, goim_wire::HEADER_LEN + body_len);
            self.stage(slot);
        }
        failed.is_some()
    }
}
