//! Retention: a background pass over all timelines that asks the writer to remove expired messages,
//! a few at a time.
//!
//! Age and total size only grow along a timeline, so the first message to keep is found by binary
//! search.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use fjall::Snapshot;
use goim_ports::{AcceptedAt, Retention, TimelineError, TimelineSeq};
use tokio::sync::oneshot;

use super::store::StoreState;
use super::tables::{TableError, Tables, TimelineTail};
use super::writer::{Queued, Reply, WriteRequest};
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;

/// The number of timelines between two pauses.
const CHUNK: usize = 256;

/// The maximum number of messages that one request removes; appends wait for it.
const TRIM_MAX: u64 = 1_000;

/// Runs until `stop` is dropped.
pub(super) fn run(state: &StoreState, queue: &Sender<Queued>, stop: &Receiver<()>) {
    loop {
        match stop.recv_timeout(state.config.retention_interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let pause =
            |worked: Duration| stop.recv_timeout(worked.saturating_mul(9)) == Err(RecvTimeoutError::Timeout);
        if let Err(error) = pass(state, queue, AcceptedAt::now(), pause) {
            tracing::warn!(%error, "expired messages could not be removed; retrying with the next pass");
        }
    }
}

/// Visits every timeline once. `pause` gets the duration of each chunk of work; returning false
/// ends the pass.
pub(super) fn pass(
    state: &StoreState,
    queue: &Sender<Queued>,
    now: AcceptedAt,
    pause: impl Fn(Duration) -> bool,
) -> Result<(), TimelineError> {
    ask(queue, |reply| WriteRequest::RotateDedup { now, reply })?;
    let mut from: Option<Vec<u8>> = None;
    loop {
        let begun = Instant::now();
        let tables = state.tables()?;
        let chunk = keys_from(&tables, from.as_deref()).map_err(unavailable)?;
        for key in &chunk {
            trim(state, &tables, queue, key, now)?;
        }
        let Some(last) = chunk.last() else { return Ok(()) };
        from = Some(last.as_bytes().to_vec());
        drop(tables);
        if !pause(begun.elapsed()) {
            return Ok(());
        }
    }
}

/// Returns the keys of the next timelines after `after`.
fn keys_from(tables: &Tables, after: Option<&[u8]>) -> Result<Vec<TimelineKey>, TableError> {
    use std::ops::Bound::{Excluded, Unbounded};
    let range: (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>) = match after {
        Some(after) => (Excluded(after), Unbounded),
        None => (Unbounded, Unbounded),
    };
    let mut keys = Vec::with_capacity(CHUNK);
    for guard in tables.timelines.range::<&[u8], _>(range).take(CHUNK) {
        let key = guard.key()?;
        let timeline = TimelineKey::read(&key).ok_or(TableError::Damaged("timelines"))?;
        keys.extend(TimelineKey::new(&timeline));
    }
    Ok(keys)
}

fn trim(
    state: &StoreState,
    tables: &Arc<Tables>,
    queue: &Sender<Queued>,
    key: &TimelineKey,
    now: AcceptedAt,
) -> Result<(), TimelineError> {
    let Some(timeline) = TimelineKey::read(key.as_bytes()) else { return Ok(()) };
    let rule = state.config.rules.of(&timeline);
    let at = tables.database.snapshot();
    let Some(tail) = tables.tail_at(&at, key).map_err(unavailable)? else { return Ok(()) };
    let first = Cut { tables, at: &at, key, tail }.first(rule, now).map_err(unavailable)?;
    let mut from = tail.record.first;
    while from < first {
        let to = TimelineSeq(first.0.min(from.0.saturating_add(TRIM_MAX)));
        let before = tables.record_at(&at, key, to.previous()).map_err(unavailable)?;
        let Some(Record { total_bytes, .. }) = before else { return Ok(()) };
        ask(queue, |reply| WriteRequest::Trim {
            key: key.clone(),
            first: to,
            bytes_before: total_bytes,
            reply,
        })?;
        from = to;
    }
    Ok(())
}

/// Finds the first message to keep.
struct Cut<'a> {
    tables: &'a Tables,
    at: &'a Snapshot,
    key: &'a TimelineKey,
    tail: TimelineTail,
}

impl Cut<'_> {
    /// Returns the sequence of the oldest message to keep.
    fn first(&self, rule: Retention, now: AcceptedAt) -> Result<TimelineSeq, TableError> {
        let TimelineTail { record, latest, total_bytes } = self.tail;
        let by_count = TimelineSeq(latest.next().0.saturating_sub(rule.messages_max)).min(latest);
        let mut first = record.first.max(by_count);
        let too_many = total_bytes.saturating_sub(rule.bytes_max);
        if too_many > record.bytes_before {
            // The first message at which enough bytes are removed is the last one to remove.
            let enough = self.search(first, latest, |found| found.total_bytes >= too_many)?;
            first = first.max(enough.next().min(latest));
        }
        if rule.age_max != Duration::MAX {
            let first_young =
                self.search(first, latest.next(), |found| found.accepted_at().until(now) <= rule.age_max)?;
            first = first.max(first_young);
        }
        Ok(first)
    }

    /// Returns the first sequence in `from..to` for which `is_true` holds, or `to`. `is_true` must
    /// be monotonic: true for all messages after the first one.
    fn search(
        &self,
        from: TimelineSeq,
        to: TimelineSeq,
        is_true: impl Fn(&Record) -> bool,
    ) -> Result<TimelineSeq, TableError> {
        let (mut low, mut high) = (from.0, to.0);
        // In most passes nothing is removed: probe the first message first.
        let mut middle = low;
        while low < high {
            match self.tables.record_at(self.at, self.key, TimelineSeq(middle))? {
                Some(found) if is_true(&found) => high = middle,
                _ => low = middle + 1,
            }
            middle = low + (high - low) / 2;
        }
        Ok(TimelineSeq(low))
    }
}

/// Sends a request to the writer and waits for the result.
fn ask<T>(
    queue: &Sender<Queued>,
    request: impl FnOnce(Reply<T>) -> WriteRequest,
) -> Result<T, TimelineError> {
    let (reply, result) = oneshot::channel();
    let closing = || TimelineError::Unavailable("the store is closing".to_owned());
    queue.send(Queued { request: request(reply), admitted: None }).map_err(|_| closing())?;
    result.blocking_recv().map_err(|_| closing())?
}

fn unavailable(error: TableError) -> TimelineError {
    TimelineError::Unavailable(error.text())
}
