//! One shard's deadlines: a hashed wheel, lazily re-armed.
//!
//! Each connection has one entry, in the slot of the tick at which it must be looked at. A heartbeat moves the
//! connection's deadline and leaves the entry where it is; when the slot comes up the connection is looked at and put
//! into the slot of its deadline of that time. So a heartbeat costs nothing here, and a connection costs eight bytes.

use std::time::Duration;

use goim_session::Millis;

use crate::connection::ConnectionId;

/// Width of a tick in milliseconds. Deadlines are kept to this precision, never early.
const TICK_MS: u64 = 100;
/// Slots on the wheel: 410 s. A deadline further away goes round more than once.
const SLOTS: usize = 4096;

/// Number of a tick since the shard's start. Wraps after thirteen years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u32);

impl Tick {
    /// The first tick at which `moment` has passed.
    pub(crate) fn at(moment: Millis) -> Self {
        Self(u32::try_from(moment.0.div_ceil(TICK_MS)).unwrap_or(u32::MAX))
    }

    /// True when both come up in the same slot of the wheel.
    pub(crate) fn same_slot(self, other: Self) -> bool {
        self.slot() == other.slot()
    }

    fn slot(self) -> usize {
        self.0 as usize % SLOTS
    }
}

/// The wheel.
pub(crate) struct TimerWheel {
    slots: Vec<Vec<ConnectionId>>,
    /// The tick that was handled last.
    handled: Tick,
    entries: usize,
}

impl TimerWheel {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), handled: Tick(0), entries: 0 }
    }

    /// Asks for `connection` to be looked at when `moment` has passed. The tick must be remembered in the connection:
    /// an entry that comes up at another one is stale.
    pub(crate) fn arm(&mut self, connection: ConnectionId, moment: Millis) -> Tick {
        let tick = Tick::at(moment).max(Tick(self.handled.0.saturating_add(1)));
        self.slots[tick.slot()].push(connection);
        self.entries += 1;
        tick
    }

    /// Time until the next tick has to be handled, or `None` when nothing is armed.
    pub(crate) fn wait(&self, now: Millis) -> Option<Duration> {
        (self.entries > 0).then(|| now.until(Millis((u64::from(self.handled.0) + 1) * TICK_MS)))
    }

    /// Goes on to the present and moves every entry of the ticks passed to `due`, with its tick. An entry that belongs
    /// to a later round of the wheel is to be given back ([`TimerWheel::keep`]).
    pub(crate) fn turn(&mut self, now: Millis, due: &mut Vec<(ConnectionId, Tick)>) {
        let present = Tick(u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX));
        // After a long pause one round of the wheel covers all slots.
        let first = self.handled.0.max(present.0.saturating_sub(SLOTS as u32 - 1));
        for number in first..present.0 {
            let tick = Tick(number + 1);
            // The slot's memory goes with its entries: it comes up again in minutes, and may be as full never again.
            let slot = std::mem::take(&mut self.slots[tick.slot()]);
            self.entries -= slot.len();
            due.extend(slot.into_iter().map(|connection| (connection, tick)));
        }
        self.handled = self.handled.max(present);
    }

    /// Entries on the wheel.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Drops the entries of connections that are gone. They would go by themselves as their slots come up, which may take
    /// minutes; after a mass departure that is too long to keep their memory.
    pub(crate) fn purge(&mut self, is_there: impl Fn(ConnectionId) -> bool) {
        for slot in &mut self.slots {
            if slot.is_empty() {
                continue;
            }
            slot.retain(|connection| is_there(*connection));
            slot.shrink_to_fit();
        }
        self.entries = self.slots.iter().map(Vec::len).sum();
    }

    /// Puts back an entry that came up a whole round too early.
    pub(crate) fn keep(&mut self, connection: ConnectionId, tick: Tick) {
        self.slots[tick.slot()].push(connection);
        self.entries += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 1 }
    }

    /// Turns the wheel in steps of `step_ms` and gives the moments at which entries come up.
    fn run(wheel: &mut TimerWheel, until_ms: u64, step_ms: u64) -> Vec<(u64, ConnectionId)> {
        let mut seen = Vec::new();
        for now in (0..=until_ms).step_by(usize::try_from(step_ms).unwrap()) {
            let mut due = Vec::new();
            wheel.turn(Millis(now), &mut due);
            seen.extend(due.into_iter().map(|(connection, _)| (now, connection)));
        }
        seen
    }

    #[test]
    fn entries_come_up_once_never_early_and_within_a_tick() {
        for (deadline, step) in [(1, 10), (99, 10), (100, 10), (101, 10), (5_000, 10), (5_000, 700)] {
            let mut wheel = TimerWheel::new();
            wheel.arm(id(7), Millis(deadline));
            let seen = run(&mut wheel, 20_000, step);
            assert_eq!(seen.len(), 1, "{deadline}");
            let (at, connection) = seen[0];
            assert_eq!(connection, id(7));
            assert!(at >= deadline && at <= deadline + TICK_MS + step, "{deadline} came up at {at}");
            assert_eq!(wheel.wait(Millis(20_000)), None);
        }
    }

    #[test]
    fn a_long_pause_loses_nothing() {
        let mut wheel = TimerWheel::new();
        for slot in 0..100 {
            wheel.arm(id(slot), Millis(u64::from(slot) * 3_000));
        }
        let mut due = Vec::new();
        wheel.turn(Millis(10_000_000), &mut due);
        assert_eq!(due.len(), 100);
    }

    #[test]
    fn an_entry_further_than_a_round_shows_its_slot_early_and_can_be_kept() {
        let mut wheel = TimerWheel::new();
        let armed = wheel.arm(id(1), Millis(500_000));
        let mut due = Vec::new();
        wheel.turn(Millis(100_000), &mut due);
        let [(connection, tick)] = due[..] else { panic!("one entry expected: {due:?}") };
        assert!(Tick::same_slot(armed, tick) && armed > tick);
        wheel.keep(connection, armed);
        due.clear();
        wheel.turn(Millis(500_000), &mut due);
        assert_eq!(due, [(id(1), armed)]);
    }
}
