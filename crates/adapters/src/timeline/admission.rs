//! The bound on messages that wait to be written, for every store with a write queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use goim_ports::TimelineError;

/// The messages, and bytes of messages, that are queued for writing, and their limits.
#[derive(Debug)]
pub(crate) struct Admission {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    messages_max: usize,
    bytes_max: usize,
}

/// A place in the write queue. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    messages: usize,
    bytes: usize,
}

impl Admission {
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Arc<Self> {
        let (messages, bytes) = Default::default();
        Arc::new(Self { messages, bytes, messages_max, bytes_max })
    }

    /// Reserves a place for a request.
    ///
    /// # Errors
    /// [`TimelineError::Busy`] when a limit would be exceeded. A request that exceeds a limit by
    /// itself is admitted when nothing else is queued.
    pub(crate) fn admit(self: &Arc<Self>, messages: usize, bytes: usize) -> Result<Admitted, TimelineError> {
        let fits = |counter: &AtomicUsize, more: usize, max: usize| {
            let before = counter.fetch_add(more, Ordering::Relaxed);
            before == 0 || before.saturating_add(more) <= max
        };
        // Dropping it on refusal subtracts from both counters what was just added to them.
        let admitted = Admitted { admission: Arc::clone(self), messages, bytes };
        let is_within =
            fits(&self.messages, messages, self.messages_max) & fits(&self.bytes, bytes, self.bytes_max);
        let busy = || TimelineError::Busy("the write queue is full; try again later".to_owned());
        is_within.then_some(admitted).ok_or_else(busy)
    }

    /// The number of messages that are queued.
    #[cfg_attr(not(feature = "embedded"), allow(dead_code))]
    pub(crate) fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.messages.fetch_sub(self.messages, Ordering::Relaxed);
        self.admission.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_places_are_freed() {
        let admission = Admission::new(10, 100);
        let first = admission.admit(6, 10).unwrap();
        assert!(matches!(admission.admit(5, 10), Err(TimelineError::Busy(_))), "too many messages");
        assert!(matches!(admission.admit(1, 91), Err(TimelineError::Busy(_))), "too many bytes");
        let second = admission.admit(4, 90).unwrap();
        assert_eq!(admission.messages(), 10);
        drop((first, second));
        let alone = admission.admit(1, 1_000).unwrap();
        assert!(admission.admit(1, 1).is_err());
        drop(alone);
        assert_eq!(admission.messages(), 0);
        admission.admit(10, 100).unwrap();
    }
}
