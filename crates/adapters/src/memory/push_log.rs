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
    AppendError, Appended, BoxFuture, Call, LogEntry, LogPosition, PushLog, PushLogReader, PushRecord,
    PushTarget, ReadError,
};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::config::PushLogConfig;
use super::lock;
use crate::push_size::kafka_len;

const PARTITION: i32 = 0;

/// What a record takes besides its own bytes: its place in the queue, and the allocations' own.
const RECORD_OVERHEAD: usize = 160;

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
    /// Since when each of them is there.
    unread_since: VecDeque<Instant>,
    pace: Pace,
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

/// One append that waits for room.
/// How fast records are read.
#[derive(Debug, Default)]
struct Pace {
    /// Since when `read` counts.
    since: Option<Instant>,
    read: usize,
    per_second: f64,
}

/// Time over which the pace is taken.
const PACE_INTERVAL: Duration = Duration::from_millis(250);
/// Records that may be unread at any pace.
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

    /// Records that may be unread so that none becomes too old.
    fn unread_max(&self, config: &PushLogConfig) -> usize {
        if config.age_max == Duration::MAX {
            return usize::MAX;
        }
        UNREAD_MIN.max((self.per_second * config.age_max.as_secs_f64()) as usize)
    }
}

#[derive(Debug)]
struct Waiting {
    /// What is not in the log yet, with sizes; never empty.
    left: VecDeque<(PushRecord, usize)>,
    /// How many of its records are.
    taken: usize,
    answer: oneshot::Sender<Appended>,
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
        let mut state = lock(&self.shared.state);
        if let Err(error) = state.check(&record, config) {
            return Call::Ready(Err(error));
        }
        let (size, now) = (size_of_record(&record), Instant::now());
        if state.waiting.is_empty() && state.has_room(size, config, now) {
            state.accept(record, size, now);
            drop(state);
            self.shared.news.notify_one();
            return Call::Ready(Ok(()));
        }
        let waiting = VecDeque::from([(record, size)]);
        self.wait(state, waiting, 0).map(|Appended { error, .. }| error.map_or(Ok(()), Err))
    }

    /// Under one lock and with one wake-up of the reader. When the log is full what is left waits in one place, and is
    /// let in piece by piece; nothing gets in between.
    ///
    /// # Cancel safety
    /// A dropped call that still waits for room leaves what was let in so far.
    fn append_all(&self, records: Vec<PushRecord>) -> Call<Appended> {
        let config = &self.shared.config;
        let count = records.len();
        let mut state = lock(&self.shared.state);
        let wrong = records.iter().enumerate().find_map(|(index, record)| {
            state.check(record, config).err().map(|error| Appended { accepted: index, error: Some(error) })
        });
        let mut left: VecDeque<_> = records
            .into_iter()
            .take(wrong.as_ref().map_or(count, |wrong| wrong.accepted))
            .map(|record| {
                let size = size_of_record(&record);
                (record, size)
            })
            .collect();
        let right = left.len();
        if state.waiting.is_empty() {
            state.accept_from(&mut left, config);
        }
        let taken = right - left.len();
        let all_of_them = wrong.unwrap_or(Appended { accepted: count, error: None });
        if left.is_empty() {
            drop(state);
            if taken > 0 {
                self.shared.news.notify_one();
            }
            return Call::Ready(all_of_them);
        }
        if taken > 0 {
            self.shared.news.notify_one();
        }
        let call = self.wait(state, left, taken);
        call.map(move |appended| if appended.error.is_none() { all_of_them } else { appended })
    }
}

impl MemoryPushLog {
    /// Puts `left` behind those that wait for room, or refuses it. `taken` records of the same call are in the log.
    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        left: VecDeque<(PushRecord, usize)>,
        taken: usize,
    ) -> Call<Appended> {
        let config = &self.shared.config;
        let size = left.iter().map(|(_, size)| size).sum();
        if config.append_timeout.is_zero() || !state.may_wait(size, config) {
            state.stats.rejected_full += left.len() as u64;
            return Call::Ready(Appended { accepted: taken, error: Some(AppendError::Full) });
        }
        let (ticket, answer) = state.wait(left, taken);
        drop(state);
        let place = Place { shared: Arc::clone(&self.shared), ticket };
        Call::Pending(Box::pin(place.wait(answer, Instant::now() + config.append_timeout)))
    }
}

impl State {
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
        stats.records_high = stats.records_high.max(stats.records);
        stats.bytes_high = stats.bytes_high.max(stats.bytes);
    }

    /// Takes records off the front of `left` as long as there is room, and says how many bytes those had.
    fn accept_from(&mut self, left: &mut VecDeque<(PushRecord, usize)>, config: &PushLogConfig) -> usize {
        let (mut bytes, now) = (0, Instant::now());
        while let Some((record, size)) = left.pop_front_if(|(_, size)| self.has_room(*size, config, now)) {
            self.accept(record, size, now);
            bytes += size;
        }
        bytes
    }

    fn wait(
        &mut self,
        left: VecDeque<(PushRecord, usize)>,
        taken: usize,
    ) -> (u64, oneshot::Receiver<Appended>) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting_bytes += sum_of_sizes(&left);
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(ticket, Waiting { left, taken, answer: sender });
        (ticket, answer)
    }

    /// Takes an append off the waiting ones; `None` when it was accepted or refused already.
    fn give_up(&mut self, ticket: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&ticket)?;
        self.waiting_bytes -= sum_of_sizes(&waiting.left);
        Some(waiting)
    }

    /// Accepts what waits, in its order, as long as there is room; true when there was any.
    fn admit(&mut self, config: &PushLogConfig) -> bool {
        let before = self.stats.appended;
        while let Some((ticket, mut waiting)) = self.waiting.pop_first() {
            let already = self.stats.appended;
            self.waiting_bytes -= self.accept_from(&mut waiting.left, config);
            waiting.taken += usize::try_from(self.stats.appended - already).unwrap_or(usize::MAX);
            if !waiting.left.is_empty() {
                self.waiting.insert(ticket, waiting);
                break;
            }
            // An append that was dropped in this moment is in the log all the same, as with any other log.
            let _ = waiting.answer.send(Appended { accepted: waiting.taken, error: None });
        }
        self.stats.appended > before
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
        for Waiting { taken, answer, .. } in waiting.into_values() {
            let _ = answer.send(Appended { accepted: taken, error: Some(closed()) });
        }
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
    async fn wait(self, mut answer: oneshot::Receiver<Appended>, deadline: Instant) -> Appended {
        // The sender is dropped without an answer only together with the place.
        let lost = |()| Appended { accepted: 0, error: Some(closed()) };
        if let Ok(answer) = tokio::time::timeout_at(deadline, &mut answer).await {
            return answer.unwrap_or_else(|_| lost(()));
        }
        // Under the lock, since the answer may have come after the deadline struck.
        self.refuse().unwrap_or_else(|| answer.try_recv().unwrap_or_else(|_| lost(())))
    }

    /// Gives the place up at the deadline; `None` when the answer has been given.
    fn refuse(&self) -> Option<Appended> {
        let mut state = lock(&self.shared.state);
        let waiting = state.give_up(self.ticket)?;
        state.stats.rejected_full += waiting.left.len() as u64;
        // A large record in front may have kept out smaller ones behind it.
        self.shared.admit(state);
        Some(Appended { accepted: waiting.taken, error: Some(AppendError::Full) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        if state.give_up(self.ticket).is_some() {
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
            state.unread_since.drain(..count);
            state.pace.read(count, Instant::now());
            let read = state.unread.drain(..count).collect();
            // What keeps others out may have been the age of what was read now.
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
            // What is told between the look and the wait is kept for the wait.
            self.shared.news.notified().await;
            // Who has told is often the first of many that are ready to append: what they append is read in one go.
            tokio::task::yield_now().await;
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

fn sum_of_sizes(records: &VecDeque<(PushRecord, usize)>) -> usize {
    records.iter().map(|(_, size)| size).sum()
}

/// Bytes that a record takes in memory, near enough for a bound.
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
