//! Notifications: operation 20, by which sessions that sync learn of stored messages.

use goim_ports::{Operation, PacketBuf, Position, TimelineId};
use goim_wire::sync::{self, Body as _};

/// Encodes a notification of the latest position of a timeline, with `messages` that are small
/// enough to be sent along.
pub(crate) fn notify_packet(
    timeline: &TimelineId,
    position: Position,
    messages: Vec<sync::Message>,
) -> PacketBuf {
    let latest = Some(sync::Position { epoch: position.epoch.0, seq: position.seq.0 });
    let notify = sync::Notify { timeline: timeline.to_string(), latest, messages };
    PacketBuf::push(Operation::NOTIFY, notify.write().into())
}
