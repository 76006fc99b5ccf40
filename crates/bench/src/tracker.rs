//! The messages of one stream that one connection has received. Finds lost, duplicate and reordered
//! ones exactly.

use std::ops::Range;

/// Records which of the numbers 0, 1, 2, ... have arrived.
///
/// A stream without gaps takes 16 bytes. Gaps take memory while they are open: at most one range
/// for every two messages published.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    /// The highest number that has arrived, plus 1.
    next: u32,
    /// Missing numbers below `next`, as sorted, separate, non-empty ranges. `None` when nothing is
    /// missing.
    #[expect(clippy::box_collection, reason = "keeps a tracker without gaps at 16 bytes")]
    gaps: Option<Box<Vec<Range<u32>>>>,
}

/// The kind of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The highest number so far. Lower ones may be missing.
    New,
    /// A missing number: a later one has arrived before it.
    Late,
    /// A number that has arrived before.
    Duplicate,
}

impl Tracker {
    /// Records a number.
    pub(crate) fn arrive(&mut self, number: u32) -> Arrival {
        if number >= self.next {
            if number > self.next {
                self.gaps.get_or_insert_default().push(self.next..number);
            }
            self.next = number.saturating_add(1);
            return Arrival::New;
        }
        let Some(gaps) = &mut self.gaps else { return Arrival::Duplicate };
        let Some(at) = gaps.iter().position(|gap| gap.contains(&number)) else { return Arrival::Duplicate };
        let gap = gaps.remove(at);
        let parts = [gap.start..number, number.saturating_add(1)..gap.end];
        gaps.splice(at..at, parts.into_iter().filter(|part| !part.is_empty()));
        if gaps.is_empty() {
            self.gaps = None;
        }
        Arrival::Late
    }

    /// Returns how many of the first `published` numbers have not arrived.
    pub(crate) fn missing(&self, published: u32) -> u64 {
        let behind = u64::from(published.saturating_sub(self.next));
        let gaps = self.gaps.as_ref().map_or(0, |gaps| {
            gaps.iter().map(|gap| u64::from(gap.end.min(published).saturating_sub(gap.start))).sum()
        });
        behind.saturating_add(gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Arrival::{Duplicate, Late, New};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(arrivals: &[(u32, Arrival)], published: u32, missing: u64) {
        let mut tracker = Tracker::default();
        for (number, expect) in arrivals {
            assert_eq!(tracker.arrive(*number), *expect, "{number} of {arrivals:?}");
        }
        assert_eq!(tracker.missing(published), missing, "{arrivals:?}");
    }

    #[test]
    fn arrivals_are_classified() {
        check(&[], 0, 0);
        check(&[], 3, 3);
        check(&[(0, New), (1, New), (2, New)], 3, 0);
        // Lost: in the middle, at the front, at the end.
        check(&[(0, New), (2, New)], 3, 1);
        check(&[(2, New)], 3, 2);
        check(&[(0, New), (1, New)], 5, 3);
        // Duplicate: immediately, later, a late one.
        check(&[(0, New), (0, Duplicate), (1, New), (0, Duplicate)], 2, 0);
        check(&[(1, New), (0, Late), (0, Duplicate)], 2, 0);
        // Reordered.
        check(&[(1, New), (0, Late), (2, New)], 3, 0);
        check(&[(4, New), (2, Late), (1, Late), (3, Late), (0, Late)], 5, 0);
        // Reordered and lost.
        check(&[(5, New), (3, Late), (3, Duplicate)], 7, 5);
    }

    #[test]
    fn a_tracker_without_gaps_is_small() {
        assert_eq!(size_of::<Tracker>(), 16);
    }

    proptest! {
        /// Compares with a set of all numbers that have arrived.
        #[test]
        fn agrees_with_a_set(numbers in prop::collection::vec(0_u32..40, 0..80)) {
            let mut tracker = Tracker::default();
            let mut seen = BTreeSet::new();
            for number in numbers {
                let highest = seen.last().is_none_or(|last| number > *last);
                let expect = if !seen.insert(number) { Duplicate } else if highest { New } else { Late };
                prop_assert_eq!(tracker.arrive(number), expect);
            }
            let missing = (0..40).filter(|number| !seen.contains(number)).count();
            prop_assert_eq!(tracker.missing(40), missing as u64);
        }
    }
}
