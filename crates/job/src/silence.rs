//! How long a comet that was called has said nothing: what tells one that hangs from one that has much to do, which answers
//! one call or another all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A comet that is silent for longer does not hold up the reading of the log by what gathers for it. Well
/// above what a busy comet takes for one call of the many that are under way.
const LATE: Duration = Duration::from_millis(250);

/// A comet that is silent for longer hangs: it is given up as soon as what waits for it would stop the reading.
const HUNG: Duration = Duration::from_secs(1);

/// The calls to one comet, as far as it takes to tell how long it is silent.
#[derive(Debug)]
pub(crate) struct Silence {
    start: Instant,
    under_way: AtomicUsize,
    /// When the first of the calls under way began, or one was answered last; milliseconds since `start`.
    since: AtomicU64,
    /// The last call ended without an answer.
    is_unanswered: AtomicBool,
}

impl Silence {
    pub(crate) fn new() -> Self {
        let (under_way, since, is_unanswered) = Default::default();
        Self { start: Instant::now(), under_way, since, is_unanswered }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A call begins.
    pub(crate) fn asked(&self) {
        let is_first = self.under_way.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first && !self.is_unanswered.load(Ordering::Relaxed) {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A call has ended; with an answer, or because nobody waits for one any longer.
    pub(crate) fn ended(&self, answered: bool) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.is_unanswered.store(!answered, Ordering::Relaxed);
        if answered {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn lasts(&self) -> Duration {
        if self.under_way.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.now().saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// Nobody should wait for it.
    pub(crate) fn is_late(&self) -> bool {
        self.lasts() >= LATE
    }

    /// It may be given up.
    pub(crate) fn is_hung(&self) -> bool {
        self.lasts() >= HUNG
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_begins_with_a_call_and_ends_with_an_answer() {
        let silence = Silence::new();
        let pass = |ms| advance(Duration::from_millis(ms));
        pass(2000).await;
        assert!(!silence.is_late(), "nothing was asked");
        silence.asked();
        pass(240).await;
        silence.asked();
        assert!(!silence.is_late());
        pass(20).await;
        assert!(silence.is_late() && !silence.is_hung());
        silence.ended(true);
        assert!(!silence.is_late(), "one of two was answered");
        pass(1000).await;
        assert!(silence.is_hung());
        silence.ended(false);
        silence.asked();
        assert!(silence.is_hung(), "asking again is no answer");
        silence.ended(true);
        silence.asked();
        assert!(!silence.is_late());
    }
}
