//! The dedup index: which message an idempotency key belongs to.
//!
//! It has two generations, each a keyspace. A key is found for one window at least and two windows
//! at most; an old generation is deleted as a whole.

use std::time::Duration;

use fjall::{Keyspace, KeyspaceCreateOptions, OwnedWriteBatch};
use goim_ports::{AcceptedAt, TimelineSeq};

use super::format;
use super::tables::{TableError, Tables};

/// The two newest generations of the index.
pub(super) struct DedupIndex {
    generation: u64,
    began: AcceptedAt,
    current: Keyspace,
    previous: Option<Keyspace>,
}

impl DedupIndex {
    const STATE_KEY: &str = "generation";

    fn keyspace_name(generation: u64) -> String {
        format!("dedup.{generation}")
    }

    pub(super) fn open(tables: &Tables) -> Result<Self, TableError> {
        let state = tables.state.get(Self::STATE_KEY)?;
        let numbers: Vec<u64> =
            state.iter().flat_map(|state| state.chunks_exact(8)).filter_map(format::number).collect();
        let (generation, began) = match numbers[..] {
            [generation, began] => (generation, AcceptedAt(began)),
            _ => (0, AcceptedAt::now()),
        };
        let keyspace = |generation| {
            tables.database.keyspace(&Self::keyspace_name(generation), KeyspaceCreateOptions::default)
        };
        let previous = generation.checked_sub(1).map(keyspace).transpose()?;
        let index = Self { generation, began, current: keyspace(generation)?, previous };
        index.save(tables)?;
        Ok(index)
    }

    fn save(&self, tables: &Tables) -> Result<(), TableError> {
        let state = [self.generation.to_be_bytes(), self.began.0.to_be_bytes()].concat();
        Ok(tables.state.insert(Self::STATE_KEY, state)?)
    }

    /// Returns the sequence of the message that was stored with this key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<TimelineSeq>, TableError> {
        let mut found = self.current.get(key)?;
        if let (None, Some(previous)) = (&found, &self.previous) {
            found = previous.get(key)?;
        }
        let read = |bytes: fjall::UserValue| {
            format::number(&bytes).map(TimelineSeq).ok_or(TableError::Damaged("dedup"))
        };
        found.map(read).transpose()
    }

    /// Adds a key to a batch.
    pub(super) fn insert(&self, batch: &mut OwnedWriteBatch, key: Vec<u8>, seq: TimelineSeq) {
        batch.insert(&self.current, key, seq.0.to_be_bytes());
    }

    /// Begins a new generation when the current one is as old as the window, and deletes the
    /// oldest. A clock that is set back prolongs the generation.
    pub(super) fn rotate(
        &mut self,
        tables: &Tables,
        window: Duration,
        now: AcceptedAt,
    ) -> Result<(), TableError> {
        if now < self.began {
            self.began = now;
            return self.save(tables);
        }
        if self.began.until(now) < window {
            return Ok(());
        }
        let name = Self::keyspace_name(self.generation + 1);
        let next = tables.database.keyspace(&name, KeyspaceCreateOptions::default)?;
        let current = std::mem::replace(&mut self.current, next);
        let expired = self.previous.replace(current);
        (self.generation, self.began) = (self.generation + 1, now);
        self.save(tables)?;
        if let Some(expired) = expired {
            tables.database.delete_keyspace(expired)?;
        }
        Ok(())
    }
}
