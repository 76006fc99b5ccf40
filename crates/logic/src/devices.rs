//! How many devices a member may be on at once. Whoever comes last stays; what is too many ends, and its client is told to stay away.
//!
//! The directory of devices knows when each came and on what platform, the directory of sessions which of them are there. When one of
//! them does not answer, nobody is ended: a policy is no reason to lock members out.

use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    AcceptedAt, CloseReason, Device, DeviceDirectory, DirectoryError, Mid, PushLog, PushTarget, ServerId,
    SessionDirectory, SessionKey,
};

use crate::config::DevicePolicy;
use crate::deadline::within;
use crate::members::order_to_end;
use crate::port::directory_late;
use crate::push::append_late;

/// Sees to it that a member is on as many devices as it may be.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) policy: DevicePolicy,
    pub(crate) directory: Arc<dyn DeviceDirectory>,
    pub(crate) sessions: Arc<dyn SessionDirectory>,
    pub(crate) push_log: Arc<dyn PushLog>,
    pub(crate) deadline: Duration,
}

impl Devices {
    /// A session has come; those that are too many now are ended.
    pub(crate) async fn came(&self, mid: Mid, key: SessionKey, platform: String) {
        if let Err(error) = self.try_came(mid, key, platform).await {
            tracing::warn!(mid = mid.0, %error, "the devices of a member cannot be looked at; none is ended");
        }
    }

    async fn try_came(&self, mid: Mid, key: SessionKey, platform: String) -> Result<(), String> {
        let text = |error: DirectoryError| error.to_string();
        let device = Device { platform, since: AcceptedAt::now() };
        let entered = self.directory.enter(mid, key.clone(), device);
        let entered = within(self.deadline, entered, directory_late).await.map_err(text)?;
        if entered.len() <= 1 {
            return Ok(());
        }
        let there = within(self.deadline, self.sessions.sessions_of(vec![mid]), directory_late)
            .await
            .map_err(text)?;
        let server_of = |key: &SessionKey| {
            there.iter().find(|session| session.key == *key).map(|found| found.server.clone())
        };
        let (live, gone): (Vec<_>, Vec<_>) =
            entered.into_iter().partition(|(key, _)| server_of(key).is_some());
        let ended = too_many(self.policy, &key, live);
        for key in &ended {
            if let Some(server) = server_of(key) {
                self.end(server, key.clone()).await?;
            }
        }
        let forgotten = gone.into_iter().map(|(key, _)| key).chain(ended).collect();
        within(self.deadline, self.directory.forget(mid, forgotten), directory_late).await.map_err(text)
    }

    async fn end(&self, server: ServerId, key: SessionKey) -> Result<(), String> {
        let record = order_to_end(PushTarget::Keys { server, keys: vec![key] }, CloseReason::TooManyDevices);
        within(self.deadline, self.push_log.append(record), append_late)
            .await
            .map_err(|error| error.to_string())
    }
}

/// The sessions that a member may not have beside the newcomer, or beside those that have come after it.
fn too_many(
    policy: DevicePolicy,
    newcomer: &SessionKey,
    mut live: Vec<(SessionKey, Device)>,
) -> Vec<SessionKey> {
    // The latest first; of two that came together, by name, so that every logic decides the same.
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
    fn the_last_to_come_stay() {
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
            let mut ended = too_many(policy, &newcomer.into(), live().into());
            ended.sort();
            ended.iter().map(|key| key.as_str().to_owned()).collect::<Vec<_>>().concat()
        };
        let at_most = |most| DevicePolicy::AtMost(NonZeroU32::new(most).unwrap());
        assert_eq!(ended(DevicePolicy::All, "d"), "");
        assert_eq!(ended(DevicePolicy::Newest, "d"), "abc");
        // Somebody else has come meanwhile: what is newer is for him to see to.
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
