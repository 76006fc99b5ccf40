//! Packets that a client sends again because it did not see the reply.
//!
//! A packet is identified by its sender, operation and sequence number. A repeated packet waits for
//! the reply to the first and gets the same. Failures are not remembered, so that a repeated packet
//! is a retry. Packets with sequence number 0 are never duplicates.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{SessionKey, Upstream};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// The maximum number of packets remembered. Further packets replace the oldest.
const REMEMBERED_MAX: usize = 100_000;

/// The reply to a packet, once it is known.
pub(super) type ReplyCell = Arc<OnceCell<Bytes>>;

/// The sender: a member, or the session of an anonymous client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sender {
    Member(i64),
    Session(SessionKey),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PacketId {
    sender: Sender,
    operation: i32,
    sequence: i32,
}

/// The packets within the window.
pub(super) struct DuplicateWindow {
    time: Duration,
    state: Mutex<RecentPackets>,
}

#[derive(Default)]
struct RecentPackets {
    places: HashMap<PacketId, ReplyCell>,
    /// In order of arrival.
    order: VecDeque<(Instant, PacketId)>,
}

impl DuplicateWindow {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, state: Mutex::default() }
    }

    /// Returns the cell of the reply to a packet; `None` for a packet that is never a duplicate.
    pub(super) fn reply_cell(&self, upstream: &Upstream) -> Option<ReplyCell> {
        self.reply_cell_at(Instant::now(), upstream)
    }

    fn reply_cell_at(&self, now: Instant, upstream: &Upstream) -> Option<ReplyCell> {
        if upstream.packet.sequence.0 == 0 {
            return None;
        }
        let sender = if upstream.mid.is_anonymous() {
            Sender::Session(upstream.key.clone())
        } else {
            Sender::Member(upstream.mid.0)
        };
        let mark =
            PacketId { sender, operation: upstream.packet.operation.0, sequence: upstream.packet.sequence.0 };
        let mut state = self.state.lock();
        let RecentPackets { places, order } = &mut *state;
        while let Some((_, old)) =
            order.pop_front_if(|(at, _)| now.saturating_duration_since(*at) >= self.time)
        {
            places.remove(&old);
        }
        if let Some(place) = places.get(&mark) {
            return Some(Arc::clone(place));
        }
        if order.len() >= REMEMBERED_MAX
            && let Some((_, oldest)) = order.pop_front()
        {
            places.remove(&oldest);
        }
        let place = ReplyCell::default();
        places.insert(mark.clone(), Arc::clone(&place));
        order.push_back((now, mark));
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::{Mid, Operation, PacketBuf, Schema, Sequence};

    fn upstream(mid: i64, key: &str, operation: i32, sequence: i32) -> Upstream {
        let packet =
            PacketBuf { sequence: Sequence(sequence), ..PacketBuf::push(Operation(operation), Bytes::new()) };
        Upstream {
            mid: Mid(mid),
            key: SessionKey::from(key),
            packet,
            schema: Schema::FIRST,
            negotiated: true,
        }
    }

    #[test]
    fn a_packet_is_identified_by_sender_operation_and_sequence_within_the_window() {
        let window = DuplicateWindow::new(Duration::from_secs(60));
        let start = Instant::now();
        let place = |after: u64, of: Upstream| window.reply_cell_at(start + Duration::from_secs(after), &of);
        let first = place(0, upstream(7, "a", 1000, 1)).unwrap();
        let same = |other: Option<ReplyCell>| other.is_some_and(|other| Arc::ptr_eq(&other, &first));
        assert!(same(place(1, upstream(7, "a", 1000, 1))));
        assert!(same(place(59, upstream(7, "b", 1000, 1))), "another session of the member");
        assert!(!same(place(1, upstream(7, "a", 1000, 2))));
        assert!(!same(place(1, upstream(7, "a", 1001, 1))));
        assert!(!same(place(1, upstream(8, "a", 1000, 1))));
        assert!(place(1, upstream(7, "a", 1000, 0)).is_none(), "no mark");
        assert!(!same(place(60, upstream(7, "a", 1000, 1))), "forgotten");
        let nobody = place(0, upstream(0, "a", 1000, 1)).unwrap();
        assert!(!place(0, upstream(0, "b", 1000, 1)).is_some_and(|other| Arc::ptr_eq(&other, &nobody)));
    }

    #[test]
    fn remembered_packets_are_bounded() {
        let window = DuplicateWindow::new(Duration::from_secs(60));
        for sequence in 1..=i32::try_from(REMEMBERED_MAX).unwrap() + 5 {
            window.reply_cell(&upstream(7, "a", 1000, sequence));
        }
        let state = window.state.lock();
        assert_eq!((state.places.len(), state.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
    }
}
