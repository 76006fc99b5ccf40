//! The bounded queue of bytes to send on one connection.
//!
//! It holds two kinds of bytes. *Replies* answer the client's own packets: they are never dropped,
//! and are bounded by not reading on ([`Outbox::reply_bytes`]). *Pushes* are shared by all their
//! receivers: they count against a limit, and a policy handles a push that does not fit.
//!
//! An empty outbox owns nothing. A push to an empty outbox, which is nearly every push to a room,
//! costs one reference and no memory, however many sessions get it. Queues for more are from a pool
//! that the driver owns.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;

/// What happens to a push if the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlowConsumerPolicy {
    /// The new push is dropped.
    DropNewest,
    /// The oldest pushes are dropped until the new one fits. One that is partly written stays.
    DropOldest,
    /// The session is closed.
    Close,
}

/// The limit of queued pushes, and the policy beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    /// Bytes of pushes, without the one at the front: that one may have any size.
    pub bytes_max: usize,
    /// The policy for a push beyond the limit.
    pub policy: SlowConsumerPolicy,
}

/// The result of queueing a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is queued.
    Queued,
    /// It is queued, and this many older ones were dropped.
    DroppedOlder(usize),
    /// It was dropped.
    DroppedNewest,
    /// Nothing was queued: the session must be closed as a slow consumer.
    MustClose,
}

/// The bytes to send on one connection. Replies and pushes stay in the order in which they were
/// queued.
#[derive(Debug, Default)]
pub struct Outbox(State);

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    /// One push, not written at all.
    One(Arc<Bytes>),
    Many(Box<Queue>),
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// Number of bytes of the first chunk that are written already.
    written: usize,
    push_bytes: usize,
    reply_bytes: usize,
    /// Memory of a reply that was written, for the next one.
    spare: Vec<u8>,
}

/// A queue reuses the memory of replies up to this size; a larger one is an exception.
const SPARE_BYTES_MAX: usize = 256;

impl Queue {
    /// The push at the front is being written and does not count, whatever its size: a large
    /// message must not make the small ones after it look like those of a slow reader.
    fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        let front = match self.chunks.front() {
            Some(Chunk::Push(bytes)) => bytes.len().saturating_sub(self.written),
            _ => 0,
        };
        let waiting = self.push_bytes.saturating_sub(front);
        self.push_bytes == 0 || waiting.saturating_add(len) <= bytes_max
    }

    fn push(&mut self, bytes: Arc<Bytes>) {
        self.push_bytes = self.push_bytes.saturating_add(bytes.len());
        self.chunks.push_back(Chunk::Push(bytes));
    }

    /// The chunk at the front is written.
    fn pop(&mut self) {
        self.written = 0;
        if let Some(Chunk::Reply(mut bytes)) = self.chunks.pop_front()
            && bytes.capacity() <= SPARE_BYTES_MAX
        {
            bytes.clear();
            self.spare = bytes;
        }
    }

    fn is_empty(&self) -> bool {
        self.push_bytes == 0 && self.reply_bytes == 0
    }
}

#[derive(Debug)]
enum Chunk {
    Reply(Vec<u8>),
    Push(Arc<Bytes>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Reply(bytes) => bytes,
            Self::Push(bytes) => bytes,
        }
    }
}

/// Unused queues, for the next session that needs one.
#[derive(Debug)]
pub struct OutboxPool {
    #[expect(clippy::vec_box, reason = "queues change hands as pointers")]
    free: Vec<Box<Queue>>,
    keep_max: usize,
}

impl OutboxPool {
    /// Creates a pool of at most `keep_max` unused queues; further ones are freed.
    #[must_use]
    pub const fn new(keep_max: usize) -> Self {
        Self { free: Vec::new(), keep_max }
    }

    fn take(&mut self) -> Box<Queue> {
        self.free.pop().unwrap_or_default()
    }

    /// Returns an empty queue to the pool, unless it has grown beyond what a quiet session needs.
    fn put(&mut self, queue: Box<Queue>) {
        if self.free.len() < self.keep_max && queue.chunks.capacity() <= 32 {
            self.free.push(queue);
        }
    }

    /// Frees the unused queues.
    pub fn release(&mut self) {
        self.free = Vec::new();
    }
}

impl Outbox {
    /// Creates an empty outbox.
    #[must_use]
    pub const fn new() -> Self {
        Self(State::Empty)
    }

    /// Returns true if nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.0, State::Empty)
    }

    /// Returns the size of replies and pushes in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            State::Empty => 0,
            State::One(bytes) => bytes.len(),
            State::Many(queue) => queue.push_bytes.saturating_add(queue.reply_bytes),
        }
    }

    /// Returns the size of pushes in bytes.
    #[must_use]
    pub fn push_bytes(&self) -> usize {
        match &self.0 {
            State::Empty => 0,
            State::One(bytes) => bytes.len(),
            State::Many(queue) => queue.push_bytes,
        }
    }

    /// Returns the size of replies in bytes.
    #[must_use]
    pub fn reply_bytes(&self) -> usize {
        match &self.0 {
            State::Many(queue) => queue.reply_bytes,
            State::Empty | State::One(_) => 0,
        }
    }

    /// Returns true if a push of `len` bytes fits into the limit.
    #[must_use]
    pub fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        match &self.0 {
            State::Empty => true,
            // The push at the front does not count.
            State::One(_) => len <= bytes_max,
            State::Many(queue) => queue.has_room(len, bytes_max),
        }
    }

    /// Returns the queue of this outbox; creates it from the single push if there was none.
    fn queue(&mut self, pool: &mut OutboxPool) -> &mut Queue {
        if !matches!(self.0, State::Many(_)) {
            let mut queue = pool.take();
            if let State::One(bytes) = core::mem::take(&mut self.0) {
                queue.push(bytes);
            }
            self.0 = State::Many(queue);
        }
        match &mut self.0 {
            State::Many(queue) => queue,
            State::Empty | State::One(_) => unreachable!("set above"),
        }
    }

    /// Queues bytes of a reply, written by `write`.
    pub fn reply(&mut self, pool: &mut OutboxPool, write: impl FnOnce(&mut Vec<u8>)) {
        let queue = self.queue(pool);
        // Replies written in one turn share a chunk; the first chunk may be partly written, which
        // appending does not disturb.
        if !matches!(queue.chunks.back(), Some(Chunk::Reply(_))) {
            let spare = core::mem::take(&mut queue.spare);
            queue.chunks.push_back(Chunk::Reply(spare));
        }
        if let Some(Chunk::Reply(bytes)) = queue.chunks.back_mut() {
            let before = bytes.len();
            write(bytes);
            queue.reply_bytes = queue.reply_bytes.saturating_add(bytes.len().saturating_sub(before));
        }
        self.release_if_empty(pool);
    }

    /// Queues bytes that are shared with other receivers, if the limit allows it.
    pub fn push(&mut self, pool: &mut OutboxPool, bytes: &Arc<Bytes>, limit: QueueLimit) -> Admission {
        if bytes.is_empty() {
            return Admission::Queued;
        }
        if self.is_empty() {
            self.0 = State::One(Arc::clone(bytes));
            return Admission::Queued;
        }
        let admission = match (self.has_room(bytes.len(), limit.bytes_max), limit.policy) {
            (true, _) => Admission::Queued,
            (false, SlowConsumerPolicy::DropNewest) => return Admission::DroppedNewest,
            (false, SlowConsumerPolicy::Close) => return Admission::MustClose,
            (false, SlowConsumerPolicy::DropOldest) => self.drop_oldest(pool, bytes.len(), limit.bytes_max),
        };
        if admission == Admission::DroppedNewest {
            return admission;
        }
        self.queue(pool).push(Arc::clone(bytes));
        admission
    }

    /// Drops queued pushes, oldest first, until `len` more bytes fit. Replies and a partly written
    /// push stay; if the new push cannot fit after the latter, nothing is dropped.
    fn drop_oldest(&mut self, pool: &mut OutboxPool, len: usize, bytes_max: usize) -> Admission {
        let queue = self.queue(pool);
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

    /// Returns the queued bytes if they are in one piece: the common case, without an iterator.
    #[must_use]
    pub fn only_piece(&self) -> Option<&[u8]> {
        match &self.0 {
            State::Empty => None,
            State::One(bytes) => Some(bytes),
            State::Many(queue) if queue.chunks.len() == 1 => {
                queue.chunks.front().and_then(|chunk| chunk.bytes().get(queue.written..))
            }
            State::Many(_) => None,
        }
    }

    /// Returns the queued bytes, in order, as pieces for one vectored write.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (one, queue) = match &self.0 {
            State::Empty => (None, None),
            State::One(bytes) => (Some(&bytes[..]), None),
            State::Many(queue) => (None, Some(queue)),
        };
        let written = queue.map_or(0, |queue| queue.written);
        let chunks = queue.into_iter().flat_map(|queue| queue.chunks.iter()).enumerate();
        let many = chunks.map(move |(index, chunk)| {
            let from = if index == 0 { written } else { 0 };
            chunk.bytes().get(from..).unwrap_or_default()
        });
        one.into_iter().chain(many)
    }

    /// Removes the first `len` bytes: they are written.
    pub fn advance(&mut self, pool: &mut OutboxPool, mut len: usize) {
        match &self.0 {
            State::Empty => return,
            State::One(bytes) if len >= bytes.len() => {
                self.0 = State::Empty;
                return;
            }
            State::One(_) if len == 0 => return,
            State::One(_) | State::Many(_) => {}
        }
        let queue = self.queue(pool);
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
            queue.pop();
        }
        self.release_if_empty(pool);
    }

    /// Drops all queued bytes.
    pub fn clear(&mut self, pool: &mut OutboxPool) {
        if let State::Many(mut queue) = core::mem::take(&mut self.0) {
            queue.chunks.clear();
            (queue.written, queue.push_bytes, queue.reply_bytes) = (0, 0, 0);
            pool.put(queue);
        }
    }

    fn release_if_empty(&mut self, pool: &mut OutboxPool) {
        if matches!(&self.0, State::Many(queue) if queue.is_empty()) {
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

    fn bytes(text: &'static [u8]) -> Arc<Bytes> {
        Arc::new(Bytes::from_static(text))
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
            outbox.push(&mut pool, &bytes(b"defg"), roomy);
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
        let four = bytes(b"4444");
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
        let big = Arc::new(Bytes::from(vec![0; 1000]));
        outbox.reply(&mut pool, |out| out.push(0));
        assert_eq!(outbox.push(&mut pool, &big, limit(9, SlowConsumerPolicy::Close)), Admission::Queued);
    }

    #[test]
    fn a_partly_written_push_is_never_dropped() {
        let mut pool = OutboxPool::new(1);
        let mut outbox = Outbox::new();
        let oldest = limit(7, SlowConsumerPolicy::DropOldest);
        outbox.push(&mut pool, &bytes(b"aaaa"), oldest);
        outbox.advance(&mut pool, 1);
        outbox.push(&mut pool, &bytes(b"bbbb"), oldest);
        assert_eq!(outbox.push(&mut pool, &bytes(b"cccc"), oldest), Admission::DroppedOlder(1));
        assert_eq!(text(&outbox), b"aaacccc");
    }

    #[test]
    fn a_push_into_an_empty_outbox_needs_no_queue_and_queues_are_reused() {
        assert_eq!(size_of::<Outbox>(), 2 * size_of::<usize>());
        let mut pool = OutboxPool::new(1);
        let roomy = limit(100, SlowConsumerPolicy::Close);
        let mut pushed = Outbox::new();
        pushed.push(&mut pool, &bytes(b"push"), roomy);
        assert_eq!(pushed.only_piece(), Some(&b"push"[..]));
        pushed.advance(&mut pool, 4);
        assert!(pushed.is_empty() && pool.free.is_empty());
        let mut outbox = Outbox::new();
        outbox.reply(&mut pool, |out| out.push(1));
        outbox.advance(&mut pool, 1);
        assert!(outbox.is_empty());
        assert_eq!(pool.free.len(), 1);
    }
}
