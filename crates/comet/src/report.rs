//! Periodic reports of a comet: its node announcement with its load, and its rooms.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{CometNode, Generation, NodeDirectory, OnlineReport, RoomCounts};

use crate::inbox::{Notice, ShardHandle};
use crate::shared::Shared;

/// Announces the node until dropped. Separate from the rooms: a lease must not expire because logic
/// is slow.
pub(crate) async fn announce(shared: Arc<Shared>, nodes: Arc<dyn NodeDirectory>) {
    let mut task = RepeatedTask::new("announce itself");
    loop {
        task.log(nodes.announce(describe(&shared)).await);
        tokio::time::sleep(shared.config.report_interval.max(INTERVAL_MIN)).await;
    }
}

/// Has every shard register its sessions with logic again.
pub(crate) fn register_again(shards: &[ShardHandle]) {
    shards.iter().for_each(|shard| shard.notice(Notice::RegisterAll));
}

/// What was learned of the session directory's state.
#[derive(Default)]
struct DirectoryState {
    generation: Option<Generation>,
    /// The newest sweep known. Logic servers of different versions may answer in turn, and not all
    /// report it.
    swept_at: Option<u64>,
}

/// What an answer means for the sessions of this comet.
#[derive(Debug, PartialEq, Eq)]
enum RecordsLost {
    None,
    /// Records may be missing: Redis has lost its data, or was unavailable for too long. Jobs did
    /// not give up this comet, so no message was missed.
    Some,
    /// This comet was taken for dead and its sessions removed: pushes to them failed.
    Swept,
}

impl DirectoryState {
    fn update(&mut self, generation: &Generation) -> RecordsLost {
        let before = self.generation.replace(generation.clone());
        let known = self.swept_at;
        self.swept_at = known.max(generation.swept_at());
        match before {
            // Sweeps before this comet started do not concern it.
            None => RecordsLost::None,
            Some(_) if self.swept_at > known => RecordsLost::Swept,
            Some(before) if before.mark() != generation.mark() => RecordsLost::Some,
            Some(_) => RecordsLost::None,
        }
    }
}

/// Reports the rooms until dropped.
pub(crate) async fn run(shared: Arc<Shared>, shards: Arc<[ShardHandle]>) {
    let register_sessions = || register_again(&shards);
    let mut state = DirectoryState::default();
    let mut task = RepeatedTask::new("report its rooms");
    let mut taken = Instant::now();
    loop {
        let began = Instant::now();
        let rooms: RoomCounts = Arc::new(shared.rooms.here());
        let mut worked = began.elapsed();
        let report = OnlineReport { server: shared.server.clone(), rooms: rooms.clone() };
        let totals = shared.logic.renew_online(report).await;
        let began = Instant::now();
        if let Ok(totals) = &totals {
            shared.rooms.update_totals(&totals.rooms, &rooms);
            let lost =
                totals.generation.as_ref().map_or(RecordsLost::None, |generation| state.update(generation));
            if lost != RecordsLost::None {
                tracing::warn!("the directory may have lost sessions of this comet; registering them again");
                register_sessions();
            }
            if lost == RecordsLost::Swept {
                tracing::warn!(
                    "this comet was taken for dead and its sessions were removed; they have missed messages"
                );
                shared.recoveries.swept.add(1);
                let ago = since_sweep(state.swept_at.unwrap_or_default(), SystemTime::now());
                shards.iter().for_each(|shard| shard.notice(Notice::Recover { ago, register: true }));
            }
            if taken.elapsed() >= RECORDS_LIVE {
                tracing::warn!("no report was accepted for a long time; registering all sessions again");
                register_sessions();
            }
            taken = Instant::now();
        }
        worked += began.elapsed();
        task.log(totals);
        // A map of very many rooms takes its time; reporting must not become the main work of the
        // comet.
        let pause = shared.config.report_interval.max(worked * 100);
        tokio::time::sleep(pause.max(INTERVAL_MIN)).await;
    }
}

/// How far the clock of the logic server that swept may be ahead of this one. Sessions opened
/// within this time after the sweep are treated as swept: they are closed without need, and miss
/// nothing.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

/// Returns the time since a sweep (nanoseconds since 1970), or less: sessions opened since were not
/// swept.
fn since_sweep(swept_at: u64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(swept_at)).saturating_sub(CLOCK_SKEW)
}

/// After this long without an accepted report, records of sessions may have expired without being
/// renewed.
const RECORDS_LIVE: Duration = Duration::from_secs(10 * 60);

/// The shortest pause, whatever is configured.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Logs once that something fails and once that it works again. It is retried in the next round.
struct RepeatedTask {
    what: &'static str,
    succeeds: bool,
}

impl RepeatedTask {
    fn new(what: &'static str) -> Self {
        Self { what, succeeds: true }
    }

    fn log<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) {
        match &result {
            Err(error) if self.succeeds => {
                tracing::warn!(%error, "the comet could not {}; retrying", self.what);
            }
            Ok(_) if !self.succeeds => tracing::info!("the comet can {} again", self.what),
            _ => {}
        }
        self.succeeds = result.is_ok();
    }
}

/// Describes this comet for the node list.
pub(crate) fn describe(shared: &Shared) -> CometNode {
    CometNode {
        connections: shared.addresses.connections() as u64,
        addresses: shared.addresses.addresses() as u64,
        ..shared.config.node.described()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_came_after_a_sweep_are_not_taken_for_swept() {
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        for (swept_ms, now_ms, ago_ms) in [
            (10_000, 14_500, 3_500),
            (10_000, 10_900, 0),
            // The other clock is ahead.
            (10_000, 8_000, 0),
            (0, 5_000, 4_000),
        ] {
            let ago = since_sweep(swept_ms * 1_000_000, at(now_ms));
            assert_eq!(ago, Duration::from_millis(ago_ms), "{swept_ms} {now_ms}");
        }
    }

    #[test]
    fn a_sweep_is_told_from_a_memory_that_was_lost() {
        let cases: &[(&str, RecordsLost)] = &[
            ("1/5", RecordsLost::None),
            ("1/5", RecordsLost::None),
            ("2/9", RecordsLost::Swept),
            // A logic server that does not report sweeps, and one that does.
            ("2", RecordsLost::None),
            ("2/9", RecordsLost::None),
            // Redis is empty, or was restored from an old copy.
            ("3", RecordsLost::Some),
            ("4/5", RecordsLost::Some),
            ("4", RecordsLost::None),
            ("5/10", RecordsLost::Swept),
        ];
        let mut state = DirectoryState::default();
        for (text, expected) in cases {
            assert_eq!(state.update(&Generation((*text).to_owned())), *expected, "{text}");
        }
    }
}
