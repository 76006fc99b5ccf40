//! The push log in this process: one bounded, ordered queue with a writer and a reader.
//!
//! A record counts against the bound from its append until it is delivered
//! ([`PushLogReader::done`]), not only until it is read. So slow receivers hold publishers back,
//! and all memory in flight is bounded here. When the log is full, appends wait in the order of
//! their calls.
//!
//! There is one partition, so records of all keys keep the order of their appends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    AppendError, Appended, BoxFuture, Call, LogEntry, LogPosition, PushLog, PushLogReader, PushRecord,
    PushTarget, ReadError,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::config::PushLogConfig;
use crate::push_size::kafka_len;

const PARTITION: i32 = 0;

/// The overhead of a record in bytes: its queue entry and its allocations.
const RECORD_OVERHEAD: usize = 160;

/// Figures of a push log, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushLogStats {
    /// Undelivered records.
    pub records: usize,
    /// Undelivered bytes, with the overhead per record.
    pub bytes: usize,
    /// The peak of `records`.
    pub records_peak: usize,
    /// The peak of `bytes`.
    pub bytes_peak: usize,
    /// Appends that wait for room.
    pub waiting: usize,
    /// Records appended since the start.
    pub appended: u64,
    /// Appends refused because the log was full.
    pub rejected_full: u64,
    /// Appends refused because the record was too large.
    pub rejected_too_large: u64,
}

/// Creates a push log in memory: its writer and its reader.
///
/// The log closes when the writer is dropped (all its clones) or closed. The reader then gets the
/// remaining records, and after them `None`. The log also closes when the reader is dropped.
#[must_use]
pub fn push_log(config: PushLogConfig) -> (Arc<MemoryPushLog>, MemoryPushLogReader) {
    let shared = Arc::new(LogShared { config, state: Mutex::default(), readable: Notify::new() });
    (Arc::new(MemoryPushLog { shared: Arc::clone(&shared) }), MemoryPushLogReader { shared })
}

/// The writer of a push log in memory.
#[derive(Debug)]
pub struct MemoryPushLog {
    shared: Arc<LogShared>,
}

/// The reader of a push log in memory.
#[derive(Debug)]
pub struct MemoryPushLogReader {
    shared: Arc<LogShared>,
}

#[derive(Debug)]
struct LogShared {
    config: PushLogConfig,
    state: Mutex<LogState>,
    /// Notified when records are appended, and when the log is closed.
    readable: Notify,
}

#[derive(Debug, Default)]
struct LogState {
    unread: VecDeque<LogEntry>,
    /// When each of them was appended.
    unread_since: VecDeque<Instant>,
    pace: Pace,
    /// Sizes of the undelivered records, oldest first: read ones, then unread ones.
    sizes: VecDeque<usize>,
    /// Offset of the first of `sizes`.
    first_offset: i64,
    waiting: BTreeMap<u64, WaitingAppend>,
    next_ticket: u64,
    /// Bytes of the waiting records.
    waiting_bytes: usize,
    closed: bool,
    stats: PushLogStats,
}

/// How fast records are read.
#[derive(Debug, Default)]
struct Pace {
    /// The time from which `read` counts.
    since: Option<Instant>,
    read: usize,
    per_second: f64,
}

/// The interval over which the pace is measured.
const PACE_INTERVAL: Duration = Duration::from_millis(250);
/// The number of records that may be unread at any pace.
const UNREAD_MIN: usize = 32;

impl Pace {
    fn read(&mut self, count: usize, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.read += count;
        let passed = now.duration_since(since);
        if passed >= PACE_INTERVAL {
            self.per_second = self.read as f64 / passed.as_secs_f64();
            (self.since, self.read) = (Some(now), 0);
        }
    }

    /// Returns the number of records that may be unread so that none gets too old.
    fn unread_max(&self, config: &PushLogConfig) -> usize {
        if config.age_max == Duration::MAX {
            return usize::MAX;
        }
        UNREAD_MIN.max((self.per_second * config.age_max.as_secs_f64()) as usize)
    }
}

/// One append that waits for room.
#[derive(Debug)]
struct WaitingAppend {
    /// The records that are not in the log yet, with sizes; never empty.
    pending: VecDeque<(PushRecord, usize)>,
    /// The number of its records that are in the log.
    accepted: usize,
    answer: oneshot::Sender<Appended>,
}

impl MemoryPushLog {
    /// Closes the log. Waiting appends are refused; accepted records can still be read.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Returns the current figures.
    #[must_use]
    pub fn stats(&self) -> PushLogStats {
        let state = self.shared.state.lock();
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
        let mut state = self.shared.state.lock();
        if let Err(error) = state.check(&record, config) {
            return Call::Ready(Err(error));
        }
        let (size, now) = (size_of_record(&record), Instant::now());
        if state.waiting.is_empty() && state.has_room(size, config, now) {
            state.accept(record, size, now);
            drop(state);
            self.shared.readable.notify_one();
            return Call::Ready(Ok(()));
        }
        let waiting = VecDeque::from([(record, size)]);
        self.wait(state, waiting, 0).map(|Appended { error, .. }| error.map_or(Ok(()), Err))
    }

    /// All records are appended under one lock, with one wake-up of the reader. When the log is
    /// full the rest waits as one append and is accepted piece by piece; no other append gets in
    /// between.
    ///
    /// # Cancel safety
    /// A dropped call that still waits for room leaves the records accepted so far.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let config = &self.shared.config;
        let count = records.len();
        let mut state = self.shared.state.lock();
        let rejected = records.iter().enumerate().find_map(|(index, record)| {
            state.check(record, config).err().map(|error| Appended { accepted: index, error: Some(error) })
        });
        let mut pending: VecDeque<_> = records
            .into_iter()
            .take(rejected.as_ref().map_or(count, |rejected| rejected.accepted))
            .map(|record| {
                let size = size_of_record(&record);
                (record, size)
            })
            .collect();
        let total = pending.len();
        if state.waiting.is_empty() {
            state.accept_from(&mut pending, config);
        }
        let accepted = total - pending.len();
        let complete = rejected.unwrap_or(Appended { accepted: count, error: None });
        if pending.is_empty() {
            drop(state);
            if accepted > 0 {
                self.shared.readable.notify_one();
            }
            return Call::Ready(complete);
        }
        if accepted > 0 {
            self.shared.readable.notify_one();
        }
        let call = self.wait(state, pending, accepted);
        call.map(move |appended| if appended.error.is_none() { complete } else { appended })
    }
}

impl MemoryPushLog {
    /// Queues `pending` behind the waiting appends, or refuses it. `accepted` records of the same
    /// call are in the log.
    fn wait(
        &self,
        mut state: MutexGuard<'_, LogState>,
        pending: VecDeque<(PushRecord, usize)>,
        accepted: usize,
    ) -> Call<Appended> {
        let config = &self.shared.config;
        let size = pending.iter().map(|(_, size)| size).sum();
        if config.append_timeout.is_zero() || !state.may_wait(size, config) {
            state.stats.rejected_full += pending.len() as u64;
            return Call::Ready(Appended { accepted, error: Some(AppendError::Full) });
        }
        let (ticket, answer) = state.wait(pending, accepted);
        drop(state);
        let guard = WaitGuard { shared: Arc::clone(&self.shared), ticket };
        Call::Pending(Box::pin(guard.wait(answer, Instant::now() + config.append_timeout)))
    }
}

impl LogState {
    fn check(&mut self, record: &PushRecord, config: &PushLogConfig) -> Result<(), AppendError> {
        let (size, limit) = (kafka_len(record), config.record_bytes_max);
        if size > limit {
            self.stats.rejected_too_large += 1;
            return Err(AppendError::TooLarge { size, limit });
        }
        if self.closed { Err(closed()) } else { Ok(()) }
    }

    fn has_room(&self, size: usize, config: &PushLogConfig, now: Instant) -> bool {
        let fits = self.stats.records < config.records_max
            && self.stats.bytes.saturating_add(size) <= config.bytes_max;
        let few = self.unread.len() < self.pace.unread_max(config);
        let young =
            self.unread_since.front().is_none_or(|since| now.duration_since(*since) <= config.age_max);
        (fits && few && young) || self.stats.records == 0
    }

    fn may_wait(&self, size: usize, config: &PushLogConfig) -> bool {
        let fits = self.waiting_bytes.saturating_add(size) <= config.bytes_max;
        self.waiting.len() < config.pending_appends_max && (fits || self.waiting.is_empty())
    }

    fn accept(&mut self, record: PushRecord, size: usize, now: Instant) {
        let offset = self.first_offset + self.sizes.len() as i64;
        self.unread_since.push_back(now);
        self.unread.push_back(LogEntry { position: LogPosition { partition: PARTITION, offset }, record });
        self.sizes.push_back(size);
        let stats = &mut self.stats;
        stats.appended += 1;
        stats.records += 1;
        stats.bytes += size;
        stats.records_peak = stats.records_peak.max(stats.records);
        stats.bytes_peak = stats.bytes_peak.max(stats.bytes);
    }

    /// Accepts records from the front of `pending` while there is room, and returns their bytes.
    fn accept_from(&mut self, pending: &mut VecDeque<(PushRecord, usize)>, config: &PushLogConfig) -> usize {
        let (mut bytes, now) = (0, Instant::now());
        while let Some((record, size)) = pending.pop_front_if(|(_, size)| self.has_room(*size, config, now)) {
            self.accept(record, size, now);
            bytes += size;
        }
        bytes
    }

    fn wait(
        &mut self,
        pending: VecDeque<(PushRecord, usize)>,
        accepted: usize,
    ) -> (u64, oneshot::Receiver<Appended>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting_bytes += sum_of_sizes(&pending);
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(ticket, WaitingAppend { pending, accepted, answer: sender });
        (ticket, answer)
    }

    /// Removes a waiting append; `None` when it was accepted or refused already.
    fn cancel_wait(&mut self, ticket: u64) -> Option<WaitingAppend> {
        let waiting = self.waiting.remove(&ticket)?;
        self.waiting_bytes -= sum_of_sizes(&waiting.pending);
        Some(waiting)
    }

    /// Accepts waiting records in order while there is room. Returns whether any were accepted.
    fn admit(&mut self, config: &PushLogConfig) -> bool {
        let before = self.stats.appended;
        while let Some((ticket, mut waiting)) = self.waiting.pop_first() {
            let already = self.stats.appended;
            self.waiting_bytes -= self.accept_from(&mut waiting.pending, config);
            waiting.accepted += usize::try_from(self.stats.appended - already).unwrap_or(usize::MAX);
            if !waiting.pending.is_empty() {
                self.waiting.insert(ticket, waiting);
                break;
            }
            // If the call was dropped just now, the record is in the log anyway, as with any other
            // log.
            let _ = waiting.answer.send(Appended { accepted: waiting.accepted, error: None });
        }
        self.stats.appended > before
    }

    fn done(&mut self, offset: i64) {
        let read = self.sizes.len() - self.unread.len();
        let delivered = usize::try_from(offset - self.first_offset + 1).unwrap_or(0).min(read);
        let bytes: usize = self.sizes.drain(..delivered).sum();
        self.first_offset += delivered as i64;
        self.stats.records -= delivered;
        self.stats.bytes -= bytes;
    }
}

impl LogShared {
    fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        for WaitingAppend { accepted, answer, .. } in waiting.into_values() {
            let _ = answer.send(Appended { accepted, error: Some(closed()) });
        }
        self.readable.notify_one();
    }

    fn admit(&self, mut state: MutexGuard<'_, LogState>) {
        let any = state.admit(&self.config);
        drop(state);
        if any {
            self.readable.notify_one();
        }
    }
}

/// The registration of a waiting append, removed on drop.
struct WaitGuard {
    shared: Arc<LogShared>,
    ticket: u64,
}

impl WaitGuard {
    async fn wait(self, mut answer: oneshot::Receiver<Appended>, deadline: Instant) -> Appended {
        // The sender is dropped without an answer only together with this guard.
        let lost = |()| Appended { accepted: 0, error: Some(closed()) };
        if let Ok(answer) = tokio::time::timeout_at(deadline, &mut answer).await {
            return answer.unwrap_or_else(|_| lost(()));
        }
        // Under the lock, since the append may have been accepted after the deadline.
        self.refuse().unwrap_or_else(|| answer.try_recv().unwrap_or_else(|_| lost(())))
    }

    /// Refuses the append at the deadline; `None` when it has completed.
    fn refuse(&self) -> Option<Appended> {
        let mut state = self.shared.state.lock();
        let waiting = state.cancel_wait(self.ticket)?;
        state.stats.rejected_full += waiting.pending.len() as u64;
        // Smaller appends may have waited behind this one.
        self.shared.admit(state);
        Some(Appended { accepted: waiting.accepted, error: Some(AppendError::Full) })
    }
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.cancel_wait(self.ticket).is_some() {
            // Smaller appends may have waited behind this one.
            self.shared.admit(state);
        }
    }
}

impl MemoryPushLogReader {
    /// Returns `None` when there is nothing to read yet.
    fn take(&self) -> Option<Option<Vec<LogEntry>>> {
        let mut state = self.shared.state.lock();
        let count = state.unread.len().min(self.shared.config.read_records_max.max(1));
        if count > 0 {
            state.unread_since.drain(..count);
            state.pace.read(count, Instant::now());
            let read = state.unread.drain(..count).collect();
            // Waiting appends may have been blocked by the age of the records read now.
            self.shared.admit(state);
            return Some(Some(read));
        }
        state.closed.then_some(None)
    }

    async fn next(&mut self) -> Option<Vec<LogEntry>> {
        loop {
            if let Some(answer) = self.take() {
                return answer;
            }
            // A notification between the check and the wait is stored.
            self.shared.readable.notified().await;
            // The notifier is often the first of many tasks ready to append: let them append first,
            // and read all in one go.
            tokio::task::yield_now().await;
        }
    }
}

impl PushLogReader for MemoryPushLogReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Vec<LogEntry>>, ReadError>> {
        Box::pin(async { Ok(self.next().await) })
    }

    fn done(&mut self, position: LogPosition) {
        let mut state = self.shared.state.lock();
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

fn sum_of_sizes(records: &VecDeque<(PushRecord, usize)>) -> usize {
    records.iter().map(|(_, size)| size).sum()
}

/// Returns the approximate memory of a record in bytes.
fn size_of_record(record: &PushRecord) -> usize {
    let target = match &record.target {
        PushTarget::Keys { keys, .. } => keys.iter().map(|key| key.as_str().len() + 32).sum(),
        PushTarget::Room(room) => room.as_str().len(),
        PushTarget::All { .. } => 0,
    };
    RECORD_OVERHEAD + target + record.payload.bytes_len()
}

#[cfg(test)]
mod tests;
