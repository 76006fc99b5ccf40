//! The open folder: its format, its keyspaces, and all reads. Writes only what a new folder needs.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, Readable as _, Snapshot};
use goim_ports::{Epoch, Head, Range, ReadLimit, StoredMessage, TimelineSeq};

use super::config::EmbeddedConfig;
use super::format::{self, FORMAT, TimelineRecord};
use crate::timeline::key::TimelineKey;
use crate::timeline::record::Record;

/// Why a folder cannot be used for timelines.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The folder has another format.
    #[error(
        "{}: holds timelines of format {found}, and this version reads format {FORMAT}: use the version that wrote it, or another folder",
        folder.display()
    )]
    Format {
        /// The folder.
        folder: PathBuf,
        /// The format that the folder names.
        found: String,
    },
    /// The folder holds something else.
    #[error("{}: is neither empty nor a folder of timelines: choose another", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process uses the folder.
    #[error("{}: another process is using these timelines; only one at a time can", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder cannot be read or written.
    #[error("{}: cannot be used for timelines: {reason}", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// The error of the system.
        reason: String,
    },
}

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("{0}")]
    Engine(#[from] fjall::Error),
    #[error("a value in keyspace {0} cannot be read")]
    Damaged(&'static str),
}

/// The keyspaces.
pub(super) struct Tables {
    pub(super) database: Database,
    pub(super) timelines: Keyspace,
    pub(super) messages: Keyspace,
    pub(super) cursors: Keyspace,
    pub(super) state: Keyspace,
}

/// The latest state of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimelineTail {
    pub(super) record: TimelineRecord,
    pub(super) latest: TimelineSeq,
    /// [`Record::total_bytes`] of the latest message.
    pub(super) total_bytes: u64,
}

impl TimelineTail {
    pub(super) fn new(epoch: Epoch) -> Self {
        let record = TimelineRecord { epoch, first: TimelineSeq(1), bytes_before: 0 };
        Self { record, latest: TimelineSeq(0), total_bytes: 0 }
    }

    pub(super) fn head(&self) -> Head {
        Head { epoch: self.record.epoch, latest: self.latest, first: self.record.first }
    }
}

impl Tables {
    pub(super) fn open(config: &EmbeddedConfig) -> Result<Self, EmbeddedError> {
        let folder = &config.folder;
        let unusable = |reason: String| EmbeddedError::Unusable { folder: folder.clone(), reason };
        std::fs::create_dir_all(folder).map_err(|error| unusable(error.to_string()))?;
        if is_new(folder)? {
            write_format(folder).map_err(|error| unusable(error.to_string()))?;
        }
        let database = Database::builder(folder.join("data")).cache_size(config.cache_bytes).open().map_err(
            |error| match error {
                fjall::Error::Locked => EmbeddedError::Locked { folder: folder.clone() },
                error => unusable(text_of(&error)),
            },
        )?;
        let keyspace = |name: &str| {
            let opened = database.keyspace(name, KeyspaceCreateOptions::default);
            opened.map_err(|error| unusable(text_of(&error)))
        };
        let (timelines, messages) = (keyspace("timelines")?, keyspace("messages")?);
        let (cursors, state) = (keyspace("cursors")?, keyspace("state")?);
        Ok(Self { database, timelines, messages, cursors, state })
    }

    pub(super) fn tail(&self, key: &TimelineKey) -> Result<Option<TimelineTail>, TableError> {
        self.tail_at(&self.database.snapshot(), key)
    }

    pub(super) fn tail_at(
        &self,
        at: &Snapshot,
        key: &TimelineKey,
    ) -> Result<Option<TimelineTail>, TableError> {
        let Some(record) = at.get(&self.timelines, key.as_bytes())? else { return Ok(None) };
        let record = TimelineRecord::read(&record).ok_or(TableError::Damaged("timelines"))?;
        let empty =
            TimelineTail { record, latest: record.first.previous(), total_bytes: record.bytes_before };
        let newest = at
            .range(&self.messages, key.message(record.first)..=key.message(TimelineSeq(u64::MAX)))
            .next_back();
        let Some(newest) = newest else { return Ok(Some(empty)) };
        let (seq, found) = read_message(newest.into_inner()?)?;
        Ok(Some(TimelineTail { latest: seq, total_bytes: found.total_bytes, ..empty }))
    }

    pub(super) fn record_at(
        &self,
        at: &Snapshot,
        key: &TimelineKey,
        seq: TimelineSeq,
    ) -> Result<Option<Record>, TableError> {
        let found = at.get(&self.messages, key.message(seq))?;
        found.map(|bytes| Record::read(bytes.into()).ok_or(TableError::Damaged("messages"))).transpose()
    }

    pub(super) fn read(
        &self,
        key: &TimelineKey,
        after: TimelineSeq,
        limit: ReadLimit,
    ) -> Result<Range, TableError> {
        let at = self.database.snapshot();
        let Some(tail) = self.tail_at(&at, key)? else { return Ok(Range::default()) };
        let from = after.next().max(tail.record.first);
        if from > tail.latest {
            return Ok(Range { head: tail.head(), messages: Vec::new() });
        }
        let found = at.range(&self.messages, key.message(from)..=key.message(tail.latest));
        let found = found.map(|guard| read_message(guard.into_inner()?));
        Ok(Range { head: tail.head(), messages: collect_within(found, limit)? })
    }

    pub(super) fn read_back(
        &self,
        key: &TimelineKey,
        before: Option<TimelineSeq>,
        limit: ReadLimit,
    ) -> Result<Range, TableError> {
        let at = self.database.snapshot();
        let Some(tail) = self.tail_at(&at, key)? else { return Ok(Range::default()) };
        let to = before.map_or(tail.latest, TimelineSeq::previous).min(tail.latest);
        if to < tail.record.first {
            return Ok(Range { head: tail.head(), messages: Vec::new() });
        }
        let found = at.range(&self.messages, key.message(tail.record.first)..=key.message(to));
        let found = found.rev().map(|guard| read_message(guard.into_inner()?));
        let mut messages = collect_within(found, limit)?;
        messages.reverse();
        Ok(Range { head: tail.head(), messages })
    }

    pub(super) fn cursor(&self, key: &[u8]) -> Result<TimelineSeq, TableError> {
        let Some(found) = self.cursors.get(key)? else { return Ok(TimelineSeq(0)) };
        format::number(&found).map(TimelineSeq).ok_or(TableError::Damaged("cursors"))
    }
}

type Pair = (fjall::UserKey, fjall::UserValue);

fn read_message((key, value): Pair) -> Result<(TimelineSeq, Record), TableError> {
    let seq = format::seq_of(&key).ok_or(TableError::Damaged("messages"))?;
    let record = Record::read(Bytes::from(value)).ok_or(TableError::Damaged("messages"))?;
    Ok((seq, record))
}

/// Collects messages up to the limit; at least one.
fn collect_within(
    found: impl Iterator<Item = Result<(TimelineSeq, Record), TableError>>,
    limit: ReadLimit,
) -> Result<Vec<StoredMessage>, TableError> {
    let (mut taken, mut bytes) = (Vec::new(), 0_usize);
    for found in found.take(limit.messages.max(1)) {
        let (seq, record) = found?;
        bytes = bytes.saturating_add(record.body_bytes());
        if !taken.is_empty() && bytes > limit.bytes {
            break;
        }
        taken.push(record.into_message(seq));
    }
    Ok(taken)
}

const FORMAT_FILE: &str = "FORMAT";
const NEW_FORMAT_FILE: &str = "FORMAT.new";

/// Returns whether the folder is empty and may become a folder of timelines.
fn is_new(folder: &Path) -> Result<bool, EmbeddedError> {
    let unusable = |error: std::io::Error| EmbeddedError::Unusable {
        folder: folder.to_owned(),
        reason: error.to_string(),
    };
    let found = match std::fs::read_to_string(folder.join(FORMAT_FILE)) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // The second is left by a start that was interrupted.
            let harmless = ["lost+found", NEW_FORMAT_FILE];
            let mut others = std::fs::read_dir(folder).map_err(unusable)?.flatten();
            let is_foreign = others.any(|entry| !harmless.iter().any(|name| entry.file_name() == *name));
            return if is_foreign {
                Err(EmbeddedError::Foreign { folder: folder.to_owned() })
            } else {
                Ok(true)
            };
        }
        Err(error) => return Err(unusable(error)),
    };
    if found.trim() == format_line() {
        return Ok(false);
    }
    let found = found.trim().rsplit(' ').next().unwrap_or_default().chars().take(40).collect();
    Err(EmbeddedError::Format { folder: folder.to_owned(), found })
}

fn format_line() -> String {
    format!("goim timelines {FORMAT}")
}

/// Writes the format file atomically.
fn write_format(folder: &Path) -> std::io::Result<()> {
    let new = folder.join(NEW_FORMAT_FILE);
    std::fs::write(&new, format_line() + "\n")?;
    std::fs::File::open(&new)?.sync_all()?;
    std::fs::rename(&new, folder.join(FORMAT_FILE))?;
    std::fs::File::open(folder)?.sync_all()
}

/// Returns an engine error as text for operators; the engine's own texts are for its developers.
pub(super) fn text_of(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) => error.to_string(),
        fjall::Error::Poisoned => "an earlier background write has failed".to_owned(),
        error => std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string),
    }
}

impl TableError {
    /// The error as text for operators.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Engine(error) => text_of(error),
            Self::Damaged(_) => self.to_string(),
        }
    }
}
