//! Limits the devices on which a member is connected. The newest sessions stay; the others are
//! disconnected and their clients must not reconnect.
//!
//! The device directory knows when each session was opened and on which platform, the session
//! directory which of them are still open. When one of them does not answer no session is ended:
//! the limit must not lock members out.

use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    AcceptedAt, Call, CloseReason, Device, DeviceDirectory, DirectoryError, Mid, PushLog, PushTarget,
    ServerId, SessionDirectory, SessionKey,
};

use crate::config::DevicePolicy;
use crate::deadline::{directory_late, with_timeout};
use crate::push_writer::append_late;
use crate::session_ends::disconnect_record;

/// Enforces the device policy.
#[derive(Clone)]
pub(crate) struct Devices {
    policy: DevicePolicy,
    directory: Arc<dyn DeviceDirectory>,
    sessions: Arc<dyn SessionDirectory>,
    push_log: Arc<dyn PushLog>,
    timeout: Duration,
}

impl Devices {
    pub(crate) fn new(
        policy: DevicePolicy,
        directory: Arc<dyn DeviceDirectory>,
        sessions: Arc<dyn SessionDirectory>,
        push_log: Arc<dyn PushLog>,
        timeout: Duration,
    ) -> Self {
        Self { policy, directory, sessions, push_log, timeout }
    }

    /// True when members may have any number of devices: the directory is not used then.
    pub(crate) fn are_unlimited(&self) -> bool {
        self.policy == DevicePolicy::All
    }

    /// Removes the device of a closed session.
    pub(crate) fn forget(&self, mid: Mid, key: SessionKey) -> Call<Result<(), DirectoryError>> {
        self.directory.forget(mid, vec![key])
    }

    /// Ends the sessions that exceed the policy now that this one is open.
    pub(crate) async fn session_opened(&self, mid: Mid, key: SessionKey, platform: String) {
        if let Err(error) = self.try_session_opened(mid, key, platform).await {
            tracing::warn!(mid = mid.0, %error, "the devices of a member cannot be looked up; no session is ended");
        }
    }

    async fn try_session_opened(&self, mid: Mid, key: SessionKey, platform: String) -> Result<(), String> {
        let text = |error: DirectoryError| error.to_string();
        let device = Device { platform, since: AcceptedAt::now() };
        let entered = self.directory.enter(mid, key.clone(), device);
        let entered = with_timeout(self.timeout, entered, directory_late).await.map_err(text)?;
        if entered.len() <= 1 {
            return Ok(());
        }
        let there = with_timeout(self.timeout, self.sessions.sessions_of(vec![mid]), directory_late)
            .await
            .map_err(text)?;
        let server_of = |key: &SessionKey| {
            there.iter().find(|session| session.key == *key).map(|found| found.server.clone())
        };
        let (live, gone): (Vec<_>, Vec<_>) =
            entered.into_iter().partition(|(key, _)| server_of(key).is_some());
        let ended = excess_sessions(self.policy, &key, live);
        for key in &ended {
            if let Some(server) = server_of(key) {
                self.end(server, key.clone()).await?;
            }
        }
        let forgotten = gone.into_iter().map(|(key, _)| key).chain(ended).collect();
        with_timeout(self.timeout, self.directory.forget(mid, forgotten), directory_late).await.map_err(text)
    }

    async fn end(&self, server: ServerId, key: SessionKey) -> Result<(), String> {
        let record =
            disconnect_record(PushTarget::Keys { server, keys: vec![key] }, CloseReason::TooManyDevices);
        with_timeout(self.timeout, self.push_log.append(record), append_late)
            .await
            .map_err(|error| error.to_string())
    }
}

/// Returns the sessions that exceed the policy because of the newcomer. Sessions newer than the
/// newcomer are not among them.
fn excess_sessions(
    policy: DevicePolicy,
    newcomer: &SessionKey,
    mut live: Vec<(SessionKey, Device)>,
) -> Vec<SessionKey> {
    // Newest first. Sessions of the same time are ordered by key, so that every logic decides the
    // same.
    live.sort_by(|(a_key, a), (b_key, b)| (b.since, b_key).cmp(&(a.since, a_key)));
    let Some(own) = live.iter().position(|(key, _)| key == newcomer) else { return Vec::new() };
    let platform = live[own].1.platform.clone();
    let keys = |list: &[(SessionKey, Device)]| list.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    match policy {
        DevicePolicy::All => Vec::new(),
        DevicePolicy::Newest => keys(&live[own + 1..]),
        DevicePolicy::OnePerPlatform => {
            let older = live.split_off(own + 1);
            older.into_iter().filter(|(_, device)| device.platform == platform).map(|(key, _)| key).collect()
        }
        DevicePolicy::AtMost(most) => keys(live.get(most.get() as usize..).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn the_newest_sessions_stay() {
        let live = || {
            [("a", "web", 1), ("b", "ios", 2), ("c", "web", 3), ("d", "web", 4)].map(
                |(key, platform, since)| {
                    (
                        SessionKey::from(key),
                        Device { platform: platform.to_owned(), since: AcceptedAt(since) },
                    )
                },
            )
        };
        let ended = |policy, newcomer: &str| {
            let mut ended = excess_sessions(policy, &newcomer.into(), live().into());
            ended.sort();
            ended.iter().map(|key| key.as_str().to_owned()).collect::<Vec<_>>().concat()
        };
        let at_most = |most| DevicePolicy::AtMost(NonZeroU32::new(most).unwrap());
        assert_eq!(ended(DevicePolicy::All, "d"), "");
        assert_eq!(ended(DevicePolicy::Newest, "d"), "abc");
        // A newer session was opened meanwhile. Its own check handles the sessions newer than "b".
        assert_eq!(ended(DevicePolicy::Newest, "b"), "a");
        assert_eq!(ended(DevicePolicy::OnePerPlatform, "d"), "ac");
        assert_eq!(ended(DevicePolicy::OnePerPlatform, "b"), "");
        assert_eq!(ended(at_most(1), "d"), "abc");
        assert_eq!(ended(at_most(3), "d"), "a");
        assert_eq!(ended(at_most(4), "d"), "");
        assert_eq!(ended(at_most(2), "a"), "ab");
        assert_eq!(ended(DevicePolicy::Newest, "gone"), "");
    }
}
