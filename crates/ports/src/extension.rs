//! What goes with a push beyond goim's: bodies in other schemas, the place in a timeline, and orders to end sessions.

use std::sync::Arc;

use bytes::Bytes;

use crate::{AcceptedAt, Mid, Position, Schema, TimelineId};

/// What goes with a push; `None` is a push of goim. Shared by reference: it travels with every copy of the message.
pub type Extension = Option<Arc<Extended>>;

/// The same, when there is something.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extended {
    /// The message in other schemas than the first, by schema, ascending. Each session gets the highest that it reads.
    pub bodies: Vec<SchemaBody>,
    /// The message has no body in the first schema: what stands in its place is nothing, and who reads no other schema gets
    /// nothing.
    pub without_first: bool,
    /// Nothing is sent: the receivers' sessions end with this code of `goim_session::CloseReason`.
    pub end: Option<EndCode>,
    /// The message is in a timeline: a session that syncs is told so, in place of the message or with it.
    pub stored: Option<StoredAt>,
}

/// Where a message is in a timeline, and what stands with it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAt {
    /// The timeline.
    pub timeline: TimelineId,
    /// The message's place.
    pub position: Position,
    /// Who has sent it.
    pub sender: Mid,
    /// When it was taken from its publisher.
    pub accepted_at: AcceptedAt,
}

/// A message in one schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaBody {
    /// Which one.
    pub schema: Schema,
    /// The body.
    pub body: Bytes,
}

/// Why sessions are to be ended: a code of the table of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndCode(pub u16);

impl Extended {
    /// Bytes of the bodies, and of what else goes with a message.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        let bodies: usize = self.bodies.iter().map(|body| body.body.len().saturating_add(8)).sum();
        let name = |timeline: &TimelineId| match timeline {
            TimelineId::Inbox(_) => 26,
            TimelineId::Room(room) => room.as_str().len(),
        };
        bodies.saturating_add(self.stored.as_ref().map_or(0, |stored| 40 + name(&stored.timeline)))
    }
}
