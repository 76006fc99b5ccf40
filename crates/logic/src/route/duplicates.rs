//! Packets that a client sends twice, since it did not see the first answer.
//!
//! A packet is known by its sender, operation and mark. The second one waits for the answer of the first, or gets it; an answer that
//! is no answer (the backend was down) is not kept, so that a second try is one. Packets with the mark 0 are never the same.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{SessionKey, Upstream};
use tokio::sync::OnceCell;

/// Packets remembered. More push out the oldest.
const REMEMBERED_MAX: usize = 100_000;

/// An answer, once it is there.
pub(super) type Place = Arc<OnceCell<Bytes>>;

/// Who sends: a member, or a session of nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sender {
    Member(i64),
    Session(SessionKey),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Mark {
    sender: Sender,
    operation: i32,
    sequence: i32,
}

/// The packets of the last while.
pub(super) struct Window {
    time: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: HashMap<Mark, Place>,
    /// In the order in which they came.
    order: VecDeque<(Instant, Mark)>,
}

impl Window {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, state: Mutex::default() }
    }

    /// Where the answer of a packet is, or will be; `None` for one that is never the same as another.
    pub(super) fn place_of(&self, upstream: &Upstream) -> Option<Place> {
        self.place_at(Instant::now(), upstream)
    }

    fn place_at(&self, now: Instant, upstream: &Upstream) -> Option<Place> {
        if upstream.packet.sequence.0 == 0 {
            return None;
        }
        let sender = if upstream.mid.is_anonymous() {
            Sender::Session(upstream.key.clone())
        } else {
            Sender::Member(upstream.mid.0)
        };
        let mark =
            Mark { sender, operation: upstream.packet.operation.0, sequence: upstream.packet.sequence.0 };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { places, order } = &mut *state;
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
        let place = Place::default();
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
    fn a_packet_is_known_by_sender_operation_and_mark_for_a_while() {
        let window = Window::new(Duration::from_secs(60));
        let start = Instant::now();
        let place = |after: u64, of: Upstream| window.place_at(start + Duration::from_secs(after), &of);
        let first = place(0, upstream(7, "a", 1000, 1)).unwrap();
        let same = |other: Option<Place>| other.is_some_and(|other| Arc::ptr_eq(&other, &first));
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
    fn what_is_remembered_is_bounded() {
        let window = Window::new(Duration::from_secs(60));
        for sequence in 1..=i32::try_from(REMEMBERED_MAX).unwrap() + 5 {
            window.place_of(&upstream(7, "a", 1000, sequence));
        }
        let state = window.state.lock().unwrap();
        assert_eq!((state.places.len(), state.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
    }
}
