//! The writer tasks: each groups appends into transactions on its own connection. All appends
//! to one timeline use the same writer, so that writers rarely wait for each other's row locks.
//!
//! A transaction locks the rows of its timelines, in the order of their ids, before it reads
//! anything. So concurrent appends of two logics to one timeline are serialised, and each sees the
//! idempotency keys of the other. When a commit gets no answer its outcome is unknown, and its
//! publishers get [`TimelineError::Unknown`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use goim_ports::{Append, AppendResult, Epoch, Position, TimelineError, TimelineSeq};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use super::connection::{Connection, PreparedClient, text_of};
use super::store::StoreState;
use crate::timeline::admission::Admitted;
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;
use crate::timeline::{bytes_of, new_epoch};

/// The appends of one call that go to one writer.
pub(super) struct WriteRequest {
    pub(super) appends: Vec<(TimelineKey, Append)>,
    pub(super) reply: oneshot::Sender<Result<Vec<AppendResult>, TimelineError>>,
    /// Freed when the request is dropped, after its transaction.
    pub(super) _admitted: Admitted,
}

const ENSURE: &str = "INSERT INTO goim_timelines (name, epoch) SELECT * FROM unnest($1::bytea[], $2::bigint[]) \
    ON CONFLICT (name) DO NOTHING";
const LOCK: &str = "SELECT id, name, epoch, latest, total_bytes FROM goim_timelines WHERE name = ANY($1::bytea[]) \
    ORDER BY id FOR UPDATE";
const FIND_KEYS: &str = "SELECT d.timeline, d.sender, d.idempotency_key, d.seq FROM goim_dedup d \
    JOIN unnest($1::bigint[], $2::bigint[], $3::bytea[]) AS w(timeline, sender, idempotency_key) \
    USING (timeline, sender, idempotency_key)";
const INSERT_MESSAGES: &str = "INSERT INTO goim_messages (timeline, seq, accepted_at, total_bytes, record) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[])";
const INSERT_KEYS: &str = "INSERT INTO goim_dedup (timeline, sender, idempotency_key, seq, stored_at) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[])";
const UPDATE_HEADS: &str = "UPDATE goim_timelines t SET latest = n.latest, total_bytes = n.total_bytes \
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS n(id, latest, total_bytes) WHERE t.id = n.id";

/// Runs until all senders are dropped.
pub(super) async fn run(state: Arc<StoreState>, mut queue: mpsc::UnboundedReceiver<WriteRequest>) {
    let connection = Connection::new(state.target.clone());
    while let Some(first) = queue.recv().await {
        let mut count = first.appends.len();
        let mut group = vec![first];
        while count < state.config.group_messages_max {
            let Ok(request) = queue.try_recv() else { break };
            count += request.appends.len();
            group.push(request);
        }
        match write(&connection, &group).await {
            Ok(results) => {
                let mut results = results.into_iter();
                for request in group {
                    let own = results.by_ref().take(request.appends.len()).collect();
                    // A caller that dropped its call does not want the result.
                    let _ = request.reply.send(Ok(own));
                }
            }
            Err(error) => {
                state.log_write_failure(&error);
                for request in group {
                    let _ = request.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Why a group was not written.
enum WriteFailure {
    /// Nothing was stored.
    BeforeCommit(Error),
    /// It may have been stored.
    AtCommit(Error),
}

/// Writes a group. Retries once when, before the commit, the connection turns out to be closed or a
/// deadlock is found.
async fn write(connection: &Connection, group: &[WriteRequest]) -> Result<Vec<AppendResult>, TimelineError> {
    let target = connection.target();
    let mut last = TimelineError::Unavailable(String::new());
    for _ in 0..2 {
        let client = connection.client().await?;
        let failure = match tokio::time::timeout(target.deadline, attempt(&client, group)).await {
            Ok(Ok(results)) => return Ok(results),
            Ok(Err(failure)) => failure,
            Err(_) => {
                // This closes the connection, and the server rolls back a transaction that is not
                // committed.
                connection.reset().await;
                let text = format!("postgres {}: no answer within {:?}", target.name, target.deadline);
                return Err(TimelineError::Unknown(text));
            }
        };
        // Nothing of this transaction may be in the next one.
        connection.reset().await;
        match failure {
            WriteFailure::BeforeCommit(error) => {
                last = connection.unavailable(&error);
                let is_closed = error.is_closed() || client.client.is_closed();
                if !is_closed && error.code() != Some(&SqlState::T_R_DEADLOCK_DETECTED) {
                    return Err(last);
                }
            }
            // The server answered: it rejected the commit.
            WriteFailure::AtCommit(error) if error.as_db_error().is_some() => {
                return Err(connection.unavailable(&error));
            }
            WriteFailure::AtCommit(error) => {
                let text = format!("postgres {}: {}", target.name, text_of(&error));
                return Err(TimelineError::Unknown(text));
            }
        }
    }
    Err(last)
}

async fn attempt(client: &PreparedClient, group: &[WriteRequest]) -> Result<Vec<AppendResult>, WriteFailure> {
    let results = in_transaction(client, group).await.map_err(WriteFailure::BeforeCommit)?;
    client.client.batch_execute("COMMIT").await.map_err(WriteFailure::AtCommit)?;
    Ok(results)
}

/// The row of a timeline that the transaction has locked, with its uncommitted appends.
struct TimelineRow {
    id: i64,
    epoch: Epoch,
    latest: i64,
    total_bytes: i64,
    is_changed: bool,
}

/// The columns of the messages to insert.
#[derive(Default)]
struct MessageColumns {
    timelines: Vec<i64>,
    seqs: Vec<i64>,
    accepted: Vec<i64>,
    totals: Vec<i64>,
    records: Vec<Vec<u8>>,
    keys: KeyColumns,
}

/// The columns of the idempotency keys to find or insert.
#[derive(Default)]
struct KeyColumns {
    timelines: Vec<i64>,
    senders: Vec<i64>,
    keys: Vec<Vec<u8>>,
    seqs: Vec<i64>,
    stored_at: Vec<i64>,
}

async fn in_transaction(client: &PreparedClient, group: &[WriteRequest]) -> Result<Vec<AppendResult>, Error> {
    let appends: Vec<&(TimelineKey, Append)> = group.iter().flat_map(|request| &request.appends).collect();
    let mut names: Vec<&[u8]> = appends.iter().map(|(key, _)| key.as_bytes()).collect();
    names.sort_unstable();
    names.dedup();
    client.client.batch_execute("BEGIN").await?;
    let mut rows = lock(client, &names).await?;
    if rows.len() < names.len() {
        let new: Vec<&[u8]> = names.iter().copied().filter(|name| !rows.contains_key(*name)).collect();
        let epochs: Vec<i64> = new.iter().map(|_| new_epoch().0.cast_signed()).collect();
        execute(client, ENSURE, &[&new, &epochs]).await?;
        rows = lock(client, &names).await?;
    }
    let mut known = find_keys(client, &appends, &rows).await?;
    let (mut columns, mut results) = (MessageColumns::default(), Vec::with_capacity(appends.len()));
    for (key, append) in appends {
        if let Some(row) = rows.get_mut(key.as_bytes()) {
            results.push(row.append(append, &mut known, &mut columns));
        }
    }
    insert(client, columns, &rows).await?;
    Ok(results)
}

async fn lock(client: &PreparedClient, names: &[&[u8]]) -> Result<BTreeMap<Vec<u8>, TimelineRow>, Error> {
    let statement = client.statement(LOCK).await?;
    let rows = client.client.query(&statement, &[&names]).await?;
    let read = |row: Row| {
        let epoch = Epoch(row.get::<_, i64>(2).cast_unsigned());
        let (latest, total_bytes) = (row.get(3), row.get(4));
        (row.get(1), TimelineRow { id: row.get(0), epoch, latest, total_bytes, is_changed: false })
    };
    Ok(rows.into_iter().map(read).collect())
}

/// The sequences of messages by timeline, sender and idempotency key.
type KnownKeys = HashMap<(i64, i64, Vec<u8>), i64>;

async fn find_keys(
    client: &PreparedClient,
    appends: &[&(TimelineKey, Append)],
    rows: &BTreeMap<Vec<u8>, TimelineRow>,
) -> Result<KnownKeys, Error> {
    let mut wanted = KeyColumns::default();
    for (key, append) in appends {
        let (Some(once), Some(row)) = (&append.idempotency_key, rows.get(key.as_bytes())) else { continue };
        wanted.timelines.push(row.id);
        wanted.senders.push(append.message.sender.0);
        wanted.keys.push(once.as_bytes().to_vec());
    }
    if wanted.keys.is_empty() {
        return Ok(KnownKeys::new());
    }
    let statement = client.statement(FIND_KEYS).await?;
    let values: [&(dyn ToSql + Sync); 3] = [&wanted.timelines, &wanted.senders, &wanted.keys];
    let found = client.client.query(&statement, &values).await?;
    Ok(found.into_iter().map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3))).collect())
}

impl TimelineRow {
    /// Appends one message, unless its idempotency key is known.
    fn append(
        &mut self,
        append: &Append,
        known: &mut KnownKeys,
        columns: &mut MessageColumns,
    ) -> AppendResult {
        let at = |epoch, seq: i64| Position { epoch, seq: TimelineSeq(seq.cast_unsigned()) };
        let message = &append.message;
        let key =
            append.idempotency_key.as_ref().map(|once| (self.id, message.sender.0, once.as_bytes().to_vec()));
        if let Some(seq) = key.as_ref().and_then(|key| known.get(key)) {
            return AppendResult { position: at(self.epoch, *seq), is_duplicate: true };
        }
        self.latest = self.latest.saturating_add(1);
        let bytes = i64::try_from(bytes_of(message)).unwrap_or(i64::MAX);
        self.total_bytes = self.total_bytes.saturating_add(bytes);
        self.is_changed = true;
        columns.timelines.push(self.id);
        columns.seqs.push(self.latest);
        columns.accepted.push(message.accepted_at.0.cast_signed());
        columns.totals.push(self.total_bytes);
        columns.records.push(Record::new(message.clone(), self.total_bytes.cast_unsigned()).write());
        if let Some(key) = key {
            let (timeline, sender, text) = key.clone();
            columns.keys.timelines.push(timeline);
            columns.keys.senders.push(sender);
            columns.keys.keys.push(text);
            columns.keys.seqs.push(self.latest);
            columns.keys.stored_at.push(message.accepted_at.0.cast_signed());
            known.insert(key, self.latest);
        }
        AppendResult { position: at(self.epoch, self.latest), is_duplicate: false }
    }
}

async fn insert(
    client: &PreparedClient,
    columns: MessageColumns,
    rows: &BTreeMap<Vec<u8>, TimelineRow>,
) -> Result<(), Error> {
    if columns.seqs.is_empty() {
        return Ok(());
    }
    let changed: Vec<&TimelineRow> = rows.values().filter(|row| row.is_changed).collect();
    let column = |field: fn(&TimelineRow) -> i64| changed.iter().map(|row| field(row)).collect::<Vec<_>>();
    let (ids, latest, totals) =
        (column(|row| row.id), column(|row| row.latest), column(|row| row.total_bytes));
    let MessageColumns { timelines, seqs, accepted, totals: bytes, records, keys } = columns;
    let message_values: [&(dyn ToSql + Sync); 5] = [&timelines, &seqs, &accepted, &bytes, &records];
    let head_values: [&(dyn ToSql + Sync); 3] = [&ids, &latest, &totals];
    let key_values: [&(dyn ToSql + Sync); 5] =
        [&keys.timelines, &keys.senders, &keys.keys, &keys.seqs, &keys.stored_at];
    let insert_keys =
        async { if keys.keys.is_empty() { Ok(()) } else { execute(client, INSERT_KEYS, &key_values).await } };
    // The statements are pipelined: sent together, run by the server in this order.
    let all = futures_util::future::try_join3(
        execute(client, INSERT_MESSAGES, &message_values),
        execute(client, UPDATE_HEADS, &head_values),
        insert_keys,
    );
    all.await.map(drop)
}

async fn execute(
    client: &PreparedClient,
    text: &'static str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<(), Error> {
    let statement = client.statement(text).await?;
    client.client.execute(&statement, values).await.map(drop)
}
