//! The devices of members: a hash for each member. Field: the session key; value: the time of
//! connecting in microseconds, a colon, and the platform.

use goim_ports::{AcceptedAt, Call, Device, DeviceDirectory, DirectoryError, Mid, SessionKey};
use redis::cmd;

use super::sessions::answer;
use super::store::RedisStore;

/// The expiry of a member's devices, in seconds: longer than any session is likely to last. An
/// entry is removed earlier when its session turns out to have ended.
const EXPIRY_SECONDS: u64 = 30 * 24 * 60 * 60;

/// A device directory on Redis.
#[derive(Debug, Clone)]
pub struct RedisDevices {
    store: RedisStore,
}

impl RedisDevices {
    /// Creates the directory on `store`.
    #[must_use]
    pub fn new(store: RedisStore) -> Self {
        Self { store }
    }
}

fn member_key(mid: Mid) -> String {
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
            let (name, value) = (member_key(mid), format!("{}:{}", device.since.0, device.platform));
            let commands = vec![
                cmd("HSET").arg(&name).arg(key.as_str()).arg(value).to_owned(),
                cmd("EXPIRE").arg(&name).arg(EXPIRY_SECONDS).to_owned(),
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
            forget.arg(member_key(mid));
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
