//! Session counts of rooms: goim's reports `ol_<server>`, one for each comet, in up to 64 fields by
//! the hash of the room's name.
//!
//! A report replaces the previous one in one transaction, so empty rooms leave nothing behind and a
//! comet without rooms has no report. The sum over the known comets is cached.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use goim_ports::{Call, DirectoryError, RoomCounts, RoomDirectory, RoomId, ServerId};
use redis::{Cmd, Value, cmd};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::city_hash::city_hash32;
use super::sessions::answer;
use super::store::RedisStore;

/// The number of fields of a report.
const FIELDS: u32 = 64;
/// The age above which a report is ignored: its comet is dead.
const FRESH_FOR: Duration = Duration::from_secs(5 * 60);

/// Returns the comets whose reports count now.
pub type Servers = Arc<dyn Fn() -> Vec<ServerId> + Send + Sync>;

/// A room directory on Redis.
#[derive(Clone)]
pub struct RedisRooms {
    state: Arc<RoomsState>,
}

struct RoomsState {
    store: RedisStore,
    servers: Servers,
    refresh: Duration,
    /// Held while the sum is computed, so that concurrent callers compute it once.
    totals: Mutex<Option<(Instant, RoomCounts)>>,
}

/// One field of a report, as goim writes it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    server: String,
    #[serde(default)]
    room_count: Option<BTreeMap<String, i32>>,
    #[serde(default)]
    updated: i64,
}

impl RedisRooms {
    /// Creates the directory on `store`. `servers` are the comets whose reports count; a sum is
    /// cached for `refresh`.
    #[must_use]
    pub fn new(store: RedisStore, servers: Servers, refresh: Duration) -> Self {
        Self { state: Arc::new(RoomsState { store, servers, refresh, totals: Mutex::default() }) }
    }

    async fn write(&self, server: ServerId, rooms: RoomCounts) -> Result<(), DirectoryError> {
        let state = &self.state;
        let name = report_name(&server);
        let mut commands = vec![cmd("DEL").arg(&name).to_owned()];
        for (field, record) in records(&server, &rooms, seconds_since_1970()) {
            commands.push(cmd("HSET").arg(&name).arg(field).arg(record).to_owned());
        }
        if commands.len() > 1 {
            commands.push(cmd("EXPIRE").arg(&name).arg(state.store.expire_seconds()).to_owned());
        }
        state.store.run_atomically(commands).await?;
        // The reporting comet expects its report in the sum.
        *state.totals.lock().await = None;
        Ok(())
    }

    async fn sum(&self) -> Result<RoomCounts, DirectoryError> {
        let mut totals = self.state.totals.lock().await;
        if let Some((made, counts)) = &*totals
            && made.elapsed() < self.state.refresh
        {
            return Ok(Arc::clone(counts));
        }
        let counts = self.read().await?;
        *totals = Some((Instant::now(), Arc::clone(&counts)));
        Ok(counts)
    }

    async fn read(&self) -> Result<RoomCounts, DirectoryError> {
        let servers = (self.state.servers)();
        let asked: Vec<Cmd> =
            servers.iter().map(|server| cmd("HVALS").arg(report_name(server)).to_owned()).collect();
        let answers = self.state.store.run(asked).await?;
        let oldest = seconds_since_1970() - i64::try_from(FRESH_FOR.as_secs()).unwrap_or(i64::MAX);
        let mut counts: HashMap<RoomId, u32> = HashMap::new();
        let mut stale = Vec::new();
        // While reports cannot be renewed, an old one is better than none.
        let are_renewed = self.state.store.untrusted().is_none();
        for (server, fields) in servers.iter().zip(answers) {
            let records = parse(server, fields)?;
            // Our reports are rewritten as a whole; a Go logic writes only the fields that have
            // rooms.
            match records.iter().map(|record| record.updated).max() {
                Some(updated) if updated < oldest && are_renewed => {
                    stale.push(cmd("DEL").arg(report_name(server)).to_owned());
                    continue;
                }
                Some(_) | None => {}
            }
            for (room, count) in records.into_iter().filter_map(|record| record.room_count).flatten() {
                let total = counts.entry(RoomId::from(room)).or_insert(0);
                *total = total.saturating_add(u32::try_from(count).unwrap_or(0));
            }
        }
        if let Err(error) = self.state.store.run(stale).await {
            tracing::debug!(%error, "the reports of dead comets could not be deleted; retrying with the next sum");
        }
        Ok(Arc::new(counts))
    }
}

impl std::fmt::Debug for RedisRooms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisRooms").field("store", &self.state.store).finish_non_exhaustive()
    }
}

pub(super) fn report_name(server: &ServerId) -> String {
    ["ol_", server.as_str()].concat()
}

fn seconds_since_1970() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Returns the fields of a report and their values.
pub(super) fn records(server: &ServerId, rooms: &HashMap<RoomId, u32>, updated: i64) -> Vec<(u32, String)> {
    let mut fields: BTreeMap<u32, BTreeMap<String, i32>> = BTreeMap::new();
    for (room, count) in rooms {
        let field = city_hash32(room.as_str().as_bytes()) % FIELDS;
        let count = i32::try_from(*count).unwrap_or(i32::MAX);
        fields.entry(field).or_default().insert(room.as_str().to_owned(), count);
    }
    let text = |rooms| {
        let record = Record { server: server.as_str().to_owned(), room_count: Some(rooms), updated };
        go_escaped(serde_json::to_string(&record).unwrap_or_default())
    };
    fields.into_iter().map(|(field, rooms)| (field, text(rooms))).collect()
}

/// Escapes the characters that Go's JSON encoder escapes and others need not.
fn go_escaped(json: String) -> String {
    const SPECIAL: [(char, &str); 5] = [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ];
    SPECIAL
        .into_iter()
        .filter(|(special, _)| json.contains(*special))
        .collect::<Vec<_>>()
        .into_iter()
        .fold(json, |json, (special, escape)| json.replace(special, escape))
}

/// Parses the records of a comet. An unreadable record is skipped; the others still count.
fn parse(server: &ServerId, fields: Value) -> Result<Vec<Record>, DirectoryError> {
    let fields: Vec<Vec<u8>> = answer(Some(fields))?;
    let read = |field: Vec<u8>| match serde_json::from_slice::<Record>(&field) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::debug!(%server, %error, "skipping an unreadable room report");
            None
        }
    };
    Ok(fields.into_iter().filter_map(read).collect())
}

impl RoomDirectory for RedisRooms {
    fn report(&self, server: ServerId, rooms: RoomCounts) -> Call<Result<(), DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.write(server, rooms).await })
    }

    fn totals(&self) -> Call<Result<RoomCounts, DirectoryError>> {
        let this = self.clone();
        Call::pending(async move { this.sum().await })
    }
}
