//! Which comet holds which session, for comets in this process.
//!
//! Two maps: key to record, and member to keys. An anonymous session has no entry in the second. Both are cut into
//! stripes with a lock each, and records are small: with a million sessions every byte counts. The key's text is
//! shared with whoever handed it in.
//!
//! Lock order: the stripe of a key, then the stripe of a member. A change of one session is made under its key's
//! lock from beginning to end, so that the two maps agree about it. Readers that come from the member take the locks
//! one after the other and check the record again.
//!
//! Records do not expire: a comet in the same process cannot die without its directory.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Mutex;

use goim_ports::{
    Call, DirectoryError, Mid, ServerId, SessionDirectory, SessionKey, SessionRecord, SessionRef,
};

use super::lock;

/// Enough that two cores rarely meet, few enough that the empty maps weigh nothing.
const STRIPES: usize = 64;

/// Below this capacity a map keeps its memory: it is not worth the copying.
const SHRINK_ABOVE: usize = 256;

/// A session directory in memory.
#[derive(Debug)]
pub struct MemorySessions {
    hasher: RandomState,
    by_key: Box<[Mutex<HashMap<SessionKey, Record>>]>,
    by_mid: Box<[Mutex<HashMap<Mid, Keys>>]>,
}

#[derive(Debug)]
struct Record {
    server: ServerId,
    mid: Mid,
}

/// The keys of one member. Most have one.
#[derive(Debug)]
enum Keys {
    One(SessionKey),
    // Boxed so that the many who have one key do not pay for the few who have more.
    #[allow(clippy::box_collection)]
    Many(Box<HashSet<SessionKey>>),
}

impl Default for MemorySessions {
    fn default() -> Self {
        Self::new()
    }
}

impl MemorySessions {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        let hasher = RandomState::new();
        let by_key = (0..STRIPES).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect();
        let by_mid = (0..STRIPES).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect();
        Self { hasher, by_key, by_mid }
    }

    /// Sessions entered and not removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.iter().map(|stripe| lock(stripe).len()).sum()
    }

    /// True when no session is entered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stripe_of_key(&self, key: &SessionKey) -> &Mutex<HashMap<SessionKey, Record>> {
        &self.by_key[self.stripe(key)]
    }

    fn stripe_of_mid(&self, mid: Mid) -> &Mutex<HashMap<Mid, Keys>> {
        &self.by_mid[self.stripe(&mid)]
    }

    /// Takes the stripe from other bits of the hash than the map takes its slot from.
    fn stripe(&self, of: &impl Hash) -> usize {
        (self.hasher.hash_one(of) >> 40) as usize % STRIPES
    }

    fn enter(&self, session: SessionRef) {
        let SessionRef { mid, key, server } = session;
        let mut records = lock(self.stripe_of_key(&key));
        // The old entry goes with its key, so that the text is shared with the new session and not with the old one.
        if let Some((old_key, old)) = records.remove_entry(&key) {
            self.unlink(old.mid, &old_key);
        }
        self.link(mid, &key);
        records.insert(key, Record { server, mid });
    }

    fn leave(&self, session: &SessionRef) -> bool {
        let mut records = lock(self.stripe_of_key(&session.key));
        let owned = |record: &Record| record.server == session.server && same_member(record.mid, session.mid);
        if !records.get(&session.key).is_some_and(owned) {
            return false;
        }
        records.remove(&session.key);
        shrink(&mut records);
        self.unlink(session.mid, &session.key);
        true
    }

    fn link(&self, mid: Mid, key: &SessionKey) {
        if mid.is_anonymous() {
            return;
        }
        let mut members = lock(self.stripe_of_mid(mid));
        match members.get_mut(&mid) {
            Some(keys) => keys.insert(key.clone()),
            None => drop(members.insert(mid, Keys::One(key.clone()))),
        }
    }

    fn unlink(&self, mid: Mid, key: &SessionKey) {
        if mid.is_anonymous() {
            return;
        }
        let mut members = lock(self.stripe_of_mid(mid));
        if members.get_mut(&mid).is_some_and(|keys| keys.remove(key)) {
            members.remove(&mid);
            shrink(&mut members);
        }
    }

    fn server_of(&self, key: &SessionKey) -> Option<ServerId> {
        lock(self.stripe_of_key(key)).get(key).map(|record| record.server.clone())
    }

    fn sessions_of_member(&self, mid: Mid, found: &mut Vec<SessionRecord>) {
        let keys: Vec<SessionKey> = match lock(self.stripe_of_mid(mid)).get(&mid) {
            None => return,
            Some(Keys::One(key)) => vec![key.clone()],
            Some(Keys::Many(keys)) => keys.iter().cloned().collect(),
        };
        for key in keys {
            let records = lock(self.stripe_of_key(&key));
            // Between the two locks the key may have gone, or gone over to another member.
            if let Some(record) = records.get(&key).filter(|record| record.mid == mid) {
                let server = record.server.clone();
                found.push(SessionRecord { key, server });
            }
        }
    }
}

impl Keys {
    fn insert(&mut self, key: SessionKey) {
        match self {
            Self::Many(keys) => drop(keys.replace(key)),
            Self::One(only) if *only == key => *only = key,
            Self::One(only) => *self = Self::Many(Box::new(HashSet::from([only.clone(), key]))),
        }
    }

    /// True when nothing is left.
    fn remove(&mut self, key: &SessionKey) -> bool {
        match self {
            Self::One(only) => only == key,
            Self::Many(keys) => {
                keys.remove(key);
                let last = if keys.len() == 1 { keys.iter().next().cloned() } else { None };
                match last {
                    Some(last) => *self = Self::One(last),
                    None if keys.is_empty() => return true,
                    None => shrink_set(keys),
                }
                false
            }
        }
    }
}

/// Nobody in particular is nobody in particular, whatever the number.
fn same_member(a: Mid, b: Mid) -> bool {
    a == b || (a.is_anonymous() && b.is_anonymous())
}

/// Gives memory back when three quarters of it are unused, and leaves room to grow again without copying at once.
/// One that is empty gives back all: a small table in a large free stretch would keep its page from the system.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.is_empty() {
        *map = HashMap::with_hasher(map.hasher().clone());
    } else if map.capacity() > SHRINK_ABOVE && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len().saturating_mul(2));
    }
}

/// The same for the keys of one member.
fn shrink_set(set: &mut HashSet<SessionKey>) {
    if set.capacity() > SHRINK_ABOVE && set.len() < set.capacity() / 4 {
        set.shrink_to(set.len().saturating_mul(2));
    }
}

impl SessionDirectory for MemorySessions {
    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        self.enter(session);
        Call::Ready(Ok(()))
    }

    /// True also needs the member to be the same: a key that another member has taken over is no longer this session.
    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>> {
        Call::Ready(Ok(self.leave(&session)))
    }

    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        let known = lock(self.stripe_of_key(&session.key)).contains_key(&session.key);
        if !known {
            self.enter(session);
        }
        Call::Ready(Ok(()))
    }

    fn servers_of(&self, keys: Vec<SessionKey>) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>> {
        Call::Ready(Ok(keys.iter().map(|key| self.server_of(key)).collect()))
    }

    fn sessions_of(&self, mut mids: Vec<Mid>) -> Call<Result<Vec<SessionRecord>, DirectoryError>> {
        mids.sort_unstable();
        mids.dedup();
        let mut found = Vec::with_capacity(mids.len());
        for mid in mids {
            self.sessions_of_member(mid, &mut found);
        }
        Call::Ready(Ok(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::sessions(async || MemorySessions::new()).await;
    }

    fn session(mid: i64, key: &str) -> SessionRef {
        SessionRef { mid: Mid(mid), key: key.into(), server: "comet".into() }
    }

    #[test]
    fn a_record_is_small() {
        // What a session costs here besides the text of its key: one slot in each map, at a load of 7/16 to 7/8.
        assert_eq!(size_of::<(SessionKey, Record)>(), 40);
        assert_eq!(size_of::<(Mid, Keys)>(), 24);
    }

    #[test]
    fn memory_is_given_back() {
        let sessions = MemorySessions::new();
        let capacity = |sessions: &MemorySessions| -> usize {
            let keys: usize = sessions.by_key.iter().map(|stripe| lock(stripe).capacity()).sum();
            let mids: usize = sessions.by_mid.iter().map(|stripe| lock(stripe).capacity()).sum();
            keys + mids
        };
        for n in 1..=100_000 {
            sessions.enter(session(n, &format!("key-{n}")));
        }
        let full = capacity(&sessions);
        for n in 1..=100_000 {
            assert!(sessions.leave(&session(n, &format!("key-{n}"))));
        }
        assert!(sessions.is_empty());
        let empty = capacity(&sessions);
        assert!(empty <= STRIPES * 2 * SHRINK_ABOVE && empty < full / 4, "{full} entries, then {empty}");
        assert!(sessions.by_mid.iter().all(|stripe| lock(stripe).is_empty()));
    }

    #[test]
    fn the_text_of_a_key_is_shared_with_the_newest_session() {
        let sessions = MemorySessions::new();
        sessions.enter(session(1, "k"));
        let newer = session(1, "k");
        sessions.enter(newer.clone());
        let kept = lock(sessions.stripe_of_key(&newer.key)).keys().next().cloned().expect("entered");
        assert!(std::ptr::eq(kept.as_str(), newer.key.as_str()));
        let mut found = Vec::new();
        sessions.sessions_of_member(Mid(1), &mut found);
        assert!(std::ptr::eq(found[0].key.as_str(), newer.key.as_str()));
    }

    /// Threads enter and remove sessions of the same few keys; when all are still, both maps must say the same.
    #[test]
    fn the_two_maps_agree_whatever_threads_do() {
        const KEYS: u64 = 16;
        const MIDS: i64 = 5;
        let sessions = MemorySessions::new();
        std::thread::scope(|scope| {
            for seed in 1..=8_u64 {
                let sessions = &sessions;
                scope.spawn(move || {
                    let mut dice = seed;
                    for _ in 0..20_000 {
                        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let mid = i64::try_from((dice >> 40) % MIDS.unsigned_abs()).unwrap();
                        let session = session(mid, &format!("k{}", (dice >> 33) % KEYS));
                        match (dice >> 50) % 3 {
                            0 => sessions.enter(session),
                            1 => drop(sessions.leave(&session)),
                            _ => sessions.sessions_of_member(Mid(mid), &mut Vec::new()),
                        }
                    }
                });
            }
        });
        let mut by_key: Vec<_> = (0..KEYS)
            .map(|n| SessionKey::from(format!("k{n}")))
            .filter_map(|key| Some((lock(sessions.stripe_of_key(&key)).get(&key)?.mid, key)))
            .filter(|(mid, _)| !mid.is_anonymous())
            .collect();
        let mut by_mid = Vec::new();
        for (mid, keys) in sessions.by_mid.iter().flat_map(|stripe| std::mem::take(&mut *lock(stripe))) {
            match keys {
                Keys::One(key) => by_mid.push((mid, key)),
                Keys::Many(keys) => by_mid.extend(keys.into_iter().map(|key| (mid, key))),
            }
        }
        by_key.sort();
        by_mid.sort();
        assert_eq!(by_key, by_mid);
    }
}
