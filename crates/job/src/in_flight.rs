//! Records that are read and not yet delivered, and the position up to which each partition is
//! done.
//!
//! Owns the in-flight accounting and its bounds. Records complete in any order, but a position is
//! reported only when every record before it in its partition has completed: each partition is a
//! queue of slots, and its front advances over the completed ones.

use std::collections::VecDeque;

use goim_ports::{LogPosition, PushRecord, PushTarget};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::InFlightConfig;

/// Memory of a record besides its body and keys, in bytes.
const RECORD_OVERHEAD: usize = 200;

/// The maximum number of slots of all partitions, including completed ones after an open one.
///
/// A slot is 32 bytes. A comet that hangs under full load must not grow the queues without bound.
const SLOTS_MAX: usize = 1 << 20;

/// The records in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    config: InFlightConfig,
    state: Mutex<State>,
    /// Notified when a record completes or a room's next batch may leave.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Sorted by partition number. Few entries: the records of one read mostly share a partition.
    partitions: Vec<(i32, Partition)>,
    records: usize,
    bytes: usize,
    slots: usize,
}

#[derive(Debug, Default)]
struct Partition {
    /// Sequence number of the slot at the front.
    front: u64,
    slots: VecDeque<Slot>,
    /// Offset of the last record that left the front and is not reported yet.
    done: Option<i64>,
}

#[derive(Debug)]
struct Slot {
    offset: i64,
    bytes: usize,
    is_completed: bool,
}

/// Identifies a record in flight.
///
/// Counts records, not offsets: a log may deliver the same offset again after it has moved the
/// partition to another reader and back.
#[derive(Debug)]
pub(crate) struct RecordId {
    partition: i32,
    number: u64,
}

impl InFlight {
    pub(crate) fn new(config: InFlightConfig) -> Self {
        Self { config, state: Mutex::default(), changed: Notify::new() }
    }

    /// Registers a record as in flight.
    pub(crate) fn register(&self, position: LogPosition, record: &PushRecord) -> RecordId {
        let bytes = size_of_record(record);
        let mut state = self.state.lock();
        state.records += 1;
        state.slots += 1;
        state.bytes += bytes;
        let partition = state.partition(position.partition);
        let number = partition.front + partition.slots.len() as u64;
        partition.slots.push_back(Slot { offset: position.offset, bytes, is_completed: false });
        RecordId { partition: position.partition, number }
    }

    /// Wakes the task that waits in [`InFlight::changed`].
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Completes records without a notification, for a caller that reports positions afterwards
    /// anyway.
    pub(crate) fn finish_silently(&self, records: &[RecordId]) {
        let mut state = self.state.lock();
        for record in records {
            state.finish(record);
        }
    }

    /// Returns whether more records may be read.
    pub(crate) fn has_capacity(&self) -> bool {
        let state = self.state.lock();
        state.records < self.config.records_max.get()
            && state.bytes < self.config.bytes_max
            && state.slots < SLOTS_MAX
    }

    /// Takes the positions up to which all records have completed, where they advanced since the
    /// last call.
    pub(crate) fn take_done(&self) -> Vec<LogPosition> {
        let mut state = self.state.lock();
        let advanced = state.partitions.iter_mut().filter_map(|(number, partition)| {
            Some(LogPosition { partition: *number, offset: partition.done.take()? })
        });
        advanced.collect()
    }

    /// Waits until a record or a room's batch has completed since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the number of records in flight and their bytes.
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = self.state.lock();
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

    fn finish(&mut self, record: &RecordId) {
        let index = self.partitions.binary_search_by_key(&record.partition, |(number, _)| *number);
        let Ok(index) = index else { return };
        let partition = &mut self.partitions[index].1;
        let index = usize::try_from(record.number - partition.front).unwrap_or(usize::MAX);
        let Some(slot) = partition.slots.get_mut(index) else { return };
        slot.is_completed = true;
        self.records -= 1;
        self.bytes -= slot.bytes;
        while let Some(front) = partition.slots.front().filter(|front| front.is_completed) {
            partition.done = Some(front.offset);
            partition.slots.pop_front();
            partition.front += 1;
            self.slots -= 1;
        }
    }
}

/// Returns the approximate memory of a record, in bytes.
fn size_of_record(record: &PushRecord) -> usize {
    let keys = match &record.target {
        PushTarget::Keys { keys, .. } => keys.iter().map(|key| key.as_str().len() + 32).sum(),
        PushTarget::Room(_) | PushTarget::All { .. } => 0,
    };
    RECORD_OVERHEAD + keys + record.payload.bytes_len()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use goim_ports::{AcceptedAt, Operation, Payload};

    use super::*;
    use crate::completion::Ack;

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

    fn register(in_flight: &Arc<InFlight>, position: LogPosition) -> Ack {
        Ack::new(in_flight, in_flight.register(position, &record()))
    }

    fn new() -> Arc<InFlight> {
        Arc::new(InFlight::new(InFlightConfig::default()))
    }

    #[test]
    fn done_is_the_last_offset_before_the_first_open_record() {
        let in_flight = new();
        let mut acks: Vec<_> = [5, 6, 9, 10].map(|offset| Some(register(&in_flight, at(3, offset)))).into();
        for (finished, done) in [(1, None), (0, Some(6)), (3, None), (2, Some(10))] {
            acks[finished].take();
            let expected: Vec<_> = done.map(|offset| at(3, offset)).into_iter().collect();
            assert_eq!(in_flight.take_done(), expected, "after record {finished}");
        }
        assert_eq!(in_flight.load(), (0, 0));
    }

    #[test]
    fn partitions_do_not_wait_for_each_other() {
        let in_flight = new();
        let open = register(&in_flight, at(0, 1));
        drop(register(&in_flight, at(1, 1)));
        assert_eq!(in_flight.take_done(), [at(1, 1)]);
        drop(open);
        assert_eq!(in_flight.take_done(), [at(0, 1)]);
    }

    #[test]
    fn a_record_completes_with_its_last_ack() {
        let in_flight = new();
        let first = register(&in_flight, at(0, 1));
        let second = first.clone();
        drop(first);
        assert!(in_flight.take_done().is_empty());
        drop(second);
        assert_eq!(in_flight.take_done(), [at(0, 1)]);
    }

    #[test]
    fn an_offset_may_repeat() {
        let in_flight = new();
        let first = register(&in_flight, at(0, 7));
        let again = register(&in_flight, at(0, 7));
        drop(again);
        assert!(in_flight.take_done().is_empty());
        drop(first);
        assert_eq!(in_flight.take_done(), [at(0, 7)]);
    }

    #[test]
    fn records_and_bytes_are_bounded() {
        let config = InFlightConfig { bytes_max: RECORD_OVERHEAD * 2, ..InFlightConfig::default() };
        let in_flight = Arc::new(InFlight::new(config));
        let acks = [register(&in_flight, at(0, 1)), register(&in_flight, at(0, 2))];
        assert!(!in_flight.has_capacity());
        drop(acks);
        assert!(in_flight.has_capacity());
    }
}
