//! Which sessions logic knows of: renewing their records, and registering all of them again.

use std::num::NonZeroU32;
use std::time::Duration;

use goim_ports::{Call, SessionRef};

use super::Shard;
use super::scan::Scan;
use crate::token_bucket::{Rate, TokenBucket};

/// A session's record is renewed after this time, and up to twice as long: records of goim v2
/// expire after 30 minutes, so one renewal may be lost.
const RENEWAL_INTERVAL_MIN: Duration = Duration::from_secs(5 * 60);
/// Sessions registered again per second after logic may have lost all of them: ten thousand take
/// two seconds, and a million do not overload it.
const REREGISTERED_PER_SECOND: NonZeroU32 = NonZeroU32::new(5000).expect("not zero");
const BURST: Duration = Duration::from_millis(100);

impl Shard {
    /// Registers a session with logic, or renews its record. The answer is not awaited: the next
    /// renewal corrects a failure.
    pub(super) fn register_session(&self, slot: u32) {
        let Some(session) = self.session_ref(slot) else { return };
        if let Call::Pending(answer) = self.shared.logic.heartbeat(session) {
            self.shared.runtime.spawn(async move {
                if let Err(error) = answer.await {
                    tracing::debug!(%error, "a session's record was not renewed; retried with a later heartbeat");
                }
            });
        }
    }

    /// Sets when the session's record is to be renewed next.
    pub(super) fn schedule_renewal(&mut self, slot: u32) {
        let spread = Duration::from_millis(self.random.below(RENEWAL_INTERVAL_MIN.as_millis() as u64));
        self.connections[slot].renew_after = self.now.after(RENEWAL_INTERVAL_MIN + spread);
    }

    /// Begins to register all sessions with logic again.
    pub(super) fn begin_reregistration(&mut self) {
        let rate = Rate::with_burst_time(REREGISTERED_PER_SECOND, BURST);
        self.scans.reregistration = Some(Scan::new(rate, TokenBucket::empty(self.now)));
    }

    /// Registers the next sessions, as many as the pace allows.
    pub(super) fn continue_reregistration(&mut self) {
        let Some(mut scan) = self.scans.reregistration.take() else { return };
        scan.refill(self.now);
        while scan.has_token() {
            let Some(slot) = scan.next_slot(self.connections.end()) else { return };
            scan.spend();
            self.register_session(slot);
        }
        self.scans.reregistration = Some(scan);
    }

    /// The session of a connection as logic names it, once it is authenticated.
    pub(super) fn session_ref(&self, slot: u32) -> Option<SessionRef> {
        let identity = self.connections.get(slot)?.identity.as_ref()?;
        let server = self.shared.server.clone();
        Some(SessionRef { mid: identity.mid, key: identity.key.clone(), server })
    }
}
