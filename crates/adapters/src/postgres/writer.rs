//! Appends, grouped into transactions. Each writer is a task with a connection of its own; what is of one timeline alone always goes to the
//! same one, so that writers seldom wait for each other.
//!
//! A transaction locks the rows of its timelines, in the order of their ids, before it looks at anything: what two logics append to one
//! timeline at once comes one behind the other, and each sees the names of the other. When a commit gets no answer nobody knows whether it
//! was done, and its publishers are told so.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use goim_ports::{Append, Epoch, Kept, Position, TimelineError, TimelineSeq};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use super::link::{Link, Prepared};
use super::store::{Shared, Waited};
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;
use crate::timeline::{bytes_of, new_epoch};

/// Appends of one request that go to one writer.
pub(super) struct Job {
    pub(super) appends: Vec<(TimelineKey, Append)>,
    pub(super) answer: oneshot::Sender<Result<Vec<Kept>, TimelineError>>,
    /// Its room among what waits, given back when it is dropped.
    pub(super) _waited: Waited,
}

const ENSURE: &str = "INSERT INTO goim_timelines (name, epoch) SELECT * FROM unnest($1::bytea[], $2::bigint[]) \
    ON CONFLICT (name) DO NOTHING";
const LOCK: &str = "SELECT id, name, epoch, latest, total_bytes FROM goim_timelines WHERE name = ANY($1::bytea[]) \
    ORDER BY id FOR UPDATE";
const KNOWN: &str = "SELECT o.timeline, o.sender, o.name, o.seq FROM goim_once o \
    JOIN unnest($1::bigint[], $2::bigint[], $3::bytea[]) AS w(timeline, sender, name) USING (timeline, sender, name)";
const MESSAGES: &str = "INSERT INTO goim_messages (timeline, seq, accepted_at, total_bytes, record) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[])";
const NAMES: &str = "INSERT INTO goim_once (timeline, sender, name, seq, kept_at) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[])";
const HEADS: &str = "UPDATE goim_timelines t SET latest = n.latest, total_bytes = n.total_bytes \
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS n(id, latest, total_bytes) WHERE t.id = n.id";

/// Runs until nobody can ask any more.
pub(super) async fn run(shared: Arc<Shared>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let link = Link::new(shared.place.clone());
    while let Some(first) = jobs.recv().await {
        let mut count = first.appends.len();
        let mut group = vec![first];
        while count < shared.config.group_messages_max {
            let Ok(job) = jobs.try_recv() else { break };
            count += job.appends.len();
            group.push(job);
        }
        match write(&link, &group).await {
            Ok(kept) => {
                let mut kept = kept.into_iter();
                for job in group {
                    let own = kept.by_ref().take(job.appends.len()).collect();
                    // Who has gone does not want to know.
                    let _ = job.answer.send(Ok(own));
                }
            }
            Err(error) => {
                shared.complain(&error);
                for job in group {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Why a group is not written.
enum Failed {
    /// Nothing of it is kept.
    Before(Error),
    /// It may be.
    AtCommit(Error),
}

/// Writes a group; once more when it turns out, before the commit, that the connection was gone, or that two waited for each other.
async fn write(link: &Link, group: &[Job]) -> Result<Vec<Kept>, TimelineError> {
    let place = link.place();
    let mut last = TimelineError::Unavailable(String::new());
    for _ in 0..2 {
        let prepared = link.get().await?;
        let failed = match tokio::time::timeout(place.deadline, attempt(&prepared, group)).await {
            Ok(Ok(kept)) => return Ok(kept),
            Ok(Err(failed)) => failed,
            Err(_) => {
                // The connection is closed with that, and a transaction that is not committed goes.
                link.forget().await;
                let text = format!("postgres {}: no answer within {:?}", place.name, place.deadline);
                return Err(TimelineError::Unknown(text));
            }
        };
        // Nothing of this transaction must be in the next one.
        link.forget().await;
        match failed {
            Failed::Before(error) => {
                last = link.unavailable(&error);
                let is_gone = error.is_closed() || prepared.client.is_closed();
                if !is_gone && error.code() != Some(&SqlState::T_R_DEADLOCK_DETECTED) {
                    return Err(last);
                }
            }
            Failed::AtCommit(error) if error.as_db_error().is_some() => return Err(link.unavailable(&error)),
            Failed::AtCommit(error) => {
                let text = format!("postgres {}: {}", place.name, super::link::text_of(&error));
                return Err(TimelineError::Unknown(text));
            }
        }
    }
    Err(last)
}

async fn attempt(prepared: &Prepared, group: &[Job]) -> Result<Vec<Kept>, Failed> {
    let kept = in_transaction(prepared, group).await.map_err(Failed::Before)?;
    prepared.client.batch_execute("COMMIT").await.map_err(Failed::AtCommit)?;
    Ok(kept)
}

/// A timeline as the transaction has it.
struct Line {
    id: i64,
    epoch: Epoch,
    latest: i64,
    total_bytes: i64,
    has_grown: bool,
}

/// What is to be inserted, by column.
#[derive(Default)]
struct Rows {
    timelines: Vec<i64>,
    seqs: Vec<i64>,
    accepted: Vec<i64>,
    totals: Vec<i64>,
    records: Vec<Vec<u8>>,
    named: Named,
}

#[derive(Default)]
struct Named {
    timelines: Vec<i64>,
    senders: Vec<i64>,
    names: Vec<Vec<u8>>,
    seqs: Vec<i64>,
    kept_at: Vec<i64>,
}

async fn in_transaction(prepared: &Prepared, group: &[Job]) -> Result<Vec<Kept>, Error> {
    let appends: Vec<&(TimelineKey, Append)> = group.iter().flat_map(|job| &job.appends).collect();
    let mut names: Vec<&[u8]> = appends.iter().map(|(key, _)| key.as_bytes()).collect();
    names.sort_unstable();
    names.dedup();
    prepared.client.batch_execute("BEGIN").await?;
    let mut lines = lock(prepared, &names).await?;
    if lines.len() < names.len() {
        let new: Vec<&[u8]> = names.iter().copied().filter(|name| !lines.contains_key(*name)).collect();
        let epochs: Vec<i64> = new.iter().map(|_| new_epoch().0.cast_signed()).collect();
        run_one(prepared, ENSURE, &[&new, &epochs]).await?;
        lines = lock(prepared, &names).await?;
    }
    let mut known = known_names(prepared, &appends, &lines).await?;
    let (mut rows, mut kept) = (Rows::default(), Vec::with_capacity(appends.len()));
    for (key, append) in appends {
        if let Some(line) = lines.get_mut(key.as_bytes()) {
            kept.push(line.append(append, &mut known, &mut rows));
        }
    }
    insert(prepared, rows, &lines).await?;
    Ok(kept)
}

async fn lock(prepared: &Prepared, names: &[&[u8]]) -> Result<BTreeMap<Vec<u8>, Line>, Error> {
    let statement = prepared.statement(LOCK).await?;
    let rows = prepared.client.query(&statement, &[&names]).await?;
    let line = |row: Row| {
        let epoch = Epoch(row.get::<_, i64>(2).cast_unsigned());
        let line =
            Line { id: row.get(0), epoch, latest: row.get(3), total_bytes: row.get(4), has_grown: false };
        (row.get(1), line)
    };
    Ok(rows.into_iter().map(line).collect())
}

/// Names that are there, with the sequences of their messages.
type Known = HashMap<(i64, i64, Vec<u8>), i64>;

async fn known_names(
    prepared: &Prepared,
    appends: &[&(TimelineKey, Append)],
    lines: &BTreeMap<Vec<u8>, Line>,
) -> Result<Known, Error> {
    let mut asked = Named::default();
    for (key, append) in appends {
        let (Some(once), Some(line)) = (&append.once, lines.get(key.as_bytes())) else { continue };
        asked.timelines.push(line.id);
        asked.senders.push(append.message.sender.0);
        asked.names.push(once.as_bytes().to_vec());
    }
    if asked.names.is_empty() {
        return Ok(Known::new());
    }
    let statement = prepared.statement(KNOWN).await?;
    let values: [&(dyn ToSql + Sync); 3] = [&asked.timelines, &asked.senders, &asked.names];
    let rows = prepared.client.query(&statement, &values).await?;
    Ok(rows.into_iter().map(|row| ((row.get(0), row.get(1), row.get(2)), row.get(3))).collect())
}

impl Line {
    fn append(&mut self, append: &Append, known: &mut Known, rows: &mut Rows) -> Kept {
        let at = |epoch, seq: i64| Position { epoch, seq: TimelineSeq(seq.cast_unsigned()) };
        let message = &append.message;
        let name = append.once.as_ref().map(|once| (self.id, message.sender.0, once.as_bytes().to_vec()));
        if let Some(seq) = name.as_ref().and_then(|name| known.get(name)) {
            return Kept { position: at(self.epoch, *seq), is_duplicate: true };
        }
        self.latest = self.latest.saturating_add(1);
        self.total_bytes =
            self.total_bytes.saturating_add(i64::try_from(bytes_of(message)).unwrap_or(i64::MAX));
        self.has_grown = true;
        rows.timelines.push(self.id);
        rows.seqs.push(self.latest);
        rows.accepted.push(message.accepted_at.0.cast_signed());
        rows.totals.push(self.total_bytes);
        rows.records.push(Record::new(message.clone(), self.total_bytes.cast_unsigned()).write());
        if let Some(name) = name {
            let (timeline, sender, text) = name.clone();
            rows.named.timelines.push(timeline);
            rows.named.senders.push(sender);
            rows.named.names.push(text);
            rows.named.seqs.push(self.latest);
            rows.named.kept_at.push(message.accepted_at.0.cast_signed());
            known.insert(name, self.latest);
        }
        Kept { position: at(self.epoch, self.latest), is_duplicate: false }
    }
}

async fn insert(prepared: &Prepared, rows: Rows, lines: &BTreeMap<Vec<u8>, Line>) -> Result<(), Error> {
    if rows.seqs.is_empty() {
        return Ok(());
    }
    let grown: Vec<&Line> = lines.values().filter(|line| line.has_grown).collect();
    let of = |field: fn(&Line) -> i64| grown.iter().map(|line| field(line)).collect::<Vec<_>>();
    let (ids, latest, totals) = (of(|line| line.id), of(|line| line.latest), of(|line| line.total_bytes));
    let Rows { timelines, seqs, accepted, totals: bytes, records, named } = rows;
    // They go out together, and are done in this order.
    let messages: [&(dyn ToSql + Sync); 5] = [&timelines, &seqs, &accepted, &bytes, &records];
    let heads: [&(dyn ToSql + Sync); 3] = [&ids, &latest, &totals];
    let of_names: [&(dyn ToSql + Sync); 5] =
        [&named.timelines, &named.senders, &named.names, &named.seqs, &named.kept_at];
    let names =
        async { if named.names.is_empty() { Ok(()) } else { run_one(prepared, NAMES, &of_names).await } };
    let all = futures_util::future::try_join3(
        run_one(prepared, MESSAGES, &messages),
        run_one(prepared, HEADS, &heads),
        names,
    );
    all.await.map(drop)
}

async fn run_one(
    prepared: &Prepared,
    text: &'static str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<(), Error> {
    let statement = prepared.statement(text).await?;
    prepared.client.execute(&statement, values).await.map(drop)
}
