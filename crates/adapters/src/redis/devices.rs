//! The devices of members: a hash of our own for each member, beside goim's keys. Field: the
//! session's key; value: when it came, in microseconds, and the platform behind a colon.

use goim_ports::{AcceptedAt, Call, Device, DeviceDirectory, DirectoryError, Mid, SessionKey};
use redis::cmd;

use super::sessions::answer;
use super::store::RedisStore;

/// How long a member's devices are kept that nothing is heard of: longer than any session is likely
/// to last. What is old is found out by the sessions themselves.
const KEPT_SECONDS: u64 = 30 * 24 * 60 * 60;

/// A device directory on Redis.
#[derive(Debug, Clone)]
pub struct RedisDevices {
    store: RedisStore,
}

impl RedisDevices {
    /// The directory that `store` holds.
    #[must_use]
    pub fn new(store: RedisStore) -> Self {
        Self { store }
    }
}

fn of_member(mid: Mid) -> String {
    format!("goim:devices:{mid}")
}

fn read(key: &str, value: &str) -> Option<(SessionKey, Device)> {
    let (since, platform) = value.split_once(':')?;
    let since = AcceptedAt(since.parse().ok()?);
    Some((key.into(), Device { platform: platform.to_owned(), since }))
}

impl DeviceDirectory for RedisDevices {
    fn enter(
        &self,
        mid: Mid,
        key: SessionKey,
        device: Device,
    ) -> Call<Result<Vec<(SessionKey, Device)>, DirectoryError>> {
        let store = self.store.clone();
        Call::pending(async move {
            let (name, value) = (of_member(mid), format!("{}:{}", device.since.0, device.platform));
            let commands = vec![
                cmd("HSET").arg(&name).arg(key.as_str()).arg(value).to_owned(),
                cmd("EXPIRE").arg(&name).arg(KEPT_SECONDS).to_owned(),
                cmd("HGETALL").arg(&name).to_owned(),
            ];
            let fields: Vec<String> = answer(store.run(commands).await?.pop())?;
            Ok(fields.chunks_exact(2).filter_map(|pair| read(&pair[0], &pair[1])).collect())
        })
    }

    fn forget(&self, mid: Mid, keys: Vec<SessionKey>) -> Call<Result<(), DirectoryError>> {
        let store = self.store.clone();
        Call::pending(async move {
            let mut forget = cmd("HDEL");
            forget.arg(of_member(mid));
            keys.iter().for_each(|key| {
                forget.arg(key.as_str());
            });
            if keys.is_empty() {
                return Ok(());
            }
            store.run(vec![forget]).await.map(drop)
        })
    }
}
