//! Answers of logic, and notes from other shards.

use goim_ports::Call;
use goim_session::CloseReason;

use super::Shard;
use crate::connection::ConnectionId;
use crate::inbox::Notice;

impl Shard {
    /// Returns the answer of a call that is resolved already. Otherwise the runtime awaits it, and
    /// it is received by this shard as the notice that `notice` makes of it.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: Call<T>,
        notice: impl FnOnce(T) -> Notice + Send + 'static,
    ) -> Option<T> {
        match call {
            Call::Ready(answer) => Some(answer),
            Call::Pending(answer) => {
                let own = self.peers.own().clone();
                self.shared.runtime.spawn(async move { own.notice(notice(answer.await)) });
                None
            }
        }
    }

    /// Handles a notice. One for a connection that does not exist any more is ignored, except that
    /// logic must learn of a session that it accepted for one.
    pub(super) fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected { connection, disconnects, result } => {
                self.connected(connection, disconnects, result);
                self.for_connection(connection, Self::take_input);
            }
            Notice::Replied { connection, result } => self.for_connection(connection, |shard, slot| {
                shard.replied(slot, result);
                shard.take_input(slot);
            }),
            Notice::Resumed { connection, result } => self.for_connection(connection, |shard, slot| {
                shard.resumed_position(slot, result);
                shard.resume_positions(slot);
            }),
            Notice::Refreshed { connection, result } => self.for_connection(connection, |shard, slot| {
                shard.refreshed(slot, result);
                shard.take_input(slot);
            }),
            Notice::Superseded(connection) => {
                self.for_connection(connection, |shard, slot| shard.close(slot, CloseReason::Superseded));
            }
            Notice::Register(connection) => {
                self.for_connection(connection, |shard, slot| shard.register_session(slot));
            }
            Notice::Sync(connection) => self.for_connection(connection, Self::request_sync),
            Notice::Members { room, limit, answer } => {
                // The caller may have given up.
                let _ = answer.send(self.members_of(&room, limit));
            }
            Notice::RegisterAll => self.begin_reregistration(),
            Notice::Recover { ago, register } => self.begin_recovery(ago, register),
            Notice::Drain { sessions_per_second, deadline, delay_max } => {
                self.begin_drain(sessions_per_second, deadline, delay_max);
            }
        }
    }

    fn for_connection(&mut self, id: ConnectionId, handle: impl FnOnce(&mut Self, u32)) {
        if let Some(slot) = self.connections.find(id) {
            handle(self, slot);
        }
    }
}
