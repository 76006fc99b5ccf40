//! The one thread that writes. What waits is taken together, becomes one durable commit, and is answered.
//!
//! While a commit is on its way to the disk the next ones gather, so that groups grow with the load and an append that is alone waits for
//! nobody. When a write fails nobody knows what of it is on the disk: its appends are answered so, the folder is closed, and opened again
//! as often as it takes; until then nothing is taken.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fjall::{Keyspace, KeyspaceCreateOptions, PersistMode};
use goim_ports::{
    AcceptedAt, Append, AppendResult, CursorId, Position, TimelineError, TimelineId, TimelineSeq,
};
use tokio::sync::oneshot;

use super::format::{self, TimelineRecord};
use super::store::Shared;
use super::tables::{Known, TableError, Tables, text_of};
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;
use crate::timeline::{bytes_of, draw_epoch};

/// How long a folder that could not be opened is left alone.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, TimelineError>>;

/// What the thread is asked for.
pub(super) enum Job {
    Append {
        appends: Vec<Append>,
        answer: Answer<Vec<AppendResult>>,
    },
    Delete {
        timeline: TimelineId,
        seq: TimelineSeq,
        answer: Answer<bool>,
    },
    Advance {
        cursor: CursorId,
        to: TimelineSeq,
        answer: Answer<TimelineSeq>,
    },
    /// Removes the messages from `record.first` on that are before `first`.
    Trim {
        key: TimelineKey,
        first: TimelineSeq,
        bytes_before: u64,
        answer: Answer<()>,
    },
    /// Forgets names that nobody needs as of a moment.
    Forget {
        now: AcceptedAt,
        answer: Answer<()>,
    },
}

impl Job {
    fn messages(&self) -> usize {
        match self {
            Self::Append { appends, .. } => appends.len(),
            // Of the store's own work one is out at a time.
            Self::Trim { .. } | Self::Forget { .. } => 0,
            _ => 1,
        }
    }

    /// Bytes of memory that it takes, roughly.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append { appends, .. } => appends.iter().map(bytes_of_append).sum(),
            Self::Trim { .. } | Self::Forget { .. } => 0,
            _ => 256,
        }
    }

    fn refuse(self, error: TimelineError) {
        match self {
            Self::Append { answer, .. } => drop(answer.send(Err(error))),
            Self::Delete { answer, .. } => drop(answer.send(Err(error))),
            Self::Advance { answer, .. } => drop(answer.send(Err(error))),
            Self::Trim { answer, .. } | Self::Forget { answer, .. } => drop(answer.send(Err(error))),
        }
    }
}

fn bytes_of_append(append: &Append) -> usize {
    usize::try_from(bytes_of(&append.message)).unwrap_or(usize::MAX).saturating_add(256)
}

/// What waits for the thread: messages and bytes of them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) messages: AtomicUsize,
    pub(super) bytes: AtomicUsize,
}

impl Waiting {
    /// Makes room, if there is some.
    pub(super) fn enter(&self, job: &Job, messages_max: usize, bytes_max: usize) -> bool {
        let fits = |counter: &AtomicUsize, more: usize, max: usize| {
            let before = counter.fetch_add(more, Ordering::Relaxed);
            // One that is larger than all the room is taken when it is alone.
            before == 0 || before.saturating_add(more) <= max
        };
        let (messages, bytes) = (job.messages(), job.bytes());
        let is_in = fits(&self.messages, messages, messages_max) & fits(&self.bytes, bytes, bytes_max);
        if !is_in {
            self.leave(messages, bytes);
        }
        is_in
    }

    fn leave(&self, messages: usize, bytes: usize) {
        self.messages.fetch_sub(messages, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Names of the two newest generations: a name stands for its message for one window at least and for two at most, and an old generation
/// goes as a whole.
struct Names {
    generation: u64,
    began: AcceptedAt,
    current: Keyspace,
    previous: Option<Keyspace>,
}

impl Names {
    const KEY: &str = "generation";

    fn name_of(generation: u64) -> String {
        format!("once.{generation}")
    }

    fn open(tables: &Tables) -> Result<Self, TableError> {
        let state = tables.state.get(Self::KEY)?;
        let numbers: Vec<u64> =
            state.iter().flat_map(|state| state.chunks_exact(8)).filter_map(format::number).collect();
        let (generation, began) = match numbers[..] {
            [generation, began] => (generation, AcceptedAt(began)),
            _ => (0, AcceptedAt::now()),
        };
        let keyspace =
            |generation| tables.database.keyspace(&Self::name_of(generation), KeyspaceCreateOptions::default);
        let previous = generation.checked_sub(1).map(keyspace).transpose()?;
        let names = Self { generation, began, current: keyspace(generation)?, previous };
        names.save(tables)?;
        Ok(names)
    }

    fn save(&self, tables: &Tables) -> Result<(), TableError> {
        let state = [self.generation.to_be_bytes(), self.began.0.to_be_bytes()].concat();
        Ok(tables.state.insert(Self::KEY, state)?)
    }

    fn get(&self, key: &[u8]) -> Result<Option<TimelineSeq>, TableError> {
        let mut found = self.current.get(key)?;
        if let (None, Some(previous)) = (&found, &self.previous) {
            found = previous.get(key)?;
        }
        let read = |bytes: fjall::UserValue| {
            format::number(&bytes).map(TimelineSeq).ok_or(TableError::Damaged("once"))
        };
        found.map(read).transpose()
    }

    /// Begins a new generation when the newest is as old as the window. A clock that has gone back makes the generation last longer.
    fn forget(&mut self, tables: &Tables, window: Duration, now: AcceptedAt) -> Result<(), TableError> {
        if now < self.began {
            self.began = now;
            return self.save(tables);
        }
        if self.began.until(now) < window {
            return Ok(());
        }
        let next =
            tables.database.keyspace(&Self::name_of(self.generation + 1), KeyspaceCreateOptions::default)?;
        let current = std::mem::replace(&mut self.current, next);
        let gone = self.previous.replace(current);
        (self.generation, self.began) = (self.generation + 1, now);
        self.save(tables)?;
        if let Some(gone) = gone {
            tables.database.delete_keyspace(gone)?;
        }
        Ok(())
    }
}

/// The ends of timelines, so that an append need not look for them. Within a group nothing goes: the disk does not know yet of what the
/// group has appended.
#[derive(Default)]
struct Ends {
    young: HashMap<TimelineKey, Known>,
    old: HashMap<TimelineKey, Known>,
}

impl Ends {
    fn get(&mut self, key: &TimelineKey) -> Option<Known> {
        if let Some(known) = self.young.get(key) {
            return Some(*known);
        }
        let known = self.old.remove(key)?;
        self.young.insert(key.clone(), known);
        Some(known)
    }

    fn put(&mut self, key: &TimelineKey, known: Known) {
        if let Some(place) = self.young.get_mut(key) {
            *place = known;
            return;
        }
        self.old.remove(key);
        self.young.insert(key.clone(), known);
    }

    /// Between two groups: those that were not asked for since the last `max` others go.
    fn age(&mut self, max: usize) {
        if self.young.len() >= max {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

/// Everything of the thread while the folder is open.
struct Open {
    tables: Arc<Tables>,
    names: Names,
    ends: Ends,
    head_cache_entries: usize,
}

/// What one commit is made of, and who waits for it.
struct Group {
    batch: fjall::OwnedWriteBatch,
    named: HashMap<Vec<u8>, TimelineSeq>,
    cursors: HashMap<Vec<u8>, TimelineSeq>,
    deleted: HashSet<Vec<u8>>,
    answers: Vec<Box<dyn FnOnce(Option<TimelineError>) + Send>>,
}

impl Group {
    fn answer<T: Send + 'static>(&mut self, answer: Answer<T>, result: Result<T, TimelineError>) {
        self.answers.push(Box::new(move |failed| {
            // Who has gone does not want to know.
            let _ = answer.send(failed.map_or(result, Err));
        }));
    }
}

impl Open {
    fn new(tables: Arc<Tables>, head_cache_entries: usize) -> Result<Self, TableError> {
        let names = Names::open(&tables)?;
        Ok(Self { tables, names, ends: Ends::default(), head_cache_entries })
    }

    fn known(&mut self, key: &TimelineKey) -> Result<Option<Known>, TableError> {
        if let Some(known) = self.ends.get(key) {
            return Ok(Some(known));
        }
        let known = self.tables.known(key)?;
        if let Some(known) = known {
            self.ends.put(key, known);
        }
        Ok(known)
    }

    /// Writes one durable commit.
    fn commit(&mut self, jobs: Vec<Job>, window: Duration) -> Result<(), String> {
        self.ends.age(self.head_cache_entries);
        let batch = self.tables.database.batch().durability(Some(PersistMode::SyncData));
        let (named, cursors, deleted, answers) = Default::default();
        let mut group = Group { batch, named, cursors, deleted, answers };
        let mut failure: Option<TableError> = None;
        for job in jobs {
            if let Some(failure) = &failure {
                job.refuse(TimelineError::Unavailable(failure.text()));
            } else if let Err(error) = self.take(&mut group, job, window) {
                failure = Some(error);
            }
        }
        let written = match failure {
            None => group.batch.commit().map_err(|error| {
                // One that refuses because of an earlier failure has not begun.
                let is_unknown = !matches!(error, fjall::Error::Poisoned);
                (text_of(&error), is_unknown)
            }),
            Some(error) => Err((error.text(), false)),
        };
        let error = written.as_ref().err().map(|(text, is_unknown)| {
            let error = if *is_unknown { TimelineError::Unknown } else { TimelineError::Unavailable };
            error(text.clone())
        });
        for answer in group.answers {
            answer(error.clone());
        }
        written.map_err(|(text, _)| text)
    }

    fn take(&mut self, group: &mut Group, job: Job, window: Duration) -> Result<(), TableError> {
        match job {
            Job::Append { appends, answer } => {
                let kept = self.append(group, appends);
                self.settle(group, answer, kept)
            }
            Job::Delete { timeline, seq, answer } => {
                let deleted = self.delete(group, &timeline, seq);
                self.settle(group, answer, deleted)
            }
            Job::Advance { cursor, to, answer } => {
                let at = self.advance(group, &cursor, to);
                self.settle(group, answer, at)
            }
            Job::Trim { key, first, bytes_before, answer } => {
                let trimmed = self.trim(group, &key, first, bytes_before);
                self.settle(group, answer, trimmed)
            }
            Job::Forget { now, answer } => {
                let forgotten = self.names.forget(&self.tables, window, now);
                self.settle(group, answer, forgotten)
            }
        }
    }

    fn settle<T: Send + 'static>(
        &mut self,
        group: &mut Group,
        answer: Answer<T>,
        result: Result<T, TableError>,
    ) -> Result<(), TableError> {
        match result {
            Ok(value) => {
                group.answer(answer, Ok(value));
                Ok(())
            }
            Err(error) => {
                group.answer(answer, Err(TimelineError::Unavailable(error.text())));
                Err(error)
            }
        }
    }

    fn append(&mut self, group: &mut Group, appends: Vec<Append>) -> Result<Vec<AppendResult>, TableError> {
        appends.into_iter().map(|append| self.append_one(group, append)).collect()
    }

    fn append_one(&mut self, group: &mut Group, append: Append) -> Result<AppendResult, TableError> {
        let Append { timeline, message, idempotency_key: once } = append;
        // Names were looked at before the job was taken.
        let key = TimelineKey::new(&timeline).ok_or(TableError::Damaged("timelines"))?;
        let known = self.known(&key)?;
        let name = once.map(|once| key.once(message.sender, &once));
        if let (Some(name), Some(known)) = (&name, known) {
            let seq = match group.named.get(name) {
                Some(seq) => Some(*seq),
                None => self.names.get(name)?,
            };
            if let Some(seq) = seq {
                let position = Position { epoch: known.record.epoch, seq };
                return Ok(AppendResult { position, is_duplicate: true });
            }
        }
        let mut known = match known {
            Some(known) => known,
            None => {
                let known = Known::new(draw_epoch());
                group.batch.insert(&self.tables.timelines, key.as_bytes(), known.record.write());
                known
            }
        };
        known.latest = known.latest.next();
        known.total_bytes = known.total_bytes.saturating_add(bytes_of(&message));
        let record = Record::new(message, known.total_bytes);
        group.batch.insert(&self.tables.messages, key.message(known.latest), record.write());
        if let Some(name) = name {
            group.batch.insert(&self.names.current, name.clone(), known.latest.0.to_be_bytes());
            group.named.insert(name, known.latest);
        }
        self.ends.put(&key, known);
        Ok(AppendResult { position: known.head().position(), is_duplicate: false })
    }

    fn delete(
        &mut self,
        group: &mut Group,
        timeline: &TimelineId,
        seq: TimelineSeq,
    ) -> Result<bool, TableError> {
        let Some(key) = TimelineKey::new(timeline) else { return Ok(false) };
        let Some(known) = self.known(&key)? else { return Ok(false) };
        let place = key.message(seq);
        if seq < known.record.first || seq > known.latest || group.deleted.contains(&place) {
            return Ok(false);
        }
        let found = self.tables.record_at(&self.tables.database.snapshot(), &key, seq)?;
        let Some(deleted) = found.and_then(Record::deleted) else { return Ok(false) };
        group.batch.insert(&self.tables.messages, place.clone(), deleted.write());
        group.deleted.insert(place);
        Ok(true)
    }

    fn advance(
        &mut self,
        group: &mut Group,
        cursor: &CursorId,
        to: TimelineSeq,
    ) -> Result<TimelineSeq, TableError> {
        let Some(timeline) = TimelineKey::new(&cursor.timeline) else { return Ok(TimelineSeq(0)) };
        let latest = self.known(&timeline)?.map(|known| known.latest).unwrap_or_default();
        let key = timeline.cursor(cursor.mid);
        let at = match group.cursors.get(&key) {
            Some(at) => *at,
            None => self.tables.cursor(&key)?,
        };
        let to = to.min(latest);
        if to <= at {
            return Ok(at);
        }
        group.batch.insert(&self.tables.cursors, key.clone(), to.0.to_be_bytes());
        group.cursors.insert(key, to);
        Ok(to)
    }

    fn trim(
        &mut self,
        group: &mut Group,
        key: &TimelineKey,
        first: TimelineSeq,
        bytes_before: u64,
    ) -> Result<(), TableError> {
        let Some(mut known) = self.known(key)? else { return Ok(()) };
        let before = known.record;
        if first <= before.first || first > known.latest.next() {
            return Ok(());
        }
        for seq in before.first.0..first.0 {
            group.batch.remove(&self.tables.messages, key.message(TimelineSeq(seq)));
        }
        known.record = TimelineRecord { first, bytes_before, ..before };
        group.batch.insert(&self.tables.timelines, key.as_bytes(), known.record.write());
        self.ends.put(key, known);
        Ok(())
    }
}

/// Runs until nobody can ask any more.
pub(super) fn run(shared: &Shared, jobs: &Receiver<Job>, tables: Arc<Tables>) {
    let head_cache_entries = shared.config.head_cache_entries;
    let mut open = Open::new(tables, head_cache_entries).map_err(|error| error.text());
    let mut look_again = Instant::now();
    loop {
        let first = match jobs.recv_timeout(REOPEN_AFTER) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if open.is_err() && Instant::now() >= look_again {
            open = reopen(shared);
            look_again = Instant::now() + REOPEN_AFTER;
        }
        let Some(first) = first else { continue };
        let group = gather(shared, jobs, first);
        let failed = match &mut open {
            Ok(open) => open.commit(group, shared.config.duplicate_window).err(),
            Err(reason) => {
                for job in group {
                    job.refuse(TimelineError::Unavailable(reason.clone()));
                }
                None
            }
        };
        if let Some(reason) = failed {
            let reason = match free_mib(&shared.config.folder) {
                Some(free) => {
                    format!("{reason}; {free} MiB are free on the disk of {}", shared.config.folder.display())
                }
                None => reason,
            };
            tracing::error!(folder = %shared.config.folder.display(), reason, "timelines cannot be written; trying again until they can");
            open = Err(reason.clone());
            shared.close(&reason);
            look_again = Instant::now() + REOPEN_AFTER;
        }
    }
}

/// What waits, up to the size of a group.
fn gather(shared: &Shared, jobs: &Receiver<Job>, first: Job) -> Vec<Job> {
    let (mut messages, mut bytes) = (first.messages(), first.bytes());
    let mut group = vec![first];
    while messages < shared.config.group_messages_max {
        let Ok(job) = jobs.try_recv() else { break };
        messages += job.messages();
        bytes += job.bytes();
        group.push(job);
    }
    shared.waiting.leave(messages, bytes);
    group
}

/// What is free on a folder's disk for everybody.
fn free_mib(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize) >> 20)
}

fn reopen(shared: &Shared) -> Result<Open, String> {
    let opened = shared
        .wait_until_closed()
        .and_then(|()| Tables::open(&shared.config).map(Arc::new).map_err(|error| error.to_string()));
    let opened = opened.and_then(|tables| {
        let open =
            Open::new(Arc::clone(&tables), shared.config.head_cache_entries).map_err(|error| error.text())?;
        shared.open(tables);
        Ok(open)
    });
    match &opened {
        Ok(_) => tracing::info!(folder = %shared.config.folder.display(), "timelines can be written again"),
        Err(reason) => tracing::debug!(reason, "timelines cannot be opened yet"),
    }
    opened
}
