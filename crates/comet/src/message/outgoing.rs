//! A message as a command carries it to one shard.
//!
//! Owns what that shard sends for each profile. The variants are shared with other shards.

use std::cell::OnceCell;
use std::sync::Arc;

use goim_ports::{CloseReason, Operation, PacketBuf, Payload, StoredAt};
use goim_session::EncodedPush;

use super::profile::{ProfileId, ReaderProfiles};
use super::variant::Message;

/// A message for one shard.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// As job encoded it, for v2 clients. `None` without a body in the first schema; then `other`
    /// is set.
    primary: Option<EncodedPush>,
    /// For other profiles. Not set until a session needs it, so that a message for v2 clients only
    /// costs no more than its bytes.
    other: OnceCell<Box<ShardVariants>>,
}

/// What one shard sends to sessions that do not get the primary packet.
#[derive(Debug)]
struct ShardVariants {
    message: Arc<Message>,
    /// By profile; `None` inside for one that reads none of the bodies.
    by_profile: Box<[OnceCell<Option<EncodedPush>>]>,
    /// A member's message with its sender.
    with_sender: OnceCell<Option<EncodedPush>>,
}

impl ShardVariants {
    fn new(message: Arc<Message>) -> Box<Self> {
        let by_profile = (0..message.profiles().len()).map(|_| OnceCell::new()).collect();
        Box::new(Self { message, by_profile, with_sender: OnceCell::new() })
    }
}

impl Outgoing {
    /// Creates a message from what job sent. `operation` is for a payload whose packet names none.
    pub(crate) fn new(
        payload: Payload<PacketBuf>,
        operation: Operation,
        profiles: &Arc<ReaderProfiles>,
    ) -> Self {
        let other = if !payload.is_plain() || profiles.are_needed() {
            let message = Message::new(payload.clone(), operation, Arc::clone(profiles));
            OnceCell::from(ShardVariants::new(Arc::new(message)))
        } else {
            OnceCell::new()
        };
        Self { primary: payload.into_primary().map(EncodedPush::new), other }
    }

    /// Returns the same message for another shard.
    pub(crate) fn for_another_shard(&self) -> Self {
        let other = self.other.get().map_or_else(OnceCell::new, |variants| {
            OnceCell::from(ShardVariants::new(Arc::clone(&variants.message)))
        });
        Self { primary: self.primary.as_ref().map(EncodedPush::for_another_thread), other }
    }

    /// Returns what job sent.
    pub(crate) fn into_payload(self) -> Payload<PacketBuf> {
        match (self.other.into_inner(), self.primary) {
            (Some(variants), _) => variants.message.payload().clone(),
            (None, Some(primary)) => Payload::plain(primary.into_packet()),
            (None, None) => unreachable!("a message without a primary body has its variants"),
        }
    }

    /// Returns the position of a stored message.
    #[inline]
    pub(crate) fn stored(&self) -> Option<&StoredAt> {
        self.other.get()?.message.payload().stored()
    }

    /// Returns why the sessions are to be closed, if that is what the message is for.
    #[inline]
    pub(crate) fn disconnect_reason(&self) -> Option<CloseReason> {
        match self.other.get()?.message.payload() {
            Payload::Disconnect(reason) => Some(*reason),
            Payload::Message(_) | Payload::Stored { .. } => None,
        }
    }

    /// Returns a member's message with its sender, for negotiated clients that do not sync. `None`
    /// when the message has no body in the first schema.
    pub(crate) fn with_sender(&self, stored: &StoredAt) -> Option<&EncodedPush> {
        let variants = self.other.get()?;
        let encode = || variants.message.with_sender(stored).map(EncodedPush::whole);
        variants.with_sender.get_or_init(encode).as_ref()
    }

    /// Returns what sessions of a profile get; `None` when they read none of the bodies.
    #[inline]
    pub(crate) fn for_profile(
        &self,
        profile: ProfileId,
        profiles: &Arc<ReaderProfiles>,
    ) -> Option<&EncodedPush> {
        if profile == ProfileId::V2 {
            return self.primary.as_ref();
        }
        let variants = match (self.other.get(), &self.primary) {
            (Some(variants), _) => variants,
            // The first session that needs variants was opened after the message was received.
            (None, Some(primary)) => self.other.get_or_init(|| {
                let packet = primary.clone().into_packet();
                let operation = packet.carried_operation();
                let message = Message::new(Payload::plain(packet), operation, Arc::clone(profiles));
                ShardVariants::new(Arc::new(message))
            }),
            (None, None) => return None,
        };
        let push = variants.by_profile.get(profile.index())?;
        push.get_or_init(|| variants.message.push_for(profile)).as_ref()
    }
}
