//! Retention: expired messages are removed in the background, by one process of the cluster at a
//! time.
//!
//! A pass visits timelines by id, a thousand at a time, and removes messages in steps, so that a
//! timeline's row is not locked for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{AcceptedAt, Retention, TimelineError};

use super::connection::Connection;
use super::store::StoreState;
use crate::timeline::key::TimelineKey;

/// The advisory lock of the process that runs a pass.
const LOCK: i64 = 0x676f_696d_0002;

/// The maximum number of messages that one statement removes.
const TRIM_MAX: i64 = 1_000;

const PAGE: &str = "SELECT t.id, t.name, t.first, t.latest, t.total_bytes, t.bytes_before, \
        (SELECT m.accepted_at FROM goim_messages m WHERE m.timeline = t.id AND m.seq = t.first) \
    FROM goim_timelines t WHERE t.id > $1 ORDER BY t.id LIMIT 1000";
const BY_BYTES: &str = "SELECT seq FROM goim_messages WHERE timeline = $1 AND seq >= $2 AND total_bytes >= $3 ORDER BY seq LIMIT 1";
const BY_AGE: &str = "SELECT seq FROM goim_messages WHERE timeline = $1 AND seq >= $2 AND accepted_at >= $3 ORDER BY seq LIMIT 1";
const CUT: &str = "WITH removed AS ( \
        DELETE FROM goim_messages WHERE timeline = $1 AND seq < $2 RETURNING seq, total_bytes) \
    UPDATE goim_timelines SET first = $2, bytes_before = greatest(bytes_before, (SELECT coalesce(max(total_bytes), 0) FROM removed)) \
    WHERE id = $1 AND first < $2";
const EXPIRE_KEYS: &str = "DELETE FROM goim_dedup WHERE stored_at < $1";

/// Runs a pass at every interval until the task is aborted.
pub(super) async fn run(state: Arc<StoreState>) {
    let connection = Connection::new(state.target.clone());
    loop {
        tokio::time::sleep(state.config.retention_interval).await;
        if let Err(error) = locked_pass(&state, &connection).await {
            tracing::debug!(%error, "expired messages could not be removed; retrying with the next pass");
        }
    }
}

/// Runs one pass, unless another process is running one.
async fn locked_pass(state: &StoreState, connection: &Connection) -> Result<(), TimelineError> {
    let rows = connection.query("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let passed = pass(state, connection, AcceptedAt::now(), true).await;
    connection.query("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    passed
}

/// Visits every timeline once. With `pauses` the pass works at most a tenth of the time.
pub(super) async fn pass(
    state: &StoreState,
    connection: &Connection,
    now: AcceptedAt,
    pauses: bool,
) -> Result<(), TimelineError> {
    let window = u64::try_from(state.config.duplicate_window.as_micros()).unwrap_or(u64::MAX);
    let oldest = i64::try_from(now.0.saturating_sub(window)).unwrap_or(i64::MAX);
    connection.query(EXPIRE_KEYS, &[&oldest]).await?;
    let mut from = 0_i64;
    loop {
        let begun = Instant::now();
        let page = connection.query(PAGE, &[&from]).await?;
        for columns in &page {
            let row = TimelineRow {
                id: columns.get(0),
                first: columns.get(2),
                latest: columns.get(3),
                total_bytes: columns.get(4),
                bytes_before: columns.get(5),
                oldest: columns.get(6),
            };
            from = row.id;
            let Some(timeline) = TimelineKey::read(columns.get(1)) else { continue };
            row.trim(connection, state.config.rules.of(&timeline), now).await?;
        }
        if page.is_empty() {
            return Ok(());
        }
        if pauses {
            tokio::time::sleep(begun.elapsed().saturating_mul(9)).await;
        }
    }
}

/// What retention needs of a timeline.
struct TimelineRow {
    id: i64,
    first: i64,
    latest: i64,
    total_bytes: i64,
    bytes_before: i64,
    /// When the oldest stored message was accepted, in microseconds since 1970.
    oldest: Option<i64>,
}

impl TimelineRow {
    async fn trim(
        &self,
        connection: &Connection,
        rule: Retention,
        now: AcceptedAt,
    ) -> Result<(), TimelineError> {
        let first = self.cut(connection, rule, now).await?;
        let mut from = self.first;
        while from < first {
            from = first.min(from.saturating_add(TRIM_MAX));
            connection.query(CUT, &[&self.id, &from]).await?;
        }
        Ok(())
    }

    /// Returns the sequence of the oldest message to keep.
    async fn cut(
        &self,
        connection: &Connection,
        rule: Retention,
        now: AcceptedAt,
    ) -> Result<i64, TimelineError> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let by_count =
            self.latest.saturating_add(1).saturating_sub(signed(rule.messages_max)).min(self.latest);
        let mut first = self.first.max(by_count);
        let too_many = self.total_bytes.saturating_sub(signed(rule.bytes_max));
        if too_many > self.bytes_before {
            // The first message at which enough bytes are removed is the last one to remove.
            let found = connection.query(BY_BYTES, &[&self.id, &first, &too_many]).await?;
            let enough = found.first().map_or(self.latest, |row| row.get(0));
            first = first.max(enough.saturating_add(1).min(self.latest));
        }
        if rule.age_max == Duration::MAX {
            return Ok(first);
        }
        let age = u64::try_from(rule.age_max.as_micros()).unwrap_or(u64::MAX);
        let since = signed(now.0.saturating_sub(age));
        if self.oldest.is_some_and(|oldest| oldest < since) {
            let found = connection.query(BY_AGE, &[&self.id, &first, &since]).await?;
            first =
                found.first().map_or(self.latest.saturating_add(1), |row| row.get::<_, i64>(0)).max(first);
        }
        Ok(first)
    }
}
