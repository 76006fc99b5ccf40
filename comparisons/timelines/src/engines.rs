//! The engines that are compared, each used as intended: one writer, one durable commit per group.

use std::path::Path;

use fjall::{KeyspaceCreateOptions, PersistMode, Readable as _};
use redb::ReadableDatabase as _;

/// A message to append.
pub struct Append<'a> {
    pub timeline: u64,
    pub seq: u64,
    pub body: [&'a [u8]; 2],
}

/// The operations that timelines need from an engine. They panic on errors.
pub trait Engine {
    fn open(folder: &Path) -> Self;
    /// Appends a group of messages. They are durable when this returns.
    fn append(&mut self, group: &[Append<'_>]);
    /// Reads messages with all of their bytes. Returns their number.
    fn read(&self, timeline: u64, from: u64, limit: usize) -> u64;
    /// Returns the highest sequence.
    fn head(&self, timeline: u64) -> u64;
    fn remove_below(&mut self, timelines: &[u64], seq: u64);
}

fn key(timeline: u64, seq: u64) -> [u8; 17] {
    let mut key = [0; 17];
    key[1..9].copy_from_slice(&timeline.to_be_bytes());
    key[9..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn seq_of(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[9..].try_into().expect("eight bytes"))
}

fn touch(value: &[u8]) -> u64 {
    u64::from(value.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) != 255 || !value.is_empty())
}

pub struct Fjall {
    database: fjall::Database,
    messages: fjall::Keyspace,
}

impl Engine for Fjall {
    fn open(folder: &Path) -> Self {
        let database = fjall::Database::builder(folder.join("fjall")).open().expect("opens");
        let messages = database.keyspace("messages", KeyspaceCreateOptions::default).expect("opens");
        Self { database, messages }
    }

    fn append(&mut self, group: &[Append<'_>]) {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for Append { timeline, seq, body } in group {
            batch.insert(&self.messages, key(*timeline, *seq), body.concat());
        }
        batch.commit().expect("commits");
    }

    fn read(&self, timeline: u64, from: u64, limit: usize) -> u64 {
        let range = self.messages.range(key(timeline, from)..=key(timeline, u64::MAX));
        range.take(limit).map(|found| touch(&found.value().expect("reads"))).sum()
    }

    fn head(&self, timeline: u64) -> u64 {
        let last = self.messages.range(key(timeline, 0)..=key(timeline, u64::MAX)).next_back();
        last.map_or(0, |found| seq_of(&found.key().expect("reads")))
    }

    fn remove_below(&mut self, timelines: &[u64], below: u64) {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        let snapshot = self.database.snapshot();
        for timeline in timelines {
            for found in snapshot.range(&self.messages, key(*timeline, 0)..key(*timeline, below)) {
                batch.remove(&self.messages, found.key().expect("reads"));
            }
        }
        batch.commit().expect("commits");
    }
}

pub struct Redb {
    database: redb::Database,
}

const MESSAGES: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("messages");

impl Engine for Redb {
    fn open(folder: &Path) -> Self {
        let database = redb::Database::create(folder.join("redb")).expect("opens");
        let first = database.begin_write().expect("begins");
        first.open_table(MESSAGES).expect("opens");
        first.commit().expect("commits");
        Self { database }
    }

    fn append(&mut self, group: &[Append<'_>]) {
        let write = self.database.begin_write().expect("begins");
        {
            let mut messages = write.open_table(MESSAGES).expect("opens");
            for Append { timeline, seq, body } in group {
                messages.insert(&key(*timeline, *seq)[..], &body.concat()[..]).expect("inserts");
            }
        }
        write.commit().expect("commits");
    }

    fn read(&self, timeline: u64, from: u64, limit: usize) -> u64 {
        let read = self.database.begin_read().expect("begins");
        let messages = read.open_table(MESSAGES).expect("opens");
        let range = messages.range(&key(timeline, from)[..]..=&key(timeline, u64::MAX)[..]).expect("reads");
        range.take(limit).map(|found| touch(found.expect("reads").1.value())).sum()
    }

    fn head(&self, timeline: u64) -> u64 {
        let read = self.database.begin_read().expect("begins");
        let messages = read.open_table(MESSAGES).expect("opens");
        let mut range = messages.range(&key(timeline, 0)[..]..=&key(timeline, u64::MAX)[..]).expect("reads");
        range.next_back().map_or(0, |found| seq_of(found.expect("reads").0.value()))
    }

    fn remove_below(&mut self, timelines: &[u64], below: u64) {
        let write = self.database.begin_write().expect("begins");
        {
            let mut messages = write.open_table(MESSAGES).expect("opens");
            for timeline in timelines {
                messages
                    .retain_in(&key(*timeline, 0)[..]..&key(*timeline, below)[..], |_, _| false)
                    .expect("removes");
            }
        }
        write.commit().expect("commits");
    }
}

pub struct Sqlite {
    connection: rusqlite::Connection,
}

impl Engine for Sqlite {
    fn open(folder: &Path) -> Self {
        let connection = rusqlite::Connection::open(folder.join("sqlite")).expect("opens");
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536; PRAGMA mmap_size = 268435456;
                 CREATE TABLE IF NOT EXISTS messages (timeline INTEGER, seq INTEGER, body BLOB, PRIMARY KEY (timeline, seq)) WITHOUT ROWID;",
            )
            .expect("makes the table");
        Self { connection }
    }

    fn append(&mut self, group: &[Append<'_>]) {
        let write = self.connection.transaction().expect("begins");
        {
            let mut insert = write.prepare_cached("INSERT INTO messages VALUES (?, ?, ?)").expect("prepares");
            for Append { timeline, seq, body } in group {
                insert.execute((*timeline as i64, *seq as i64, body.concat())).expect("inserts");
            }
        }
        write.commit().expect("commits");
    }

    fn read(&self, timeline: u64, from: u64, limit: usize) -> u64 {
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT seq, body FROM messages WHERE timeline = ? AND seq >= ? ORDER BY seq LIMIT ?",
            )
            .expect("prepares");
        let mut rows = select.query((timeline as i64, from as i64, limit as i64)).expect("reads");
        let mut count = 0;
        while let Some(row) = rows.next().expect("reads") {
            count += touch(row.get_ref(1).expect("a body").as_blob().expect("a blob"));
        }
        count
    }

    fn head(&self, timeline: u64) -> u64 {
        let mut select = self
            .connection
            .prepare_cached("SELECT max(seq) FROM messages WHERE timeline = ?")
            .expect("prepares");
        let newest: Option<i64> = select.query_row([timeline as i64], |row| row.get(0)).expect("reads");
        newest.unwrap_or(0) as u64
    }

    fn remove_below(&mut self, timelines: &[u64], below: u64) {
        let write = self.connection.transaction().expect("begins");
        {
            let mut delete = write
                .prepare_cached("DELETE FROM messages WHERE timeline = ? AND seq < ?")
                .expect("prepares");
            for timeline in timelines {
                delete.execute((*timeline as i64, below as i64)).expect("removes");
            }
        }
        write.commit().expect("commits");
    }
}
