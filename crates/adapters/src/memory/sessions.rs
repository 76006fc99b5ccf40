//! Which comet holds which session, for comets in this process.
//!
//! Two maps: key to record, and member to keys. An anonymous session has no entry in the second.
//! Both are striped, with a lock per stripe. Records are small, since with a million sessions every
//! byte counts: the key's text is shared with the caller, and a comet is a number (its name is
//! never removed). Both maps hold the comet, so that a lookup by member needs no second one: each
//! is a cache miss.
//!
//! Lock order: the stripe of a key, then the stripe of a member, then the comets' names. A session
//! is changed under its key's lock, so that the two maps agree about it. Records do not expire: a
//! comet in the same process cannot die without its directory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};

use goim_ports::{
    Call, DirectoryError, Mid, ServerId, SessionDirectory, SessionKey, SessionRecord, SessionRef,
};

use parking_lot::{Mutex, RwLock};

/// The number of stripes: enough that cores rarely contend, few enough that empty maps are
/// negligible.
const STRIPES: usize = 64;

/// The capacity up to which a map is never shrunk: it is not worth the copying.
const SHRINK_ABOVE: usize = 256;

/// A session directory in memory.
#[derive(Debug)]
pub struct MemorySessions {
    hasher: RandomState,
    by_key: Box<[Mutex<HashMap<SessionKey, Record>>]>,
    by_mid: Box<[Mutex<HashMap<Mid, Keys>>]>,
    servers: RwLock<Vec<ServerId>>,
}

/// A comet: its index in the list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Server(u32);

#[derive(Debug)]
struct Record {
    server: Server,
    mid: Mid,
}

/// The keys of one member. Most have one.
#[derive(Debug)]
enum Keys {
    One(SessionKey, Server),
    // Boxed, so that the many members with one key do not pay for the few with more.
    #[allow(clippy::box_collection)]
    Many(Box<HashMap<SessionKey, Server>>),
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
        Self { hasher, by_key, by_mid, servers: RwLock::default() }
    }

    /// Returns the number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.iter().map(|stripe| stripe.lock().len()).sum()
    }

    /// Returns whether there are no sessions.
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

    /// Returns the index of a stripe, from other bits of the hash than the map uses.
    fn stripe(&self, of: &impl Hash) -> usize {
        (self.hasher.hash_one(of) >> 40) as usize % STRIPES
    }

    fn number_of(&self, server: &ServerId) -> Option<Server> {
        let servers = self.servers.read();
        index_of(&servers, server)
    }

    fn number(&self, server: ServerId) -> Server {
        if let Some(known) = self.number_of(&server) {
            return known;
        }
        let mut servers = self.servers.write();
        // Another thread may have added it.
        index_of(&servers, &server).unwrap_or_else(|| {
            servers.push(server);
            Server(servers.len() as u32 - 1)
        })
    }

    fn name(&self, server: Server) -> ServerId {
        self.servers.read()[server.0 as usize].clone()
    }

    fn enter(&self, session: SessionRef) {
        let SessionRef { mid, key, server } = session;
        let server = self.number(server);
        let mut records = self.stripe_of_key(&key).lock();
        // The old key is removed too, so that the stored text is shared with the new session.
        if let Some((old_key, old)) = records.remove_entry(&key) {
            self.unlink(old.mid, &old_key);
        }
        self.link(mid, &key, server);
        records.insert(key, Record { server, mid });
    }

    fn leave(&self, session: &SessionRef) -> bool {
        let Some(server) = self.number_of(&session.server) else { return false };
        let mut records = self.stripe_of_key(&session.key).lock();
        let owned = |record: &Record| record.server == server && same_member(record.mid, session.mid);
        if !records.get(&session.key).is_some_and(owned) {
            return false;
        }
        records.remove(&session.key);
        shrink(&mut records);
        self.unlink(session.mid, &session.key);
        true
    }

    fn link(&self, mid: Mid, key: &SessionKey, server: Server) {
        if mid.is_anonymous() {
            return;
        }
        let mut members = self.stripe_of_mid(mid).lock();
        match members.get_mut(&mid) {
            Some(keys) => keys.insert(key.clone(), server),
            None => drop(members.insert(mid, Keys::One(key.clone(), server))),
        }
    }

    fn unlink(&self, mid: Mid, key: &SessionKey) {
        if mid.is_anonymous() {
            return;
        }
        let mut members = self.stripe_of_mid(mid).lock();
        if members.get_mut(&mid).is_some_and(|keys| keys.remove(key)) {
            members.remove(&mid);
            shrink(&mut members);
        }
    }

    fn server_of(&self, key: &SessionKey) -> Option<ServerId> {
        let server = self.stripe_of_key(key).lock().get(key).map(|record| record.server);
        server.map(|server| self.name(server))
    }

    fn sessions_of_member(&self, mid: Mid, found: &mut Vec<SessionRecord>) {
        let mut add = |key: &SessionKey, server: Server| {
            found.push(SessionRecord { key: key.clone(), server: self.name(server) });
        };
        match self.stripe_of_mid(mid).lock().get(&mid) {
            None => {}
            Some(Keys::One(key, server)) => add(key, *server),
            Some(Keys::Many(keys)) => keys.iter().for_each(|(key, server)| add(key, *server)),
        }
    }
}

impl Keys {
    fn insert(&mut self, key: SessionKey, server: Server) {
        match self {
            // The old key is removed too, so that the stored text is shared with the new session.
            Self::Many(keys) => {
                keys.remove(&key);
                keys.insert(key, server);
            }
            Self::One(only, at) if *only == key => (*only, *at) = (key, server),
            Self::One(only, at) => {
                *self = Self::Many(Box::new(HashMap::from([(only.clone(), *at), (key, server)])));
            }
        }
    }

    /// Returns whether no key is left.
    fn remove(&mut self, key: &SessionKey) -> bool {
        match self {
            Self::One(only, _) => only == key,
            Self::Many(keys) => {
                keys.remove(key);
                let last = if keys.len() == 1 { keys.drain().next() } else { None };
                match last {
                    Some((last, server)) => *self = Self::One(last, server),
                    None if keys.is_empty() => return true,
                    None => shrink_keys(keys),
                }
                false
            }
        }
    }
}

fn index_of(servers: &[ServerId], server: &ServerId) -> Option<Server> {
    servers.iter().position(|known| known == server).map(|index| Server(index as u32))
}

/// Returns whether two ids are the same member. All anonymous ids are the same.
fn same_member(a: Mid, b: Mid) -> bool {
    a == b || (a.is_anonymous() && b.is_anonymous())
}

/// Releases memory when three quarters of it are unused, with room to grow again without copying.
/// An empty map releases everything: a small table in a large free range would keep its page.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.is_empty() {
        *map = HashMap::with_hasher(map.hasher().clone());
    } else if map.capacity() > SHRINK_ABOVE && map.len() < map.capacity() / 4 {
        map.shrink_to(map.len().saturating_mul(2));
    }
}

/// Shrinks the keys of one member likewise.
fn shrink_keys(keys: &mut HashMap<SessionKey, Server>) {
    if keys.capacity() > SHRINK_ABOVE && keys.len() < keys.capacity() / 4 {
        keys.shrink_to(keys.len().saturating_mul(2));
    }
}

impl SessionDirectory for MemorySessions {
    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        self.enter(session);
        Call::Ready(Ok(()))
    }

    /// Returns true only if the member is the same too: a key that another member has taken is a
    /// different session.
    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>> {
        Call::Ready(Ok(self.leave(&session)))
    }

    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        let known = self.stripe_of_key(&session.key).lock().contains_key(&session.key);
        if !known {
            self.enter(session);
        }
        Call::Ready(Ok(()))
    }

    fn servers_of(&self, keys: &[SessionKey]) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>> {
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
    fn a_member_is_found_where_its_sessions_are_now() {
        let sessions = MemorySessions::new();
        let at = |key: &str, server: &str| SessionRef { mid: Mid(1), key: key.into(), server: server.into() };
        let of_member = || {
            let mut found = Vec::new();
            sessions.sessions_of_member(Mid(1), &mut found);
            let mut found: Vec<(String, String)> =
                found.iter().map(|found| (found.key.to_string(), found.server.to_string())).collect();
            found.sort();
            found
        };
        let expect = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(key, server)| ((*key).to_owned(), (*server).to_owned())).collect()
        };
        for (entered, expected) in [
            (at("k", "a"), &[("k", "a")][..]),
            (at("k", "b"), &[("k", "b")]),
            (at("l", "a"), &[("k", "b"), ("l", "a")]),
            (at("k", "a"), &[("k", "a"), ("l", "a")]),
            (at("k", "c"), &[("k", "c"), ("l", "a")]),
        ] {
            sessions.enter(entered);
            assert_eq!(of_member(), expect(expected));
        }
        assert!(!sessions.leave(&at("k", "a")) && !sessions.leave(&at("k", "unheard of")));
        assert!(sessions.leave(&at("l", "a")));
        assert_eq!(of_member(), expect(&[("k", "c")]));
    }

    #[test]
    fn a_record_is_small() {
        // The memory of a session besides the key's text: one slot in each map, at a load of 7/16
        // to 7/8.
        assert_eq!(size_of::<(SessionKey, Record)>(), 32);
        assert_eq!(size_of::<(Mid, Keys)>(), 32);
    }

    #[test]
    fn memory_is_given_back() {
        let sessions = MemorySessions::new();
        let capacity = |sessions: &MemorySessions| -> usize {
            let keys: usize = sessions.by_key.iter().map(|stripe| stripe.lock().capacity()).sum();
            let mids: usize = sessions.by_mid.iter().map(|stripe| stripe.lock().capacity()).sum();
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
        assert!(sessions.by_mid.iter().all(|stripe| stripe.lock().is_empty()));
    }

    #[test]
    fn the_text_of_a_key_is_shared_with_the_newest_session() {
        let sessions = MemorySessions::new();
        sessions.enter(session(1, "k"));
        let newer = session(1, "k");
        sessions.enter(newer.clone());
        let kept = sessions.stripe_of_key(&newer.key).lock().keys().next().cloned().expect("entered");
        assert!(std::ptr::eq(kept.as_str(), newer.key.as_str()));
        let mut found = Vec::new();
        sessions.sessions_of_member(Mid(1), &mut found);
        assert!(std::ptr::eq(found[0].key.as_str(), newer.key.as_str()));
    }

    /// Threads add and remove sessions of the same few keys; afterwards both maps must agree.
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
                        let key = format!("k{}", (dice >> 33) % KEYS).into();
                        let server = format!("comet {}", (dice >> 45) % 3).into();
                        let session = SessionRef { mid: Mid(mid), key, server };
                        match (dice >> 50) % 3 {
                            0 => sessions.enter(session),
                            1 => drop(sessions.leave(&session)),
                            _ => sessions.sessions_of_member(Mid(mid), &mut Vec::new()),
                        }
                    }
                });
            }
        });
        let record = |key: &SessionKey| {
            sessions.stripe_of_key(key).lock().get(key).map(|record| (record.mid, record.server.0))
        };
        let mut by_key: Vec<_> = (0..KEYS)
            .map(|n| SessionKey::from(format!("k{n}")))
            .filter_map(|key| record(&key).map(|(mid, server)| (mid, key, server)))
            .filter(|(mid, ..)| !mid.is_anonymous())
            .collect();
        let mut by_mid = Vec::new();
        for (mid, keys) in sessions.by_mid.iter().flat_map(|stripe| std::mem::take(&mut *stripe.lock())) {
            match keys {
                Keys::One(key, server) => by_mid.push((mid, key, server.0)),
                Keys::Many(keys) => {
                    by_mid.extend(keys.into_iter().map(|(key, server)| (mid, key, server.0)));
                }
            }
        }
        by_key.sort();
        by_mid.sort();
        assert_eq!(by_key, by_mid);
    }
}
