//! Reader profiles: what groups of sessions read.
//!
//! All profiles are made at the start, one for each combination that a client can have, so a
//! session names its profile with one byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use goim_ports::{Encoding, Schema, Version, VersionTable};

use super::compressor::Compressor;
use crate::config::CompressionConfig;
use crate::listener::Dialect;

/// Protocol versions with profiles besides that of goim v2. A byte can name no more profiles;
/// sessions of higher versions use those of the last.
const VERSIONS_MAX: usize = 60;

/// Names a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ProfileId(u8);

impl ProfileId {
    /// The profile of v2 clients.
    pub(crate) const V2: Self = Self(0);

    /// Index in a list that has an entry for each profile.
    #[inline]
    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What the sessions of one profile read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReaderProfile {
    pub(super) dialect: Dialect,
    /// The highest version that they read.
    pub(super) protover: Version,
    /// The best encoding that they read.
    pub(super) encoding: Encoding,
    /// Whole messages are compressed, by permessage-deflate: for sessions that read no encoding.
    pub(super) deflates: bool,
    pub(super) sync: SyncMode,
}

/// What a session gets of stored messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SyncMode {
    /// The message, like any other.
    #[default]
    Off,
    /// A notification, with the message when it is small.
    WithMessages,
    /// A notification without the message.
    NotifyOnly,
}

/// The profiles of a comet.
#[derive(Debug)]
pub(crate) struct ReaderProfiles {
    table: VersionTable,
    compressor: Compressor,
    /// Bodies up to this size are sent with their notification.
    pub(super) inline_bytes_max: usize,
    profiles: Vec<ReaderProfile>,
    /// Sessions of other profiles than the first.
    other_sessions: AtomicUsize,
}

impl ReaderProfiles {
    pub(crate) fn new(table: VersionTable, config: CompressionConfig, inline_bytes_max: usize) -> Self {
        let compressor = Compressor::new(config);
        let goim = |protover| ReaderProfile {
            dialect: Dialect::Goim,
            protover,
            encoding: compressor.permitted(table.best(protover).encoding),
            deflates: false,
            sync: SyncMode::Off,
        };
        let versions = table.rows().iter().map(|row| row.version).filter(|version| *version > Version::GOIM);
        let goim: Vec<_> = [Version::GOIM].into_iter().chain(versions.take(VERSIONS_MAX)).map(goim).collect();
        let danmaku = [Encoding::Identity, Encoding::Zlib, Encoding::Brotli].map(|encoding| ReaderProfile {
            dialect: Dialect::Danmaku,
            protover: Version::GOIM,
            encoding: compressor.permitted(encoding),
            deflates: false,
            sync: SyncMode::Off,
        });
        let uncompressed = goim.iter().filter(|profile| profile.encoding == Encoding::Identity);
        let deflating = uncompressed.map(|profile| ReaderProfile { deflates: true, ..*profile });
        // Sessions that sync read other messages too. Both kinds are few enough for profiles of
        // each combination.
        let syncing = [SyncMode::WithMessages, SyncMode::NotifyOnly]
            .into_iter()
            .flat_map(|sync| goim.iter().map(move |profile| ReaderProfile { sync, ..*profile }));
        let profiles = goim.iter().copied().chain(danmaku).chain(deflating).chain(syncing).collect();
        Self { table, compressor, inline_bytes_max, profiles, other_sessions: AtomicUsize::new(0) }
    }

    pub(crate) fn table(&self) -> &VersionTable {
        &self.table
    }

    pub(crate) fn compressor(&self) -> &Compressor {
        &self.compressor
    }

    /// How many profiles there are.
    pub(super) fn len(&self) -> usize {
        self.profiles.len()
    }

    pub(super) fn get(&self, id: ProfileId) -> Option<&ReaderProfile> {
        self.profiles.get(id.index())
    }

    /// Returns the id of a profile; of the first when there is none like it.
    fn id_of(&self, profile: &ReaderProfile) -> ProfileId {
        let index = self.profiles.iter().position(|known| known == profile);
        ProfileId(index.and_then(|index| u8::try_from(index).ok()).unwrap_or_default())
    }

    /// Returns the profile of a client that reads versions up to `protover`, over a WebSocket with
    /// or without permessage-deflate.
    pub(crate) fn for_goim(&self, protover: Option<Version>, deflates: bool, sync: SyncMode) -> ProfileId {
        let protover = protover.unwrap_or(Version::GOIM);
        let is_plain = |profile: &&ReaderProfile| {
            profile.dialect == Dialect::Goim && !profile.deflates && profile.sync == SyncMode::Off
        };
        // The plain profiles are ascending by version: the last that the client reads is its own.
        let plain = self.profiles.iter().filter(is_plain);
        let plain = plain.take_while(|profile| profile.protover <= protover).last();
        let Some(plain) = plain.or(self.profiles.first()) else { return ProfileId::V2 };
        let deflates = deflates && sync == SyncMode::Off && plain.encoding == Encoding::Identity;
        self.id_of(&ReaderProfile { deflates, sync, ..*plain })
    }

    /// Returns the profile of a danmaku client that reads `encoding` at best.
    pub(crate) fn for_danmaku(&self, encoding: Encoding) -> ProfileId {
        self.id_of(&ReaderProfile {
            dialect: Dialect::Danmaku,
            protover: Version::GOIM,
            encoding: self.compressor.permitted(encoding),
            deflates: false,
            sync: SyncMode::Off,
        })
    }

    /// True for sessions that are notified of stored messages.
    #[inline]
    pub(crate) fn syncs(&self, id: ProfileId) -> bool {
        self.get(id).is_some_and(|profile| profile.sync != SyncMode::Off)
    }

    /// Counts a session of this profile.
    pub(crate) fn session_opened(&self, id: ProfileId) {
        if id != ProfileId::V2 {
            self.other_sessions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the end of a session of this profile.
    pub(crate) fn session_closed(&self, id: ProfileId) {
        if id != ProfileId::V2 {
            self.other_sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// True when a session has another profile than the first.
    pub(super) fn are_needed(&self) -> bool {
        self.other_sessions.load(Ordering::Relaxed) > 0
    }

    /// Returns the schema of a version; the first for one that is not in the table.
    pub(crate) fn schema_of(&self, version: Version) -> Schema {
        self.table.row(version).map_or(Schema::FIRST, |row| row.schema)
    }

    /// Encodes a body of this schema for a session in the best way that it reads: the version, and
    /// the body.
    pub(crate) fn encode_reply(&self, protover: Version, schema: Schema, body: Bytes) -> (Version, Bytes) {
        let plain = self.table.plain(schema).map_or(Version::GOIM, |row| row.version);
        let rows = self.table.rows().iter().filter(|row| row.schema == schema && row.version <= protover);
        let Some(best) = rows.max_by_key(|row| row.encoding).filter(|_| self.compressor.is_enabled()) else {
            return (plain, body);
        };
        match self.compressor.compress(best.encoding, &body) {
            Some(compressed) => (best.version, compressed),
            None => (plain, body),
        }
    }
}
