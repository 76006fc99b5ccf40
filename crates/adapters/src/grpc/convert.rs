//! Conversions between the values of the ports and the messages of `api/`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use goim_ports::{
    AcceptedAt, Bodies, CloseReason, Epoch, EventKind, LifecycleEvent, Mid, Operation, PacketBuf, Payload,
    Position, ResumePosition, RoomCounts, RoomId, RoomScope, Schema, SchemaBody, Sequence, StoredAt,
    SyncOptions, TimelineCall, TimelineId, TimelineRequest, TimelineSeq, Upstream, Version,
};

use super::proto::backend::HandleReq;
use super::proto::cluster;
use super::proto::logic;
use super::proto::protocol::{self, Proto};

pub(super) fn packet_of(proto: Proto) -> PacketBuf {
    PacketBuf {
        // The wire has 16 bits; goim uses the low ones.
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

/// Converts a packet for the backend.
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

pub(super) fn timeline_req_of(request: TimelineRequest) -> cluster::TimelineReq {
    use cluster::timeline_req::Call;
    let TimelineRequest { mid, key, protover, sequence, call } = request;
    let (call, is_room_member) = match call {
        TimelineCall::Sync(body) => (Call::Sync(body), false),
        TimelineCall::Ack(body) => (Call::Ack(body), false),
        TimelineCall::Send { body, is_room_member } => (Call::Send(body), is_room_member),
    };
    cluster::TimelineReq {
        mid: mid.0,
        key: key.to_string(),
        protover: protover.0.into(),
        sequence: sequence.0,
        call: Some(call),
        is_room_member,
    }
}

/// `None` for a call that a newer comet has and this logic does not.
pub(super) fn timeline_request_of(request: cluster::TimelineReq) -> Option<TimelineRequest> {
    use cluster::timeline_req::Call;
    let cluster::TimelineReq { mid, key, protover, sequence, call, is_room_member } = request;
    let call = match call? {
        Call::Sync(body) => TimelineCall::Sync(body),
        Call::Ack(body) => TimelineCall::Ack(body),
        Call::Send(body) => TimelineCall::Send { body, is_room_member },
    };
    let protover = Version(i16::try_from(protover).unwrap_or(i16::MAX));
    Some(TimelineRequest { mid: Mid(mid), key: key.into(), protover, sequence: Sequence(sequence), call })
}

/// Converts the payload of a push: goim's field, and our extension of the message. `None` if it has
/// neither a body nor a position.
///
/// A schema beyond the range is one that no session reads. A disconnect for an unknown reason, from
/// a newer node, counts as [`CloseReason::Kicked`].
pub(crate) fn payload_of<B>(primary: B, extension: Option<protocol::Extension>) -> Option<Payload<B>> {
    let Some(extension) = extension else { return Some(Payload::plain(primary)) };
    let protocol::Extension { bodies, no_primary_body, disconnect, stored } = extension;
    if disconnect != 0 {
        let reason = u16::try_from(disconnect).ok().and_then(CloseReason::from_code);
        return Some(Payload::Disconnect(reason.unwrap_or(CloseReason::Kicked)));
    }
    let others = bodies.into_iter().map(|body| SchemaBody {
        schema: Schema(u16::try_from(body.schema).unwrap_or(u16::MAX)),
        body: body.body,
    });
    let bodies = Bodies::new((!no_primary_body).then_some(primary), others.collect());
    match stored.and_then(stored_of) {
        Some(at) => Some(Payload::Stored { at: Arc::new(at), bodies }),
        None => bodies.map(Payload::Message),
    }
}

/// Leaves out names that are no timelines.
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

/// `None` for a name that is no timeline: the message then counts as transient.
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

/// Converts the part of a payload that goim's messages have no field for; `None` for a push of
/// goim.
pub(crate) fn extension_of<B>(payload: &Payload<B>) -> Option<protocol::Extension> {
    if payload.is_plain() {
        return None;
    }
    let body =
        |body: &SchemaBody| protocol::SchemaBody { schema: body.schema.0.into(), body: body.body.clone() };
    Some(protocol::Extension {
        bodies: payload.others().iter().map(body).collect(),
        no_primary_body: payload.primary().is_none(),
        disconnect: match payload {
            Payload::Disconnect(reason) => reason.code().into(),
            Payload::Message(_) | Payload::Stored { .. } => 0,
        },
        stored: payload.stored().map(stored_message_of),
    })
}

/// Converts the packet of goim's field, which is required: an empty message if there is no body in
/// the first schema.
pub(super) fn primary_proto_of(payload: Payload<PacketBuf>, operation: Operation) -> Proto {
    let empty = || PacketBuf::push(operation, Bytes::new()).to_message_bytes();
    proto_of(payload.into_primary().unwrap_or_else(|| PacketBuf::push(Operation::RAW, empty())))
}

/// Zero is the value of an absent field.
pub(super) fn accepted_at_of(micros: u64) -> Option<AcceptedAt> {
    (micros != 0).then_some(AcceptedAt(micros))
}

pub(super) fn micros_of(accepted_at: Option<AcceptedAt>) -> u64 {
    accepted_at.map_or(0, |at| at.0)
}

/// Leaves out rooms with zero sessions, or with a negative number, which goim's comets may report.
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
