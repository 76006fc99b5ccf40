//! The variants of one message: its bodies by schema, and each of them by encoding.
//!
//! Shared by all shards. A variant is encoded at most once; shards that need it at the same time
//! wait for the one that encodes it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use goim_ports::{Encoding, Operation, PacketBuf, Payload, Schema, Sequence, StoredAt, Version};
use goim_session::EncodedPush;
use goim_wire::{Packet, batch, sync};

use super::notification::notify_packet;
use super::profile::{ProfileId, ReaderProfile, ReaderProfiles, SyncMode};
use crate::danmaku;
use crate::listener::Dialect;

/// One value for each encoding, set when it is first needed.
type ByEncoding<T> = [OnceLock<T>; Encoding::ALL.len()];

/// A message with its variants.
#[derive(Debug)]
pub(super) struct Message {
    profiles: Arc<ReaderProfiles>,
    payload: Payload<PacketBuf>,
    /// The operation of the message inside.
    operation: Operation,
    /// The bodies, at most one for each schema.
    bodies: Vec<BodyVariants>,
    /// The body in the first schema, for danmaku clients.
    danmaku: ByEncoding<EncodedVariant>,
    /// The notification without the message.
    notification: OnceLock<PacketBuf>,
    /// A member's message with its sender; `None` when there is no body in the first schema.
    with_sender: OnceLock<Option<PacketBuf>>,
}

/// One body with its variants.
#[derive(Debug)]
struct BodyVariants {
    schema: Schema,
    body: Body,
    by_encoding: ByEncoding<EncodedVariant>,
    /// The frame for permessage-deflate; `None` when that gains nothing.
    deflated: OnceLock<Option<Bytes>>,
}

/// A body as it was received.
#[derive(Debug)]
enum Body {
    /// The packet that job encoded, which v2 clients get.
    Primary(PacketBuf),
    /// The bytes in another schema.
    Other(Bytes),
}

/// A body as it is sent.
#[derive(Debug, Clone)]
enum EncodedVariant {
    /// As goim v2 does it: on a stream, the packets of a batch are sent without its header.
    V2(PacketBuf),
    /// One packet, whatever its operation.
    Whole(PacketBuf),
    /// Packets one after another, with nothing around them.
    Run(Bytes),
}

impl EncodedVariant {
    fn to_push(&self) -> EncodedPush {
        match self.clone() {
            Self::V2(packet) => EncodedPush::new(packet),
            Self::Whole(packet) => EncodedPush::whole(packet),
            Self::Run(packets) => EncodedPush::run(packets),
        }
    }
}

impl BodyVariants {
    fn new(schema: Schema, body: Body) -> Self {
        Self { schema, body, by_encoding: Default::default(), deflated: OnceLock::new() }
    }

    /// Returns the body alone. `None` when the packet of job is a batch that cannot be read.
    fn bytes(&self) -> Option<Bytes> {
        match &self.body {
            Body::Other(bytes) => Some(bytes.clone()),
            Body::Primary(packet) if packet.operation == Operation::RAW => {
                let first = batch::packets(&packet.body).next()?.ok()?;
                Some(packet.body.slice_ref(first.body))
            }
            Body::Primary(packet) => Some(packet.body.clone()),
        }
    }
}

impl Message {
    /// Creates a message without variants. `operation` is for a payload whose packet names none.
    pub(super) fn new(
        payload: Payload<PacketBuf>,
        operation: Operation,
        profiles: Arc<ReaderProfiles>,
    ) -> Self {
        let operation = payload.primary().map_or(operation, PacketBuf::carried_operation);
        let others = payload.others().iter();
        let others = others.map(|body| BodyVariants::new(body.schema, Body::Other(body.body.clone())));
        let primary = payload.primary();
        let primary = primary.map(|packet| BodyVariants::new(Schema::FIRST, Body::Primary(packet.clone())));
        let bodies = others.chain(primary).collect();
        let (danmaku, notification, with_sender) = Default::default();
        Self { profiles, payload, operation, bodies, danmaku, notification, with_sender }
    }

    pub(super) fn payload(&self) -> &Payload<PacketBuf> {
        &self.payload
    }

    pub(super) fn profiles(&self) -> &ReaderProfiles {
        &self.profiles
    }

    fn body_in(&self, schema: Schema) -> Option<&BodyVariants> {
        self.bodies.iter().find(|body| body.schema == schema)
    }

    /// Returns the body in the highest schema that the profile reads.
    fn body_for(&self, profile: &ReaderProfile) -> Option<&BodyVariants> {
        let table = self.profiles.table();
        let schema = table.schema_for(profile.protover, |schema| self.body_in(schema).is_some())?;
        self.body_in(schema)
    }

    /// Returns what sessions of a profile get; `None` when they read none of the bodies.
    pub(super) fn push_for(&self, id: ProfileId) -> Option<EncodedPush> {
        let profile = self.profiles.get(id)?;
        if profile.sync != SyncMode::Off
            && let Some(stored) = self.payload.stored()
        {
            return Some(EncodedPush::whole(self.notification_for(stored, profile)));
        }
        let body = self.body_for(profile)?;
        let encoding = profile.encoding;
        let variant = match profile.dialect {
            Dialect::Goim => body.by_encoding[encoding as usize].get_or_init(|| self.encode(body, encoding)),
            Dialect::Danmaku => {
                let packet = self.payload.primary()?;
                self.danmaku[encoding as usize].get_or_init(|| self.encode_danmaku(packet, encoding))
            }
        };
        let push = variant.to_push();
        if !profile.deflates {
            return Some(push);
        }
        let frame = body.deflated.get_or_init(|| self.profiles.compressor().deflate(&push));
        Some(match frame {
            Some(frame) => push.with_frame(frame.clone()),
            None => push,
        })
    }

    fn encode(&self, body: &BodyVariants, encoding: Encoding) -> EncodedVariant {
        let packet = match &body.body {
            Body::Primary(packet) => packet.clone(),
            Body::Other(bytes) => self.packet_of(body.schema, bytes),
        };
        // What is compressed is the run of packets inside operation 9, as a whole.
        let Some(body) = self.profiles.compressor().compress(encoding, &run_of(&packet)) else {
            return EncodedVariant::V2(packet);
        };
        let version = self.profiles.table().first_with(encoding).unwrap_or(Version::GOIM);
        let (operation, sequence) = (Operation::RAW, Sequence::NONE);
        EncodedVariant::Whole(PacketBuf { version, operation, sequence, body })
    }

    /// Encodes a body of another schema than the first as a batch of one packet.
    fn packet_of(&self, schema: Schema, body: &Bytes) -> PacketBuf {
        let row = self.profiles.table().plain(schema);
        let (version, encoding) =
            row.map_or((Version::GOIM, Encoding::Identity), |row| (row.version, row.encoding));
        // The table may have a schema in a compressed version only: then it must be compressed.
        let body = match encoding {
            Encoding::Identity => body.clone(),
            encoding => self.profiles.compressor().compress_always(encoding, body),
        };
        let (operation, sequence) = (self.operation, Sequence::NONE);
        batch::BatchBuilder::one(Packet { version, operation, sequence, body: &body })
    }

    fn encode_danmaku(&self, packet: &PacketBuf, encoding: Encoding) -> EncodedVariant {
        let run = danmaku::run(&run_of(packet));
        match self.profiles.compressor().compress(encoding, &run) {
            Some(body) => EncodedVariant::Whole(danmaku::compressed(encoding, body)),
            None => EncodedVariant::Run(run),
        }
    }

    /// Returns the notification of a stored message, with the message when it is small and wanted.
    fn notification_for(&self, stored: &StoredAt, profile: &ReaderProfile) -> PacketBuf {
        let inline = match profile.sync {
            SyncMode::WithMessages => self.inline_message(stored, profile),
            SyncMode::NotifyOnly | SyncMode::Off => None,
        };
        match inline {
            Some(message) => notify_packet(&stored.timeline, stored.position, vec![message]),
            None => {
                let encode = || notify_packet(&stored.timeline, stored.position, Vec::new());
                self.notification.get_or_init(encode).clone()
            }
        }
    }

    /// Returns the message as a sync would, when it is small enough to be sent with its
    /// notification.
    fn inline_message(&self, stored: &StoredAt, profile: &ReaderProfile) -> Option<sync::Message> {
        // A duplicate is notified only: it was sent with the first notification.
        self.payload.bodies()?;
        let Some(body) = self.body_for(profile) else {
            let message = self.stored_message(stored, Schema::FIRST, Bytes::new());
            return Some(sync::Message { unreadable: true, ..message });
        };
        let bytes = body.bytes()?;
        let is_small = bytes.len() <= self.profiles.inline_bytes_max;
        is_small.then(|| self.stored_message(stored, body.schema, bytes))
    }

    /// Returns a member's message with its sender, for which a push has no field. `None` when there
    /// is no body in the first schema, the only one that members send.
    pub(super) fn with_sender(&self, stored: &StoredAt) -> Option<PacketBuf> {
        let encode = || {
            let primary = self.bodies.iter().find(|body| matches!(body.body, Body::Primary(_)))?;
            let message = self.stored_message(stored, Schema::FIRST, primary.bytes()?);
            let notify = notify_packet(&stored.timeline, stored.position, vec![message]);
            Some(PacketBuf { operation: Operation::MEMBER_MESSAGE, ..notify })
        };
        self.with_sender.get_or_init(encode).clone()
    }

    /// Returns a message as a sync would.
    fn stored_message(&self, stored: &StoredAt, schema: Schema, body: Bytes) -> sync::Message {
        let version = self.profiles.table().plain(schema).map_or(Version::GOIM, |row| row.version);
        sync::Message {
            seq: stored.position.seq.0,
            operation: self.operation.0,
            version: version.0.into(),
            time_ms: i64::try_from(stored.accepted_at.0 / 1000).unwrap_or(i64::MAX),
            sender: stored.sender.0,
            unreadable: false,
            body,
            deleted: false,
        }
    }
}

/// Returns the run of packets that a packet is or carries.
fn run_of(packet: &PacketBuf) -> Bytes {
    match packet.operation {
        Operation::RAW => packet.body.clone(),
        _ => packet.to_message_bytes(),
    }
}
