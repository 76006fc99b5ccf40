//! Prefetching: what many items need is read from memory in one short loop before the first of them
//! is handled.
//!
//! With a million sessions hardly anything of the next one is in a cache. Handled one by one, each
//! waits for memory several times, and the processor cannot see far enough ahead to start on the
//! next. A loop that only reads has many loads in flight at once. So work on many items is done in
//! blocks: read a block, then handle it.

/// Items read before the first of them is handled: more than the processor has loads in flight, few
/// enough to stay in its nearest caches until they are handled.
pub(crate) const BLOCK: usize = 64;
/// Slots up to this far apart count as neighbours.
const NEIGHBOUR_MAX: u32 = 4;

/// True when nearly every slot is next to the one before: the processor's own prefetcher handles
/// these.
pub(crate) fn is_sequential(slots: impl Iterator<Item = u32> + Clone) -> bool {
    let steps = slots.clone().zip(slots.skip(1));
    steps.filter(|(slot, next)| slot.abs_diff(*next) > NEIGHBOUR_MAX).count() <= BLOCK / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_sequential_and_scattered_slots_are_not() {
        assert!(is_sequential(0..64));
        assert!(is_sequential((0..64).rev().map(|slot| slot * NEIGHBOUR_MAX)));
        assert!(!is_sequential((0..64).map(|slot| slot * 5)));
        assert!(is_sequential(std::iter::empty()));
    }
}
