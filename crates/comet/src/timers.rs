//! The deadlines of one shard: a hashed timer wheel, re-armed lazily.
//!
//! Each connection has one entry, in the slot of the tick at which it must be checked. A heartbeat
//! moves the connection's deadline and leaves the entry where it is; when the slot fires, the
//! connection is checked and entered in the slot of its current deadline. So a heartbeat costs
//! nothing here, and a connection costs eight bytes.

use std::time::Duration;

use goim_session::Millis;

/// Width of a tick in milliseconds. Deadlines have this precision; none fires early.
const TICK_MS: u64 = 100;
/// Slots on the wheel: 410 s. A deadline further ahead takes more than one round.
const SLOTS: usize = 4096;
/// A list of fired entries up to this size keeps its memory for the next tick.
const FIRED_KEPT: usize = 1024;

/// Number of a tick since the shard's start. Wraps after thirteen years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u32);

impl Tick {
    /// The first tick at which `moment` has passed.
    pub(crate) fn at(moment: Millis) -> Self {
        Self(u32::try_from(moment.0.div_ceil(TICK_MS)).unwrap_or(u32::MAX))
    }

    /// True when both use the same slot of the wheel.
    pub(crate) fn same_slot(self, other: Self) -> bool {
        self.slot() == other.slot()
    }

    fn slot(self) -> usize {
        self.0 as usize % SLOTS
    }
}

/// The wheel. An entry is whatever names the thing with the deadline.
pub(crate) struct TimerWheel<T> {
    slots: Vec<Vec<T>>,
    /// The last tick that has fired.
    last_fired: Tick,
    len: usize,
    /// Memory for the next list of fired entries.
    spare: Vec<(T, Tick)>,
}

impl<T: Copy> TimerWheel<T> {
    pub(crate) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { slots, last_fired: Tick(0), len: 0, spare: Vec::new() }
    }

    /// Enters `entry` to fire once `moment` has passed. The caller remembers the tick: an entry
    /// that fires at another one is stale.
    pub(crate) fn arm(&mut self, entry: T, moment: Millis) -> Tick {
        let tick = Tick::at(moment).max(Tick(self.last_fired.0.saturating_add(1)));
        self.put_back(entry, tick);
        tick
    }

    /// Enters an entry again that fired a whole round too early.
    pub(crate) fn put_back(&mut self, entry: T, tick: Tick) {
        self.slots[tick.slot()].push(entry);
        self.len += 1;
    }

    /// Time until the next tick is due, or `None` when nothing is armed.
    pub(crate) fn wait(&self, now: Millis) -> Option<Duration> {
        (self.len > 0).then(|| now.until(Millis((u64::from(self.last_fired.0) + 1) * TICK_MS)))
    }

    /// Advances to `now` and removes every entry of the ticks passed, each with its tick. An entry
    /// of a later round of the wheel must be given back ([`TimerWheel::put_back`]), and the list
    /// too ([`TimerWheel::recycle`]).
    pub(crate) fn fire(&mut self, now: Millis) -> Vec<(T, Tick)> {
        let mut fired = std::mem::take(&mut self.spare);
        let present = Tick(u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX));
        // After a long pause one round of the wheel covers all slots.
        let first = self.last_fired.0.max(present.0.saturating_sub(SLOTS as u32 - 1));
        for number in first..present.0 {
            let tick = Tick(number + 1);
            // The slot's memory is freed with its entries: the slot is next used minutes later,
            // perhaps never as full.
            let slot = std::mem::take(&mut self.slots[tick.slot()]);
            self.len -= slot.len();
            fired.extend(slot.into_iter().map(|entry| (entry, tick)));
        }
        self.last_fired = self.last_fired.max(present);
        fired
    }

    /// Takes back a list of fired entries, for its memory.
    pub(crate) fn recycle(&mut self, mut fired: Vec<(T, Tick)>) {
        fired.clear();
        if fired.capacity() <= FIRED_KEPT {
            self.spare = fired;
        }
    }

    /// Entries on the wheel.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Drops the stale entries. They would go as their slots fire, which may take minutes; after a
    /// mass departure that is too long to hold their memory.
    pub(crate) fn retain(&mut self, is_current: impl Fn(T) -> bool) {
        for slot in &mut self.slots {
            if slot.is_empty() {
                continue;
            }
            slot.retain(|entry| is_current(*entry));
            slot.shrink_to_fit();
        }
        self.len = self.slots.iter().map(Vec::len).sum();
    }

    /// Frees memory that is not needed while nothing fires.
    pub(crate) fn release_memory(&mut self) {
        self.spare.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Advances the wheel in steps of `step_ms` and returns the moments at which entries fire.
    fn run(wheel: &mut TimerWheel<u32>, until_ms: u64, step_ms: u64) -> Vec<(u64, u32)> {
        let mut seen = Vec::new();
        for now in (0..=until_ms).step_by(usize::try_from(step_ms).unwrap()) {
            let fired = wheel.fire(Millis(now));
            seen.extend(fired.iter().map(|(entry, _)| (now, *entry)));
            wheel.recycle(fired);
        }
        seen
    }

    #[test]
    fn entries_fire_once_never_early_and_within_a_tick() {
        for (deadline, step) in [(1, 10), (99, 10), (100, 10), (101, 10), (5_000, 10), (5_000, 700)] {
            let mut wheel = TimerWheel::new();
            wheel.arm(7, Millis(deadline));
            let seen = run(&mut wheel, 20_000, step);
            assert_eq!(seen.len(), 1, "{deadline}");
            let (at, entry) = seen[0];
            assert_eq!(entry, 7);
            assert!(at >= deadline && at <= deadline + TICK_MS + step, "{deadline} fired at {at}");
            assert_eq!(wheel.wait(Millis(20_000)), None);
        }
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = TimerWheel::new();
        for entry in 0..100_u32 {
            wheel.arm(entry, Millis(u64::from(entry) * 3_000));
        }
        assert_eq!(wheel.fire(Millis(10_000_000)).len(), 100);
    }

    #[test]
    fn an_entry_more_than_a_round_ahead_fires_early_and_can_be_put_back() {
        let mut wheel = TimerWheel::new();
        let armed = wheel.arm(1, Millis(500_000));
        let fired = wheel.fire(Millis(100_000));
        let [(entry, tick)] = fired[..] else { panic!("one entry expected: {fired:?}") };
        assert!(Tick::same_slot(armed, tick) && armed > tick);
        wheel.put_back(entry, armed);
        assert_eq!(wheel.fire(Millis(500_000)), [(1, armed)]);
    }

    #[test]
    fn stale_entries_can_be_dropped() {
        let mut wheel = TimerWheel::new();
        for entry in 0..100_u32 {
            wheel.arm(entry, Millis(u64::from(entry) * 3_000));
        }
        wheel.retain(|entry| entry % 10 == 0);
        assert_eq!(wheel.len(), 10);
        assert_eq!(wheel.fire(Millis(10_000_000)).len(), 10);
    }
}
