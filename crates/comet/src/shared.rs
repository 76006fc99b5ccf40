//! What all shards of a comet share. Every part synchronises itself and is locked for one look-up
//! at most.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use goim_ports::{LogicPort, ServerId};
use goim_session::{FramingRules, ServerRules};

use crate::address_book::AddressBook;
use crate::config::Config;
use crate::events::Events;
use crate::key_index::KeyIndex;
use crate::message::ReaderProfiles;
use crate::room_registry::RoomRegistry;
use crate::stats::SharedCounter;
use crate::tls::CertificateStore;

/// Replies that may wait for one client before no more of its packets are read, in bytes. Not a
/// setting: large enough for any reasonable pipelining, small enough not to matter.
const REPLY_BYTES_MAX: usize = 16 * 1024;
/// The read buffer of goim v2: a lenient reader accepts trailing bytes up to it.
const LENIENT_MESSAGE_BYTES_MIN: usize = 8 * 1024;

/// State and services that all shards of a comet use.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) server: ServerId,
    pub(crate) logic: Arc<dyn LogicPort>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) events: Arc<Events>,
    pub(crate) profiles: Arc<ReaderProfiles>,
    pub(crate) keys: KeyIndex,
    /// Keys pushed to that this comet does not have.
    pub(crate) unknown_keys: SharedCounter,
    pub(crate) addresses: AddressBook,
    pub(crate) rooms: Arc<RoomRegistry>,
    pub(crate) certificates: Option<Arc<CertificateStore>>,
    /// Disconnect notices that logic has not answered yet.
    pub(crate) pending_disconnects: AtomicUsize,
    pub(crate) started: Instant,
    pub(crate) recoveries: Recoveries,
}

/// How often this comet was taken for dead, by who found out.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    /// Logic swept its sessions.
    pub(crate) swept: SharedCounter,
    /// A job dropped messages for it.
    pub(crate) given_up: SharedCounter,
}

impl Shared {
    /// Creates the state of a comet without sessions.
    pub(crate) fn new(
        config: Config,
        logic: Arc<dyn LogicPort>,
        runtime: tokio::runtime::Handle,
        certificates: Option<Arc<CertificateStore>>,
    ) -> Self {
        let server = config.node.server.clone();
        let limits = &config.limits;
        Self {
            events: Arc::new(Events::new(config.events.clone(), server.clone())),
            profiles: Arc::new(ReaderProfiles::new(
                config.versions.clone(),
                config.compression.clone(),
                config.sync.inline_bytes_max,
            )),
            keys: KeyIndex::new(),
            unknown_keys: SharedCounter::default(),
            addresses: AddressBook::new(limits.connections_max, limits.connections_per_address_max),
            rooms: Arc::new(RoomRegistry::new()),
            certificates,
            pending_disconnects: AtomicUsize::new(0),
            started: Instant::now(),
            recoveries: Recoveries::default(),
            server,
            logic,
            runtime,
            config,
        }
    }
}

/// Returns the rules that sessions of this configuration check.
pub(crate) fn session_rules(config: &Config) -> ServerRules {
    let Config { limits, listen, .. } = config;
    let packet_bytes_max = limits.body_bytes_max + goim_wire::HEADER_LEN;
    let message_bytes_max = packet_bytes_max.max(LENIENT_MESSAGE_BYTES_MIN);
    ServerRules {
        framing: FramingRules {
            body_bytes_max: limits.body_bytes_max,
            head_bytes_max: limits.request_head_bytes_max,
            path: listen.websocket_path.clone(),
            deflate: listen.websocket_deflate,
            websocket: goim_session::websocket_rules(listen.websocket_lenient, message_bytes_max),
        },
        handshake_timeout: limits.handshake_timeout,
        reply_bytes_max: REPLY_BYTES_MAX,
    }
}
