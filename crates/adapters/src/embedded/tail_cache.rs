//! A cache of timeline tails, so that an append need not read the disk for the latest sequence.

use std::collections::HashMap;

use super::tables::TimelineTail;
use crate::timeline::key::TimelineKey;

/// A cache of two generations: entries that are not used while `max` others are used are dropped.
///
/// Nothing is dropped within a commit group: what the group has appended is not on disk yet.
#[derive(Default)]
pub(super) struct TailCache {
    recent: HashMap<TimelineKey, TimelineTail>,
    older: HashMap<TimelineKey, TimelineTail>,
}

impl TailCache {
    pub(super) fn get(&mut self, key: &TimelineKey) -> Option<TimelineTail> {
        if let Some(tail) = self.recent.get(key) {
            return Some(*tail);
        }
        let tail = self.older.remove(key)?;
        self.recent.insert(key.clone(), tail);
        Some(tail)
    }

    pub(super) fn put(&mut self, key: &TimelineKey, tail: TimelineTail) {
        if let Some(cached) = self.recent.get_mut(key) {
            *cached = tail;
            return;
        }
        self.older.remove(key);
        self.recent.insert(key.clone(), tail);
    }

    /// Drops the older generation when the recent one holds `max` entries. Called between commit
    /// groups.
    pub(super) fn rotate(&mut self, max: usize) {
        if self.recent.len() >= max {
            self.older = std::mem::take(&mut self.recent);
        }
    }
}
