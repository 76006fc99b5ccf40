//! Giving memory back to the system. Owns when that is asked for; what is free to be given back is the owners' backend.
//!
//! The allocator keeps what was freed, in case it is wanted again, and after a mass departure or a burst of traffic that
//! is nearly everything. Asking it to let go means a walk over its free lists with its locks held, so it is done when the
//! system has become quiet, and under traffic that never ends only after many connections have gone.

use std::time::{Duration, Instant};

/// How often the system is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks without anything new after which the system counts as quiet: by then its parts have let go of what they kept.
const QUIET_LOOKS: u32 = 3;
/// Between two times that memory is given back while it is not quiet.
const BUSY_INTERVAL: Duration = Duration::from_secs(60);

/// What a system has done up to some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Activity {
    /// Connections held.
    pub(crate) connections: usize,
    /// Pushes ever accepted.
    pub(crate) pushes: u64,
}

/// Decides when memory is given back.
#[derive(Debug)]
struct Watch {
    seen: Activity,
    /// Looks since something was new.
    same: u32,
    /// What there was when memory was given back.
    trimmed: Activity,
    trimmed_at: Instant,
    /// The most connections since then.
    peak: usize,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self { seen: Activity::default(), same: 0, trimmed: Activity::default(), trimmed_at: now, peak: 0 }
    }

    /// Takes a look; true when memory should be given back now.
    fn look(&mut self, activity: Activity, now: Instant) -> bool {
        self.same = if activity == self.seen { self.same + 1 } else { 0 };
        let quiet = self.same >= QUIET_LOOKS;
        self.seen = activity;
        self.peak = self.peak.max(activity.connections);
        let gone = self.peak - activity.connections;
        let many_gone = gone > self.peak / 4 && now.duration_since(self.trimmed_at) >= BUSY_INTERVAL;
        if (quiet && activity != self.trimmed) || many_gone {
            self.trimmed = activity;
            self.trimmed_at = now;
            self.peak = activity.connections;
            return true;
        }
        false
    }
}

/// Gives memory back whenever `activity` says that it is time. Does not end.
///
/// # Cancel safety
/// May be dropped at any time.
pub(crate) async fn keep_small(activity: impl Fn() -> Activity) {
    let mut watch = Watch::new(Instant::now());
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if watch.look(activity(), Instant::now()) {
            // Off the threads that serve: it may take milliseconds for every hundred megabytes.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// Asks the allocator to return free pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: takes a number, touches nothing but the allocator's own state, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back by themselves, or not at all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_time_of_activity() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let looks = [
            // second, connections, pushes, given back
            (1, 0, 0, false),
            (2, 10_000, 0, false),
            (3, 10_000, 0, false),
            (4, 10_000, 0, false),
            (5, 10_000, 0, true),
            (6, 10_000, 0, false),
            (7, 10_000, 7, false),
            (8, 10_000, 7, false),
            (9, 10_000, 7, false),
            (10, 10_000, 7, true),
            // It never becomes quiet: after a minute, when more than a quarter has gone.
            (11, 9_000, 8, false),
            (12, 5_000, 9, false),
            (69, 5_000, 10, false),
            (70, 5_000, 11, true),
            (71, 5_000, 12, false),
        ];
        for (second, connections, pushes, expect) in looks {
            let now = start + Duration::from_secs(second);
            assert_eq!(watch.look(Activity { connections, pushes }, now), expect, "at {second} s");
        }
    }
}
