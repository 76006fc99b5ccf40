//! Values of the ports as messages of `api/`, and back.

use std::collections::HashMap;
use std::sync::Arc;

use goim_ports::{
    AcceptedAt, EndCode, Epoch, EventKind, Extended, Extension, LifecycleEvent, Mid, Operation, PacketBuf,
    Position, ResumePosition, RoomCounts, RoomId, RoomScope, Schema, SchemaBody, Sequence, StoredAt,
    SyncOptions, TimelineId, TimelineSeq, Upstream, Version,
};

use super::proto::backend::HandleReq;
use super::proto::cluster;
use super::proto::logic;
use super::proto::protocol::{self, Proto};

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

pub(super) fn event_of(event: cluster::LifecycleEvent) -> LifecycleEvent {
    let kind = match event.kind() {
        cluster::lifecycle_event::Kind::Connect => EventKind::Connect,
        cluster::lifecycle_event::Kind::Disconnect => EventKind::Disconnect,
        cluster::lifecycle_event::Kind::Join => EventKind::Join,
        cluster::lifecycle_event::Kind::Leave => EventKind::Leave,
    };
    LifecycleEvent {
        id: event.id,
        kind,
        mid: Mid(event.mid),
        key: event.key.into(),
        server: event.server.into(),
        rooms: event.rooms.into_iter().map(RoomId::from).collect(),
        reason: event.reason,
        at: AcceptedAt(event.at),
    }
}

pub(super) fn event_message(event: LifecycleEvent) -> cluster::LifecycleEvent {
    let kind = match event.kind {
        EventKind::Connect => cluster::lifecycle_event::Kind::Connect,
        EventKind::Disconnect => cluster::lifecycle_event::Kind::Disconnect,
        EventKind::Join => cluster::lifecycle_event::Kind::Join,
        EventKind::Leave => cluster::lifecycle_event::Kind::Leave,
    };
    cluster::LifecycleEvent {
        id: event.id,
        kind: kind.into(),
        mid: event.mid.0,
        key: event.key.to_string(),
        server: event.server.to_string(),
        rooms: event.rooms.iter().map(ToString::to_string).collect(),
        reason: event.reason,
        at: event.at.0,
    }
}

/// A packet for the backend.
pub(crate) fn handle_req_of(upstream: Upstream) -> HandleReq {
    let Upstream { mid, key, packet, schema, .. } = upstream;
    HandleReq {
        mid: mid.0,
        key: key.to_string(),
        operation: packet.operation.0,
        sequence: packet.sequence.0,
        schema: schema.0.into(),
        body: packet.body,
    }
}

/// A schema beyond the range is one that nobody reads.
pub(crate) fn extension_of(extension: Option<protocol::Extension>) -> Extension {
    let protocol::Extension { bodies, without_first, end, stored } = extension?;
    let mut bodies: Vec<SchemaBody> = bodies
        .into_iter()
        .map(|body| SchemaBody {
            schema: Schema(u16::try_from(body.schema).unwrap_or(u16::MAX)),
            body: body.body,
        })
        .collect();
    bodies.sort_by_key(|body| body.schema);
    let end = u16::try_from(end).ok().filter(|code| *code != 0).map(EndCode);
    Some(Arc::new(Extended { bodies, without_first, end, stored: stored.and_then(stored_of) }))
}

/// Names that are none are left out.
pub(super) fn syncing_of(syncing: logic::SyncOptions) -> SyncOptions {
    let position = |known: logic::ResumePosition| {
        let position = Position { epoch: Epoch(known.epoch), seq: TimelineSeq(known.seq) };
        Some(ResumePosition { timeline: TimelineId::parse(&known.timeline)?, position })
    };
    let positions = syncing.resume.into_iter().filter_map(position).collect();
    SyncOptions { resume: positions, notify_only: syncing.notify_only }
}

pub(super) fn syncing_message_of(syncing: &SyncOptions) -> logic::SyncOptions {
    let position = |known: &ResumePosition| logic::ResumePosition {
        timeline: known.timeline.to_string(),
        epoch: known.position.epoch.0,
        seq: known.position.seq.0,
    };
    logic::SyncOptions {
        resume: syncing.resume.iter().map(position).collect(),
        notify_only: syncing.notify_only,
    }
}

/// `None` for a name that is none: the message is then one like others.
fn stored_of(stored: protocol::StoredAt) -> Option<StoredAt> {
    let protocol::StoredAt { timeline, epoch, seq, sender, accepted_at } = stored;
    Some(StoredAt {
        timeline: TimelineId::parse(&timeline)?,
        position: Position { epoch: Epoch(epoch), seq: TimelineSeq(seq) },
        sender: Mid(sender),
        accepted_at: AcceptedAt(accepted_at),
    })
}

fn stored_message_of(stored: &StoredAt) -> protocol::StoredAt {
    protocol::StoredAt {
        timeline: stored.timeline.to_string(),
        epoch: stored.position.epoch.0,
        seq: stored.position.seq.0,
        sender: stored.sender.0,
        accepted_at: stored.accepted_at.0,
    }
}

pub(crate) fn message_of(extension: &Extension) -> Option<protocol::Extension> {
    let Extended { bodies, without_first, end, stored } = &**extension.as_ref()?;
    let body =
        |body: &SchemaBody| protocol::SchemaBody { schema: body.schema.0.into(), body: body.body.clone() };
    Some(protocol::Extension {
        bodies: bodies.iter().map(body).collect(),
        without_first: *without_first,
        end: end.map_or(0, |end| end.0.into()),
        stored: stored.as_ref().map(stored_message_of),
    })
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
