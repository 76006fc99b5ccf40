//! What a comet tells others from time to time: that it is there, its load, its rooms.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use goim_ports::{CometNode, Generation, NodeDirectory, OnlineReport, RoomCounts};

use crate::inbox::{Notice, ShardHandle};
use crate::shared::Shared;

/// Says until dropped that the comet is there. Apart from the rooms: a lease must not end because a logic is slow.
pub(crate) async fn announce(shared: Arc<Shared>, nodes: Arc<dyn NodeDirectory>) {
    let mut word = Word::new("announce itself");
    loop {
        word.ends(nodes.announce(describe(&shared)).await);
        tokio::time::sleep(shared.config.report_interval.max(INTERVAL_MIN)).await;
    }
}

/// Has every shard enter its sessions in the directory again.
pub(crate) fn enter_again(shards: &[ShardHandle]) {
    shards.iter().for_each(|shard| shard.notice(Notice::RegisterAll));
}

/// What is known of the directory's memory of this comet.
#[derive(Default)]
struct Memory {
    generation: Option<Generation>,
    /// The newest sweep that was heard of. Logics of different versions may answer in turn, and not all tell.
    swept_at: Option<u64>,
}

/// What an answer says of it.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Same,
    /// Sessions may be missing: Redis has lost what it had, or was away for too long. Jobs kept the comet, so that nothing was missed.
    Lost,
    /// The comet was taken for dead and its sessions removed: pushes to them found nobody.
    Swept,
}

impl Memory {
    fn learn(&mut self, generation: &Generation) -> News {
        let before = self.generation.replace(generation.clone());
        let known = self.swept_at;
        self.swept_at = known.max(generation.swept_at());
        match before {
            // What was before this comet's time is not its own.
            None => News::Same,
            Some(_) if self.swept_at > known => News::Swept,
            Some(before) if before.mark() != generation.mark() => News::Lost,
            Some(_) => News::Same,
        }
    }
}

/// Reports the rooms until dropped.
pub(crate) async fn run(shared: Arc<Shared>, shards: Arc<[ShardHandle]>) {
    let confirm = || enter_again(&shards);
    let mut memory = Memory::default();
    let mut word = Word::new("report its rooms");
    let mut taken = Instant::now();
    loop {
        let began = Instant::now();
        let rooms: RoomCounts = Arc::new(shared.rooms.here());
        let mut worked = began.elapsed();
        let report = OnlineReport { server: shared.server.clone(), rooms: rooms.clone() };
        let totals = shared.logic.renew_online(report).await;
        let began = Instant::now();
        if let Ok(totals) = &totals {
            shared.rooms.learn(&totals.rooms, &rooms);
            let news = totals.generation.as_ref().map_or(News::Same, |generation| memory.learn(generation));
            if news != News::Same {
                tracing::warn!("the directory may have lost sessions of this comet; it enters them again");
                confirm();
            }
            if news == News::Swept {
                tracing::warn!(
                    "this comet was taken for dead and its sessions were removed; they have missed messages"
                );
                shared.recoveries.swept.add(1);
                let ago = since_sweep(memory.swept_at.unwrap_or_default(), SystemTime::now());
                shards.iter().for_each(|shard| shard.notice(Notice::Recover { ago, register: true }));
            }
            if taken.elapsed() >= RECORDS_LIVE {
                tracing::warn!("no report was taken for long; the comet enters its sessions again");
                confirm();
            }
            taken = Instant::now();
        }
        worked += began.elapsed();
        word.ends(totals);
        // A map of very many rooms takes its time; reporting must not become the comet's main work.
        let pause = shared.config.report_interval.max(worked * 100);
        tokio::time::sleep(pause.max(INTERVAL_MIN)).await;
    }
}

/// What the clock of the logic that has swept may be ahead of this one's. Sessions that came within
/// it after the sweep are taken for swept: they are ended for nothing, and miss nothing.
const CLOCK_SKEW: Duration = Duration::from_secs(1);

/// Time since a sweep (nanoseconds since 1970), and no more than that: sessions that have come since
/// were not swept.
fn since_sweep(swept_at: u64, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(swept_at)).saturating_sub(CLOCK_SKEW)
}

/// After so long without a report that was taken, records of sessions may have expired that nobody
/// could renew.
const RECORDS_LIVE: Duration = Duration::from_secs(10 * 60);

/// The shortest pause, whatever is configured.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Says once that something fails and once that it works again; it is tried again at the next turn.
struct Word {
    what: &'static str,
    well: bool,
}

impl Word {
    fn new(what: &'static str) -> Self {
        Self { what, well: true }
    }

    fn ends<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) {
        match &result {
            Err(error) if self.well => {
                tracing::warn!(%error, "the comet could not {}; it goes on trying", self.what);
            }
            Ok(_) if !self.well => tracing::info!("the comet can {} again", self.what),
            _ => {}
        }
        self.well = result.is_ok();
    }
}

/// This comet as others see it.
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
        let cases: &[(&str, News)] = &[
            ("1/5", News::Same),
            ("1/5", News::Same),
            ("2/9", News::Swept),
            // A logic that does not tell, and one that does.
            ("2", News::Same),
            ("2/9", News::Same),
            // Redis is empty, or has what it had long ago.
            ("3", News::Lost),
            ("4/5", News::Lost),
            ("4", News::Same),
            ("5/10", News::Swept),
        ];
        let mut memory = Memory::default();
        for (text, expected) in cases {
            assert_eq!(memory.learn(&Generation((*text).to_owned())), *expected, "{text}");
        }
    }
}
