//! The handle: admits appends within bounds, passes them to the writers, and reads.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use goim_ports::{
    AcceptedAt, Append, AppendResult, Call, CursorId, Epoch, Head, Range, RateLimitedLog, ReadLimit,
    StoredMessage, TimelineError, TimelineId, TimelineSeq, TimelineStore,
};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use tokio_util::task::AbortOnDropHandle;

use super::config::PostgresConfig;
use super::connection::{Connection, ConnectionTarget, PostgresError};
use super::writer::WriteRequest;
use super::{retain, schema, writer};
use crate::timeline::admission::Admission;
use crate::timeline::key::{TimelineKey, cursor_key};
use crate::timeline::memory_of;
use crate::timeline::record::Record;

/// State shared by the handle and its tasks.
pub(super) struct StoreState {
    pub(super) config: PostgresConfig,
    pub(super) target: ConnectionTarget,
    write_failure_log: RateLimitedLog,
}

impl StoreState {
    /// Logs that messages cannot be stored, at most once a second.
    pub(super) fn log_write_failure(&self, error: &TimelineError) {
        if let Some(suppressed) = self.write_failure_log.try_log(Instant::now()) {
            tracing::warn!(%error, suppressed, "messages cannot be stored");
        }
    }
}

/// Timelines on PostgreSQL.
pub struct PostgresTimelines {
    state: Arc<StoreState>,
    admission: Arc<Admission>,
    writers: Vec<mpsc::UnboundedSender<WriteRequest>>,
    readers: Arc<Vec<Connection>>,
    next_reader: AtomicUsize,
    _retain_task: AbortOnDropHandle<()>,
    hasher: std::hash::BuildHasherDefault<std::hash::DefaultHasher>,
}

impl std::fmt::Debug for PostgresTimelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PostgresTimelines").field(&self.state.target.name).finish()
    }
}

const READ: &str = "SELECT t.epoch, t.first, t.latest, m.seq, m.record FROM goim_timelines t \
    LEFT JOIN LATERAL ( \
        SELECT seq, record FROM ( \
            SELECT seq, record, sum(octet_length(record)) OVER (ORDER BY seq) - octet_length(record) AS before \
            FROM (SELECT seq, record FROM goim_messages WHERE timeline = t.id AND seq > $2 AND seq >= t.first ORDER BY seq LIMIT $3) page \
        ) sized WHERE before <= $4 ORDER BY seq \
    ) m ON true WHERE t.name = $1 ORDER BY m.seq";
const READ_BACK: &str = "SELECT t.epoch, t.first, t.latest, m.seq, m.record FROM goim_timelines t \
    LEFT JOIN LATERAL ( \
        SELECT seq, record FROM ( \
            SELECT seq, record, sum(octet_length(record)) OVER (ORDER BY seq DESC) - octet_length(record) AS before \
            FROM (SELECT seq, record FROM goim_messages WHERE timeline = t.id AND seq < $2 AND seq >= t.first ORDER BY seq DESC LIMIT $3) page \
        ) sized WHERE before <= $4 ORDER BY seq DESC \
    ) m ON true WHERE t.name = $1 ORDER BY m.seq DESC";
const HEADS: &str = "SELECT name, epoch, first, latest FROM goim_timelines WHERE name = ANY($1::bytea[])";
const FIND: &str = "SELECT m.record FROM goim_timelines t JOIN goim_messages m ON m.timeline = t.id \
    WHERE t.name = $1 AND m.seq = $2 AND m.seq >= t.first";
/// Replaces a record only if it is unchanged: of two concurrent deletes one succeeds.
const REPLACE: &str = "UPDATE goim_messages m SET record = $3 FROM goim_timelines t \
    WHERE t.name = $1 AND m.timeline = t.id AND m.seq = $2 AND m.record = $4 RETURNING 1";
const ADVANCE: &str = "INSERT INTO goim_cursors AS c (mid, name, seq) \
    SELECT $1, $2, least($3, t.latest) FROM goim_timelines t WHERE t.name = $2 AND least($3, t.latest) > 0 \
    ON CONFLICT (mid, name) DO UPDATE SET seq = greatest(c.seq, excluded.seq) RETURNING seq";
const CURSORS: &str = "SELECT c.mid, c.name, c.seq FROM goim_cursors c \
    JOIN unnest($1::bigint[], $2::bytea[]) AS w(mid, name) USING (mid, name)";

/// The maximum length of a timeline's key: the limit of an index entry of PostgreSQL.
const NAME_BYTES_MAX: usize = 2_600;

impl PostgresTimelines {
    /// Connects, and creates or migrates the tables.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn connect(config: PostgresConfig) -> Result<Self, PostgresError> {
        let target = ConnectionTarget::new(&config.url, config.deadline)?;
        let mut client = target.connect().await?;
        schema::migrate(&mut client, &target.name).await?;
        let readers = (0..config.readers.max(1)).map(|_| Connection::new(target.clone())).collect();
        let admission = Admission::new(config.pending_messages_max, config.pending_bytes_max);
        let state = Arc::new(StoreState { config, target, write_failure_log: RateLimitedLog::default() });
        let writers = (0..state.config.writers.max(1))
            .map(|_| {
                let (queue, queued) = mpsc::unbounded_channel();
                tokio::spawn(writer::run(Arc::clone(&state), queued));
                queue
            })
            .collect();
        let retain_task = AbortOnDropHandle::new(tokio::spawn(retain::run(Arc::clone(&state))));
        let (next_reader, hasher) = Default::default();
        Ok(Self {
            state,
            admission,
            writers,
            readers: Arc::new(readers),
            next_reader,
            _retain_task: retain_task,
            hasher,
        })
    }

    /// Removes messages that are expired as of `now`, immediately instead of in the background.
    ///
    /// # Errors
    /// [`TimelineError`].
    pub async fn retain(&self, now: AcceptedAt) -> Result<(), TimelineError> {
        retain::pass(&self.state, &Connection::new(self.state.target.clone()), now, false).await
    }

    /// Returns the index of the writer of a timeline; it is always the same.
    fn writer_of(&self, key: &TimelineKey) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        usize::try_from(hasher.finish()).unwrap_or_default() % self.writers.len()
    }

    /// Runs `work` with the next read connection.
    fn with_reader<T, F>(&self, work: impl FnOnce(Reader) -> F) -> Call<Result<T, TimelineError>>
    where
        F: Future<Output = Result<T, TimelineError>> + Send + 'static,
        T: Send + 'static,
    {
        let index = self.next_reader.fetch_add(1, Ordering::Relaxed) % self.readers.len();
        Call::pending(work(Reader { connections: Arc::clone(&self.readers), index }))
    }
}

/// One of the read connections.
struct Reader {
    connections: Arc<Vec<Connection>>,
    index: usize,
}

impl std::ops::Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connections[self.index]
    }
}

fn key_of(timeline: &TimelineId) -> Option<TimelineKey> {
    TimelineKey::new(timeline).filter(|key| key.as_bytes().len() <= NAME_BYTES_MAX)
}

fn too_long<T>() -> Call<Result<T, TimelineError>> {
    let text = format!("the name of the room is longer than {} bytes", NAME_BYTES_MAX - 3);
    Call::Ready(Err(TimelineError::Invalid(text)))
}

fn head_of(row: &Row, first_column: usize) -> Head {
    let number = |column: usize| row.get::<_, i64>(first_column + column).cast_unsigned();
    Head { epoch: Epoch(number(0)), first: TimelineSeq(number(1)), latest: TimelineSeq(number(2)) }
}

/// Reads a page of rows. The last row may exceed the limit; then it is left out.
fn range_of(rows: &[Row], limit: ReadLimit) -> Result<Range, TimelineError> {
    let Some(first) = rows.first() else { return Ok(Range::default()) };
    let head = head_of(first, 0);
    let (mut messages, mut bytes): (Vec<StoredMessage>, usize) = (Vec::new(), 0);
    for row in rows {
        let Some(seq) = row.get::<_, Option<i64>>(3) else { break };
        let record = record_of(row.get(4))?;
        bytes = bytes.saturating_add(record.body_bytes());
        if !messages.is_empty() && bytes > limit.bytes {
            break;
        }
        messages.push(record.into_message(TimelineSeq(seq.cast_unsigned())));
    }
    Ok(Range { head, messages })
}

fn record_of(bytes: &[u8]) -> Result<Record, TimelineError> {
    let damaged = || TimelineError::Unavailable("a message in postgres cannot be read".to_owned());
    Record::read(bytes::Bytes::copy_from_slice(bytes)).ok_or_else(damaged)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Returns the limits of a statement, in rows and in bytes of records. A record is slightly longer
/// than its bodies, so a page may have a few messages fewer than allowed.
fn limits_of(limit: ReadLimit) -> (i64, i64) {
    let bytes = i64::try_from(limit.bytes).unwrap_or(i64::MAX);
    (
        i64::try_from(limit.messages.max(1)).unwrap_or(i64::MAX),
        bytes.saturating_add(bytes / 8).saturating_add(4_096),
    )
}

impl TimelineStore for PostgresTimelines {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>> {
        if appends.is_empty() {
            return Call::Ready(Ok(Vec::new()));
        }
        let mut parts: Vec<(Vec<usize>, Vec<(TimelineKey, Append)>)> =
            self.writers.iter().map(|_| Default::default()).collect();
        for (index, append) in appends.into_iter().enumerate() {
            let Some(key) = key_of(&append.timeline) else { return too_long() };
            let (indexes, part) = &mut parts[self.writer_of(&key)];
            indexes.push(index);
            part.push((key, append));
        }
        // A call is all or nothing: it is written in one transaction, by one writer.
        if parts.iter().filter(|(indexes, _)| !indexes.is_empty()).count() > 1 {
            parts = vec![merged(parts)];
        }
        let writer = parts.iter().position(|(indexes, _)| !indexes.is_empty()).unwrap_or_default();
        let Some((_, part)) = parts.into_iter().nth(writer) else { return Call::Ready(Ok(Vec::new())) };
        let bytes = part.iter().map(|(_, append)| memory_of(append)).fold(0, usize::saturating_add);
        let admitted = match self.admission.admit(part.len(), bytes) {
            Ok(admitted) => admitted,
            Err(busy) => return Call::Ready(Err(busy)),
        };
        let (reply, result) = oneshot::channel();
        let request = WriteRequest { appends: part, reply, _admitted: admitted };
        if self.writers[writer].send(request).is_err() {
            return Call::Ready(Err(TimelineError::Unavailable("the store is closing".to_owned())));
        }
        Call::pending(async move {
            let lost =
                || TimelineError::Unknown("the store was closed before the write was confirmed".to_owned());
            result.await.unwrap_or_else(|_| Err(lost()))
        })
    }

    fn read(
        &self,
        timeline: TimelineId,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let Some(key) = key_of(&timeline) else { return too_long() };
        self.with_reader(|reader| async move {
            let (count, bytes) = limits_of(limit);
            let rows = reader.query(READ, &[&key.as_bytes(), &signed(after.0), &count, &bytes]).await?;
            range_of(&rows, limit)
        })
    }

    fn read_back(
        &self,
        timeline: TimelineId,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let Some(key) = key_of(&timeline) else { return too_long() };
        self.with_reader(|reader| async move {
            let (count, bytes) = limits_of(limit);
            let before = before.map_or(i64::MAX, |before| signed(before.0));
            let rows = reader.query(READ_BACK, &[&key.as_bytes(), &before, &count, &bytes]).await?;
            let mut range = range_of(&rows, limit)?;
            range.messages.reverse();
            Ok(range)
        })
    }

    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>> {
        self.with_reader(|reader| async move {
            let keys: Vec<Option<TimelineKey>> = timelines.iter().map(key_of).collect();
            let names: Vec<&[u8]> = keys.iter().flatten().map(TimelineKey::as_bytes).collect();
            let rows = reader.query(HEADS, &[&names]).await?;
            let head = |key: &Option<TimelineKey>| {
                let key = key.as_ref()?.as_bytes();
                rows.iter().find(|row| row.get::<_, &[u8]>(0) == key).map(|row| head_of(row, 1))
            };
            Ok(keys.iter().map(|key| head(key).unwrap_or_default()).collect())
        })
    }

    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        let Some(key) = key_of(&timeline) else { return Call::Ready(Ok(false)) };
        self.with_reader(|reader| async move {
            let (name, seq) = (key.as_bytes(), signed(seq.0));
            let found = reader.query(FIND, &[&name, &seq]).await?;
            let Some(row) = found.first() else { return Ok(false) };
            let before: &[u8] = row.get(0);
            let Some(after) = record_of(before)?.deleted() else { return Ok(false) };
            let done = reader.query(REPLACE, &[&name, &seq, &after.write(), &before]).await?;
            Ok(!done.is_empty())
        })
    }

    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        let Some(key) = key_of(&cursor.timeline) else { return Call::Ready(Ok(TimelineSeq(0))) };
        self.with_reader(|reader| async move {
            let (mid, name) = (cursor.mid.0, key.as_bytes());
            let moved = reader.query(ADVANCE, &[&mid, &name, &signed(to.0)]).await?;
            if let Some(row) = moved.first() {
                return Ok(TimelineSeq(row.get::<_, i64>(0).cast_unsigned()));
            }
            let found = reader.query(CURSORS, &[&vec![mid], &vec![name]]).await?;
            Ok(TimelineSeq(found.first().map_or(0, |row| row.get::<_, i64>(2)).cast_unsigned()))
        })
    }

    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>> {
        self.with_reader(|reader| async move {
            // A timeline whose name is too long has no cursor.
            let named: Vec<Option<(i64, TimelineKey)>> = cursors
                .iter()
                .map(|cursor| {
                    cursor_key(cursor).and_then(|_| Some((cursor.mid.0, key_of(&cursor.timeline)?)))
                })
                .collect();
            let mids: Vec<i64> = named.iter().flatten().map(|(mid, _)| *mid).collect();
            let names: Vec<&[u8]> = named.iter().flatten().map(|(_, key)| key.as_bytes()).collect();
            let rows = reader.query(CURSORS, &[&mids, &names]).await?;
            let at = |named: &Option<(i64, TimelineKey)>| {
                let (mid, key) = named.as_ref()?;
                let own =
                    |row: &&Row| row.get::<_, i64>(0) == *mid && row.get::<_, &[u8]>(1) == key.as_bytes();
                rows.iter().find(own).map(|row| row.get::<_, i64>(2).cast_unsigned())
            };
            Ok(named.iter().map(|named| TimelineSeq(at(named).unwrap_or_default())).collect())
        })
    }
}

/// Merges all parts of a call into one, in the order of its appends.
fn merged(parts: Vec<(Vec<usize>, Vec<(TimelineKey, Append)>)>) -> (Vec<usize>, Vec<(TimelineKey, Append)>) {
    let mut all: Vec<(usize, (TimelineKey, Append))> =
        parts.into_iter().flat_map(|(indexes, part)| indexes.into_iter().zip(part)).collect();
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().unzip()
}
