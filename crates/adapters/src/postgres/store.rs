//! The handle: takes what is asked, within bounds, passes appends to the writers, and reads.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use goim_ports::{
    AcceptedAt, Append, Call, CursorId, Epoch, Head, Kept, Range, ReadLimit, StoredMessage, TimelineError,
    TimelineId, TimelineSeq, TimelineStore,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use tokio_util::task::AbortOnDropHandle;

use super::config::PostgresConfig;
use super::link::{Link, Place, PostgresError};
use super::writer::Job;
use super::{retain, schema, writer};
use crate::timeline::bytes_of;
use crate::timeline::key::{TimelineKey, cursor_key};
use crate::timeline::record::Record;

/// What the handle and its tasks share.
pub(super) struct Shared {
    pub(super) config: PostgresConfig,
    pub(super) place: Place,
    waiting_messages: AtomicUsize,
    waiting_bytes: AtomicUsize,
    said_at: Mutex<Option<Instant>>,
}

impl Shared {
    /// Says in the log, once a second at most, that nothing can be kept.
    pub(super) fn complain(&self, error: &TimelineError) {
        let mut said_at = self.said_at.lock();
        if said_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            *said_at = Some(Instant::now());
            tracing::warn!(%error, "messages cannot be kept");
        }
    }
}

/// Room among what waits; given back when it is dropped.
pub(super) struct Waited {
    shared: Arc<Shared>,
    messages: usize,
    bytes: usize,
}

impl Waited {
    fn enter(shared: &Arc<Shared>, appends: &[(TimelineKey, Append)]) -> Option<Self> {
        let messages = appends.len();
        let of_one = |append: &Append| {
            usize::try_from(bytes_of(&append.message)).unwrap_or(usize::MAX).saturating_add(256)
        };
        let bytes = appends.iter().map(|(_, append)| of_one(append)).fold(0, usize::saturating_add);
        let fits = |counter: &AtomicUsize, more: usize, max: usize| {
            let before = counter.fetch_add(more, Ordering::Relaxed);
            // One that is larger than all the room is taken when it is alone.
            before == 0 || before.saturating_add(more) <= max
        };
        let waited = Self { shared: Arc::clone(shared), messages, bytes };
        let is_in = fits(&shared.waiting_messages, messages, shared.config.waiting_messages_max)
            & fits(&shared.waiting_bytes, bytes, shared.config.waiting_bytes_max);
        is_in.then_some(waited)
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        self.shared.waiting_messages.fetch_sub(self.messages, Ordering::Relaxed);
        self.shared.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Timelines on PostgreSQL.
pub struct PostgresTimelines {
    shared: Arc<Shared>,
    writers: Vec<mpsc::UnboundedSender<Job>>,
    readers: Arc<Vec<Link>>,
    next_reader: AtomicUsize,
    _retain_task: AbortOnDropHandle<()>,
    hasher: std::hash::BuildHasherDefault<std::hash::DefaultHasher>,
}

impl std::fmt::Debug for PostgresTimelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PostgresTimelines").field(&self.shared.place.name).finish()
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
/// What was read is what is written over: two who delete at once do it once.
const REPLACE: &str = "UPDATE goim_messages m SET record = $3 FROM goim_timelines t \
    WHERE t.name = $1 AND m.timeline = t.id AND m.seq = $2 AND m.record = $4 RETURNING 1";
const ADVANCE: &str = "INSERT INTO goim_cursors AS c (mid, name, seq) \
    SELECT $1, $2, least($3, t.latest) FROM goim_timelines t WHERE t.name = $2 AND least($3, t.latest) > 0 \
    ON CONFLICT (mid, name) DO UPDATE SET seq = greatest(c.seq, excluded.seq) RETURNING seq";
const CURSORS: &str = "SELECT c.mid, c.name, c.seq FROM goim_cursors c \
    JOIN unnest($1::bigint[], $2::bytea[]) AS w(mid, name) USING (mid, name)";

/// Longest name of a timeline: what an index of PostgreSQL holds.
const NAME_BYTES_MAX: usize = 2_600;

impl PostgresTimelines {
    /// Connects, and makes the tables when they are not there.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn connect(config: PostgresConfig) -> Result<Self, PostgresError> {
        let place = Place::new(&config.url, config.deadline)?;
        let mut client = place.connect().await?;
        schema::migrate(&mut client, &place.name).await?;
        let (waiting_messages, waiting_bytes, said_at) = Default::default();
        let readers = (0..config.readers.max(1)).map(|_| Link::new(place.clone())).collect();
        let shared = Arc::new(Shared { config, place, waiting_messages, waiting_bytes, said_at });
        let writers = (0..shared.config.writers.max(1))
            .map(|_| {
                let (jobs, taken) = mpsc::unbounded_channel();
                tokio::spawn(writer::run(Arc::clone(&shared), taken));
                jobs
            })
            .collect();
        let retain_task = AbortOnDropHandle::new(tokio::spawn(retain::run(Arc::clone(&shared))));
        let (next_reader, hasher) = Default::default();
        Ok(Self {
            shared,
            writers,
            readers: Arc::new(readers),
            next_reader,
            _retain_task: retain_task,
            hasher,
        })
    }

    /// Removes now what is not to be kept any longer as of a moment; it is done in the background anyway.
    ///
    /// # Errors
    /// [`TimelineError`].
    pub async fn retain(&self, now: AcceptedAt) -> Result<(), TimelineError> {
        retain::pass(&self.shared, &Link::new(self.shared.place.clone()), now, false).await
    }

    /// Always the same writer for a timeline.
    fn writer_of(&self, key: &TimelineKey) -> usize {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key.as_bytes());
        usize::try_from(hasher.finish()).unwrap_or_default() % self.writers.len()
    }

    /// Runs `work` with a connection for reads.
    fn with_reader<T, F>(&self, work: impl FnOnce(Reader) -> F) -> Call<Result<T, TimelineError>>
    where
        F: Future<Output = Result<T, TimelineError>> + Send + 'static,
        T: Send + 'static,
    {
        let place = self.next_reader.fetch_add(1, Ordering::Relaxed) % self.readers.len();
        Call::pending(work(Reader { links: Arc::clone(&self.readers), place }))
    }
}

/// One of the connections for reads.
struct Reader {
    links: Arc<Vec<Link>>,
    place: usize,
}

impl std::ops::Deref for Reader {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.links[self.place]
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

/// The rows of a read; the last of them may be of more than the limit allows.
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

/// The limits of a statement. A record is longer than its bodies by little: the page may have some messages less than it could.
fn limits_of(limit: ReadLimit) -> (i64, i64) {
    let bytes = i64::try_from(limit.bytes).unwrap_or(i64::MAX);
    (
        i64::try_from(limit.messages.max(1)).unwrap_or(i64::MAX),
        bytes.saturating_add(bytes / 8).saturating_add(4_096),
    )
}

impl TimelineStore for PostgresTimelines {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<Kept>, TimelineError>> {
        if appends.is_empty() {
            return Call::Ready(Ok(Vec::new()));
        }
        let mut parts: Vec<(Vec<usize>, Vec<(TimelineKey, Append)>)> =
            self.writers.iter().map(|_| Default::default()).collect();
        for (index, append) in appends.into_iter().enumerate() {
            let Some(key) = key_of(&append.timeline) else { return too_long() };
            let (places, part) = &mut parts[self.writer_of(&key)];
            places.push(index);
            part.push((key, append));
        }
        // All or none: what is of one request goes into one transaction, with the writer of its first timeline.
        if parts.iter().filter(|(places, _)| !places.is_empty()).count() > 1 {
            parts = vec![gathered(parts)];
        }
        let place = parts.iter().position(|(places, _)| !places.is_empty()).unwrap_or_default();
        let Some((_, part)) = parts.into_iter().nth(place) else { return Call::Ready(Ok(Vec::new())) };
        let Some(waited) = Waited::enter(&self.shared, &part) else {
            let text = "more waits to be written than may wait; try again later";
            return Call::Ready(Err(TimelineError::Busy(text.to_owned())));
        };
        let (answer, answered) = oneshot::channel();
        let job = Job { appends: part, answer, _waited: waited };
        if self.writers[place].send(job).is_err() {
            return Call::Ready(Err(TimelineError::Unavailable("the store is being closed".to_owned())));
        }
        Call::pending(async move {
            let lost = || TimelineError::Unknown("the store was closed meanwhile".to_owned());
            answered.await.unwrap_or_else(|_| Err(lost()))
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
            // Of a name that is too long there is no cursor.
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

/// All parts of a request as one, in the order in which its appends were given.
fn gathered(
    parts: Vec<(Vec<usize>, Vec<(TimelineKey, Append)>)>,
) -> (Vec<usize>, Vec<(TimelineKey, Append)>) {
    let mut all: Vec<(usize, (TimelineKey, Append))> =
        parts.into_iter().flat_map(|(places, part)| places.into_iter().zip(part)).collect();
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().unzip()
}
