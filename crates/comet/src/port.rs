//! The way for job: turns pushes into commands for the shards that hold the receivers.

use std::num::NonZeroU32;
use std::sync::Arc;

use goim_ports::{Broadcast, Call, CometError, CometPort, KeyPush, Operation, PacketBuf, RoomId, RoomPush};
use goim_session::EncodedPush;
use goim_wire::batch;
use tokio::sync::Semaphore;

use crate::connection::ConnectionId;
use crate::inbox::{Command, Pace, Refused, ShardHandle, Targets};
use crate::rooms::{Holders, SMALL_ROOM_MAX};
use crate::shard::Shared;
use crate::stats::SharedCounter;

/// A comet's port.
pub(crate) struct Port {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Vec<ShardHandle>,
    /// One permit for each broadcast with a speed that may be under way.
    pub(crate) pacing: Arc<Semaphore>,
    /// Keys pushed to that this comet does not hold.
    pub(crate) unknown_keys: Arc<SharedCounter>,
}

type Handover = Call<Result<(), CometError>>;

impl CometPort for Port {
    fn push(&self, push: KeyPush) -> Handover {
        if self.shards.len() == 1 {
            return self.push_unresolved(push);
        }
        let mut targets: Vec<Vec<ConnectionId>> = vec![Vec::new(); self.shards.len()];
        for key in &push.keys {
            match self.shared.keys.find(key) {
                Some(location) => targets[usize::from(location.shard)].push(location.connection),
                None => self.unknown_keys.add(1),
            }
        }
        let encoded = EncodedPush::new(&push.packet);
        let commands = targets.into_iter().enumerate().filter(|(_, targets)| !targets.is_empty());
        self.hand_over(commands.map(|(shard, targets)| {
            let (operation, accepted_at) = (push.operation, push.accepted_at);
            let sends = targets.len();
            (
                shard,
                sends,
                Command::Push {
                    targets: Targets::Connections(targets),
                    operation,
                    push: encoded.for_another_thread(),
                    accepted_at,
                },
            )
        }))
    }

    fn broadcast(&self, broadcast: Broadcast) -> Handover {
        let Some(speed) = broadcast.speed else {
            let encoded = EncodedPush::new(&broadcast.packet);
            let (operation, accepted_at) = (broadcast.operation, broadcast.accepted_at);
            let sends = self.shared.addresses.connections() / self.shards.len().max(1);
            return self.hand_over((0..self.shards.len()).map(|shard| {
                let push = encoded.for_another_thread();
                (shard, sends, Command::Broadcast { operation, push, pace: None, accepted_at })
            }));
        };
        match self.pacing.clone().try_acquire_owned() {
            Ok(permit) => self.pace(&broadcast, speed, permit),
            // All places are taken: the caller waits for one.
            Err(_) => {
                let port = Self {
                    shared: self.shared.clone(),
                    shards: self.shards.clone(),
                    pacing: self.pacing.clone(),
                    unknown_keys: self.unknown_keys.clone(),
                };
                Call::pending(async move {
                    let permit = port.pacing.clone().acquire_owned().await.map_err(|_| gone())?;
                    port.pace(&broadcast, speed, permit).await
                })
            }
        }
    }

    fn push_room(&self, push: RoomPush) -> Handover {
        let hash = self.shared.census.hash(push.room.as_str());
        let census = &self.shared.census;
        // With one shard there is nothing to find out but how large the room is: it looks rooms up itself, many at a time.
        // A small room, or one that is not there, takes the sends of the largest small one.
        let small = Holders { shards: 1, here: SMALL_ROOM_MAX };
        let alone = self.shards.len() == 1 && !census.may_be_large(hash);
        let Holders { shards, here } = if alone { small } else { census.holders(hash, &push.room) };
        if shards == 0 {
            return Call::Ready(Ok(()));
        }
        // The kernel spreads connections evenly.
        let sends = here as usize / (shards.count_ones() as usize).min(self.shards.len()).max(1);
        let encoded = EncodedPush::new(&push.packet);
        let operation = carried(&push.packet);
        let holders = (0..self.shards.len()).filter(|shard| shards & (1 << (shard % 64)) != 0);
        self.hand_over(holders.map(|shard| {
            let (room, accepted_at) = (push.room.clone(), push.accepted_at);
            let push = encoded.for_another_thread();
            (shard, sends, Command::Room { room, hash, operation, push, accepted_at })
        }))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        Call::Ready(Ok(self.shared.census.here().into_keys().collect()))
    }
}

impl Port {
    /// Leaves a push with the only shard. Keys are looked up there, many at a time: one by one each look-up would wait
    /// for memory several times over.
    fn push_unresolved(&self, push: KeyPush) -> Handover {
        let KeyPush { keys, operation, packet, accepted_at } = push;
        if keys.is_empty() {
            return Call::Ready(Ok(()));
        }
        let (sends, encoded) = (keys.len(), EncodedPush::new(&packet));
        let targets = Targets::Keys(keys);
        let command = Command::Push { targets, operation, push: encoded, accepted_at };
        self.hand_over(std::iter::once((0, sends, command)))
    }

    /// Starts a broadcast on each shard, at a speed in proportion to nothing but their number: the kernel spreads
    /// connections evenly.
    fn pace(
        &self,
        broadcast: &Broadcast,
        speed: NonZeroU32,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Handover {
        let encoded = EncodedPush::new(&broadcast.packet);
        let speed = crate::shard::share(speed, self.shards.len());
        let permit = Arc::new(permit);
        let (operation, accepted_at) = (broadcast.operation, broadcast.accepted_at);
        self.hand_over((0..self.shards.len()).map(|shard| {
            let pace = Some(Pace { speed, _permit: permit.clone() });
            // What it sends at a time is bounded by its speed.
            let push = encoded.for_another_thread();
            (shard, 1, Command::Broadcast { operation, push, pace, accepted_at })
        }))
    }

    /// Leaves the commands with their shards. As soon as one is full, the rest is left by a call that waits.
    fn hand_over(&self, commands: impl Iterator<Item = (usize, usize, Command)>) -> Handover {
        let mut waiting = Vec::new();
        for (shard, sends, command) in commands {
            if !waiting.is_empty() {
                waiting.push((self.shards[shard].clone(), sends, command));
                continue;
            }
            match self.shards[shard].try_command(command, sends) {
                Ok(()) => {}
                Err(Refused::Full(command)) => waiting.push((self.shards[shard].clone(), sends, command)),
                Err(Refused::Gone) => return Call::Ready(Err(gone())),
            }
        }
        if waiting.is_empty() {
            return Call::Ready(Ok(()));
        }
        Call::pending(async move {
            for (shard, sends, command) in waiting {
                if !shard.command(command, sends).await {
                    return Err(gone());
                }
            }
            Ok(())
        })
    }
}

/// The operation that a packet is about: of a batch, that of its first packet. Policies and counters go by it.
fn carried(packet: &PacketBuf) -> Operation {
    if packet.operation != Operation::RAW {
        return packet.operation;
    }
    let first = batch::packets(&packet.body).next();
    first.and_then(Result::ok).map_or(Operation::RAW, |first| first.operation)
}

fn gone() -> CometError {
    CometError::Unavailable("it has stopped".to_owned())
}
