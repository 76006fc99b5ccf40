//! What is not to be kept any longer, removed in the background: a walk over all timelines that asks the writer to cut off their old
//! ends, a little at a time.
//!
//! Nothing is read but what a decision needs. Ages and sizes grow along a timeline (a record says how many bytes there were up to it), so
//! that the place to cut is found by halving.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use fjall::Snapshot;
use goim_ports::{AcceptedAt, Retention, TimelineError, TimelineSeq};
use tokio::sync::oneshot;

use super::store::Shared;
use super::tables::{Known, TableError, Tables};
use super::writer::Job;
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;

/// Timelines that are looked at before others get the processor.
const CHUNK: usize = 256;

/// Messages that one job of the writer removes at most: appends wait for them.
const TRIM_MAX: u64 = 1_000;

/// Runs until `stop` is dropped.
pub(super) fn run(shared: &Shared, jobs: &Sender<Job>, stop: &Receiver<()>) {
    loop {
        match stop.recv_timeout(shared.config.retention_interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let pause =
            |worked: Duration| stop.recv_timeout(worked.saturating_mul(9)) == Err(RecvTimeoutError::Timeout);
        if let Err(error) = pass(shared, jobs, AcceptedAt::now(), pause) {
            tracing::warn!(%error, "old messages of timelines stay for now");
        }
    }
}

/// Looks at every timeline once. `pause` is told how long a part of the work has taken; false ends the pass.
pub(super) fn pass(
    shared: &Shared,
    jobs: &Sender<Job>,
    now: AcceptedAt,
    pause: impl Fn(Duration) -> bool,
) -> Result<(), TimelineError> {
    ask(jobs, |answer| Job::Forget { now, answer })?;
    let mut from: Option<Vec<u8>> = None;
    loop {
        let begun = Instant::now();
        let tables = shared.tables()?;
        let chunk = keys_from(&tables, from.as_deref()).map_err(unavailable)?;
        for key in &chunk {
            trim(shared, &tables, jobs, key, now)?;
        }
        let Some(last) = chunk.last() else { return Ok(()) };
        from = Some(last.as_bytes().to_vec());
        drop(tables);
        if !pause(begun.elapsed()) {
            return Ok(());
        }
    }
}

/// The next timelines behind one.
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
    shared: &Shared,
    tables: &Arc<Tables>,
    jobs: &Sender<Job>,
    key: &TimelineKey,
    now: AcceptedAt,
) -> Result<(), TimelineError> {
    let Some(timeline) = TimelineKey::read(key.as_bytes()) else { return Ok(()) };
    let rule = shared.config.rules.of(&timeline);
    let at = tables.database.snapshot();
    let Some(known) = tables.known_at(&at, key).map_err(unavailable)? else { return Ok(()) };
    let first = Cut { tables, at: &at, key, known }.first(rule, now).map_err(unavailable)?;
    let mut from = known.record.first;
    while from < first {
        let to = TimelineSeq(first.0.min(from.0.saturating_add(TRIM_MAX)));
        let before = tables.record_at(&at, key, to.previous()).map_err(unavailable)?;
        let Some(Record { total_bytes, .. }) = before else { return Ok(()) };
        ask(jobs, |answer| Job::Trim { key: key.clone(), first: to, bytes_before: total_bytes, answer })?;
        from = to;
    }
    Ok(())
}

/// Where to cut.
struct Cut<'a> {
    tables: &'a Tables,
    at: &'a Snapshot,
    key: &'a TimelineKey,
    known: Known,
}

impl Cut<'_> {
    /// The oldest message that stays.
    fn first(&self, rule: Retention, now: AcceptedAt) -> Result<TimelineSeq, TableError> {
        let Known { record, latest, total_bytes } = self.known;
        let by_count = TimelineSeq(latest.next().0.saturating_sub(rule.messages_max)).min(latest);
        let mut first = record.first.max(by_count);
        let too_many = total_bytes.saturating_sub(rule.bytes_max);
        if too_many > record.bytes_before {
            // What stays begins behind the first message up to which so much has gone.
            let enough = self.search(first, latest, |found| found.total_bytes >= too_many)?;
            first = first.max(enough.next().min(latest));
        }
        if rule.age_max != Duration::MAX {
            let young =
                self.search(first, latest.next(), |found| found.accepted_at().until(now) <= rule.age_max)?;
            first = first.max(young);
        }
        Ok(first)
    }

    /// The first in `from..to` of which this is true, `to` when of none; whatever is true of one is true of those behind it.
    fn search(
        &self,
        from: TimelineSeq,
        to: TimelineSeq,
        is_true: impl Fn(&Record) -> bool,
    ) -> Result<TimelineSeq, TableError> {
        let (mut low, mut high) = (from.0, to.0);
        // Mostly it is the first.
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

fn ask<T>(
    jobs: &Sender<Job>,
    job: impl FnOnce(oneshot::Sender<Result<T, TimelineError>>) -> Job,
) -> Result<T, TimelineError> {
    let (answer, answered) = oneshot::channel();
    let gone = || TimelineError::Unavailable("the store is being closed".to_owned());
    jobs.send(job(answer)).map_err(|_| gone())?;
    answered.blocking_recv().map_err(|_| gone())?
}

fn unavailable(error: TableError) -> TimelineError {
    TimelineError::Unavailable(error.text())
}
