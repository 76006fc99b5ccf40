//! Sessions that have missed messages, since this comet was taken for dead and was not.
//!
//! Frozen or cut off for long enough, a comet is given up: its sessions are swept from the directory, so that a push to a key finds nobody, and
//! jobs drop what is for it. Its clients notice nothing of that. When the comet is told, those that sync look again, and the others are ended:
//! nothing else says to a client that does not count messages that some are missing.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, Operation, PacketBuf};
use goim_session::{CloseReason, EncodedPush, Millis, QueueLimit, SlowConsumerPolicy};

use super::{Shard, share};
use crate::connection::ConnectionId;
use crate::inbox::Notice;

/// How exactly it is known when a connection was accepted.
const GRAIN: Duration = Duration::from_millis(250);
/// Connections that one turn looks at, so that a round over very many holds up nobody.
const LOOKS_MAX: u32 = 4096;
/// Moments that are remembered: four minutes and more in which connections came. 16 KiB.
const MOMENTS_MAX: usize = 1024;

/// When connections were accepted, roughly: for each of some moments the newest connection before it.
#[derive(Debug, Default)]
pub(super) struct Accepted(VecDeque<(Millis, u32)>);

impl Accepted {
    /// A connection is accepted at `now`; `newest` is the one before.
    pub(super) fn note(&mut self, now: Millis, newest: u32) {
        if self.0.back().is_some_and(|(last, _)| now < last.after(GRAIN)) {
            return;
        }
        if self.0.len() == MOMENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, newest));
    }

    /// The newest connection that was there at `at`, or soon after it. `newest` is the newest of all.
    fn up_to(&self, at: Millis, newest: u32) -> u32 {
        let later = self.0.partition_point(|(moment, _)| *moment <= at);
        self.0.get(later).map_or(newest, |(_, before)| *before)
    }
}

/// A round over the sessions.
pub(super) struct Recovering {
    /// The newest connection that it is about.
    up_to: u32,
    /// Those that stay are to be entered in the directory first.
    enter: bool,
    cursor: u32,
    credit: f64,
    seen: Millis,
    /// What was heard meanwhile: another round.
    next: Option<(u32, bool)>,
}

/// True for a connection that is not newer; generations wrap.
fn is_up_to(generation: u32, up_to: u32) -> bool {
    (generation.wrapping_sub(up_to) as i32) <= 0
}

impl Shard {
    /// Sees to the sessions that were there `ago`.
    pub(super) fn begin_recovery(&mut self, ago: Duration, enter: bool) {
        if self.draining.is_some() {
            return;
        }
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        // Before this comet was there, nobody was.
        let Some(at) = self.now.0.checked_sub(ago) else { return };
        let up_to = self.accepted.up_to(Millis(at), self.generation);
        let Some(recovering) = &mut self.recovering else {
            self.recovering =
                Some(Recovering { up_to, enter, cursor: 0, credit: 0.0, seen: self.now, next: None });
            return;
        };
        recovering.next = Some(match recovering.next {
            Some((other, entered)) => (if is_up_to(up_to, other) { other } else { up_to }, entered || enter),
            None => (up_to, enter),
        });
    }

    /// Goes on with the round, as far as the pace allows.
    pub(super) fn recover_some(&mut self) {
        let Some(mut round) = self.recovering.take() else { return };
        let config = &self.shared.config.recovery;
        let (pace, ends) = (share(config.sessions_per_second, self.peers.len()), config.end_sessions);
        let pace = f64::from(pace.get());
        let passed = round.seen.until(self.now).as_secs_f64();
        round.seen = self.now;
        round.credit = (round.credit + passed * pace).min((pace / 10.0).max(1.0));
        let mut looks = 0;
        while round.credit >= 1.0 && looks < LOOKS_MAX {
            looks += 1;
            if round.cursor >= self.connections.end() {
                let next = round.next.take();
                self.recovering = next.map(|(up_to, enter)| Recovering { up_to, enter, cursor: 0, ..round });
                return;
            }
            let slot = round.cursor;
            round.cursor += 1;
            let Some(connection) = self.connections.get(slot) else { continue };
            if !connection.session.is_open() || !is_up_to(connection.generation, round.up_to) {
                continue;
            }
            if self.shared.versions.syncs(connection.class) {
                self.look_again(slot, round.enter);
            } else if ends {
                self.close(slot, CloseReason::MessagesMissed);
            } else {
                continue;
            }
            round.credit -= 1.0;
        }
        self.recovering = Some(round);
    }

    /// Has a session that syncs look for what it has missed; not before it is in the directory, or it would not hear of what comes next.
    fn look_again(&mut self, slot: u32, enter: bool) {
        let Some(session) = self.session_ref(slot).filter(|_| enter) else { return self.tell_to_look(slot) };
        let id = ConnectionId { slot, generation: self.connections[slot].generation };
        match self.shared.logic.heartbeat(session) {
            Call::Ready(_) => self.tell_to_look(slot),
            Call::Pending(answer) => {
                let own = self.peers[self.index].clone();
                self.shared.runtime.spawn(async move {
                    if let Err(error) = answer.await {
                        tracing::debug!(%error, "a session's record was not renewed; it looks all the same");
                    }
                    own.notice(Notice::Look(id));
                });
            }
        }
    }

    /// Tells a session that syncs that words may have been lost.
    pub(super) fn tell_to_look(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.session.is_open() {
            return;
        }
        let word = EncodedPush::whole(PacketBuf::push(Operation::NOTIFY, Bytes::new()));
        // One for each round, and rounds follow each other.
        let limit = QueueLimit { bytes_max: usize::MAX, policy: SlowConsumerPolicy::DropNewest };
        let bytes = word.len(connection.session.transport());
        let before = connection.session.outbox().push_bytes();
        connection.session.push(&mut self.pool, &word, limit);
        let after = connection.session.outbox().push_bytes();
        self.outbox_changed(before, after);
        self.stats.packets_out(Operation::NOTIFY, 1, bytes);
        self.stats.told_to_look.add(1);
        self.stage(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_at_a_moment() {
        let mut accepted = Accepted::default();
        let at = |ms| Millis(ms);
        assert_eq!(accepted.up_to(at(0), 0), 0);
        // Connections 1 and 2 at 1000, 3 at 1100, 4 at 2000.
        for (ms, before) in [(1000, 0), (1000, 1), (1100, 2), (2000, 3)] {
            accepted.note(at(ms), before);
        }
        for (ms, expected) in [(0, 0), (999, 0), (1000, 3), (1999, 3), (2000, 4), (9000, 4)] {
            assert_eq!(accepted.up_to(at(ms), 4), expected, "{ms}");
        }
        for ms in 0..10_000 {
            accepted.note(at(3000 + ms * 1000), 4);
        }
        assert_eq!(accepted.0.len(), MOMENTS_MAX);
    }

    #[test]
    fn generations_wrap() {
        assert!(is_up_to(u32::MAX, 2) && is_up_to(2, 2) && !is_up_to(3, 2) && !is_up_to(2, u32::MAX));
    }
}
