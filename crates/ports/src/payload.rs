//! What a push carries: a message, a stored message, or the order to disconnect the receivers.
//!
//! `B` is the form of the body in the first schema: its bytes in the push log, a packet on the way
//! from job to comet. A push of goim is a message with this body alone; it owns no heap memory
//! besides the body itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::{AcceptedAt, CloseReason, Mid, PacketBuf, Position, Schema, TimelineId};

/// What a push carries. Cloning copies no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<B = Bytes> {
    /// A transient message.
    Message(Bodies<B>),
    /// A message in a timeline: sessions that sync get a notification, the others the message
    /// itself.
    Stored {
        /// The position of the message, and its sender.
        at: Arc<StoredAt>,
        /// The bodies. `None` sends only the notification, to the sessions that sync: a duplicate,
        /// whose bodies have been delivered before.
        bodies: Option<Bodies<B>>,
    },
    /// Closes the receivers' sessions for this reason.
    Disconnect(CloseReason),
}

/// The bodies of one message, at least one. Each session gets the highest schema that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bodies<B = Bytes> {
    /// In the first schema.
    primary: Option<B>,
    /// In other schemas, ascending; never an empty list. A thin pointer keeps pushes small.
    others: Option<Arc<Vec<SchemaBody>>>,
}

/// The position of a stored message, and what is stored with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAt {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position of the message.
    pub position: Position,
    /// The sender; anonymous for the backend.
    pub sender: Mid,
    /// When the publisher's request was accepted.
    pub accepted_at: AcceptedAt,
}

/// A body in one schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaBody {
    /// The schema.
    pub schema: Schema,
    /// The body.
    pub body: Bytes,
}

impl<B> Bodies<B> {
    /// Creates the body of a message in the first schema only, as goim has it.
    #[must_use]
    pub const fn plain(primary: B) -> Self {
        Self { primary: Some(primary), others: None }
    }

    /// Creates the bodies of a message in several schemas; `None` when there is no body at all.
    #[must_use]
    pub fn new(primary: Option<B>, mut others: Vec<SchemaBody>) -> Option<Self> {
        others.sort_by_key(|body| body.schema);
        let others = (!others.is_empty()).then(|| Arc::new(others));
        (primary.is_some() || others.is_some()).then_some(Self { primary, others })
    }

    /// Returns the body in the first schema, if there is one.
    #[inline]
    #[must_use]
    pub const fn primary(&self) -> Option<&B> {
        self.primary.as_ref()
    }

    /// Returns the bodies in other schemas, ascending.
    #[inline]
    #[must_use]
    pub fn others(&self) -> &[SchemaBody] {
        self.others.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Returns the same bodies with the first one in another form.
    #[inline]
    #[must_use]
    pub fn map<C>(self, form: impl FnOnce(B) -> C) -> Bodies<C> {
        Bodies { primary: self.primary.map(form), others: self.others }
    }

    fn others_len(&self) -> usize {
        self.others().iter().map(|body| body.body.len().saturating_add(8)).sum()
    }
}

impl Bodies {
    /// Returns the body in the first schema, empty if there is none: goim knows no difference.
    #[must_use]
    pub fn primary_bytes(&self) -> &[u8] {
        self.primary.as_deref().unwrap_or_default()
    }

    /// Returns the size of all bodies in bytes, with 8 for each of another schema than the first.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.primary_bytes().len().saturating_add(self.others_len())
    }
}

impl<B> Payload<B> {
    /// Creates a message in the first schema only: a push of goim.
    #[inline]
    #[must_use]
    pub const fn plain(primary: B) -> Self {
        Self::Message(Bodies::plain(primary))
    }

    /// Returns true for a push of goim: a transient message in the first schema only.
    #[inline]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        matches!(self, Self::Message(Bodies { others: None, .. }))
    }

    /// Returns the bodies, if any are sent.
    #[inline]
    #[must_use]
    pub const fn bodies(&self) -> Option<&Bodies<B>> {
        match self {
            Self::Message(bodies) => Some(bodies),
            Self::Stored { bodies, .. } => bodies.as_ref(),
            Self::Disconnect(_) => None,
        }
    }

    /// Returns the body in the first schema, if one is sent.
    #[inline]
    #[must_use]
    pub fn primary(&self) -> Option<&B> {
        self.bodies()?.primary()
    }

    /// Returns the body in the first schema, if one is sent.
    #[inline]
    #[must_use]
    pub fn into_primary(self) -> Option<B> {
        match self {
            Self::Message(bodies) => bodies.primary,
            Self::Stored { bodies, .. } => bodies?.primary,
            Self::Disconnect(_) => None,
        }
    }

    /// Returns the bodies in other schemas, ascending.
    #[inline]
    #[must_use]
    pub fn others(&self) -> &[SchemaBody] {
        self.bodies().map_or(&[], Bodies::others)
    }

    /// Returns where the message is stored; `None` for a transient one.
    #[inline]
    #[must_use]
    pub fn stored(&self) -> Option<&StoredAt> {
        match self {
            Self::Stored { at, .. } => Some(at),
            Self::Message(_) | Self::Disconnect(_) => None,
        }
    }

    /// Returns the same payload with the body of the first schema in another form.
    #[inline]
    #[must_use]
    pub fn map<C>(self, form: impl FnOnce(B) -> C) -> Payload<C> {
        match self {
            Self::Message(bodies) => Payload::Message(bodies.map(form)),
            Self::Stored { at, bodies } => {
                Payload::Stored { at, bodies: bodies.map(|bodies| bodies.map(form)) }
            }
            Self::Disconnect(reason) => Payload::Disconnect(reason),
        }
    }

    /// Returns the size in bytes, near enough for a limit, of what goim's pushes do not have.
    #[must_use]
    pub fn extension_len(&self) -> usize {
        let stored = self.stored().map_or(0, |stored| {
            40 + match &stored.timeline {
                TimelineId::Inbox(_) => 26,
                TimelineId::Room(room) => room.as_str().len(),
            }
        });
        self.bodies().map_or(0, Bodies::others_len).saturating_add(stored)
    }
}

impl Payload {
    /// Returns the body in the first schema, empty if none is sent: goim knows no difference.
    #[must_use]
    pub fn primary_bytes(&self) -> &[u8] {
        self.bodies().map_or(&[], Bodies::primary_bytes)
    }

    /// Returns the size of everything that is carried in bytes, near enough for a limit.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.primary_bytes().len().saturating_add(self.extension_len())
    }
}

impl Payload<PacketBuf> {
    /// Returns the size in bytes of the packet's body, zero if no packet is sent.
    #[inline]
    #[must_use]
    pub fn packet_body_len(&self) -> usize {
        self.primary().map_or(0, |packet| packet.body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, TimelineSeq};

    fn other(schema: u16, body: &'static str) -> SchemaBody {
        SchemaBody { schema: Schema(schema), body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn a_message_has_at_least_one_body() {
        assert_eq!(Bodies::<Bytes>::new(None, Vec::new()), None);
        assert_eq!(Bodies::new(Some(7), Vec::new()), Some(Bodies::plain(7)));
        let bodies = Bodies::<Bytes>::new(None, vec![other(3, "three"), other(2, "two")]).unwrap();
        assert_eq!(bodies.others(), [other(2, "two"), other(3, "three")]);
        assert_eq!((bodies.primary(), bodies.primary_bytes(), bodies.bytes_len()), (None, &b""[..], 24));
    }

    #[test]
    fn only_a_message_in_the_first_schema_is_plain() {
        let at = Arc::new(StoredAt {
            timeline: TimelineId::Room("live://1".into()),
            position: crate::Position { epoch: Epoch(1), seq: TimelineSeq(2) },
            sender: Mid(7),
            accepted_at: AcceptedAt(9),
        });
        let body = Bytes::from_static(b"hello");
        let plain = Payload::plain(body.clone());
        assert!(plain.is_plain());
        assert_eq!((plain.extension_len(), plain.bytes_len()), (0, 5));
        let both = Bodies::new(Some(body.clone()), vec![other(2, "two")]).unwrap();
        for (payload, sent, extension_len) in [
            (Payload::Message(both.clone()), Some(&body), 11),
            (Payload::Stored { at: Arc::clone(&at), bodies: Some(both) }, Some(&body), 59),
            (Payload::Stored { at, bodies: None }, None, 48),
            (Payload::Disconnect(CloseReason::Kicked), None, 0),
        ] {
            assert!(!payload.is_plain());
            assert_eq!((payload.primary(), payload.extension_len()), (sent, extension_len), "{payload:?}");
            let lens = payload.clone().map(|body| body.len());
            assert_eq!(lens.into_primary(), sent.map(Bytes::len));
        }
    }
}
