//! Values of the ports as messages of `api/`, and back.

use std::collections::HashMap;
use std::sync::Arc;

use goim_ports::{AcceptedAt, Operation, PacketBuf, RoomCounts, RoomId, RoomScope, Sequence, Version};

use super::proto::logic;
use super::proto::protocol::Proto;

pub(super) fn packet_of(proto: Proto) -> PacketBuf {
    PacketBuf {
        // The wire has sixteen bits; goim takes the low ones.
        version: Version(proto.ver as i16),
        operation: Operation(proto.op),
        sequence: Sequence(proto.seq),
        body: proto.body,
    }
}

pub(super) fn proto_of(packet: PacketBuf) -> Proto {
    Proto {
        ver: i32::from(packet.version.0),
        op: packet.operation.0,
        seq: packet.sequence.0,
        body: packet.body,
    }
}

pub(super) fn scope_of(scope: Option<logic::RoomScope>) -> Option<RoomScope> {
    scope.map(|scope| RoomScope(Arc::new(scope.rooms)))
}

pub(super) fn rooms_of(scope: Option<RoomScope>) -> Option<logic::RoomScope> {
    scope.map(|scope| logic::RoomScope { rooms: scope.0.to_vec() })
}

/// Zero, the value of an absent field, is not a time.
pub(super) fn accepted_at_of(micros: u64) -> Option<AcceptedAt> {
    (micros != 0).then_some(AcceptedAt(micros))
}

pub(super) fn micros_of(accepted_at: Option<AcceptedAt>) -> u64 {
    accepted_at.map_or(0, |at| at.0)
}

/// Rooms with no sessions, or with fewer as goim's comets may report, are left out.
pub(super) fn counts_of(rooms: HashMap<String, i32>) -> RoomCounts {
    let count = |(room, count): (String, i32)| match u32::try_from(count) {
        Ok(0) | Err(_) => None,
        Ok(count) => Some((RoomId::from(room), count)),
    };
    Arc::new(rooms.into_iter().filter_map(count).collect())
}

pub(super) fn map_of(counts: &RoomCounts) -> HashMap<String, i32> {
    counts.iter().map(|(room, count)| (room.to_string(), i32::try_from(*count).unwrap_or(i32::MAX))).collect()
}
