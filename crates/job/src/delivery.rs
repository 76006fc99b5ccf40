//! One delivery: a call to one comet, from the record it is made of until the comet has answered.
//!
//! This is the only type that wraps a message in this crate. Intake and rooms create deliveries,
//! routing may hold them, lanes queue them, and dropping one completes its records.

use std::num::NonZeroU32;

use bytes::Bytes;
use goim_ports::{Broadcast, KeyPush, Operation, PacketBuf, RoomPush, ServerId};
use goim_wire::batch::BatchBuilder;

use crate::completion::{CompletionGuard, OpenCall};

/// A call to one comet with everything that its end completes.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) server: ServerId,
    pub(crate) push: Push,
    /// Set while the delivery is in a lane. Declared before `guard`, so that it is dropped first:
    /// when a record completes, its comet already counts as idle and the fast path is open again.
    pub(crate) open: Option<OpenCall>,
    pub(crate) guard: CompletionGuard,
}

/// The argument of the comet's method.
#[derive(Debug)]
pub(crate) enum Push {
    Keys(KeyPush),
    Room(RoomPush),
    All(Broadcast),
}

impl Delivery {
    pub(crate) fn new(server: ServerId, push: Push, guard: CompletionGuard) -> Self {
        Self { server, push, open: None, guard }
    }

    /// The push to keys, if it is one. Only those may share a call with others.
    pub(crate) fn key_push(&self) -> Option<&KeyPush> {
        if let Push::Keys(push) = &self.push { Some(push) } else { None }
    }
}

/// Encodes one message the way comets expect it: a packet inside a batch.
pub(crate) fn encode(operation: Operation, body: Bytes) -> PacketBuf {
    BatchBuilder::one(PacketBuf::push(operation, body).as_packet())
}

/// Returns one comet's share of a total speed. At least one, because zero would mean unlimited.
pub(crate) fn share_of_speed(speed: NonZeroU32, comets: usize) -> NonZeroU32 {
    let comets = u32::try_from(comets).unwrap_or(u32::MAX).max(1);
    NonZeroU32::new(speed.get() / comets).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_shared_and_never_zero() {
        for (speed, comets, share) in [(100, 2, 50), (100, 3, 33), (1, 2, 1), (7, 1, 7), (5, 0, 5)] {
            let speed = NonZeroU32::new(speed).expect("not zero");
            assert_eq!(share_of_speed(speed, comets).get(), share, "{speed} over {comets}");
        }
    }

    #[test]
    fn a_message_is_a_packet_in_a_batch() {
        // Row 68 of goim's conformance table.
        let packet = encode(Operation(1000), Bytes::from_static(b"hello"));
        assert_eq!((packet.version.0, packet.operation, packet.sequence.0), (1, Operation::RAW, 0));
        assert_eq!(packet.body[..], *b"\0\0\0\x15\0\x10\0\x01\0\0\x03\xe8\0\0\0\0hello");
    }
}
