//! A bounded queue of items that are sent in batches until the receiver takes them.
//!
//! Owns the bound, the batches and the pause after a failure. Does no I/O and has no clock: the
//! caller sends the batch and sleeps. Producers never wait. What is queued is lost with the
//! process.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

/// The bounds of a [`RetryQueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRules {
    /// Items that may be queued, those being sent included; further ones are refused.
    pub queued_max: usize,
    /// Items of one batch, at least one.
    pub batch_max: usize,
    /// The pause after the first failure; it doubles with each further one.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

/// A bounded queue with one consumer that removes a batch only once it was sent.
///
/// # Examples
/// ```
/// # use std::time::Duration;
/// # use goim_ports::{RetryQueue, RetryRules};
/// let second = Duration::from_secs(1);
/// let rules =
///     RetryRules { queued_max: 2, batch_max: 10, backoff_min: second, backoff_max: 3 * second };
/// let queue = RetryQueue::new(rules);
/// assert!(queue.push("a") && queue.push("b"));
/// assert!(!queue.push("c"), "full");
/// assert_eq!(queue.batch(), ["a", "b"]);
/// // It could not be sent: the same batch is sent again after a pause.
/// assert_eq!([queue.failed(), queue.failed(), queue.failed()], [second, 2 * second, 3 * second]);
/// assert_eq!(queue.batch(), ["a", "b"]);
/// queue.sent(2);
/// assert!(queue.is_empty());
/// assert_eq!(queue.failed(), second);
/// ```
#[derive(Debug)]
pub struct RetryQueue<T> {
    rules: RetryRules,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    backoff: Duration,
}

impl<T: Clone> RetryQueue<T> {
    /// Creates an empty queue.
    #[must_use]
    pub const fn new(rules: RetryRules) -> Self {
        Self { rules, state: Mutex::new(State { items: VecDeque::new(), backoff: rules.backoff_min }) }
    }

    /// Queues an item. False when the queue is full: then the item is dropped.
    pub fn push(&self, item: T) -> bool {
        let mut state = self.state.lock();
        let has_room = state.items.len() < self.rules.queued_max;
        if has_room {
            state.items.push_back(item);
        }
        has_room
    }

    /// Returns the oldest items, as many as a batch may have. They stay queued until
    /// [`RetryQueue::sent`].
    #[must_use]
    pub fn batch(&self) -> Vec<T> {
        self.state.lock().items.iter().take(self.rules.batch_max.max(1)).cloned().collect()
    }

    /// Removes the oldest `count` items: they were sent. Only the one consumer may call this.
    pub fn sent(&self, count: usize) {
        let mut state = self.state.lock();
        let count = count.min(state.items.len());
        state.items.drain(..count);
        state.backoff = self.rules.backoff_min;
    }

    /// Returns the pause after which the batch is to be sent again.
    pub fn failed(&self) -> Duration {
        let mut state = self.state.lock();
        let pause = state.backoff;
        state.backoff = pause.saturating_mul(2).min(self.rules.backoff_max);
        pause
    }

    /// How many items are queued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    /// True when no item is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }
}
