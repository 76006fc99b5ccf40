//! Which comet holds which session: goim's `key_<key>` and `mid_<mid>`, and the sessions of each
//! comet.
//!
//! goim's records name the comet of a key but not its member; `goim:sessions:<server>` does. Where
//! it has no entry, as for sessions that a Go logic registered, goim's records are trusted.
//!
//! After Redis has lost its data, comets register their sessions again, which takes some seconds.
//! Until then a lookup that finds nothing fails: a push that succeeds must not miss an existing
//! session.

use std::collections::BTreeSet;

use goim_ports::{
    Call, DirectoryError, EndCursor, Generation, Mid, ServerId, SessionDirectory, SessionEnd, SessionKey,
    SessionRecord, SessionRef,
};
use redis::{Cmd, FromRedisValue, Value, cmd};

use super::health::Untrusted;
use super::session_ends;
use super::store::{EPOCH, RedisStore, now};

/// Deletes a key if it has this value; returns the number of deleted keys.
const DELETE_IF: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
/// Deletes a field of a hash if it has this value.
const DELETE_FIELD_IF: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0";
/// The expiry of the record of a sweep, in seconds. A comet that was cut off for longer does not
/// learn of the sweep.
const SWEPT_SECONDS: u64 = 24 * 60 * 60;
/// The number of sessions in one block of a sweep.
const SWEEP_BLOCK: usize = 512;

/// A session directory on Redis.
#[derive(Debug, Clone)]
pub struct RedisSessions {
    store: RedisStore,
}

impl RedisSessions {
    /// Creates the directory on `store`.
    #[must_use]
    pub fn new(store: RedisStore) -> Self {
        Self { store }
    }

    /// Removes all sessions that still belong to a dead comet, and returns their number.
    /// `may_continue` is called before each block of 512: a comet that is alive again must keep its
    /// sessions.
    ///
    /// # Errors
    /// [`DirectoryError`]; the rest can be swept again. Nothing is removed unless the sweep can be
    /// recorded: a comet that is alive after all must learn of it.
    pub async fn sweep(
        &self,
        server: &ServerId,
        may_continue: impl Fn() -> bool,
    ) -> Result<usize, DirectoryError> {
        let mut swept = 0;
        let mut cursor = 0_u64;
        loop {
            let scan =
                cmd("HSCAN").arg(server_name(server)).arg(cursor).arg("COUNT").arg(SWEEP_BLOCK).to_owned();
            let page = self.store.run(vec![scan]).await?;
            let (next, fields): (u64, Vec<String>) = answer(page.into_iter().next())?;
            if !may_continue() {
                return Ok(swept);
            }
            if swept == 0 && !fields.is_empty() {
                let note =
                    cmd("SET").arg(swept_name(server)).arg(now()).arg("EX").arg(SWEPT_SECONDS).to_owned();
                self.store.run(vec![note]).await?;
            }
            let commands = fields.chunks_exact(2).flat_map(|pair| {
                let mid = Mid(pair[1].parse().unwrap_or(0));
                let session = SessionRef { mid, key: pair[0].as_str().into(), server: server.clone() };
                removal(&session)
            });
            // After the removals: a comet that is alive after all finds another mark, and registers
            // its sessions again.
            let unmark = cmd("DEL").arg(mark_name(server)).to_owned();
            self.store.run(commands.chain([unmark]).collect()).await?;
            swept += fields.len() / 2;
            cursor = next;
            if cursor == 0 {
                return Ok(swept);
            }
        }
    }

    /// Returns goim's commands in goim's order, followed by our own.
    fn entry(&self, session: &SessionRef) -> Vec<Cmd> {
        let expire = self.store.expire_seconds();
        let SessionRef { mid, key, server } = session;
        let mut commands = Vec::with_capacity(6);
        if !mid.is_anonymous() {
            commands
                .push(cmd("HSET").arg(member_name(*mid)).arg(key.as_str()).arg(server.as_str()).to_owned());
            commands.push(cmd("EXPIRE").arg(member_name(*mid)).arg(expire).to_owned());
        }
        commands.push(cmd("SET").arg(key_name(key)).arg(server.as_str()).to_owned());
        commands.push(cmd("EXPIRE").arg(key_name(key)).arg(expire).to_owned());
        commands.push(cmd("HSET").arg(server_name(server)).arg(key.as_str()).arg(mid.0).to_owned());
        commands.push(cmd("EXPIRE").arg(server_name(server)).arg(expire).to_owned());
        commands
    }

    async fn enter(&self, session: SessionRef) -> Result<(), DirectoryError> {
        self.store.run(self.entry(&session)).await.map(|_| ())
    }

    async fn renew(&self, session: SessionRef) -> Result<(), DirectoryError> {
        let expire = self.store.expire_seconds();
        let renewed = |name: String| cmd("EXPIRE").arg(name).arg(expire).to_owned();
        let commands =
            [member_name(session.mid), key_name(&session.key), server_name(&session.server)].map(renewed);
        let answers = self.store.run(commands.into()).await?;
        let [of_member, of_key, of_server]: [i64; 3] = match answers.as_slice() {
            [a, b, c] => [number(a)?, number(b)?, number(c)?],
            _ => return Err(unreadable("EXPIRE")),
        };
        let has_member = session.mid.is_anonymous() || of_member == 1;
        if of_key == 1 && of_server == 1 && has_member {
            return Ok(());
        }
        // Some or all records are lost. A key that another comet holds is left alone.
        if of_key == 1 {
            let asked = self.store.run(vec![cmd("GET").arg(key_name(&session.key)).to_owned()]).await?;
            let holder: Option<String> = answer(asked.into_iter().next())?;
            if holder.is_some_and(|holder| holder != session.server.as_str()) {
                return Ok(());
            }
        }
        self.enter(session).await
    }

    async fn leave(&self, session: SessionRef) -> Result<bool, DirectoryError> {
        let answers = self.store.run(removal(&session)).await?;
        answers.first().map_or(Ok(false), |removed| Ok(number(removed)? == 1))
    }

    /// Returns a mark that is stable while the comet reports and no session was removed, by a sweep
    /// or by a loss of data.
    async fn generation_of(&self, server: ServerId) -> Result<Generation, DirectoryError> {
        let mark = mark_name(&server);
        let asked = vec![
            cmd("SET").arg(EPOCH).arg(now()).arg("NX").to_owned(),
            cmd("SET").arg(&mark).arg(now()).arg("NX").to_owned(),
            cmd("EXPIRE").arg(&mark).arg(self.store.expire_seconds()).to_owned(),
            cmd("GET").arg(&mark).to_owned(),
            cmd("GET").arg(swept_name(&server)).to_owned(),
            self.epoch(),
        ];
        let mut answers = self.store.run(asked).await?.into_iter().skip(3);
        let entered: String = answer(answers.next())?;
        let swept_at: Option<u64> = answer(answers.next())?;
        self.store.record_epoch(answer(answers.next())?);
        Ok(Generation::new(&entered, swept_at))
    }

    async fn find(&self, keys: Vec<SessionKey>) -> Result<Vec<Option<ServerId>>, DirectoryError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked = cmd("MGET");
        keys.iter().for_each(|key| {
            asked.arg(key_name(key));
        });
        let mut answers = self.store.run(vec![asked, self.epoch()]).await?.into_iter();
        let servers: Vec<Option<String>> = answer(answers.next())?;
        self.store.record_epoch(answer(answers.next())?);
        let named = |server: Option<String>| server.filter(|server| !server.is_empty()).map(ServerId::from);
        let servers: Vec<Option<ServerId>> = servers.into_iter().map(named).collect();
        if servers.iter().any(Option::is_none) {
            self.require_trusted_absence()?;
        }
        Ok(servers)
    }

    fn epoch(&self) -> Cmd {
        cmd("GET").arg(EPOCH).to_owned()
    }

    /// Fails while a session that is not found may exist.
    fn require_trusted_absence(&self) -> Result<(), DirectoryError> {
        match self.store.untrusted() {
            None => Ok(()),
            Some(Untrusted::Everything(reason)) => Err(self.store.unavailable(reason)),
            Some(Untrusted::Absence(reason)) => Err(self.store.unavailable(&reason)),
        }
    }

    /// Fails while a result may be incomplete.
    fn require_trusted_presence(&self) -> Result<(), DirectoryError> {
        match self.store.untrusted() {
            Some(Untrusted::Everything(reason)) => Err(self.store.unavailable(reason)),
            Some(Untrusted::Absence(_)) | None => Ok(()),
        }
    }

    /// Returns whether absence can be trusted: Redis is healthy, and has been for long enough that
    /// all comets could register their sessions.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.store.untrusted().is_none()
    }

    async fn find_of(&self, mids: Vec<Mid>) -> Result<Vec<SessionRecord>, DirectoryError> {
        let mids: Vec<Mid> = mids.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mids: Vec<Mid> = mids.into_iter().filter(|mid| !mid.is_anonymous()).collect();
        if mids.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked: Vec<Cmd> =
            mids.iter().map(|mid| cmd("HGETALL").arg(member_name(*mid)).to_owned()).collect();
        asked.push(self.epoch());
        let mut answers = self.store.run(asked).await?;
        self.store.record_epoch(answer(answers.pop())?);
        // Some of a member's sessions may not be registered again yet.
        self.require_trusted_presence()?;
        let mut claims = Vec::new();
        for (mid, fields) in mids.iter().zip(answers) {
            let fields: Vec<String> = answer(Some(fields))?;
            claims.extend(fields.chunks_exact(2).map(|pair| {
                let (key, server) = (SessionKey::from(pair[0].as_str()), ServerId::from(pair[1].as_str()));
                (*mid, SessionRecord { key, server })
            }));
        }
        let claimed: BTreeSet<Mid> = claims.iter().map(|(mid, _)| *mid).collect();
        let (confirmed, has_gaps) = self.confirm(claims).await?;
        if has_gaps || claimed.len() < mids.len() {
            self.require_trusted_absence()?;
        }
        Ok(confirmed)
    }

    /// Returns the records that are still valid: a key may belong to another comet or member now.
    /// The flag is true when some key has no record: its session may have ended, or its record is
    /// lost.
    async fn confirm(
        &self,
        claims: Vec<(Mid, SessionRecord)>,
    ) -> Result<(Vec<SessionRecord>, bool), DirectoryError> {
        let asked = claims.iter().flat_map(|(_, SessionRecord { key, server })| {
            [
                cmd("GET").arg(key_name(key)).to_owned(),
                cmd("HGET").arg(server_name(server)).arg(key.as_str()).to_owned(),
            ]
        });
        let answers = self.store.run(asked.collect()).await?;
        let mut confirmed = Vec::with_capacity(claims.len());
        let mut has_gaps = false;
        for ((mid, record), found) in claims.into_iter().zip(answers.chunks_exact(2)) {
            let holder: Option<String> = answer(found.first().cloned())?;
            let member: Option<i64> = answer(found.get(1).cloned())?;
            has_gaps |= holder.is_none();
            let is_current = holder.is_some_and(|holder| holder == record.server.as_str());
            if is_current && member.is_none_or(|member| member == mid.0) {
                confirmed.push(record);
            }
        }
        Ok((confirmed, has_gaps))
    }
}

fn key_name(key: &SessionKey) -> String {
    ["key_", key.as_str()].concat()
}

fn member_name(mid: Mid) -> String {
    format!("mid_{mid}")
}

fn server_name(server: &ServerId) -> String {
    ["goim:sessions:", server.as_str()].concat()
}

/// The key of the mark of a comet's sessions.
fn mark_name(server: &ServerId) -> String {
    ["goim:entered:", server.as_str()].concat()
}

/// The key of the time of the last sweep of a comet's sessions.
fn swept_name(server: &ServerId) -> String {
    ["goim:swept:", server.as_str()].concat()
}

/// Returns the commands that remove a session. The first returns 1 when the session still belonged
/// to the comet.
fn removal(session: &SessionRef) -> Vec<Cmd> {
    let SessionRef { mid, key, server } = session;
    let mut commands = vec![
        cmd("EVAL").arg(DELETE_IF).arg(1).arg(key_name(key)).arg(server.as_str()).to_owned(),
        cmd("HDEL").arg(server_name(server)).arg(key.as_str()).to_owned(),
    ];
    if !mid.is_anonymous() {
        let member = cmd("EVAL")
            .arg(DELETE_FIELD_IF)
            .arg(1)
            .arg(member_name(*mid))
            .arg(key.as_str())
            .arg(server.as_str())
            .to_owned();
        commands.push(member);
    }
    commands
}

pub(super) fn unreadable(what: &str) -> DirectoryError {
    DirectoryError::Unavailable(format!("redis: unexpected answer to {what}"))
}

/// Converts an answer of Redis.
pub(super) fn answer<T: FromRedisValue>(value: Option<Value>) -> Result<T, DirectoryError> {
    value.and_then(|value| T::from_redis_value(value).ok()).ok_or_else(|| unreadable("a query"))
}

fn number(value: &Value) -> Result<i64, DirectoryError> {
    match value {
        Value::Int(number) => Ok(*number),
        _ => Err(unreadable("a command")),
    }
}

impl SessionDirectory for RedisSessions {
    fn note_end(&self, end: SessionEnd) -> Call<Result<(), DirectoryError>> {
        let store = self.store.clone();
        Call::pending(async move { session_ends::append(&store, end).await })
    }

    fn ends_after(
        &self,
        mark: Option<EndCursor>,
    ) -> Call<Result<(EndCursor, Vec<SessionEnd>), DirectoryError>> {
        let store = self.store.clone();
        Call::pending(async move { session_ends::read_after(&store, mark).await })
    }

    fn add(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.enter(session).await })
    }

    fn remove(&self, session: SessionRef) -> Call<Result<bool, DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.leave(session).await })
    }

    fn touch(&self, session: SessionRef) -> Call<Result<(), DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.renew(session).await })
    }

    fn servers_of(&self, keys: &[SessionKey]) -> Call<Result<Vec<Option<ServerId>>, DirectoryError>> {
        let (this, keys) = (self.clone(), keys.to_vec());
        Call::pending(async move { this.find(keys).await })
    }

    fn generation(&self, server: ServerId) -> Call<Result<Generation, DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.generation_of(server).await })
    }

    fn sessions_of(&self, mids: Vec<Mid>) -> Call<Result<Vec<SessionRecord>, DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.find_of(mids).await })
    }
}
