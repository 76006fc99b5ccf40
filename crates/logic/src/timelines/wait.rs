//! Waiting for a timeline to grow, so that a request need not ask again and again.
//!
//! What another logic appends is not heard of here: whoever waits looks again every second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use goim_ports::TimelineId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Everybody who waits.
pub(super) struct Waits {
    timelines: Arc<Mutex<HashMap<TimelineId, Waited>>>,
    permits: Arc<Semaphore>,
}

/// A timeline that somebody waits for.
struct Waited {
    grown: Arc<Notify>,
    by: usize,
}

/// One who waits. Made before the timeline is looked at, so that nothing comes between.
pub(super) struct Wait {
    id: TimelineId,
    grown: Arc<Notify>,
    timelines: Arc<Mutex<HashMap<TimelineId, Waited>>>,
    _permit: OwnedSemaphorePermit,
}

impl Waits {
    /// So many may wait at once.
    pub(super) fn new(max: usize) -> Self {
        Self { timelines: Arc::default(), permits: Arc::new(Semaphore::new(max)) }
    }

    /// Begins to wait; `None` when as many do as may.
    pub(super) fn begin(&self, id: TimelineId) -> Option<Wait> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let mut timelines = self.timelines.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = timelines.entry(id.clone()).or_insert_with(|| Waited { grown: Arc::default(), by: 0 });
        waited.by += 1;
        let grown = Arc::clone(&waited.grown);
        drop(timelines);
        Some(Wait { id, grown, timelines: Arc::clone(&self.timelines), _permit: permit })
    }

    /// A timeline has grown.
    pub(super) fn grown(&self, id: &TimelineId) {
        let timelines = self.timelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waited) = timelines.get(id) {
            waited.grown.notify_waiters();
        }
    }
}

impl Wait {
    /// What becomes ready when the timeline grows after this call.
    pub(super) fn grown(&self) -> tokio::sync::futures::Notified<'_> {
        self.grown.notified()
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut timelines = self.timelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waited) = timelines.get_mut(&self.id) {
            waited.by -= 1;
            if waited.by == 0 {
                timelines.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::Mid;

    #[tokio::test]
    async fn who_waits_is_woken_and_leaves_nothing() {
        let waits = Waits::new(2);
        let id = |mid| TimelineId::Inbox(Mid(mid));
        let (one, two) = (waits.begin(id(1)).unwrap(), waits.begin(id(1)).unwrap());
        assert!(waits.begin(id(2)).is_none(), "as many as may");
        {
            let (first, second) = (one.grown(), two.grown());
            tokio::pin!(first, second);
            first.as_mut().enable();
            second.as_mut().enable();
            waits.grown(&id(2));
            waits.grown(&id(1));
            first.await;
            second.await;
        }
        drop((one, two));
        assert!(waits.timelines.lock().unwrap().is_empty());
        assert!(waits.begin(id(2)).is_some());
    }
}
