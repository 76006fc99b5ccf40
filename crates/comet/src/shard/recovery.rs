//! Sessions that have missed messages because this comet was taken for dead and was not.
//!
//! A comet that was frozen or cut off for long enough is given up: logic sweeps its sessions from
//! the directory, so that pushes to their keys fail, and jobs drop messages for it. Its clients
//! notice nothing. Once the comet learns of it, sessions that sync are asked to sync, and the
//! others are closed: a client that does not count messages cannot notice that some are missing.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{Call, Operation, PacketBuf};
use goim_session::{CloseReason, EncodedPush, Millis};

use super::Shard;
use super::accept_history::is_up_to;
use super::egress::UNLIMITED;
use super::scan::{Recovery, Scan};
use crate::inbox::Notice;
use crate::token_bucket::{Rate, TokenBucket, per_shard};

/// How much of a second's sessions may be handled at once.
const BURST: Duration = Duration::from_millis(100);
/// Slots visited in one turn, so that a scan of very many connections delays nothing.
const VISITS_PER_TURN: u32 = 4096;

impl Shard {
    /// Begins to handle the sessions that were open `ago`. With `register` they are registered with
    /// logic first.
    pub(super) fn begin_recovery(&mut self, ago: Duration, register: bool) {
        if self.scans.drain.is_some() {
            return;
        }
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        // Before this comet started it had no sessions.
        let Some(at) = self.now.0.checked_sub(ago) else { return };
        let newest = self.scans.accept_history.newest_at(Millis(at), self.connections.newest());
        let Some(recovery) = &mut self.scans.recovery else {
            let rate = Rate::with_burst_time(self.recovered_per_second(), BURST);
            let scan = Scan::new(rate, TokenBucket::empty(self.now));
            self.scans.recovery = Some(Recovery { newest, register, scan, next: None });
            return;
        };
        recovery.next = Some(match recovery.next {
            Some((other, registers)) => {
                (if is_up_to(newest, other) { other } else { newest }, registers || register)
            }
            None => (newest, register),
        });
    }

    fn recovered_per_second(&self) -> NonZeroU32 {
        per_shard(self.shared.config.recovery.sessions_per_second, self.peers.len())
    }

    /// Handles the next sessions, as many as the pace allows.
    pub(super) fn continue_recovery(&mut self) {
        let Some(mut recovery) = self.scans.recovery.take() else { return };
        let closes_others = self.shared.config.recovery.end_sessions;
        recovery.scan.refill(self.now);
        let mut visits = 0;
        while recovery.scan.has_token() && visits < VISITS_PER_TURN {
            visits += 1;
            let Some(slot) = recovery.scan.next_slot(self.connections.end()) else {
                self.scans.recovery = recovery.next.take().map(|(newest, register)| {
                    recovery.scan.restart();
                    Recovery { newest, register, ..recovery }
                });
                return;
            };
            let Some(connection) = self.connections.get(slot) else { continue };
            if !connection.session.is_open() || !is_up_to(connection.generation, recovery.newest) {
                continue;
            }
            if self.shared.profiles.syncs(connection.profile) {
                self.recover_session(slot, recovery.register);
            } else if closes_others {
                self.close(slot, CloseReason::MessagesMissed);
            } else {
                continue;
            }
            recovery.scan.spend();
        }
        self.scans.recovery = Some(recovery);
    }

    /// Has a session sync. If it must be registered first, it syncs after that: else it would not
    /// be notified of what is stored next.
    fn recover_session(&mut self, slot: u32, register: bool) {
        let Some(session) = self.session_ref(slot).filter(|_| register) else {
            return self.request_sync(slot);
        };
        let id = self.connections.id(slot);
        let call = self.shared.logic.heartbeat(session);
        if let Call::Ready(_) = call {
            return self.request_sync(slot);
        }
        self.call(call, move |result| {
            if let Err(error) = result {
                tracing::debug!(%error, "a session's record was not renewed; it syncs nevertheless");
            }
            Notice::Sync(id)
        });
    }

    /// Asks a session to sync, since notifications may have been lost, by operation 20 without a
    /// body.
    pub(super) fn request_sync(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.session.is_open() {
            return;
        }
        let notification = EncodedPush::whole(PacketBuf::push(Operation::NOTIFY, Bytes::new()));
        // One per scan, and scans follow each other: no bound is needed.
        let bytes = notification.len(connection.session.transport());
        self.egress.push(connection, &notification, UNLIMITED, self.now);
        self.stats.packets_out(Operation::NOTIFY, 1, bytes);
        self.stats.resyncs.add(1);
        self.stage(slot);
    }
}
