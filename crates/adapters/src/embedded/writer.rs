//! The single writer thread: it takes all queued requests, writes them as one durable commit, and
//! replies to each.
//!
//! Requests queue while a commit is in progress, so groups grow with the load and a single append
//! is not delayed. After a failed write it is unknown what is on disk. The appends fail as such,
//! the folder is closed, and the thread retries to open it; until then requests are refused.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fjall::PersistMode;
use goim_ports::{
    AcceptedAt, Append, AppendResult, CursorId, Position, TimelineError, TimelineId, TimelineSeq,
};
use tokio::sync::oneshot;

use super::dedup::DedupIndex;
use super::format::TimelineRecord;
use super::store::StoreState;
use super::tables::{TableError, Tables, TimelineTail, text_of};
use super::tail_cache::TailCache;
use crate::timeline::admission::Admitted;
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;
use crate::timeline::{bytes_of, memory_of, new_epoch};

/// Pause between two attempts to open a folder.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Where the result of a request is sent.
pub(super) type Reply<T> = oneshot::Sender<Result<T, TimelineError>>;

/// A request to the writer thread.
pub(super) enum WriteRequest {
    Append {
        appends: Vec<Append>,
        reply: Reply<Vec<AppendResult>>,
    },
    Delete {
        timeline: TimelineId,
        seq: TimelineSeq,
        reply: Reply<bool>,
    },
    Advance {
        cursor: CursorId,
        to: TimelineSeq,
        reply: Reply<TimelineSeq>,
    },
    /// Removes the messages from `record.first` up to, not including, `first`.
    Trim {
        key: TimelineKey,
        first: TimelineSeq,
        bytes_before: u64,
        reply: Reply<()>,
    },
    /// Removes idempotency keys whose window has ended as of `now`.
    RotateDedup {
        now: AcceptedAt,
        reply: Reply<()>,
    },
}

/// A request in the queue. The store's own requests (`Trim`, `RotateDedup`) take no place: one is
/// queued at a time.
pub(super) struct Queued {
    pub(super) request: WriteRequest,
    /// Freed when the writer takes the request.
    pub(super) admitted: Option<Admitted>,
}

impl WriteRequest {
    /// The number of messages that the request counts as.
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Append { appends, .. } => appends.len(),
            Self::Trim { .. } | Self::RotateDedup { .. } => 0,
            _ => 1,
        }
    }

    /// The approximate number of bytes of memory that the request takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append { appends, .. } => appends.iter().map(memory_of).sum(),
            Self::Trim { .. } | Self::RotateDedup { .. } => 0,
            _ => 256,
        }
    }

    fn refuse(self, error: TimelineError) {
        match self {
            Self::Append { reply, .. } => drop(reply.send(Err(error))),
            Self::Delete { reply, .. } => drop(reply.send(Err(error))),
            Self::Advance { reply, .. } => drop(reply.send(Err(error))),
            Self::Trim { reply, .. } | Self::RotateDedup { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The writer's state while the folder is open.
struct OpenStore {
    tables: Arc<Tables>,
    dedup: DedupIndex,
    tails: TailCache,
    head_cache_entries: usize,
}

/// One commit: what it writes, and the replies to send when it is done.
struct CommitGroup {
    batch: fjall::OwnedWriteBatch,
    /// What the group has added, changed or deleted and reads cannot see yet.
    dedup_added: HashMap<Vec<u8>, TimelineSeq>,
    cursors: HashMap<Vec<u8>, TimelineSeq>,
    deleted: HashSet<Vec<u8>>,
    replies: Vec<Box<dyn FnOnce(Option<TimelineError>) + Send>>,
}

impl CommitGroup {
    /// Sends `result` after the commit, or the error of the commit.
    fn reply<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, TimelineError>) {
        self.replies.push(Box::new(move |failed| {
            // A caller that dropped its call does not want the result.
            let _ = reply.send(failed.map_or(result, Err));
        }));
    }
}

impl OpenStore {
    fn new(tables: Arc<Tables>, head_cache_entries: usize) -> Result<Self, TableError> {
        let dedup = DedupIndex::open(&tables)?;
        Ok(Self { tables, dedup, tails: TailCache::default(), head_cache_entries })
    }

    fn tail(&mut self, key: &TimelineKey) -> Result<Option<TimelineTail>, TableError> {
        if let Some(tail) = self.tails.get(key) {
            return Ok(Some(tail));
        }
        let tail = self.tables.tail(key)?;
        if let Some(tail) = tail {
            self.tails.put(key, tail);
        }
        Ok(tail)
    }

    /// Writes one durable commit.
    fn commit(&mut self, requests: Vec<WriteRequest>, window: Duration) -> Result<(), String> {
        self.tails.rotate(self.head_cache_entries);
        let batch = self.tables.database.batch().durability(Some(PersistMode::SyncData));
        let (dedup_added, cursors, deleted, replies) = Default::default();
        let mut group = CommitGroup { batch, dedup_added, cursors, deleted, replies };
        let mut failure: Option<TableError> = None;
        for request in requests {
            if let Some(failure) = &failure {
                request.refuse(TimelineError::Unavailable(failure.text()));
            } else if let Err(error) = self.apply(&mut group, request, window) {
                failure = Some(error);
            }
        }
        let written = match failure {
            None => group.batch.commit().map_err(|error| {
                // A poisoned engine refuses before it writes anything.
                let is_unknown = !matches!(error, fjall::Error::Poisoned);
                (text_of(&error), is_unknown)
            }),
            Some(error) => Err((error.text(), false)),
        };
        let error = written.as_ref().err().map(|(text, is_unknown)| {
            let error = if *is_unknown { TimelineError::Unknown } else { TimelineError::Unavailable };
            error(text.clone())
        });
        for reply in group.replies {
            reply(error.clone());
        }
        written.map_err(|(text, _)| text)
    }

    fn apply(
        &mut self,
        group: &mut CommitGroup,
        request: WriteRequest,
        window: Duration,
    ) -> Result<(), TableError> {
        match request {
            WriteRequest::Append { appends, reply } => {
                let appended = self.append(group, appends);
                settle(group, reply, appended)
            }
            WriteRequest::Delete { timeline, seq, reply } => {
                let deleted = self.delete(group, &timeline, seq);
                settle(group, reply, deleted)
            }
            WriteRequest::Advance { cursor, to, reply } => {
                let at = self.advance(group, &cursor, to);
                settle(group, reply, at)
            }
            WriteRequest::Trim { key, first, bytes_before, reply } => {
                let trimmed = self.trim(group, &key, first, bytes_before);
                settle(group, reply, trimmed)
            }
            WriteRequest::RotateDedup { now, reply } => {
                let rotated = self.dedup.rotate(&self.tables, window, now);
                settle(group, reply, rotated)
            }
        }
    }

    fn append(
        &mut self,
        group: &mut CommitGroup,
        appends: Vec<Append>,
    ) -> Result<Vec<AppendResult>, TableError> {
        appends.into_iter().map(|append| self.append_one(group, append)).collect()
    }

    fn append_one(&mut self, group: &mut CommitGroup, append: Append) -> Result<AppendResult, TableError> {
        let Append { timeline, message, idempotency_key: once } = append;
        // The handle has checked the name before it queued the request.
        let key = TimelineKey::new(&timeline).ok_or(TableError::Damaged("timelines"))?;
        let tail = self.tail(&key)?;
        let dedup_key = once.map(|once| key.dedup(message.sender, &once));
        if let (Some(dedup_key), Some(tail)) = (&dedup_key, tail)
            && let Some(seq) = self.duplicate_of(group, dedup_key)?
        {
            let position = Position { epoch: tail.record.epoch, seq };
            return Ok(AppendResult { position, is_duplicate: true });
        }
        let mut tail = tail.unwrap_or_else(|| {
            let tail = TimelineTail::new(new_epoch());
            group.batch.insert(&self.tables.timelines, key.as_bytes(), tail.record.write());
            tail
        });
        tail.latest = tail.latest.next();
        tail.total_bytes = tail.total_bytes.saturating_add(bytes_of(&message));
        let record = Record::new(message, tail.total_bytes);
        group.batch.insert(&self.tables.messages, key.message(tail.latest), record.write());
        if let Some(dedup_key) = dedup_key {
            self.dedup.insert(&mut group.batch, dedup_key.clone(), tail.latest);
            group.dedup_added.insert(dedup_key, tail.latest);
        }
        self.tails.put(&key, tail);
        Ok(AppendResult { position: tail.head().position(), is_duplicate: false })
    }

    /// Returns the sequence of the message with the same idempotency key, from this group or from
    /// disk.
    fn duplicate_of(&self, group: &CommitGroup, dedup_key: &[u8]) -> Result<Option<TimelineSeq>, TableError> {
        match group.dedup_added.get(dedup_key) {
            Some(seq) => Ok(Some(*seq)),
            None => self.dedup.get(dedup_key),
        }
    }

    fn delete(
        &mut self,
        group: &mut CommitGroup,
        timeline: &TimelineId,
        seq: TimelineSeq,
    ) -> Result<bool, TableError> {
        let Some(key) = TimelineKey::new(timeline) else { return Ok(false) };
        let Some(tail) = self.tail(&key)? else { return Ok(false) };
        let message_key = key.message(seq);
        if seq < tail.record.first || seq > tail.latest || group.deleted.contains(&message_key) {
            return Ok(false);
        }
        let found = self.tables.record_at(&self.tables.database.snapshot(), &key, seq)?;
        let Some(deleted) = found.and_then(Record::deleted) else { return Ok(false) };
        group.batch.insert(&self.tables.messages, message_key.clone(), deleted.write());
        group.deleted.insert(message_key);
        Ok(true)
    }

    fn advance(
        &mut self,
        group: &mut CommitGroup,
        cursor: &CursorId,
        to: TimelineSeq,
    ) -> Result<TimelineSeq, TableError> {
        let Some(timeline) = TimelineKey::new(&cursor.timeline) else { return Ok(TimelineSeq(0)) };
        let latest = self.tail(&timeline)?.map(|tail| tail.latest).unwrap_or_default();
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
        group: &mut CommitGroup,
        key: &TimelineKey,
        first: TimelineSeq,
        bytes_before: u64,
    ) -> Result<(), TableError> {
        let Some(mut tail) = self.tail(key)? else { return Ok(()) };
        let before = tail.record;
        if first <= before.first || first > tail.latest.next() {
            return Ok(());
        }
        for seq in before.first.0..first.0 {
            group.batch.remove(&self.tables.messages, key.message(TimelineSeq(seq)));
        }
        tail.record = TimelineRecord { first, bytes_before, ..before };
        group.batch.insert(&self.tables.timelines, key.as_bytes(), tail.record.write());
        self.tails.put(key, tail);
        Ok(())
    }
}

/// Queues the reply of one request. A failure of the engine is passed on: it ends the group.
fn settle<T: Send + 'static>(
    group: &mut CommitGroup,
    reply: Reply<T>,
    result: Result<T, TableError>,
) -> Result<(), TableError> {
    match result {
        Ok(value) => {
            group.reply(reply, Ok(value));
            Ok(())
        }
        Err(error) => {
            group.reply(reply, Err(TimelineError::Unavailable(error.text())));
            Err(error)
        }
    }
}

/// Runs until all senders are dropped.
pub(super) fn run(state: &StoreState, queue: &Receiver<Queued>, tables: Arc<Tables>) {
    let head_cache_entries = state.config.head_cache_entries;
    let mut open = OpenStore::new(tables, head_cache_entries).map_err(|error| error.text());
    let mut reopen_at = Instant::now();
    loop {
        let first = match queue.recv_timeout(REOPEN_AFTER) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if open.is_err() && Instant::now() >= reopen_at {
            open = reopen(state);
            reopen_at = Instant::now() + REOPEN_AFTER;
        }
        let Some(first) = first else { continue };
        let requests = gather(state.config.group_messages_max, queue, first);
        let failed = match &mut open {
            Ok(open) => open.commit(requests, state.config.duplicate_window).err(),
            Err(reason) => {
                for request in requests {
                    request.refuse(TimelineError::Unavailable(reason.clone()));
                }
                None
            }
        };
        if let Some(reason) = failed {
            let reason = with_free_space(reason, &state.config.folder);
            tracing::error!(folder = %state.config.folder.display(), reason, "timelines cannot be written; retrying");
            open = Err(reason.clone());
            state.close(&reason);
            reopen_at = Instant::now() + REOPEN_AFTER;
        }
    }
}

/// Takes all queued requests, up to the size of a group, and frees their places in the queue.
fn gather(messages_max: usize, queue: &Receiver<Queued>, first: Queued) -> Vec<WriteRequest> {
    let mut messages = 0;
    let mut requests = Vec::new();
    let mut next = Some(first);
    while let Some(Queued { request, admitted }) = next {
        drop(admitted);
        messages += request.messages();
        requests.push(request);
        next = if messages < messages_max { queue.try_recv().ok() } else { None };
    }
    requests
}

/// Appends the free space of the folder's disk: a full disk is the likeliest cause.
fn with_free_space(reason: String, folder: &Path) -> String {
    match free_mib(folder) {
        Some(free) => format!("{reason}; {free} MiB are free on the disk of {}", folder.display()),
        None => reason,
    }
}

/// The free space on a folder's disk that an unprivileged process can use.
fn free_mib(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize) >> 20)
}

fn reopen(state: &StoreState) -> Result<OpenStore, String> {
    let opened = state
        .wait_until_closed()
        .and_then(|()| Tables::open(&state.config).map(Arc::new).map_err(|error| error.to_string()));
    let opened = opened.and_then(|tables| {
        let open = OpenStore::new(Arc::clone(&tables), state.config.head_cache_entries);
        let open = open.map_err(|error| error.text())?;
        state.open(tables);
        Ok(open)
    });
    match &opened {
        Ok(_) => tracing::info!(folder = %state.config.folder.display(), "timelines can be written again"),
        Err(reason) => tracing::debug!(reason, "timelines cannot be opened yet"),
    }
    opened
}
