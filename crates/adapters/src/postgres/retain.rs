//! What is not to be kept any longer, removed in the background by one process of all. Timelines are looked at by id, a thousand at a time; of
//! one that has too much the old end is cut, a part at a time, so that nobody waits long for its row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::{AcceptedAt, Retention, TimelineError};

use super::link::Link;
use super::store::Shared;
use crate::timeline::key::TimelineKey;

/// Marks the lock of whoever does it.
const LOCK: i64 = 0x676f_696d_0002;

/// Messages that one statement removes at most.
const TRIM_MAX: i64 = 1_000;

const PAGE: &str = "SELECT t.id, t.name, t.first, t.latest, t.total_bytes, t.bytes_before, \
        (SELECT m.accepted_at FROM goim_messages m WHERE m.timeline = t.id AND m.seq = t.first) \
    FROM goim_timelines t WHERE t.id > $1 ORDER BY t.id LIMIT 1000";
const BY_BYTES: &str = "SELECT seq FROM goim_messages WHERE timeline = $1 AND seq >= $2 AND total_bytes >= $3 ORDER BY seq LIMIT 1";
const BY_AGE: &str = "SELECT seq FROM goim_messages WHERE timeline = $1 AND seq >= $2 AND accepted_at >= $3 ORDER BY seq LIMIT 1";
const CUT: &str = "WITH gone AS ( \
        DELETE FROM goim_messages WHERE timeline = $1 AND seq < $2 RETURNING seq, total_bytes) \
    UPDATE goim_timelines SET first = $2, bytes_before = greatest(bytes_before, (SELECT coalesce(max(total_bytes), 0) FROM gone)) \
    WHERE id = $1 AND first < $2";
const FORGET: &str = "DELETE FROM goim_once WHERE kept_at < $1";

/// Runs until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let link = Link::new(shared.place.clone());
    loop {
        tokio::time::sleep(shared.config.retention_interval).await;
        if let Err(error) = once(&shared, &link).await {
            tracing::debug!(%error, "old messages of timelines stay for now");
        }
    }
}

/// One pass, unless another process is at it.
async fn once(shared: &Shared, link: &Link) -> Result<(), TimelineError> {
    let rows = link.query("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let passed = pass(shared, link, AcceptedAt::now(), true).await;
    link.query("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    passed
}

/// Looks at every timeline once. With pauses it takes a tenth of the server's time for this process at most.
pub(super) async fn pass(
    shared: &Shared,
    link: &Link,
    now: AcceptedAt,
    pauses: bool,
) -> Result<(), TimelineError> {
    let window = u64::try_from(shared.config.duplicate_window.as_micros()).unwrap_or(u64::MAX);
    let forgotten = i64::try_from(now.0.saturating_sub(window)).unwrap_or(i64::MAX);
    link.query(FORGET, &[&forgotten]).await?;
    let mut from = 0_i64;
    loop {
        let begun = Instant::now();
        let page = link.query(PAGE, &[&from]).await?;
        for row in &page {
            let line = Line {
                id: row.get(0),
                first: row.get(2),
                latest: row.get(3),
                total_bytes: row.get(4),
                bytes_before: row.get(5),
                oldest: row.get(6),
            };
            from = line.id;
            let Some(timeline) = TimelineKey::read(row.get(1)) else { continue };
            line.trim(link, shared.config.rules.of(&timeline), now).await?;
        }
        if page.is_empty() {
            return Ok(());
        }
        if pauses {
            tokio::time::sleep(begun.elapsed().saturating_mul(9)).await;
        }
    }
}

struct Line {
    id: i64,
    first: i64,
    latest: i64,
    total_bytes: i64,
    bytes_before: i64,
    /// When the oldest was accepted.
    oldest: Option<i64>,
}

impl Line {
    async fn trim(&self, link: &Link, rule: Retention, now: AcceptedAt) -> Result<(), TimelineError> {
        let first = self.cut(link, rule, now).await?;
        let mut from = self.first;
        while from < first {
            from = first.min(from.saturating_add(TRIM_MAX));
            link.query(CUT, &[&self.id, &from]).await?;
        }
        Ok(())
    }

    /// The oldest message that stays.
    async fn cut(&self, link: &Link, rule: Retention, now: AcceptedAt) -> Result<i64, TimelineError> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let by_count =
            self.latest.saturating_add(1).saturating_sub(signed(rule.messages_max)).min(self.latest);
        let mut first = self.first.max(by_count);
        let too_many = self.total_bytes.saturating_sub(signed(rule.bytes_max));
        if too_many > self.bytes_before {
            // What stays begins behind the first message up to which so much has gone.
            let found = link.query(BY_BYTES, &[&self.id, &first, &too_many]).await?;
            let enough = found.first().map_or(self.latest, |row| row.get(0));
            first = first.max(enough.saturating_add(1).min(self.latest));
        }
        if rule.age_max == Duration::MAX {
            return Ok(first);
        }
        let age = u64::try_from(rule.age_max.as_micros()).unwrap_or(u64::MAX);
        let since = signed(now.0.saturating_sub(age));
        if self.oldest.is_some_and(|oldest| oldest < since) {
            let found = link.query(BY_AGE, &[&self.id, &first, &since]).await?;
            first =
                found.first().map_or(self.latest.saturating_add(1), |row| row.get::<_, i64>(0)).max(first);
        }
        Ok(first)
    }
}
