//! What waits to be sent on one connection.
//!
//! Two kinds of bytes wait here. *Replies* answer the client's own packets: they are never dropped, and their bound is
//! kept by not reading on ([`Outbox::reply_bytes`]). *Pushes* come from others and are shared by all their receivers:
//! they are counted against a limit, and a policy says what happens to one that does not fit.
//!
//! An empty outbox is one null pointer. Queues come from a pool that the driver keeps, so that sending to thousands of
//! sessions one after the other allocates nothing.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use bytes::Bytes;

/// What happens to a push that finds the queue full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlowConsumerPolicy {
    /// The new push is dropped.
    DropNewest,
    /// Waiting pushes are dropped, oldest first, until the new one fits. One that is partly written stays.
    DropOldest,
    /// The session is closed.
    Close,
}

/// How much may wait, and what happens beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    /// Bytes of pushes, the one at the front not counted: that one may have any size.
    pub bytes_max: usize,
    /// What happens to a push beyond it.
    pub policy: SlowConsumerPolicy,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It waits to be sent.
    Queued,
    /// It waits to be sent, and this many older ones were dropped for it.
    DroppedOlder(usize),
    /// It was dropped.
    DroppedNewest,
    /// Nothing was queued: the session is to be closed as a slow consumer.
    MustClose,
}

/// The bytes that wait on one connection. Replies and pushes keep the order in which they were put in.
#[derive(Debug, Default)]
pub struct Outbox(Option<Box<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are written already.
    written: usize,
    push_bytes: usize,
    reply_bytes: usize,
}

impl Queue {
    /// The push at the front is on its way and does not count, whatever its size: a large message must not make the
    /// small ones behind it look like a slow reader's.
    fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        let front = match self.chunks.front() {
            Some(Chunk::Push(bytes)) => bytes.len().saturating_sub(self.written),
            _ => 0,
        };
        let waiting = self.push_bytes.saturating_sub(front);
        self.push_bytes == 0 || waiting.saturating_add(len) <= bytes_max
    }
}

#[derive(Debug)]
enum Chunk {
    Reply(Vec<u8>),
    Push(Bytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Reply(bytes) => bytes,
            Self::Push(bytes) => bytes,
        }
    }
}

/// Queues that are not in use, kept for the next session that needs one.
#[derive(Debug)]
pub struct OutboxPool {
    #[expect(clippy::vec_box, reason = "queues change hands as pointers")]
    free: Vec<Box<Queue>>,
    keep_max: usize,
}

impl OutboxPool {
    /// A pool that keeps at most `keep_max` queues; further ones are freed.
    #[must_use]
    pub const fn new(keep_max: usize) -> Self {
        Self { free: Vec::new(), keep_max }
    }

    fn take(&mut self) -> Box<Queue> {
        self.free.pop().unwrap_or_default()
    }

    /// Takes back an emptied queue, unless it has grown beyond what a quiet session needs.
    fn put(&mut self, queue: Box<Queue>) {
        if self.free.len() < self.keep_max && queue.chunks.capacity() <= 8 {
            self.free.push(queue);
        }
    }
}

impl Outbox {
    /// An outbox in which nothing waits.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// True when nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes that wait, replies and pushes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.push_bytes.saturating_add(queue.reply_bytes))
    }

    /// Bytes of replies that wait.
    #[must_use]
    pub fn reply_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.reply_bytes)
    }

    /// True when a push of `len` bytes can wait without breaking the limit.
    #[must_use]
    pub fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.has_room(len, bytes_max))
    }

    /// Adds bytes that answer the client, written by `write`.
    pub fn reply(&mut self, pool: &mut OutboxPool, write: impl FnOnce(&mut Vec<u8>)) {
        let queue = self.0.get_or_insert_with(|| pool.take());
        // Replies made in one go share a chunk; the first chunk may be partly written, which appending does not disturb.
        if !matches!(queue.chunks.back(), Some(Chunk::Reply(_))) {
            queue.chunks.push_back(Chunk::Reply(Vec::new()));
        }
        if let Some(Chunk::Reply(bytes)) = queue.chunks.back_mut() {
            let before = bytes.len();
            write(bytes);
            queue.reply_bytes = queue.reply_bytes.saturating_add(bytes.len().saturating_sub(before));
        }
        self.release_if_empty(pool);
    }

    /// Adds bytes that are shared with other receivers, if the limit allows.
    pub fn push(&mut self, pool: &mut OutboxPool, bytes: &Bytes, limit: QueueLimit) -> Admission {
        if bytes.is_empty() {
            return Admission::Queued;
        }
        let admission = match (self.has_room(bytes.len(), limit.bytes_max), limit.policy) {
            (true, _) => Admission::Queued,
            (false, SlowConsumerPolicy::DropNewest) => return Admission::DroppedNewest,
            (false, SlowConsumerPolicy::Close) => return Admission::MustClose,
            (false, SlowConsumerPolicy::DropOldest) => self.drop_oldest(bytes.len(), limit.bytes_max),
        };
        if admission == Admission::DroppedNewest {
            return admission;
        }
        let queue = self.0.get_or_insert_with(|| pool.take());
        queue.push_bytes = queue.push_bytes.saturating_add(bytes.len());
        queue.chunks.push_back(Chunk::Push(bytes.clone()));
        admission
    }

    /// Drops waiting pushes, oldest first, until `len` more bytes fit. Replies and a partly written push stay; when
    /// the new push cannot fit behind the latter, nothing older is given up for it.
    fn drop_oldest(&mut self, len: usize, bytes_max: usize) -> Admission {
        let Some(queue) = self.0.as_mut() else { return Admission::Queued };
        let pinned = queue.written > 0 && matches!(queue.chunks.front(), Some(Chunk::Push(_)));
        if pinned && len > bytes_max {
            return Admission::DroppedNewest;
        }
        let mut dropped = 0_usize;
        let mut index = usize::from(queue.written > 0);
        while !queue.has_room(len, bytes_max) {
            match queue.chunks.get(index) {
                Some(Chunk::Push(bytes)) => {
                    queue.push_bytes = queue.push_bytes.saturating_sub(bytes.len());
                    queue.chunks.remove(index);
                    dropped = dropped.saturating_add(1);
                }
                Some(Chunk::Reply(_)) => index = index.saturating_add(1),
                None => break,
            }
        }
        Admission::DroppedOlder(dropped)
    }

    /// The bytes that wait, in order, as pieces for one gathered write.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let queue = self.0.as_deref();
        let written = queue.map_or(0, |queue| queue.written);
        queue.into_iter().flat_map(|queue| queue.chunks.iter()).enumerate().map(move |(index, chunk)| {
            let from = if index == 0 { written } else { 0 };
            chunk.bytes().get(from..).unwrap_or_default()
        })
    }

    /// Takes `len` bytes off the front: they are written.
    pub fn advance(&mut self, pool: &mut OutboxPool, mut len: usize) {
        let Some(queue) = self.0.as_mut() else { return };
        while let Some(first) = queue.chunks.front() {
            let rest = first.bytes().len().saturating_sub(queue.written);
            let taken = rest.min(len);
            match first {
                Chunk::Reply(_) => queue.reply_bytes = queue.reply_bytes.saturating_sub(taken),
                Chunk::Push(_) => queue.push_bytes = queue.push_bytes.saturating_sub(taken),
            }
            len = len.saturating_sub(taken);
            if taken < rest {
                queue.written = queue.written.saturating_add(taken);
                return;
            }
            queue.written = 0;
            queue.chunks.pop_front();
        }
        self.release_if_empty(pool);
    }

    /// Drops everything that waits.
    pub fn clear(&mut self, pool: &mut OutboxPool) {
        if let Some(mut queue) = self.0.take() {
            queue.chunks.clear();
            *queue = Queue { chunks: core::mem::take(&mut queue.chunks), ..Queue::default() };
            pool.put(queue);
        }
    }

    fn release_if_empty(&mut self, pool: &mut OutboxPool) {
        if self.0.as_ref().is_some_and(|queue| queue.push_bytes == 0 && queue.reply_bytes == 0) {
            self.clear(pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn text(outbox: &Outbox) -> Vec<u8> {
        outbox.pieces().flatten().copied().collect()
    }

    fn limit(bytes_max: usize, policy: SlowConsumerPolicy) -> QueueLimit {
        QueueLimit { bytes_max, policy }
    }

    #[test]
    fn order_and_accounting_survive_any_way_of_advancing() {
        for step in 1..=9 {
            let mut pool = OutboxPool::new(1);
            let mut outbox = Outbox::new();
            let roomy = limit(100, SlowConsumerPolicy::Close);
            outbox.reply(&mut pool, |out| out.extend_from_slice(b"ab"));
            outbox.reply(&mut pool, |out| out.extend_from_slice(b"c"));
            outbox.push(&mut pool, &Bytes::from_static(b"defg"), roomy);
            outbox.reply(&mut pool, |out| out.extend_from_slice(b"hi"));
            let mut seen = vec![];
            while !outbox.is_empty() {
                assert_eq!(outbox.len(), text(&outbox).len());
                let taken: Vec<u8> = text(&outbox).into_iter().take(step).collect();
                outbox.advance(&mut pool, taken.len());
                seen.extend(taken);
            }
            assert_eq!(seen, b"abcdefghi", "step {step}");
        }
    }

    #[test]
    fn policies() {
        let four = Bytes::from_static(b"4444");
        let cases = [
            (SlowConsumerPolicy::DropNewest, Admission::DroppedNewest, 8),
            (SlowConsumerPolicy::Close, Admission::MustClose, 8),
            (SlowConsumerPolicy::DropOldest, Admission::DroppedOlder(1), 8),
        ];
        for (policy, expected, len) in cases {
            let mut pool = OutboxPool::new(1);
            let mut outbox = Outbox::new();
            assert_eq!(outbox.push(&mut pool, &four, limit(7, policy)), Admission::Queued);
            assert_eq!(outbox.push(&mut pool, &four, limit(7, policy)), Admission::Queued);
            assert_eq!(outbox.push(&mut pool, &four, limit(7, policy)), expected, "{policy:?}");
            assert_eq!(outbox.len(), len);
        }
    }

    #[test]
    fn an_empty_queue_takes_a_push_of_any_size() {
        let mut pool = OutboxPool::new(1);
        let mut outbox = Outbox::new();
        let big = Bytes::from(vec![0; 1000]);
        outbox.reply(&mut pool, |out| out.push(0));
        assert_eq!(outbox.push(&mut pool, &big, limit(9, SlowConsumerPolicy::Close)), Admission::Queued);
    }

    #[test]
    fn a_partly_written_push_is_never_dropped() {
        let mut pool = OutboxPool::new(1);
        let mut outbox = Outbox::new();
        let oldest = limit(7, SlowConsumerPolicy::DropOldest);
        outbox.push(&mut pool, &Bytes::from_static(b"aaaa"), oldest);
        outbox.advance(&mut pool, 1);
        outbox.push(&mut pool, &Bytes::from_static(b"bbbb"), oldest);
        assert_eq!(outbox.push(&mut pool, &Bytes::from_static(b"cccc"), oldest), Admission::DroppedOlder(1));
        assert_eq!(text(&outbox), b"aaacccc");
    }

    #[test]
    fn idle_costs_one_pointer_and_queues_are_reused() {
        assert_eq!(size_of::<Outbox>(), size_of::<usize>());
        let mut pool = OutboxPool::new(1);
        let mut outbox = Outbox::new();
        outbox.reply(&mut pool, |out| out.push(1));
        outbox.advance(&mut pool, 1);
        assert!(outbox.is_empty());
        assert_eq!(pool.free.len(), 1);
    }
}
