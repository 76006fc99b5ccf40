//! Timelines in this process: the model for the durable stores, and the store of `goim serve`
//! without a folder. They last as long as the process; their epochs change with it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, Append, AppendResult, Bodies, Call, CursorId, Epoch, Head, IdempotencyKey, Mid, Position,
    Range, ReadLimit, RetentionRules, StoredMessage, TimelineError, TimelineId, TimelineSeq, TimelineStore,
};
use parking_lot::Mutex;

use crate::timeline::{bytes_of, new_epoch};

/// A timeline store in memory.
#[derive(Debug)]
pub struct MemoryTimelines {
    rules: RetentionRules,
    /// How long an idempotency key is remembered, at least.
    window: Duration,
    state: Mutex<StoreState>,
}

#[derive(Debug, Default)]
struct StoreState {
    timelines: HashMap<TimelineId, Timeline>,
    cursors: HashMap<CursorId, TimelineSeq>,
    dedup: HashMap<(TimelineId, Mid, IdempotencyKey), (TimelineSeq, AcceptedAt)>,
}

#[derive(Debug)]
struct Timeline {
    epoch: Epoch,
    first: TimelineSeq,
    messages: VecDeque<StoredEntry>,
    bytes: u64,
}

/// A message with the size that it was stored with: a deleted message counts until it is removed.
#[derive(Debug)]
struct StoredEntry {
    stored: StoredMessage,
    bytes: u64,
}

impl Timeline {
    fn new() -> Self {
        Self { epoch: new_epoch(), first: TimelineSeq(1), messages: VecDeque::new(), bytes: 0 }
    }

    fn head(&self) -> Head {
        let count = u64::try_from(self.messages.len()).unwrap_or(u64::MAX);
        let latest = TimelineSeq(self.first.0.saturating_add(count).saturating_sub(1));
        Head { epoch: self.epoch, latest, first: self.first }
    }

    /// Returns the index of a stored sequence.
    fn index_of(&self, seq: TimelineSeq) -> Option<usize> {
        let index = usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?;
        (index < self.messages.len()).then_some(index)
    }

    fn remove_first(&mut self) {
        if let Some(removed) = self.messages.pop_front() {
            self.bytes = self.bytes.saturating_sub(removed.bytes);
            self.first = removed.stored.seq.next();
        }
    }
}

impl MemoryTimelines {
    /// Creates an empty store that remembers an [`IdempotencyKey`] for `window` at least.
    #[must_use]
    pub fn new(rules: RetentionRules, window: Duration) -> Self {
        Self { rules, window, state: Mutex::default() }
    }

    /// Removes messages that are expired as of `now`.
    pub fn retain(&self, now: AcceptedAt) {
        let mut state = self.state.lock();
        for (id, timeline) in &mut state.timelines {
            let rule = self.rules.of(id);
            while let Some(oldest) = timeline.messages.front() {
                let is_newest = timeline.messages.len() == 1;
                let is_old = oldest.stored.message.accepted_at.until(now) > rule.age_max;
                let count = u64::try_from(timeline.messages.len()).unwrap_or(u64::MAX);
                let is_beyond = count > rule.messages_max || timeline.bytes > rule.bytes_max;
                if !is_old && (is_newest || !is_beyond) {
                    break;
                }
                timeline.remove_first();
            }
        }
        state.dedup.retain(|_, (_, at)| at.until(now) <= self.window);
    }
}

impl StoreState {
    fn append(&mut self, append: Append) -> AppendResult {
        let Append { timeline: id, message, idempotency_key: once } = append;
        let dedup_key = once.map(|once| (id.clone(), message.sender, once));
        let timeline = self.timelines.entry(id).or_insert_with(Timeline::new);
        let epoch = timeline.epoch;
        if let Some((seq, _)) = dedup_key.as_ref().and_then(|key| self.dedup.get(key)) {
            return AppendResult { position: Position { epoch, seq: *seq }, is_duplicate: true };
        }
        let seq = timeline.head().latest.next();
        if let Some(dedup_key) = dedup_key {
            self.dedup.insert(dedup_key, (seq, message.accepted_at));
        }
        let bytes = bytes_of(&message);
        timeline.bytes += bytes;
        let stored = StoredMessage { seq, message, is_deleted: false };
        timeline.messages.push_back(StoredEntry { stored, bytes });
        AppendResult { position: Position { epoch, seq }, is_duplicate: false }
    }

    fn latest(&self, id: &TimelineId) -> TimelineSeq {
        self.timelines.get(id).map(|timeline| timeline.head().latest).unwrap_or_default()
    }
}

/// Collects messages up to the limit; at least one.
fn collect_within<'m>(
    entries: impl Iterator<Item = &'m StoredEntry>,
    limit: ReadLimit,
) -> Vec<StoredMessage> {
    let mut bytes = 0;
    let mut taken: Vec<StoredMessage> = Vec::new();
    for StoredEntry { stored, .. } in entries.take(limit.messages.max(1)) {
        bytes += bytes_of(&stored.message);
        if !taken.is_empty() && bytes > limit.bytes as u64 {
            break;
        }
        taken.push(stored.clone());
    }
    taken
}

impl TimelineStore for MemoryTimelines {
    fn append(&self, appends: Vec<Append>) -> Call<Result<Vec<AppendResult>, TimelineError>> {
        let mut state = self.state.lock();
        Call::Ready(Ok(appends.into_iter().map(|append| state.append(append)).collect()))
    }

    fn read(
        &self,
        timeline: TimelineId,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let state = self.state.lock();
        let Some(timeline) = state.timelines.get(&timeline) else { return Call::Ready(Ok(Range::default())) };
        let from = timeline.index_of(after.next().max(timeline.first)).unwrap_or(timeline.messages.len());
        let messages = collect_within(timeline.messages.range(from..), limit);
        Call::Ready(Ok(Range { head: timeline.head(), messages }))
    }

    fn read_back(
        &self,
        timeline: TimelineId,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Call<Result<Range, TimelineError>> {
        let state = self.state.lock();
        let Some(timeline) = state.timelines.get(&timeline) else { return Call::Ready(Ok(Range::default())) };
        let end = match before {
            Some(before) if before <= timeline.first => 0,
            Some(before) => timeline.index_of(before).unwrap_or(timeline.messages.len()),
            None => timeline.messages.len(),
        };
        let mut messages = collect_within(timeline.messages.range(..end).rev(), limit);
        messages.reverse();
        Call::Ready(Ok(Range { head: timeline.head(), messages }))
    }

    fn heads(&self, timelines: Vec<TimelineId>) -> Call<Result<Vec<Head>, TimelineError>> {
        let state = self.state.lock();
        let head = |id: &TimelineId| state.timelines.get(id).map(Timeline::head).unwrap_or_default();
        Call::Ready(Ok(timelines.iter().map(head).collect()))
    }

    fn delete(&self, timeline: TimelineId, seq: TimelineSeq) -> Call<Result<bool, TimelineError>> {
        let mut state = self.state.lock();
        let Some(timeline) = state.timelines.get_mut(&timeline) else { return Call::Ready(Ok(false)) };
        let Some(index) = timeline.index_of(seq) else { return Call::Ready(Ok(false)) };
        let found = &mut timeline.messages[index].stored;
        if found.is_deleted {
            return Call::Ready(Ok(false));
        }
        found.message.bodies = Bodies::plain(Bytes::new());
        found.is_deleted = true;
        Call::Ready(Ok(true))
    }

    fn advance(&self, cursor: CursorId, to: TimelineSeq) -> Call<Result<TimelineSeq, TimelineError>> {
        let mut state = self.state.lock();
        let to = to.min(state.latest(&cursor.timeline));
        let at = state.cursors.get(&cursor).copied().unwrap_or_default();
        if to > at {
            state.cursors.insert(cursor, to);
        }
        Call::Ready(Ok(to.max(at)))
    }

    fn cursors(&self, cursors: Vec<CursorId>) -> Call<Result<Vec<TimelineSeq>, TimelineError>> {
        let state = self.state.lock();
        let at = |cursor: &CursorId| state.cursors.get(cursor).copied().unwrap_or_default();
        Call::Ready(Ok(cursors.iter().map(at).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn conforms() {
        let forever =
            RetentionRules { retention_overrides: Vec::new(), otherwise: goim_ports::Retention::FOREVER };
        let window = Duration::from_secs(3600);
        conformance::timelines(async || MemoryTimelines::new(forever.clone(), window)).await;
    }

    #[tokio::test]
    async fn retains_what_it_should() {
        conformance::timelines_retain(
            async |rules| MemoryTimelines::new(rules, Duration::from_secs(3600)),
            async |store, now| store.retain(now),
        )
        .await;
    }
}
