//! Requests in flight, and which packet answers which.

use alloc::collections::VecDeque;

use goim_wire::{Operation, Sequence};

/// The requests in flight of one connection, oldest first. Servers reply in order, so the search
/// for a request nearly always ends at the first.
#[derive(Debug)]
pub(super) struct Requests {
    outstanding: VecDeque<(Sequence, Operation)>,
    last: Sequence,
}

impl Requests {
    /// Creates an empty list. The token has number 1.
    pub(super) const fn new() -> Self {
        Self { outstanding: VecDeque::new(), last: Sequence(1) }
    }

    pub(super) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Adds a request and returns its number, which is unique: 2, 3, and so on; after the maximum,
    /// 1 follows.
    pub(super) fn begin(&mut self, operation: Operation, limit: usize) -> Option<Sequence> {
        if self.outstanding.len() >= limit {
            return None;
        }
        // Numbers repeat after two billion requests. A request that is still in flight then is
        // lost, but its reply must not be matched to another.
        loop {
            self.last = Sequence(self.last.0.checked_add(1).unwrap_or(1));
            if self.outstanding.iter().all(|(sequence, _)| *sequence != self.last) {
                break;
            }
        }
        self.outstanding.push_back((self.last, operation));
        Some(self.last)
    }

    /// Removes the request that a packet with this number and operation answers. Returns false if
    /// there is none.
    pub(super) fn finish(&mut self, sequence: Sequence, reply: Operation) -> bool {
        let answered =
            |(mark, request): &(Sequence, Operation)| *mark == sequence && answers(*request, reply);
        let Some(index) = self.outstanding.iter().position(answered) else { return false };
        self.outstanding.remove(index);
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new();
        }
        true
    }
}

/// Returns true if a packet of operation `reply` can answer a request of operation `request`: the
/// error packet always, the same operation (of the backend, and those unknown to the server), or
/// below the backend's range the next one.
fn answers(request: Operation, reply: Operation) -> bool {
    let next = request < Operation::BACKEND_MIN && request.0.checked_add(1) == Some(reply.0);
    reply == Operation::ERROR || reply == request || next
}

/// Returns true for operations that are only replies.
pub(super) fn is_reply(operation: Operation) -> bool {
    matches!(operation.0, 3 | 5 | 8 | 13 | 15 | 17 | 22 | 24 | 25 | 27 | 29 | 31)
}
