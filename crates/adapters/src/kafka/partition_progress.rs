//! The progress of each partition that this member reads, and the offsets that can be committed.
//!
//! A partition keeps its progress while it stays assigned: a cooperative rebalance names only the
//! partitions that move. A topic that is deleted and recreated begins a new incarnation; positions
//! of the previous one, which job may still be delivering, do not count in it. To distinguish them,
//! a [`LogPosition`] has the incarnation in the upper part of its partition number.

use std::collections::HashMap;

use goim_ports::LogPosition;

/// The maximum number of partitions of a topic. The incarnation is above it in a position's
/// partition number.
const PARTITIONS_MAX: i32 = 1 << 20;
/// The number of incarnations that can be distinguished.
const INCARNATIONS: i32 = i32::MAX / PARTITIONS_MAX;

/// The progress of all assigned partitions.
#[derive(Debug, Default)]
pub(super) struct PartitionProgress {
    incarnation: i32,
    partitions: HashMap<i32, Progress>,
}

/// The progress of one partition since it was assigned.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    /// The offset of the first record that was read.
    first: Option<i64>,
    /// The offset of the last push that was read.
    last_push: Option<i64>,
    /// The offset of the last record that was read, push or not.
    last: i64,
    /// The offset of the last push that was delivered.
    done: Option<i64>,
    /// The offset at which the next owner must start.
    next: Option<i64>,
    /// The committed offset, if it is known.
    committed: Option<i64>,
}

impl Progress {
    fn read(&mut self, offset: i64, is_push: bool) {
        self.first.get_or_insert(offset);
        self.last = offset;
        if is_push {
            self.last_push = Some(offset);
        }
    }

    /// Records that a push was delivered. Returns whether that moves the offset to commit.
    fn done(&mut self, offset: i64) -> bool {
        // Positions from before a revocation and reassignment do not count.
        let is_current = self.first.is_some_and(|first| first <= offset) && offset <= self.last;
        if !is_current || self.done.is_some_and(|done| offset <= done) {
            return false;
        }
        self.done = Some(offset);
        self.next = Some(self.done_up_to(offset) + 1);
        true
    }

    /// A record that is no push needs no delivery: it is done when everything before it is.
    fn skip_non_push(&mut self) {
        if self.last_push == self.done {
            self.next = Some(self.last + 1);
        }
    }

    /// The last push completes the non-pushes after it too.
    fn done_up_to(&self, offset: i64) -> i64 {
        if self.last_push == Some(offset) { self.last } else { offset }
    }
}

impl PartitionProgress {
    /// Returns an empty value of the same incarnation.
    pub(super) fn renewed(&self) -> Self {
        Self { incarnation: self.incarnation, partitions: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.partitions.len()
    }

    pub(super) fn numbers(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    pub(super) fn assign(&mut self, partition: i32) {
        self.partitions.insert(partition, Progress::default());
    }

    pub(super) fn revoke(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// Records that a record was read, and returns its position for job.
    pub(super) fn read(&mut self, partition: i32, offset: i64, is_push: bool) -> LogPosition {
        let progress = self.partitions.entry(partition).or_default();
        progress.read(offset, is_push);
        if !is_push {
            progress.skip_non_push();
        }
        LogPosition { partition: self.incarnation * PARTITIONS_MAX + partition, offset }
    }

    /// Records that a push was delivered.
    pub(super) fn done(&mut self, position: LogPosition) {
        let (incarnation, partition) =
            (position.partition / PARTITIONS_MAX, position.partition % PARTITIONS_MAX);
        if incarnation == self.incarnation
            && let Some(progress) = self.partitions.get_mut(&partition)
        {
            progress.done(position.offset);
        }
    }

    /// Begins a new incarnation: nothing of the recreated topic has been read.
    pub(super) fn begin_incarnation(&mut self) {
        self.incarnation = (self.incarnation + 1) % INCARNATIONS;
        self.partitions.values_mut().for_each(|progress| *progress = Progress::default());
    }

    /// Returns the partitions whose committed offset is unknown.
    pub(super) fn without_committed_start(&self) -> Vec<i32> {
        self.partitions
            .iter()
            .filter(|(_, progress)| progress.committed.is_none())
            .map(|(number, _)| *number)
            .collect()
    }

    /// Returns the partitions with offsets to commit.
    pub(super) fn to_commit(&self) -> Vec<(i32, i64)> {
        let due = |(number, progress): (&i32, &Progress)| {
            progress.next.filter(|next| progress.committed != Some(*next)).map(|next| (*number, next))
        };
        self.partitions.iter().filter_map(due).collect()
    }

    /// Records a committed offset.
    pub(super) fn committed(&mut self, partition: i32, offset: i64) {
        if let Some(progress) = self.partitions.get_mut(&partition) {
            progress.committed = Some(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(progress: &PartitionProgress) -> Option<i64> {
        progress.to_commit().first().map(|(_, next)| *next)
    }

    #[test]
    fn a_partition_is_done_up_to_the_delivered_push_and_the_non_pushes_after_it() {
        let mut progress = PartitionProgress::default();
        progress.assign(3);
        progress.read(3, 5, false);
        assert_eq!(progress.to_commit(), [(3, 6)], "nothing before it");
        let six = progress.read(3, 6, true);
        progress.read(3, 7, false);
        assert_eq!(next(&progress), Some(6), "6 is in flight");
        let eight = progress.read(3, 8, true);
        progress.read(3, 9, false);
        progress.done(six);
        assert_eq!(next(&progress), Some(7));
        progress.done(eight);
        assert_eq!(next(&progress), Some(10));
        progress.done(six);
        assert_eq!(next(&progress), Some(10), "never back");
        progress.read(3, 10, false);
        assert_eq!(next(&progress), Some(11));
        progress.committed(3, 11);
        assert_eq!(next(&progress), None);
    }

    #[test]
    fn positions_from_before_a_reassignment_do_not_count() {
        let mut progress = PartitionProgress::default();
        progress.assign(0);
        let at = |offset| LogPosition { partition: 0, offset };
        progress.done(at(3));
        assert_eq!(next(&progress), None, "nothing was read yet");
        progress.read(0, 20, true);
        progress.done(at(3));
        progress.done(at(25));
        assert_eq!(next(&progress), None, "from before, and not read here");
        progress.done(at(20));
        assert_eq!(next(&progress), Some(21));
    }

    #[test]
    fn what_was_read_of_a_topic_that_is_gone_moves_nothing_in_the_new_one() {
        let mut progress = PartitionProgress::default();
        progress.assign(1);
        let of_the_old = progress.read(1, 5, true);
        progress.begin_incarnation();
        for offset in 0..9 {
            progress.read(1, offset, true);
        }
        progress.done(of_the_old);
        assert_eq!(next(&progress), None);
        let of_the_new = progress.read(1, 9, true);
        progress.done(of_the_new);
        assert_eq!(next(&progress), Some(10));
        progress.incarnation = INCARNATIONS - 1;
        progress.begin_incarnation();
        assert_eq!(progress.read(1, 0, true).partition, 1);
    }
}
