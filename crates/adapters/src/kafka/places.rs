//! How far each partition is that is read here, and up to where it can be committed.
//!
//! A partition keeps its place for as long as it stays: with cooperative rebalances only those that
//! come and go are named. A topic that was deleted and made again begins another life: positions of
//! the life before, which job may still be handing over, move nothing in it. So that they can be
//! told apart, the partition's number in a [`LogPosition`] has the life in front.

use std::collections::HashMap;

use goim_ports::LogPosition;

/// Partitions of a topic, at most: what lies above in a position's number is the life.
const PARTITIONS_MAX: i32 = 1 << 20;
/// Lives that can be told apart.
const LIVES: i32 = i32::MAX / PARTITIONS_MAX;

/// The partitions that are read here.
#[derive(Debug, Default)]
pub(super) struct Places {
    life: i32,
    of: HashMap<i32, Place>,
}

/// How far a partition is, since it came.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    /// The first record that was read.
    first: Option<i64>,
    /// The last push that was read.
    last_push: Option<i64>,
    /// The last record that was read, push or not.
    last: i64,
    /// The last push that was handed over.
    done: Option<i64>,
    /// Where whoever has the partition next is to begin.
    next: Option<i64>,
    /// Where the group knows that it begins.
    committed: Option<i64>,
}

impl Place {
    fn read(&mut self, offset: i64, is_push: bool) {
        self.first.get_or_insert(offset);
        self.last = offset;
        if is_push {
            self.last_push = Some(offset);
        }
    }

    /// A push was handed over. True when that makes the partition done up to somewhere.
    fn done(&mut self, offset: i64) -> bool {
        // From before the partition left and came back.
        let is_of_now = self.first.is_some_and(|first| first <= offset) && offset <= self.last;
        if !is_of_now || self.done.is_some_and(|done| offset <= done) {
            return false;
        }
        self.done = Some(offset);
        self.next = Some(self.up_to(offset) + 1);
        true
    }

    /// What is put aside needs no handing over: done, when everything before it is.
    fn put_aside(&mut self) {
        if self.last_push == self.done {
            self.next = Some(self.last + 1);
        }
    }

    /// With the last push, what was put aside behind it is done too.
    fn up_to(&self, offset: i64) -> i64 {
        if self.last_push == Some(offset) { self.last } else { offset }
    }
}

impl Places {
    /// Of the same life, and with nothing in it.
    pub(super) fn renewed(&self) -> Self {
        Self { life: self.life, of: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    pub(super) fn partitions(&self) -> Vec<i32> {
        self.of.keys().copied().collect()
    }

    pub(super) fn come(&mut self, partition: i32) {
        self.of.insert(partition, Place::default());
    }

    pub(super) fn leave(&mut self, partition: i32) {
        self.of.remove(&partition);
    }

    /// A record was read; the position that job is told.
    pub(super) fn read(&mut self, partition: i32, offset: i64, is_push: bool) -> LogPosition {
        let place = self.of.entry(partition).or_default();
        place.read(offset, is_push);
        if !is_push {
            place.put_aside();
        }
        LogPosition { partition: self.life * PARTITIONS_MAX + partition, offset }
    }

    /// A push was handed over.
    pub(super) fn done(&mut self, position: LogPosition) {
        let (life, partition) = (position.partition / PARTITIONS_MAX, position.partition % PARTITIONS_MAX);
        if life == self.life
            && let Some(place) = self.of.get_mut(&partition)
        {
            place.done(position.offset);
        }
    }

    /// The topic is another one: nothing of it was read yet.
    pub(super) fn begin_life(&mut self) {
        self.life = (self.life + 1) % LIVES;
        self.of.values_mut().for_each(|place| *place = Place::default());
    }

    /// Partitions of which it is not known yet whether the group knows where they begin.
    pub(super) fn without_begin(&self) -> Vec<i32> {
        self.of.iter().filter(|(_, place)| place.committed.is_none()).map(|(number, _)| *number).collect()
    }

    /// What is to be committed: partitions, and where each goes on.
    pub(super) fn to_commit(&self) -> Vec<(i32, i64)> {
        let due = |(number, place): (&i32, &Place)| {
            place.next.filter(|next| place.committed != Some(*next)).map(|next| (*number, next))
        };
        self.of.iter().filter_map(due).collect()
    }

    /// The group knows that the partition goes on there.
    pub(super) fn committed(&mut self, partition: i32, offset: i64) {
        if let Some(place) = self.of.get_mut(&partition) {
            place.committed = Some(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(places: &Places) -> Option<i64> {
        places.to_commit().first().map(|(_, next)| *next)
    }

    #[test]
    fn a_partition_is_done_up_to_what_was_handed_over_and_what_was_put_aside_behind_it() {
        let mut places = Places::default();
        places.come(3);
        places.read(3, 5, false);
        assert_eq!(places.to_commit(), [(3, 6)], "nothing before it");
        let six = places.read(3, 6, true);
        places.read(3, 7, false);
        assert_eq!(next(&places), Some(6), "6 is on its way");
        let eight = places.read(3, 8, true);
        places.read(3, 9, false);
        places.done(six);
        assert_eq!(next(&places), Some(7));
        places.done(eight);
        assert_eq!(next(&places), Some(10));
        places.done(six);
        assert_eq!(next(&places), Some(10), "never back");
        places.read(3, 10, false);
        assert_eq!(next(&places), Some(11));
        places.committed(3, 11);
        assert_eq!(next(&places), None);
    }

    #[test]
    fn what_was_done_before_a_partition_left_and_came_back_counts_no_more() {
        let mut places = Places::default();
        places.come(0);
        let at = |offset| LogPosition { partition: 0, offset };
        places.done(at(3));
        assert_eq!(next(&places), None, "nothing was read yet");
        places.read(0, 20, true);
        places.done(at(3));
        places.done(at(25));
        assert_eq!(next(&places), None, "from before, and not read here");
        places.done(at(20));
        assert_eq!(next(&places), Some(21));
    }

    #[test]
    fn what_was_read_of_a_topic_that_is_gone_moves_nothing_in_the_new_one() {
        let mut places = Places::default();
        places.come(1);
        let of_the_old = places.read(1, 5, true);
        places.begin_life();
        for offset in 0..9 {
            places.read(1, offset, true);
        }
        places.done(of_the_old);
        assert_eq!(next(&places), None);
        let of_the_new = places.read(1, 9, true);
        places.done(of_the_new);
        assert_eq!(next(&places), Some(10));
        places.life = LIVES - 1;
        places.begin_life();
        assert_eq!(places.read(1, 0, true).partition, 1);
    }
}
