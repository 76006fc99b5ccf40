//! What one connection has received of one stream: finds lost, doubled and reordered messages exactly.

use std::ops::Range;

/// Numbers are given out 0, 1, 2, ...; this knows which of them have arrived.
///
/// An undisturbed stream costs 16 bytes. Gaps cost memory while they are open: at most one range for every two
/// messages published.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    /// One above the highest number that has arrived.
    next: u32,
    /// What is missing below `next`, in order, none empty, none touching. `None` is none.
    #[expect(clippy::box_collection, reason = "keeps the undisturbed tracker at 16 bytes")]
    gaps: Option<Box<Vec<Range<u32>>>>,
}

/// What the arrival of a number was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The highest so far. Some below it may be missing.
    New,
    /// Was missing: something that was sent after it came before it.
    Late,
    /// Has arrived before.
    Double,
}

impl Tracker {
    /// Enters a number.
    pub(crate) fn arrive(&mut self, number: u32) -> Arrival {
        if number >= self.next {
            if number > self.next {
                self.gaps.get_or_insert_default().push(self.next..number);
            }
            self.next = number.saturating_add(1);
            return Arrival::New;
        }
        let Some(gaps) = &mut self.gaps else { return Arrival::Double };
        let Some(at) = gaps.iter().position(|gap| gap.contains(&number)) else { return Arrival::Double };
        let gap = gaps.remove(at);
        let parts = [gap.start..number, number.saturating_add(1)..gap.end];
        gaps.splice(at..at, parts.into_iter().filter(|part| !part.is_empty()));
        if gaps.is_empty() {
            self.gaps = None;
        }
        Arrival::Late
    }

    /// How many of the first `published` numbers have not arrived.
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
    use Arrival::{Double, Late, New};
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
    fn what_may_happen_to_a_stream() {
        check(&[], 0, 0);
        check(&[], 3, 3);
        check(&[(0, New), (1, New), (2, New)], 3, 0);
        // Lost: in the middle, at the front, at the end.
        check(&[(0, New), (2, New)], 3, 1);
        check(&[(2, New)], 3, 2);
        check(&[(0, New), (1, New)], 5, 3);
        // Doubled: at once, later, a late one.
        check(&[(0, New), (0, Double), (1, New), (0, Double)], 2, 0);
        check(&[(1, New), (0, Late), (0, Double)], 2, 0);
        // Reordered.
        check(&[(1, New), (0, Late), (2, New)], 3, 0);
        check(&[(4, New), (2, Late), (1, Late), (3, Late), (0, Late)], 5, 0);
        // Reordered and lost.
        check(&[(5, New), (3, Late), (3, Double)], 7, 5);
    }

    #[test]
    fn an_undisturbed_stream_is_small() {
        assert_eq!(size_of::<Tracker>(), 16);
    }

    proptest! {
        /// The same as a set of everything that has arrived.
        #[test]
        fn as_a_set(numbers in prop::collection::vec(0_u32..40, 0..80)) {
            let mut tracker = Tracker::default();
            let mut seen = BTreeSet::new();
            for number in numbers {
                let highest = seen.last().is_none_or(|last| number > *last);
                let expect = if !seen.insert(number) { Double } else if highest { New } else { Late };
                prop_assert_eq!(tracker.arrive(number), expect);
            }
            let missing = (0..40).filter(|number| !seen.contains(number)).count();
            prop_assert_eq!(tracker.missing(40), missing as u64);
        }
    }
}
