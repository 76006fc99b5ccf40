//! The push log inside this process: one ordered queue with a bound, a writing end and a reading end.
//!
//! A record takes up room from its append until it is handed over ([`PushLogReader::done`]), not only until it is
//! read: so slow receivers hold the publishers back, and the memory of everything on its way is bounded here. When
//! the log is full, appends wait in the order in which they were called.
//!
//! There is one partition, so records of all keys are in the order of their appends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use goim_ports::{
    AppendError, BoxFuture, Call, LogEntry, LogPosition, PushLog, PushLogReader, PushRecord, PushTarget,
    ReadError,
};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::lock;
use crate::push_size::kafka_len;

const PARTITION: i32 = 0;

/// What a record takes besides its own bytes: its place in the queue, and the allocations' own.
const RECORD_OVERHEAD: usize = 160;

/// Bounds of a push log in memory.
#[derive(Debug, Clone)]
pub struct PushLogConfig {
    /// Records between their append and their hand-over. Default 65,536. At least one is always taken.
    pub records_max: usize,
    /// The same in bytes, with a fixed addition per record for its housekeeping. Default 64 MiB: what a burst may
    /// cost. An empty log takes one record of any size that `record_bytes_max` allows.
    pub bytes_max: usize,
    /// How long an append waits for room before it is refused. Default 3 s. Zero refuses at once.
    pub append_deadline: Duration,
    /// Appends that may wait at once. Default 1,024. One more is refused at once.
    pub waiting_max: usize,
    /// Size of one record in bytes, counted as goim's Kafka client counts it: 26 and the lengths of the record's key
    /// and of its protobuf form. Default 1,000,000, as in goim.
    pub record_bytes_max: usize,
    /// Records that one read gives at most. Default 1,024.
    pub read_records_max: usize,
}

impl Default for PushLogConfig {
    fn default() -> Self {
        Self {
            records_max: 65_536,
            bytes_max: 64 * 1024 * 1024,
            append_deadline: Duration::from_secs(3),
            waiting_max: 1_024,
            record_bytes_max: 1_000_000,
            read_records_max: 1_024,
        }
    }
}

/// Figures of a push log, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushLogStats {
    /// Records appended and not handed over.
    pub records: usize,
    /// Bytes of those, with the addition per record.
    pub bytes: usize,
    /// The most that `records` has been.
    pub records_high: usize,
    /// The most that `bytes` has been.
    pub bytes_high: usize,
    /// Appends that wait for room.
    pub waiting: usize,
    /// Records ever appended.
    pub appended: u64,
    /// Appends ever refused because the log was full.
    pub rejected_full: u64,
    /// Appends ever refused because the record was too large.
    pub rejected_too_large: u64,
}

/// A push log in memory: the writing end and the reading end.
///
/// The log closes when the writing end is dropped (all its clones) or told to; the reader then gets what is left,
/// and after that `None`. It also closes when the reader is dropped, since nobody would hand anything over.
#[must_use]
pub fn push_log(config: PushLogConfig) -> (Arc<MemoryPushLog>, MemoryPushLogReader) {
    let shared = Arc::new(Shared { config, state: Mutex::default(), news: Notify::new() });
    (Arc::new(MemoryPushLog { shared: Arc::clone(&shared) }), MemoryPushLogReader { shared })
}

/// The writing end of a push log in memory.
#[derive(Debug)]
pub struct MemoryPushLog {
    shared: Arc<Shared>,
}

/// The reading end of a push log in memory.
#[derive(Debug)]
pub struct MemoryPushLogReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: PushLogConfig,
    state: Mutex<State>,
    /// Tells the reader that there are records, or that there will be none.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    unread: VecDeque<LogEntry>,
    /// Sizes of the records that take up room, oldest first: those that were read, then those that were not.
    sizes: VecDeque<usize>,
    /// Offset of the first of `sizes`.
    first_offset: i64,
    waiting: BTreeMap<u64, Waiting>,
    next_ticket: u64,
    /// Bytes of the waiting records.
    waiting_bytes: usize,
    closed: bool,
    stats: PushLogStats,
}

#[derive(Debug)]
struct Waiting {
    record: PushRecord,
    size: usize,
    /// Told when the record is in the log; dropped when the log closes.
    accepted: oneshot::Sender<()>,
}

impl MemoryPushLog {
    /// Takes no more appends. Those that wait are refused; what was accepted is still read.
    pub fn close(&self) {
        self.shared.close();
    }

    /// The log's figures at this moment.
    #[must_use]
    pub fn stats(&self) -> PushLogStats {
        let state = lock(&self.shared.state);
        PushLogStats { waiting: state.waiting.len(), ..state.stats }
    }
}

impl Drop for MemoryPushLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl PushLog for MemoryPushLog {
    /// # Cancel safety
    /// A dropped call that still waits for room leaves nothing in the log.
    fn append(&self, record: PushRecord) -> Call<Result<(), AppendError>> {
        let config = &self.shared.config;
        let kafka_size = kafka_len(&record);
        let mut state = lock(&self.shared.state);
        if kafka_size > config.record_bytes_max {
            state.stats.rejected_too_large += 1;
            return Call::Ready(Err(AppendError::TooLarge {
                size: kafka_size,
                limit: config.record_bytes_max,
            }));
        }
        if state.closed {
            return Call::Ready(Err(closed()));
        }
        let size = size_of_record(&record);
        if state.waiting.is_empty() && state.has_room(size, config) {
            state.accept(record, size);
            drop(state);
            self.shared.news.notify_one();
            return Call::Ready(Ok(()));
        }
        if config.append_deadline.is_zero() || !state.may_wait(size, config) {
            state.stats.rejected_full += 1;
            return Call::Ready(Err(AppendError::Full));
        }
        let (ticket, accepted) = state.wait(record, size);
        drop(state);
        let place = Place { shared: Arc::clone(&self.shared), ticket };
        Call::Pending(Box::pin(place.wait(accepted, Instant::now() + config.append_deadline)))
    }
}

impl State {
    fn has_room(&self, size: usize, config: &PushLogConfig) -> bool {
        let fits = self.stats.records < config.records_max
            && self.stats.bytes.saturating_add(size) <= config.bytes_max;
        fits || self.stats.records == 0
    }

    fn may_wait(&self, size: usize, config: &PushLogConfig) -> bool {
        let fits = self.waiting_bytes.saturating_add(size) <= config.bytes_max;
        self.waiting.len() < config.waiting_max && (fits || self.waiting.is_empty())
    }

    fn accept(&mut self, record: PushRecord, size: usize) {
        let offset = self.first_offset + self.sizes.len() as i64;
        self.unread.push_back(LogEntry { position: LogPosition { partition: PARTITION, offset }, record });
        self.sizes.push_back(size);
        let stats = &mut self.stats;
        stats.appended += 1;
        stats.records += 1;
        stats.bytes += size;
        stats.records_high = stats.records_high.max(stats.records);
        stats.bytes_high = stats.bytes_high.max(stats.bytes);
    }

    fn wait(&mut self, record: PushRecord, size: usize) -> (u64, oneshot::Receiver<()>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting_bytes += size;
        let (accepted, answer) = oneshot::channel();
        self.waiting.insert(ticket, Waiting { record, size, accepted });
        (ticket, answer)
    }

    /// Takes an append off the waiting ones; false when it was accepted or refused already.
    fn give_up(&mut self, ticket: u64) -> bool {
        let Some(waiting) = self.waiting.remove(&ticket) else { return false };
        self.waiting_bytes -= waiting.size;
        true
    }

    /// Accepts waiting appends in their order as long as there is room; true when there was one.
    fn admit(&mut self, config: &PushLogConfig) -> bool {
        let mut any = false;
        while let Some(first) = self.waiting.first_entry() {
            let size = first.get().size;
            if !self.has_room(size, config) {
                break;
            }
            let Some((_, waiting)) = self.waiting.pop_first() else { break };
            self.waiting_bytes -= size;
            self.accept(waiting.record, size);
            // An append that was dropped in this moment is in the log all the same, as with any other log.
            let _ = waiting.accepted.send(());
            any = true;
        }
        any
    }

    fn done(&mut self, offset: i64) {
        let read = self.sizes.len() - self.unread.len();
        let handed_over = usize::try_from(offset - self.first_offset + 1).unwrap_or(0).min(read);
        let bytes: usize = self.sizes.drain(..handed_over).sum();
        self.first_offset += handed_over as i64;
        self.stats.records -= handed_over;
        self.stats.bytes -= bytes;
    }
}

impl Shared {
    fn close(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.news.notify_one();
    }

    fn admit(&self, mut state: MutexGuard<'_, State>) {
        let any = state.admit(&self.config);
        drop(state);
        if any {
            self.news.notify_one();
        }
    }
}

/// The place of one append among the waiting ones, given up when dropped.
struct Place {
    shared: Arc<Shared>,
    ticket: u64,
}

impl Place {
    async fn wait(self, mut accepted: oneshot::Receiver<()>, deadline: Instant) -> Result<(), AppendError> {
        if let Ok(answer) = tokio::time::timeout_at(deadline, &mut accepted).await {
            return answer.map_err(|_| closed());
        }
        let mut state = lock(&self.shared.state);
        // Under the lock, since the answer may have come after the deadline struck.
        match accepted.try_recv() {
            Ok(()) => Ok(()),
            Err(TryRecvError::Closed) => Err(closed()),
            Err(TryRecvError::Empty) => {
                state.stats.rejected_full += 1;
                Err(AppendError::Full)
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        if state.give_up(self.ticket) {
            // A large record in front may have kept out smaller ones behind it.
            self.shared.admit(state);
        }
    }
}

impl MemoryPushLogReader {
    /// `None` when there is nothing to read yet.
    fn take(&self) -> Option<Option<Vec<LogEntry>>> {
        let mut state = lock(&self.shared.state);
        let count = state.unread.len().min(self.shared.config.read_records_max.max(1));
        if count > 0 {
            return Some(Some(state.unread.drain(..count).collect()));
        }
        state.closed.then_some(None)
    }

    async fn next(&mut self) -> Option<Vec<LogEntry>> {
        loop {
            if let Some(answer) = self.take() {
                return answer;
            }
            // What is told between the look and the wait is kept for the wait.
            self.shared.news.notified().await;
        }
    }
}

impl PushLogReader for MemoryPushLogReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>> {
        Box::pin(async { Ok(self.next().await) })
    }

    fn done(&mut self, position: LogPosition) {
        let mut state = lock(&self.shared.state);
        state.done(position.offset);
        self.shared.admit(state);
    }
}

impl Drop for MemoryPushLogReader {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn closed() -> AppendError {
    AppendError::Unavailable("the push log is closed".to_owned())
}

/// Bytes that a record takes in memory, near enough for a bound.
fn size_of_record(record: &PushRecord) -> usize {
    let target = match &record.target {
        PushTarget::Keys { keys, .. } => keys.iter().map(|key| key.as_str().len() + 32).sum(),
        PushTarget::Room(room) => room.as_str().len(),
        PushTarget::All { .. } => 0,
    };
    RECORD_OVERHEAD + target + record.body.len()
}

#[cfg(test)]
mod tests;
