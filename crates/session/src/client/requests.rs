//! Requests that wait for their replies, and which packet answers which.

use alloc::collections::VecDeque;

use goim_wire::{Operation, Sequence};

/// The outstanding requests of one connection, oldest first. Servers answer in order, so that the search for the
/// request of a reply nearly always ends at the first.
#[derive(Debug)]
pub(super) struct Requests {
    outstanding: VecDeque<(Sequence, Operation)>,
    last: Sequence,
}

impl Requests {
    /// No request yet. The token has mark 1.
    pub(super) const fn new() -> Self {
        Self { outstanding: VecDeque::new(), last: Sequence(1) }
    }

    pub(super) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Enters a request and gives it a mark that no other has: 2, 3, and so on; behind the largest, 1 follows.
    pub(super) fn begin(&mut self, operation: Operation, limit: usize) -> Option<Sequence> {
        if self.outstanding.len() >= limit {
            return None;
        }
        // Marks come back after two thousand million others: whatever still waits then is as good as lost, but its
        // reply must not be taken for another's.
        loop {
            self.last = Sequence(self.last.0.checked_add(1).unwrap_or(1));
            if self.outstanding.iter().all(|(sequence, _)| *sequence != self.last) {
                break;
            }
        }
        self.outstanding.push_back((self.last, operation));
        Some(self.last)
    }

    /// Takes off the request that a packet with this mark and operation answers; false when there is none.
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

/// True when a packet of operation `reply` may answer a request of operation `request`: the error packet always,
/// the same operation (backend, and whatever the server does not know), or below the backend's range the next one.
fn answers(request: Operation, reply: Operation) -> bool {
    let next = request < Operation::BACKEND_MIN && request.0.checked_add(1) == Some(reply.0);
    reply == Operation::ERROR || reply == request || next
}

/// True for operations that only ever answer something.
pub(super) fn is_reply(operation: Operation) -> bool {
    matches!(operation.0, 3 | 5 | 8 | 13 | 15 | 17 | 22 | 24 | 25 | 27 | 29 | 31)
}
