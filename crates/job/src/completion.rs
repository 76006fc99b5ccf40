//! Guards that report the end of a delivery when they are dropped.
//!
//! Owns what follows from a completed delivery: the record's ack, the room's next batch, the number
//! of open calls of a comet. Completion is a drop, not a call, so that no exit from a worker, not
//! even a panic, leaves a record open forever.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use goim_ports::RoomId;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

use crate::in_flight::{InFlight, RecordId};

/// What a delivery completes when it ends, whatever its outcome.
#[derive(Debug)]
#[must_use = "dropping it completes the delivery"]
#[expect(dead_code, reason = "held for the effects of its drop")]
pub(crate) enum CompletionGuard {
    /// A push to keys or a broadcast: one record.
    Push(Ack),
    /// A batch of a room: its records, and the room's next batch. No batch guard before it is
    /// dispatched.
    Batch(Vec<Ack>, Option<BatchGuard>),
}

impl CompletionGuard {
    /// The number of records that the delivery carries.
    pub(crate) fn records_len(&self) -> usize {
        match self {
            Self::Push(_) => 1,
            Self::Batch(acks, _) => acks.len(),
        }
    }
}

/// The part that one delivery has in a record. The record completes when its last ack is dropped.
#[derive(Debug, Clone)]
#[must_use = "dropping it completes this part of the record"]
pub(crate) struct Ack {
    _record: Arc<OpenRecord>,
}

#[derive(Debug)]
struct OpenRecord {
    in_flight: Arc<InFlight>,
    id: RecordId,
}

impl Ack {
    pub(crate) fn new(in_flight: &Arc<InFlight>, id: RecordId) -> Self {
        Self { _record: Arc::new(OpenRecord { in_flight: Arc::clone(in_flight), id }) }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.in_flight.finish_silently(std::slice::from_ref(&self.id));
        self.in_flight.notify();
    }
}

/// The rooms of one comet whose batch has completed since the last look.
#[derive(Debug)]
pub(crate) struct Acked {
    rooms: Mutex<Vec<RoomId>>,
    in_flight: Arc<InFlight>,
}

impl Acked {
    pub(crate) fn new(in_flight: Arc<InFlight>) -> Arc<Self> {
        Arc::new(Self { rooms: Mutex::default(), in_flight })
    }

    pub(crate) fn take(&self) -> Vec<RoomId> {
        mem::take(&mut *self.rooms.lock())
    }
}

/// A room's batch in flight. Dropped when the batch is delivered or given up: the room's next batch
/// may leave.
#[derive(Debug)]
pub(crate) struct BatchGuard {
    room: RoomId,
    acked: Arc<Acked>,
}

impl BatchGuard {
    pub(crate) fn new(room: RoomId, acked: &Arc<Acked>) -> Self {
        Self { room, acked: Arc::clone(acked) }
    }
}

impl Drop for BatchGuard {
    fn drop(&mut self) {
        self.acked.rooms.lock().push(self.room.clone());
        // After the entry is in the list, so that the woken task finds it.
        self.acked.in_flight.notify();
    }
}

/// Counts the calls to one comet that are queued in its lanes or in flight.
#[derive(Debug, Default)]
pub(crate) struct OpenCalls {
    count: AtomicUsize,
    gauge: Gauge,
}

impl OpenCalls {
    /// Adds its calls to `gauge`, which all comets share.
    pub(crate) fn new(gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), gauge })
    }

    /// Opens a call until the guard is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> OpenCall {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.gauge.inc();
        OpenCall(Arc::clone(self))
    }

    pub(crate) fn is_zero(&self) -> bool {
        // Pairs with the release in `OpenCall::drop`: the effects of the last call are visible.
        self.count.load(Ordering::Acquire) == 0
    }
}

/// One call that is queued or in flight.
#[derive(Debug)]
pub(crate) struct OpenCall(Arc<OpenCalls>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Release);
        self.0.gauge.dec();
    }
}
