//! The port for job: turns pushes into commands for the shards that have the receivers.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{
    Broadcast, Call, CometError, CometNode, CometPort, KeyPush, PacketBuf, Payload, RoomId, RoomMembers,
    RoomPush, RoomsDelta, RoomsRevision, SessionKey,
};
use smallvec::SmallVec;
use tokio::sync::Semaphore;

use crate::inbox::{Command, Cost, Located, Notice, Pace, Refused, ShardHandle, Targets};
use crate::key_index::Location;
use crate::message::{Outgoing, ReaderProfiles};
use crate::report;
use crate::room_registry::{Holders, SMALL_ROOM_MAX};
use crate::shared::Shared;
use crate::token_bucket::per_shard;

/// Bytes of a push to keys that count as one send. So what waits for lagging sessions is bounded in
/// bytes too.
const BYTES_OF_A_SEND: usize = 1024;

/// The port of a comet.
pub(crate) struct Port {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shards: Arc<[ShardHandle]>,
    /// One permit for each broadcast with a speed that may run.
    pub(crate) pacing: Arc<Semaphore>,
}

/// The cost of a paced broadcast: what it sends at a time is bounded by its speed.
const PACED: Cost = Cost { receivers: 1, bytes_each: 0 };

type Dispatch = Call<Result<(), CometError>>;

impl CometPort for Port {
    fn push(&self, push: KeyPush) -> Dispatch {
        if self.shards.len() == 1 {
            return self.dispatch(unresolved(push, &self.shared.profiles));
        }
        let locations = self.locate(&push.keys);
        self.dispatch(commands(&push, &locations, &self.shared.profiles))
    }

    fn push_now(&self, pushes: Vec<KeyPush>) -> Vec<KeyPush> {
        let mut pushes = pushes.into_iter();
        let refused = pushes.find_map(|push| self.queue(push).err());
        self.shards.iter().for_each(ShardHandle::ring);
        refused.into_iter().chain(pushes).collect()
    }

    fn broadcast(&self, broadcast: Broadcast) -> Dispatch {
        let Some(speed) = broadcast.speed else {
            let Broadcast { operation, payload, accepted_at, .. } = broadcast;
            let bytes_each = payload.packet_body_len();
            let encoded = Outgoing::new(payload, operation, &self.shared.profiles);
            let receivers = self.shared.addresses.connections() / self.shards.len().max(1);
            let cost = Cost { receivers, bytes_each };
            return self.dispatch((0..self.shards.len()).map(|shard| {
                let push = encoded.for_another_shard();
                (shard, cost, Command::Broadcast { operation, push, pace: None, accepted_at })
            }));
        };
        match self.pacing.clone().try_acquire_owned() {
            Ok(permit) => self.pace(broadcast, speed, permit),
            // As many run as may: the caller waits for one to end.
            Err(_) => {
                let port = Self {
                    shared: self.shared.clone(),
                    shards: self.shards.clone(),
                    pacing: self.pacing.clone(),
                };
                Call::pending(async move {
                    let permit = port.pacing.clone().acquire_owned().await.map_err(|_| gone())?;
                    port.pace(broadcast, speed, permit).await
                })
            }
        }
    }

    fn push_room(&self, push: RoomPush) -> Dispatch {
        let hash = self.shared.rooms.hash(push.room.as_str());
        let registry = &self.shared.rooms;
        // A single shard needs to know only how large the room is; it looks rooms up itself, many
        // at once. A small room, or one that is not here, takes the sends of the largest small one.
        let small = Holders { shards: 1, here: SMALL_ROOM_MAX };
        let alone = self.shards.len() == 1 && !registry.may_be_large(hash);
        let Holders { shards, here } = if alone { small } else { registry.holders(hash, &push.room) };
        if shards == 0 {
            return Call::Ready(Ok(()));
        }
        // The kernel spreads connections evenly.
        let receivers = here as usize / (shards.count_ones() as usize).min(self.shards.len()).max(1);
        let operation = push.operation;
        let cost = Cost { receivers, bytes_each: push.payload.packet_body_len() };
        let encoded = Outgoing::new(push.payload, operation, &self.shared.profiles);
        let holders = (0..self.shards.len()).filter(|shard| shards & (1 << (shard % 64)) != 0);
        self.dispatch(holders.map(|shard| {
            let (room, accepted_at) = (push.room.clone(), push.accepted_at);
            let push = encoded.for_another_shard();
            (shard, cost, Command::Room { room, hash, operation, push, accepted_at })
        }))
    }

    fn rooms_since(&self, known: RoomsRevision) -> Call<Result<RoomsDelta, CometError>> {
        let delta = self.shared.rooms.delta(&known);
        Call::Ready(delta.ok_or(CometError::Invalid("the comet has too many rooms to list them")))
    }

    fn room_members(&self, room: RoomId, limit: usize) -> Call<Result<RoomMembers, CometError>> {
        let shards = self.shards.clone();
        Call::pending(async move {
            let mut all = RoomMembers::default();
            for shard in &*shards {
                let (answer, answered) = tokio::sync::oneshot::channel();
                let limit = limit.saturating_sub(all.members.len());
                shard.notice(Notice::Members { room: room.clone(), limit, answer });
                let found = answered.await.map_err(|_| gone())?;
                all.members.extend(found.members);
                all.count += found.count;
            }
            Ok(all)
        })
    }

    fn messages_missed(&self, ago: Duration) -> Dispatch {
        tracing::warn!(?ago, "a job has dropped messages for this comet; sessions have missed some");
        self.shared.recoveries.given_up.add(1);
        self.shards.iter().for_each(|shard| shard.notice(Notice::Recover { ago, register: false }));
        Call::Ready(Ok(()))
    }

    fn describe(&self) -> Call<Result<CometNode, CometError>> {
        Call::Ready(Ok(report::describe(&self.shared)))
    }

    fn rooms(&self) -> Call<Result<Vec<RoomId>, CometError>> {
        Call::Ready(Ok(self.shared.rooms.here().into_keys().collect()))
    }
}

/// Locations of the receivers of a push, in order; `None` for a key that this comet does not have.
type Locations = SmallVec<[Option<Location>; 1]>;

/// Returns one command for each shard that has receivers, with the shard and the cost.
fn commands(
    push: &KeyPush,
    locations: &Locations,
    profiles: &Arc<ReaderProfiles>,
) -> SmallVec<[(usize, Cost, Command); 1]> {
    let mut by_shard: SmallVec<[(usize, Located); 1]> = SmallVec::new();
    for location in locations.iter().flatten() {
        let shard = usize::from(location.shard);
        match by_shard.iter_mut().find(|(of, _)| *of == shard) {
            Some((_, targets)) => targets.push(location.connection),
            None => by_shard.push((shard, Located::from_elem(location.connection, 1))),
        }
    }
    if by_shard.is_empty() {
        return SmallVec::new();
    }
    let (operation, accepted_at) = (push.operation, push.accepted_at);
    let encoded = Outgoing::new(push.payload.clone(), operation, profiles);
    let command = |(shard, targets): (usize, Located)| {
        let cost = cost_of(targets.len(), &push.payload);
        let (targets, push) = (Targets::Connections(targets), encoded.for_another_shard());
        (shard, cost, Command::Push { targets, operation, push, accepted_at })
    };
    by_shard.into_iter().map(command).collect()
}

/// Returns the command for the only shard. The shard looks up keys itself, many at once: one by
/// one, each look-up would wait for memory several times.
fn unresolved(push: KeyPush, profiles: &Arc<ReaderProfiles>) -> Option<(usize, Cost, Command)> {
    let KeyPush { keys, operation, payload, accepted_at } = push;
    if keys.is_empty() {
        return None;
    }
    let (cost, push) = (cost_of(keys.len(), &payload), Outgoing::new(payload, operation, profiles));
    Some((0, cost, Command::Push { targets: Targets::Keys(keys), operation, push, accepted_at }))
}

/// Returns the cost of a packet to keys. Each KiB counts as one receiver, so its bytes do not count
/// separately.
fn cost_of(receivers: usize, payload: &Payload<PacketBuf>) -> Cost {
    let kib = payload.packet_body_len().div_ceil(BYTES_OF_A_SEND).max(1);
    Cost { receivers: receivers.saturating_mul(kib), bytes_each: 0 }
}

impl Port {
    fn locate(&self, keys: &[SessionKey]) -> Locations {
        let locations: Locations = keys.iter().map(|key| self.shared.keys.find(key)).collect();
        let unknown = locations.iter().filter(|location| location.is_none()).count();
        if unknown > 0 {
            self.shared.unknown_keys.add(unknown);
        }
        locations
    }

    /// Queues a push with the shards of its receivers without waking them. When some have no room,
    /// returns the push with only their receivers.
    fn queue(&self, mut push: KeyPush) -> Result<(), KeyPush> {
        if self.shards.len() == 1 {
            return self.queue_unresolved(push);
        }
        let locations = self.locate(&push.keys);
        let mut full: SmallVec<[usize; 1]> = SmallVec::new();
        for (shard, cost, command) in commands(&push, &locations, &self.shared.profiles) {
            if self.shards[shard].queue(command, cost).is_err() {
                full.push(shard);
            }
        }
        if full.is_empty() {
            return Ok(());
        }
        let is_full =
            |location: Option<Location>| location.is_some_and(|at| full.contains(&usize::from(at.shard)));
        let mut locations = locations.into_iter();
        push.keys.retain(|_| is_full(locations.next().flatten()));
        Err(push)
    }

    /// The same for a comet with one shard.
    fn queue_unresolved(&self, push: KeyPush) -> Result<(), KeyPush> {
        let Some((shard, cost, command)) = unresolved(push, &self.shared.profiles) else { return Ok(()) };
        match self.shards[shard].queue(command, cost) {
            Err(Refused::Full(Command::Push {
                targets: Targets::Keys(keys),
                operation,
                push,
                accepted_at,
            })) => Err(KeyPush { keys, operation, payload: push.into_payload(), accepted_at }),
            // A shard that has ended has no sessions.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Starts a broadcast on each shard. All get the same part of the speed, since the kernel
    /// spreads connections evenly.
    fn pace(
        &self,
        broadcast: Broadcast,
        speed: NonZeroU32,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Dispatch {
        let Broadcast { operation, payload, accepted_at, .. } = broadcast;
        let encoded = Outgoing::new(payload, operation, &self.shared.profiles);
        let speed = per_shard(speed, self.shards.len());
        let permit = Arc::new(permit);
        self.dispatch((0..self.shards.len()).map(|shard| {
            let pace = Some(Pace { speed, _permit: permit.clone() });
            let push = encoded.for_another_shard();
            (shard, PACED, Command::Broadcast { operation, push, pace, accepted_at })
        }))
    }

    /// Queues the commands with their shards. As soon as one is full, a pending call queues the
    /// rest.
    fn dispatch(&self, commands: impl IntoIterator<Item = (usize, Cost, Command)>) -> Dispatch {
        let mut waiting = Vec::new();
        for (shard, cost, command) in commands {
            if !waiting.is_empty() {
                waiting.push((self.shards[shard].clone(), cost, command));
                continue;
            }
            match self.shards[shard].try_command(command, cost) {
                Ok(()) => {}
                Err(Refused::Full(command)) => waiting.push((self.shards[shard].clone(), cost, command)),
                Err(Refused::Gone) => return Call::Ready(Err(gone())),
            }
        }
        if waiting.is_empty() {
            return Call::Ready(Ok(()));
        }
        Call::pending(async move {
            for (shard, cost, command) in waiting {
                if !shard.command(command, cost).await {
                    return Err(gone());
                }
            }
            Ok(())
        })
    }
}

fn gone() -> CometError {
    CometError::Unavailable("the comet has stopped".to_owned())
}
