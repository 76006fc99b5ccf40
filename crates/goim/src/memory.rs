//! Returns free memory to the system. This module decides when; it frees nothing itself.
//!
//! The allocator retains freed memory for later use. After a mass disconnect or a burst of traffic
//! that is nearly all of it. Returning it walks the free lists with the allocator's locks held, so
//! it is done when the system is idle, and under constant traffic only after many connections have
//! closed.

use std::time::{Duration, Instant};

/// Between two samples of the activity.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Equal samples after which the system counts as idle: by then its parts have freed their buffers.
const IDLE_SAMPLES: u32 = 3;
/// The minimum time between two trims while the system is busy.
const BUSY_INTERVAL: Duration = Duration::from_secs(60);

/// What a system has done up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Activity {
    /// Connections held.
    pub(crate) connections: usize,
    /// Pushes ever accepted.
    pub(crate) pushes: u64,
}

/// Decides when memory is returned.
#[derive(Debug)]
struct Watch {
    seen: Activity,
    /// Equal samples in a row.
    same: u32,
    /// The activity at the last trim.
    trimmed: Activity,
    trimmed_at: Instant,
    /// The highest number of connections since then.
    peak: usize,
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self { seen: Activity::default(), same: 0, trimmed: Activity::default(), trimmed_at: now, peak: 0 }
    }

    /// Adds a sample; true if memory should be returned now.
    fn sample(&mut self, activity: Activity, now: Instant) -> bool {
        self.same = if activity == self.seen { self.same + 1 } else { 0 };
        let idle = self.same >= IDLE_SAMPLES;
        self.seen = activity;
        self.peak = self.peak.max(activity.connections);
        let closed = self.peak - activity.connections;
        let many_closed = closed > self.peak / 4 && now.duration_since(self.trimmed_at) >= BUSY_INTERVAL;
        if (idle && activity != self.trimmed) || many_closed {
            self.trimmed = activity;
            self.trimmed_at = now;
            self.peak = activity.connections;
            return true;
        }
        false
    }
}

/// Returns memory whenever `activity` permits it. Does not end.
///
/// # Cancel safety
/// May be dropped at any time.
pub(crate) async fn trim_when_idle(activity: impl Fn() -> Activity) {
    let mut watch = Watch::new(Instant::now());
    loop {
        tokio::time::sleep(SAMPLE_INTERVAL).await;
        if watch.sample(activity(), Instant::now()) {
            // Not on a thread of the runtime: it may take milliseconds per 100 MB.
            let _ = tokio::task::spawn_blocking(trim).await;
        }
    }
}

/// Asks the allocator to return free pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it takes a number, touches only the allocator's state, and may be called from any
    // thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators return memory by themselves, or not at all.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_returned_once_after_each_period_of_activity() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let samples = [
            // second, connections, pushes, returned
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
            // It never becomes idle: after a minute, when more than a quarter has closed.
            (11, 9_000, 8, false),
            (12, 5_000, 9, false),
            (69, 5_000, 10, false),
            (70, 5_000, 11, true),
            (71, 5_000, 12, false),
        ];
        for (second, connections, pushes, expect) in samples {
            let now = start + Duration::from_secs(second);
            assert_eq!(watch.sample(Activity { connections, pushes }, now), expect, "at {second} s");
        }
    }
}
