//! The order in which sessions are flushed that received a push to many.
//!
//! Owns the positions in the queue, not whether a session is in it: its connection has that flag,
//! which keeps a session from being queued twice. A session that receives more pushes keeps its
//! position. So under load many pushes share one write, and none waits longer than one round.

use std::collections::VecDeque;

/// A first-in, first-out queue that numbers what has passed through it.
#[derive(Debug, Default)]
pub(super) struct FlushQueue {
    slots: VecDeque<u32>,
    /// Sessions that have ever left the queue.
    passed: u64,
}

impl FlushQueue {
    /// Appends a session that is not in the queue.
    pub(super) fn push(&mut self, slot: u32) {
        self.slots.push_back(slot);
    }

    /// Takes the session at the front.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let slot = self.slots.pop_front()?;
        self.passed += 1;
        Some(slot)
    }

    /// How many sessions have ever left the queue.
    pub(super) fn passed(&self) -> u64 {
        self.passed
    }

    /// What [`FlushQueue::passed`] is once every session that is in the queue now has left it.
    pub(super) fn end(&self) -> u64 {
        self.passed + self.slots.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sessions in the queue, first to leave first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + Clone {
        self.slots.iter().copied()
    }

    /// Frees the memory of an empty queue.
    pub(super) fn release_memory(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_leave_in_order_and_the_end_is_reached_when_all_have_left() {
        let mut queue = FlushQueue::default();
        assert_eq!((queue.passed(), queue.end()), (0, 0));
        for slot in [7, 3, 5] {
            queue.push(slot);
        }
        let end = queue.end();
        assert_eq!(queue.pop(), Some(7));
        // Later sessions do not move the end of earlier ones.
        queue.push(7);
        assert_eq!(queue.iter().collect::<Vec<_>>(), [3, 5, 7]);
        assert!(queue.passed() < end);
        assert_eq!([queue.pop(), queue.pop()], [Some(3), Some(5)]);
        assert_eq!(queue.passed(), end);
        assert_eq!([queue.pop(), queue.pop()], [Some(7), None]);
        assert_eq!((queue.passed(), queue.end()), (4, 4));
    }

    #[test]
    fn only_an_empty_queue_is_freed() {
        let mut queue = FlushQueue::default();
        queue.push(1);
        queue.release_memory();
        assert_eq!(queue.pop(), Some(1));
        queue.release_memory();
        assert_eq!((queue.pop(), queue.passed()), (None, 1));
    }
}
