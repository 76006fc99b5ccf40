//! What was read and is not handed over yet, and up to where each partition is done.
//!
//! Records finish in any order; the log wants to hear of a position only when all before it in its partition are
//! finished too. So each partition has its open records in a row, and its front moves over the finished ones.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use goim_ports::{LogPosition, PushRecord, PushTarget};
use tokio::sync::Notify;

use crate::config::InFlightConfig;

/// What a record takes besides its body and its keys.
const RECORD_OVERHEAD: usize = 200;

/// Places in the rows of all partitions, finished records behind an open one included. A place is 32 bytes; a comet
/// that hangs for long under full load must not make the rows grow without end.
const PLACES_MAX: usize = 1 << 20;

/// The records in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    config: InFlightConfig,
    state: Mutex<State>,
    /// Told when something was finished, or a room may go on.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Ascending by number; a log has few of them, mostly those of one read are of one.
    partitions: Vec<(i32, Partition)>,
    records: usize,
    bytes: usize,
    places: usize,
}

#[derive(Debug, Default)]
struct Partition {
    /// Number of the ticket at the front.
    first: u64,
    row: VecDeque<Place>,
    /// Offset of the last record that has left the front and was not reported.
    done: Option<i64>,
}

#[derive(Debug)]
struct Place {
    offset: i64,
    bytes: usize,
    finished: bool,
}

/// One record's place. Numbers count records, not offsets: a log may give the same offset again after it has moved
/// the partition elsewhere and back.
#[derive(Debug)]
pub(crate) struct Ticket {
    partition: i32,
    number: u64,
}

/// The share that one call has in a record: when the last share is dropped, it is finished. Dropped, not told: so that
/// no way out of a worker, a panic included, leaves a record open for ever.
#[derive(Debug, Clone)]
#[must_use = "dropping it says that the call is over"]
pub(crate) struct Share {
    _of: Arc<Entered>,
}

#[derive(Debug)]
struct Entered {
    in_flight: Arc<InFlight>,
    ticket: Ticket,
}

impl Share {
    pub(crate) fn new(in_flight: &Arc<InFlight>, ticket: Ticket) -> Self {
        Self { _of: Arc::new(Entered { in_flight: Arc::clone(in_flight), ticket }) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.in_flight.finish_untold(std::slice::from_ref(&self.ticket));
        self.in_flight.tell();
    }
}

impl InFlight {
    pub(crate) fn new(config: InFlightConfig) -> Self {
        Self { config, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, position: LogPosition, record: &PushRecord) -> Ticket {
        let bytes = size_of_record(record);
        let mut state = self.state();
        state.records += 1;
        state.places += 1;
        state.bytes += bytes;
        let partition = state.partition(position.partition);
        let number = partition.first + partition.row.len() as u64;
        partition.row.push_back(Place { offset: position.offset, bytes, finished: false });
        Ticket { partition: position.partition, number }
    }

    /// Wakes who waits for changes.
    pub(crate) fn tell(&self) {
        self.changed.notify_one();
    }

    /// For who looks at what is done anyway: nobody is told.
    pub(crate) fn finish_untold(&self, tickets: &[Ticket]) {
        let mut state = self.state();
        for ticket in tickets {
            state.finish(ticket);
        }
    }

    /// True when more may be read.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state();
        state.records < self.config.records_max.get()
            && state.bytes < self.config.bytes_max
            && state.places < PLACES_MAX
    }

    /// Positions up to which everything is finished, as far as they have moved since the last call.
    pub(crate) fn take_done(&self) -> Vec<LogPosition> {
        let mut state = self.state();
        let moved = state.partitions.iter_mut().filter_map(|(number, partition)| {
            Some(LogPosition { partition: *number, offset: partition.done.take()? })
        });
        moved.collect()
    }

    /// Returns when something was finished, or has landed, since the last time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Records and bytes in flight.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.records, state.bytes)
    }
}

impl State {
    fn partition(&mut self, number: i32) -> &mut Partition {
        let index = self.partitions.binary_search_by_key(&number, |(number, _)| *number);
        let index = index.unwrap_or_else(|index| {
            self.partitions.insert(index, (number, Partition::default()));
            index
        });
        &mut self.partitions[index].1
    }

    fn finish(&mut self, ticket: &Ticket) {
        let index = self.partitions.binary_search_by_key(&ticket.partition, |(number, _)| *number);
        let Ok(index) = index else { return };
        let partition = &mut self.partitions[index].1;
        let index = usize::try_from(ticket.number - partition.first).unwrap_or(usize::MAX);
        let Some(place) = partition.row.get_mut(index) else { return };
        place.finished = true;
        self.records -= 1;
        self.bytes -= place.bytes;
        while let Some(front) = partition.row.front().filter(|front| front.finished) {
            partition.done = Some(front.offset);
            partition.row.pop_front();
            partition.first += 1;
            self.places -= 1;
        }
    }
}

/// Bytes that a record takes in memory, near enough for a bound.
fn size_of_record(record: &PushRecord) -> usize {
    let keys = match &record.target {
        PushTarget::Keys { keys, .. } => keys.iter().map(|key| key.as_str().len() + 32).sum(),
        PushTarget::Room(_) | PushTarget::All { .. } => 0,
    };
    RECORD_OVERHEAD + keys + record.payload.bytes_len()
}

/// A number that several threads raise and lower, with its meaning at the place where it is kept.
#[derive(Debug, Default)]
pub(crate) struct Level(AtomicUsize);

impl Level {
    pub(crate) fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lower(&self) {
        self.0.fetch_sub(1, Ordering::Release);
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use goim_ports::{AcceptedAt, Operation, Payload};

    use super::*;

    fn record() -> PushRecord {
        let target = PushTarget::Room("r".into());
        PushRecord {
            target,
            operation: Operation(1),
            payload: Payload::plain(Bytes::new()),
            accepted_at: AcceptedAt(0),
        }
    }

    fn at(partition: i32, offset: i64) -> LogPosition {
        LogPosition { partition, offset }
    }

    fn enter(in_flight: &Arc<InFlight>, position: LogPosition) -> Share {
        Share::new(in_flight, in_flight.enter(position, &record()))
    }

    fn new() -> Arc<InFlight> {
        Arc::new(InFlight::new(InFlightConfig::default()))
    }

    #[test]
    fn done_is_the_last_before_the_first_open_one() {
        let in_flight = new();
        let mut shares: Vec<_> = [5, 6, 9, 10].map(|offset| Some(enter(&in_flight, at(3, offset)))).into();
        for (finished, done) in [(1, None), (0, Some(6)), (3, None), (2, Some(10))] {
            shares[finished].take();
            let expected: Vec<_> = done.map(|offset| at(3, offset)).into_iter().collect();
            assert_eq!(in_flight.take_done(), expected, "after the one at {finished}");
        }
        assert_eq!(in_flight.load(), (0, 0));
    }

    #[test]
    fn partitions_do_not_wait_for_each_other() {
        let in_flight = new();
        let open = enter(&in_flight, at(0, 1));
        drop(enter(&in_flight, at(1, 1)));
        assert_eq!(in_flight.take_done(), [at(1, 1)]);
        drop(open);
        assert_eq!(in_flight.take_done(), [at(0, 1)]);
    }

    #[test]
    fn a_record_is_finished_with_its_last_share() {
        let in_flight = new();
        let first = enter(&in_flight, at(0, 1));
        let second = first.clone();
        drop(first);
        assert!(in_flight.take_done().is_empty());
        drop(second);
        assert_eq!(in_flight.take_done(), [at(0, 1)]);
    }

    #[test]
    fn an_offset_may_come_again() {
        let in_flight = new();
        let first = enter(&in_flight, at(0, 7));
        let again = enter(&in_flight, at(0, 7));
        drop(again);
        assert!(in_flight.take_done().is_empty());
        drop(first);
        assert_eq!(in_flight.take_done(), [at(0, 7)]);
    }

    #[test]
    fn records_and_bytes_are_bounded() {
        let config = InFlightConfig { bytes_max: RECORD_OVERHEAD * 2, ..InFlightConfig::default() };
        let in_flight = Arc::new(InFlight::new(config));
        let shares = [enter(&in_flight, at(0, 1)), enter(&in_flight, at(0, 2))];
        assert!(!in_flight.has_room());
        drop(shares);
        assert!(in_flight.has_room());
    }
}
