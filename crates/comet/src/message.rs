//! A message on its way to sessions that do not all read the same: which body each gets, and how it is written.
//!
//! Sessions are of *classes*: those of one class get the same bytes. The first class is goim's, and for it a message is encoded as
//! job has made it; a comet that has no other sessions does nothing else. For the others a message has *forms*, one for each schema and
//! encoding that a class needs. A form is made when the first session asks for it, once for all shards, so that compressing costs one
//! compression a message, however many sessions get it.
//!
//! What is compressed is the run of packets inside operation 9, as a whole.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use goim_compression::{Levels, compress, deflate_message};
use goim_ports::{
    Encoding, EndCode, Extended, Extension, Operation, PacketBuf, Position, Schema, Sequence, StoredAt,
    TimelineId, Version, VersionTable,
};
use goim_session::{CloseReason, EncodedPush};
use goim_wire::sync::{self, Body as _};
use goim_wire::{Packet, batch};

use crate::config::CompressionConfig;
use crate::danmaku;
use crate::listener::Dialect;

/// Names a class. The first is goim's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClassId(u8);

impl ClassId {
    pub(crate) const GOIM: Self = Self(0);
}

/// What sessions of one class read.
#[derive(Debug, Clone, Copy)]
struct Class {
    dialect: Dialect,
    protover: Version,
    /// The best encoding that it reads.
    encoding: Encoding,
    /// Whole messages are compressed, over WebSocket: for those that read no encoding.
    deflates: bool,
    /// What is said of a message in a timeline.
    syncs: Syncs,
}

/// What a session is told of a message that is in a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Syncs {
    /// Nothing: it gets the message, as one like others.
    #[default]
    No,
    /// That it is there; and the message, when it is small.
    WithMessages,
    /// That it is there.
    NotifyOnly,
}

/// The classes of a comet, and what compressing costs it.
#[derive(Debug)]
pub(crate) struct Versions {
    table: VersionTable,
    config: CompressionConfig,
    /// Bodies up to this go with the word that they are in a timeline.
    inline_bytes_max: usize,
    classes: Vec<Class>,
    /// Sessions of other classes than the first.
    readers: AtomicUsize,
    /// By encoding; nothing is written in the first.
    compressed: [Compressed; Encoding::ALL.len()],
    /// Whole messages for those who deflate.
    deflated: Compressed,
}

/// What was compressed with one encoding.
#[derive(Debug, Default)]
pub(crate) struct Compressed {
    pub(crate) count: AtomicU64,
    pub(crate) bytes_before: AtomicU64,
    pub(crate) bytes_after: AtomicU64,
}

impl Versions {
    pub(crate) fn new(table: VersionTable, config: CompressionConfig, inline_bytes_max: usize) -> Self {
        let of = |protover| {
            let encoding = if config.enabled { table.best(protover).encoding } else { Encoding::Identity };
            Class { dialect: Dialect::Goim, protover, encoding, deflates: false, syncs: Syncs::No }
        };
        let mut classes = vec![of(Version::GOIM)];
        // More classes than a byte counts are not needed: the highest then share one.
        classes.extend(
            table.rows().iter().filter(|row| row.version > Version::GOIM).map(|row| of(row.version)).take(60),
        );
        let danmaku = |encoding| {
            let encoding = if config.enabled { encoding } else { Encoding::Identity };
            let protover = Version::GOIM;
            Class { dialect: Dialect::Danmaku, protover, encoding, deflates: false, syncs: Syncs::No }
        };
        let goim = classes.clone();
        classes.extend([Encoding::Identity, Encoding::Zlib, Encoding::Brotli].map(danmaku));
        let reads_none = goim.iter().copied().filter(|class| class.encoding == Encoding::Identity);
        classes.extend(reads_none.map(|class| Class { deflates: true, ..class }));
        // Sessions that sync read the others' messages too; there are few enough of both kinds to be classes of their own.
        let syncing = |syncs| goim.iter().map(move |class| Class { syncs, ..*class });
        let of_both = syncing(Syncs::WithMessages).chain(syncing(Syncs::NotifyOnly));
        classes.extend(of_both.collect::<Vec<_>>());
        let (readers, compressed, deflated) = Default::default();
        Self { table, config, inline_bytes_max, classes, readers, compressed, deflated }
    }

    pub(crate) fn table(&self) -> &VersionTable {
        &self.table
    }

    pub(crate) fn config(&self) -> &CompressionConfig {
        &self.config
    }

    /// The class of who reads versions up to this one, over a WebSocket that deflates or not.
    pub(crate) fn class_of(&self, protover: Option<Version>, deflates: bool, syncs: Syncs) -> ClassId {
        let protover = protover.unwrap_or(Version::GOIM);
        let is_up_to = |class: &Class| {
            class.dialect == Dialect::Goim
                && !class.deflates
                && class.syncs == Syncs::No
                && class.protover <= protover
        };
        let plain = self.classes.partition_point(is_up_to).saturating_sub(1);
        if syncs != Syncs::No {
            let protover = self.classes.get(plain).map(|class| class.protover);
            let is_it = |class: &Class| class.syncs == syncs && Some(class.protover) == protover;
            let place = self.classes.iter().position(is_it).unwrap_or_default();
            return ClassId(u8::try_from(place).unwrap_or_default());
        }
        let twin = self.classes.get(plain).filter(|_| deflates).and_then(|plain| {
            let is_twin = |class: &Class| class.deflates && class.protover == plain.protover;
            self.classes.iter().position(is_twin).filter(|_| plain.encoding == Encoding::Identity)
        });
        ClassId(u8::try_from(twin.unwrap_or(plain)).unwrap_or_default())
    }

    /// The class of those who speak the dialect of live danmaku and read this encoding at best.
    pub(crate) fn class_of_danmaku(&self, encoding: Encoding) -> ClassId {
        let encoding = if self.config.enabled { encoding } else { Encoding::Identity };
        let is_it = |class: &Class| class.dialect == Dialect::Danmaku && class.encoding == encoding;
        let place = self.classes.iter().position(is_it).unwrap_or_default();
        ClassId(u8::try_from(place).unwrap_or_default())
    }

    /// True for sessions that are told of messages in timelines.
    pub(crate) fn syncs(&self, class: ClassId) -> bool {
        self.classes.get(usize::from(class.0)).is_some_and(|class| class.syncs != Syncs::No)
    }

    /// A session of this class has come.
    pub(crate) fn session_opened(&self, class: ClassId) {
        if class != ClassId::GOIM {
            self.readers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A session of this class has gone.
    pub(crate) fn session_closed(&self, class: ClassId) {
        if class != ClassId::GOIM {
            self.readers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What was compressed, by the name of the encoding.
    pub(crate) fn compressed(&self) -> impl Iterator<Item = (&'static str, &Compressed)> {
        let by_encoding = Encoding::ALL.map(Encoding::name).into_iter().zip(&self.compressed);
        by_encoding.skip(1).chain([("deflate", &self.deflated)])
    }

    /// The frame of a message for those who deflate, when it is large enough and becomes smaller.
    fn deflate(&self, push: &EncodedPush) -> Option<Bytes> {
        push.deflated(|message| {
            if message.len() < self.config.threshold_bytes {
                return None;
            }
            let made = deflate_message(message, self.levels());
            self.deflated.count(message.len(), made.as_ref().map_or(message.len(), Vec::len));
            made
        })
    }

    /// The body compressed, when it is large enough and becomes smaller.
    pub(crate) fn compress(&self, encoding: Encoding, body: &[u8]) -> Option<Bytes> {
        if encoding == Encoding::Identity || body.len() < self.config.threshold_bytes {
            return None;
        }
        let made = compress(encoding, body, self.levels());
        let after = made.as_ref().map_or(body.len(), Vec::len);
        self.compressed[encoding as usize].count(body.len(), after);
        made.map(Bytes::from)
    }

    fn levels(&self) -> Levels {
        self.config.levels.into()
    }

    /// The schema of a version; the first when nobody has said.
    pub(crate) fn schema_of(&self, version: Version) -> Schema {
        self.table.row(version).map_or(Schema::FIRST, |row| row.schema)
    }

    /// The best way to write a body of this schema to a session: its version, and the body.
    pub(crate) fn write(&self, protover: Version, schema: Schema, body: Bytes) -> (Version, Bytes) {
        let plain = self.table.plain(schema).map_or(Version::GOIM, |row| row.version);
        let rows = self.table.rows().iter().filter(|row| row.schema == schema && row.version <= protover);
        let Some(best) = rows.max_by_key(|row| row.encoding).filter(|_| self.config.enabled) else {
            return (plain, body);
        };
        match self.compress(best.encoding, &body) {
            Some(compressed) => (best.version, compressed),
            None => (plain, body),
        }
    }
}

impl Compressed {
    fn count(&self, before: usize, after: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes_before.fetch_add(before as u64, Ordering::Relaxed);
        self.bytes_after.fetch_add(after as u64, Ordering::Relaxed);
    }
}

/// A message as a command carries it to one shard.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// As job has made it: what the first class gets.
    first: EncodedPush,
    /// For the other classes.
    more: OnceCell<Box<More>>,
}

#[derive(Debug)]
struct More {
    message: Arc<Message>,
    /// What this shard sends, by class.
    made: Vec<OnceCell<Option<EncodedPush>>>,
    /// A member's message with its sender.
    with_sender: OnceCell<Option<EncodedPush>>,
}

/// A message with its forms, for all shards.
#[derive(Debug)]
struct Message {
    versions: Arc<Versions>,
    packet: PacketBuf,
    extension: Extension,
    /// By place of the schema, then by encoding; behind them those of the dialect, by encoding.
    forms: Vec<OnceLock<Form>>,
    /// Frames for those who deflate, by place of the schema; `None` where that gives nothing.
    frames: Vec<OnceLock<Option<Bytes>>>,
    /// The word that it is in a timeline, alone.
    notify: OnceLock<PacketBuf>,
    /// A member's message with its sender; `None` where it is not there in the first schema.
    with_sender: OnceLock<Option<PacketBuf>>,
}

/// How a message is written.
#[derive(Debug, Clone)]
enum Form {
    /// As goim does: a run of packets goes without its header on a stream.
    Goim(PacketBuf),
    /// One packet, whatever its operation.
    Whole(PacketBuf),
    /// Packets one behind the other, and nothing around them.
    Run(Bytes),
}

impl Outgoing {
    /// A message as it comes from job.
    pub(crate) fn new(packet: PacketBuf, extension: Extension, versions: &Arc<Versions>) -> Self {
        let is_needed = extension.is_some() || versions.readers.load(Ordering::Relaxed) > 0;
        let more = if is_needed {
            let message = Message::new(packet.clone(), extension, Arc::clone(versions));
            OnceCell::from(Box::new(More::new(Arc::new(message))))
        } else {
            OnceCell::new()
        };
        Self { first: EncodedPush::new(packet), more }
    }

    /// The same message for another shard.
    pub(crate) fn for_another_thread(&self) -> Self {
        let more = self.more.get().map_or_else(OnceCell::new, |more| {
            OnceCell::from(Box::new(More::new(Arc::clone(&more.message))))
        });
        Self { first: self.first.for_another_thread(), more }
    }

    /// What job had.
    pub(crate) fn into_parts(self) -> (PacketBuf, Extension) {
        let extension = self.extension().cloned();
        (self.first.into_packet(), extension)
    }

    /// Where the message is, for one in a timeline: those who sync get the word of it whatever they have subscribed to.
    pub(crate) fn stored(&self) -> Option<&StoredAt> {
        self.extension()?.stored.as_ref()
    }

    /// A member's message as an extended session gets it that does not sync: with its sender, whom a plain push has no place for. `None`
    /// when the message has no body in the first schema, which is all that members send. Only of a message that a member has sent.
    pub(crate) fn with_sender(&self, stored: &StoredAt) -> Option<&EncodedPush> {
        let more = self.more.get()?;
        let made = more.with_sender.get_or_init(|| {
            let packet = more.message.with_sender.get_or_init(|| more.message.make_with_sender(stored));
            packet.clone().map(EncodedPush::whole)
        });
        made.as_ref()
    }

    /// The reason to end the sessions for, when that is what it is for.
    pub(crate) fn end(&self) -> Option<CloseReason> {
        let EndCode(code) = self.extension()?.end?;
        Some(CloseReason::from_code(code).unwrap_or(CloseReason::Kicked))
    }

    fn extension(&self) -> Option<&Arc<Extended>> {
        self.more.get()?.message.extension.as_ref()
    }

    /// What a session of this class gets; `None` when it can read none of the bodies.
    #[inline]
    pub(crate) fn for_class(&self, class: ClassId, versions: &Arc<Versions>) -> Option<&EncodedPush> {
        if class == ClassId::GOIM {
            let without_first = self.more.get().is_some_and(|more| more.message.is_without_first());
            return (!without_first).then_some(&self.first);
        }
        let more = self.more.get_or_init(|| {
            // The first such session has come after the message.
            let packet = self.first.clone().into_packet();
            Box::new(More::new(Arc::new(Message::new(packet, None, Arc::clone(versions)))))
        });
        let made = more.made.get(usize::from(class.0))?;
        made.get_or_init(|| more.message.form_for(class)).as_ref()
    }
}

impl More {
    fn new(message: Arc<Message>) -> Self {
        let made = message.versions.classes.iter().map(|_| OnceCell::new()).collect();
        Self { message, made, with_sender: OnceCell::new() }
    }
}

impl Message {
    fn new(packet: PacketBuf, extension: Extension, versions: Arc<Versions>) -> Self {
        let schemas = 1 + extension.as_ref().map_or(0, |extension| extension.bodies.len());
        let forms = (0..(schemas + 1) * Encoding::ALL.len()).map(|_| OnceLock::new()).collect();
        let frames = (0..schemas).map(|_| OnceLock::new()).collect();
        let (notify, with_sender) = Default::default();
        Self { versions, packet, extension, forms, frames, notify, with_sender }
    }

    fn is_without_first(&self) -> bool {
        self.extension.as_ref().is_some_and(|extension| extension.without_first)
    }

    /// The place of a schema among those that there are; the first has place 0.
    fn place(&self, schema: Schema) -> Option<usize> {
        let bodies = self.extension.as_ref().map_or(&[][..], |extension| &extension.bodies);
        let other = bodies.iter().position(|body| body.schema == schema).map(|place| place + 1);
        other.or((schema == Schema::FIRST && !self.is_without_first()).then_some(0))
    }

    fn form_for(&self, class: ClassId) -> Option<EncodedPush> {
        let class = self.versions.classes.get(usize::from(class.0))?;
        if class.syncs != Syncs::No
            && let Some(stored) = self.extension.as_deref().and_then(|negotiated| negotiated.stored.as_ref())
        {
            return Some(EncodedPush::whole(self.notify(stored, class)));
        }
        let schema = self.versions.table.schema_for(class.protover, |schema| self.place(schema).is_some())?;
        let place = self.place(schema)?;
        let form = match class.dialect {
            Dialect::Goim => {
                let form = self.forms.get(place * Encoding::ALL.len() + class.encoding as usize)?;
                form.get_or_init(|| self.make(schema, place, class.encoding))
            }
            Dialect::Danmaku => {
                let first = self.forms.len() - Encoding::ALL.len();
                self.forms
                    .get(first + class.encoding as usize)?
                    .get_or_init(|| self.make_danmaku(class.encoding))
            }
        };
        let push = match form.clone() {
            Form::Goim(packet) => EncodedPush::new(packet),
            Form::Whole(packet) => EncodedPush::whole(packet),
            Form::Run(packets) => EncodedPush::run(packets),
        };
        let frame = self.frames.get(place).filter(|_| class.deflates);
        Some(match frame.and_then(|frame| frame.get_or_init(|| self.versions.deflate(&push)).clone()) {
            Some(frame) => push.with_frame(frame),
            None => push,
        })
    }

    /// The word that the message is in its timeline, with the message when it is small and wanted.
    fn notify(&self, stored: &StoredAt, class: &Class) -> PacketBuf {
        let of = |messages| notify_packet(&stored.timeline, stored.position, messages);
        let alone = || self.notify.get_or_init(|| of(Vec::new())).clone();
        if class.syncs == Syncs::NotifyOnly {
            return alone();
        }
        match self.inline(stored, class) {
            Some(message) => of(vec![message]),
            None => alone(),
        }
    }

    /// The message as a timeline's readers get it, when it is small enough to go with the word of it.
    fn inline(&self, stored: &StoredAt, class: &Class) -> Option<sync::Message> {
        let has_others = self.extension.as_ref().is_some_and(|negotiated| !negotiated.bodies.is_empty());
        if self.is_without_first() && !has_others {
            return None;
        }
        let schema = self.versions.table.schema_for(class.protover, |schema| self.place(schema).is_some());
        let body = match schema.and_then(|schema| self.place(schema)) {
            None => None,
            Some(0) => Some(self.first_body()?),
            Some(place) => self
                .extension
                .as_ref()
                .and_then(|negotiated| negotiated.bodies.get(place - 1))
                .map(|body| body.body.clone()),
        };
        if body.as_ref().map_or(0, Bytes::len) > self.versions.inline_bytes_max {
            return None;
        }
        let message = self.stored_message(stored, schema.unwrap_or(Schema::FIRST), Bytes::new());
        Some(sync::Message { unreadable: body.is_none(), body: body.unwrap_or_default(), ..message })
    }

    fn make_with_sender(&self, stored: &StoredAt) -> Option<PacketBuf> {
        let body = (!self.is_without_first()).then(|| self.first_body()).flatten()?;
        let message = self.stored_message(stored, Schema::FIRST, body);
        let notify = notify_packet(&stored.timeline, stored.position, vec![message]);
        Some(PacketBuf { operation: Operation::MEMBER_MESSAGE, ..notify })
    }

    /// A message as readers of timelines get it.
    fn stored_message(&self, stored: &StoredAt, schema: Schema, body: Bytes) -> sync::Message {
        let version = self.versions.table.plain(schema).map_or(Version::GOIM, |row| row.version);
        sync::Message {
            seq: stored.position.seq.0,
            operation: carried(&self.packet).0,
            version: version.0.into(),
            time_ms: i64::try_from(stored.accepted_at.0 / 1000).unwrap_or(i64::MAX),
            sender: stored.sender.0,
            unreadable: false,
            body,
            deleted: false,
        }
    }

    /// The body in the first schema, out of the run that job has made.
    fn first_body(&self) -> Option<Bytes> {
        if self.packet.operation != Operation::RAW {
            return Some(self.packet.body.clone());
        }
        let mut packets = batch::packets(&self.packet.body);
        let first = packets.next()?.ok()?;
        Some(self.packet.body.slice_ref(first.body))
    }

    fn make_danmaku(&self, encoding: Encoding) -> Form {
        let run = danmaku::run(&match self.packet.operation {
            Operation::RAW => self.packet.body.clone(),
            _ => self.packet.to_message_bytes(),
        });
        match self.versions.compress(encoding, &run) {
            Some(body) => Form::Whole(danmaku::compressed(encoding, body)),
            None => Form::Run(run),
        }
    }

    fn make(&self, schema: Schema, place: usize, encoding: Encoding) -> Form {
        let (run, plain) = match place.checked_sub(1) {
            None if self.packet.operation == Operation::RAW => {
                (self.packet.body.clone(), self.packet.clone())
            }
            None => (self.packet.to_message_bytes(), self.packet.clone()),
            Some(place) => {
                let run = self.run_of(schema, place);
                (run.body.clone(), run)
            }
        };
        let Some(body) = self.versions.compress(encoding, &run) else { return Form::Goim(plain) };
        let version = self.versions.table.first_with(encoding).unwrap_or(Version::GOIM);
        Form::Whole(PacketBuf { version, operation: Operation::RAW, sequence: Sequence::NONE, body })
    }

    /// One packet with the body of another schema, in a run.
    fn run_of(&self, schema: Schema, place: usize) -> PacketBuf {
        let body = self.extension.as_ref().and_then(|extension| extension.bodies.get(place));
        let body = body.map(|body| body.body.clone()).unwrap_or_default();
        let row = self.versions.table.plain(schema);
        let (version, encoding) =
            row.map_or((Version::GOIM, Encoding::Identity), |row| (row.version, row.encoding));
        // A schema may be there compressed only: then it is, whatever that gives.
        let body = match encoding {
            Encoding::Identity => body,
            encoding => compress_always(encoding, &body, self.versions.levels()),
        };
        let packet =
            Packet { version, operation: carried(&self.packet), sequence: Sequence::NONE, body: &body };
        batch::BatchBuilder::one(packet)
    }
}

/// Operation 20.
pub(crate) fn notify_packet(
    timeline: &TimelineId,
    position: Position,
    messages: Vec<sync::Message>,
) -> PacketBuf {
    let latest = Some(sync::Position { epoch: position.epoch.0, seq: position.seq.0 });
    let notify = sync::Notify { timeline: timeline.to_string(), latest, messages };
    PacketBuf::push(Operation::NOTIFY, notify.write().into())
}

fn compress_always(encoding: Encoding, body: &[u8], levels: Levels) -> Bytes {
    goim_compression::compress_always(encoding, body, levels).into()
}

/// The operation that a packet is about: of a batch, that of its first packet. Policies and counters go by it.
pub(crate) fn carried(packet: &PacketBuf) -> Operation {
    if packet.operation != Operation::RAW {
        return packet.operation;
    }
    let first = batch::packets(&packet.body).next();
    first.and_then(Result::ok).map_or(Operation::RAW, |first| first.operation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use goim_ports::SchemaBody;
    use goim_session::Transport;

    fn versions() -> Arc<Versions> {
        let more = ["4 = schema 2, identity", "5 = schema 2, zstd", "6 = schema 3, zstd"];
        let mut rows = VersionTable::default().rows().to_vec();
        rows.extend(more.iter().map(|row| row.parse::<goim_ports::VersionRow>().unwrap()));
        Arc::new(Versions::new(VersionTable::new(rows).unwrap(), CompressionConfig::default(), 1024))
    }

    fn push(body: &[u8]) -> PacketBuf {
        batch::BatchBuilder::one(PacketBuf::push(Operation(1000), Bytes::copy_from_slice(body)).as_packet())
    }

    #[test]
    fn a_message_is_deflated_once_for_all_who_read_no_encoding() {
        let versions = versions();
        let [plain, twin] = [false, true].map(|deflates| versions.class_of(None, deflates, Syncs::No));
        assert_ne!(plain, twin);
        assert_eq!(
            versions.class_of(Some(Version(3)), true, Syncs::No),
            versions.class_of(Some(Version(3)), false, Syncs::No)
        );
        versions.session_opened(twin);
        let message = Outgoing::new(push(&[b'x'; 3000]), None, &versions);
        for message in [message.for_another_thread(), message] {
            for _ in 0..3 {
                let bytes = message.for_class(twin, &versions).unwrap().bytes(Transport::WebSocket);
                assert!(bytes[0] == 0xc2 && bytes.len() < 100, "{bytes:x?}");
                let bytes = message.for_class(plain, &versions).unwrap().bytes(Transport::WebSocket);
                assert!(bytes[0] == 0x82 && bytes.len() > 3000);
            }
        }
        let counts = versions.compressed().map(|(name, of)| (name, of.count.load(Ordering::Relaxed)));
        assert_eq!(counts.filter(|(_, count)| *count > 0).collect::<Vec<_>>(), [("deflate", 1)]);
        let small = Outgoing::new(push(b"small"), None, &versions);
        assert_eq!(small.for_class(twin, &versions).unwrap().bytes(Transport::WebSocket)[0], 0x82);
    }

    /// What a session of this protover gets over WebSocket: outer version and operation, then the packets inside.
    fn got(
        message: &Outgoing,
        versions: &Arc<Versions>,
        protover: Option<i16>,
    ) -> Option<Vec<(i16, Vec<u8>)>> {
        let class = versions.class_of(protover.map(Version), false, Syncs::No);
        let encoded = message.for_class(class, versions)?;
        let bytes = encoded.bytes(Transport::Stream);
        let first = Packet::from_message(bytes, usize::MAX).unwrap();
        let run = if first.operation == Operation::RAW {
            let row = versions.table().row(first.version).unwrap();
            goim_compression::inflate(row.encoding, first.body, 1 << 20).unwrap()
        } else {
            bytes.to_vec()
        };
        let packets = batch::packets(&run).map(|packet| packet.unwrap());
        Some(packets.map(|packet| (packet.version.0, packet.body.to_vec())).collect())
    }

    #[test]
    fn each_session_gets_the_highest_schema_that_it_reads() {
        let versions = versions();
        let body = |schema: u16, text: &str| SchemaBody {
            schema: Schema(schema),
            body: Bytes::copy_from_slice(text.as_bytes()),
        };
        let extension = |without_first| {
            let bodies = vec![body(2, "two"), body(3, &"three ".repeat(100))];
            Some(Arc::new(Extended { bodies, without_first, ..Extended::default() }))
        };
        let message = Outgoing::new(push(b"one"), extension(false), &versions);
        let three = {
            let packed = goim_compression::compress(
                Encoding::Zstd,
                "three ".repeat(100).as_bytes(),
                Levels::default(),
            );
            (6, packed.unwrap())
        };
        for (protover, expected) in [
            (None, (1, b"one".to_vec())),
            (Some(1), (1, b"one".to_vec())),
            (Some(2), (1, b"one".to_vec())),
            (Some(3), (1, b"one".to_vec())),
            (Some(4), (4, b"two".to_vec())),
            (Some(5), (4, b"two".to_vec())),
            (Some(6), three.clone()),
            (Some(99), three.clone()),
        ] {
            assert_eq!(got(&message, &versions, protover), Some(vec![expected]), "{protover:?}");
        }
        let message = Outgoing::new(push(b""), extension(true), &versions);
        for protover in [None, Some(1), Some(3)] {
            assert_eq!(got(&message, &versions, protover), None, "{protover:?} can read nothing");
        }
        assert_eq!(got(&message.for_another_thread(), &versions, Some(4)), Some(vec![(4, b"two".to_vec())]));
    }

    #[test]
    fn a_message_is_compressed_once_for_all_shards_and_sessions() {
        let versions = versions();
        let body = b"the same again and again ".repeat(100);
        for protover in [2, 3, 5] {
            versions.session_opened(versions.class_of(Some(Version(protover)), false, Syncs::No));
        }
        let message = Outgoing::new(push(&body), None, &versions);
        let shards: Vec<Outgoing> = (0..4).map(|_| message.for_another_thread()).collect();
        for shard in &shards {
            for protover in [None, Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)] {
                assert_eq!(got(shard, &versions, protover), Some(vec![(1, body.clone())]), "{protover:?}");
            }
        }
        let counts: Vec<u64> =
            versions.compressed().map(|(_, of)| of.count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 1, 1, 0], "zlib, brotli, zstd, deflate");
        let small = Outgoing::new(push(b"small"), None, &versions);
        assert_eq!(got(&small, &versions, Some(3)), Some(vec![(1, b"small".to_vec())]));
        let counts: Vec<u64> =
            versions.compressed().map(|(_, of)| of.count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [1, 1, 1, 0], "below the threshold nothing is tried");
    }

    #[test]
    fn who_comes_after_the_message_gets_it_too() {
        let versions = versions();
        let message = Outgoing::new(push(b"hello"), None, &versions);
        assert_eq!(got(&message, &versions, Some(4)), Some(vec![(1, b"hello".to_vec())]));
        let (packet, extension) = message.into_parts();
        assert_eq!((packet, extension), (push(b"hello"), None));
    }
}
