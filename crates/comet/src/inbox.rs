//! The inbox of a shard: commands and notices for its thread.
//!
//! *Commands* are pushes. Their queue is bounded twice: by their number and by the sends that they
//! cause, since a message to a room of ten thousand is as much work as ten thousand messages to
//! one. A command holds its part of the second bound until it is flushed, so that this bound limits
//! latency. A full queue makes the caller wait.
//!
//! *Notices* are answers to calls of the shard, and notes from other shards. A shard must be able
//! to leave one without waiting, so their queue has no limit; it is bounded by one outstanding call
//! and one supersession per connection.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use bytes::Bytes;
use goim_ports::{
    Accepted, AcceptedAt, ConnectError, LogicError, Operation, Refreshed, RoomId, RoomMembers, SessionKey,
};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::SendConfig;
use crate::connection::ConnectionId;
use crate::message::Outgoing;

/// A push, from outside.
#[derive(Debug)]
pub(crate) enum Command {
    /// To those of these connections that have subscribed.
    Push { targets: Targets, operation: Operation, push: Outgoing, accepted_at: Option<AcceptedAt> },
    /// To all members of the room.
    Room {
        room: RoomId,
        /// Hash of the room's name, by the registry.
        hash: u64,
        operation: Operation,
        push: Outgoing,
        accepted_at: Option<AcceptedAt>,
    },
    /// To all sessions that have subscribed.
    Broadcast { operation: Operation, push: Outgoing, pace: Option<Pace>, accepted_at: Option<AcceptedAt> },
}

impl Command {
    /// Returns what is sent.
    pub(crate) fn push(&self) -> &Outgoing {
        let (Self::Push { push, .. } | Self::Room { push, .. } | Self::Broadcast { push, .. }) = self;
        push
    }
}

/// Connections that a push is for; usually one.
pub(crate) type Located = SmallVec<[ConnectionId; 2]>;

/// The receivers of a push to keys.
#[derive(Debug)]
pub(crate) enum Targets {
    /// Connections that were looked up already.
    Connections(Located),
    /// The connections with these keys. The shard looks them up, many at once.
    Keys(Vec<SessionKey>),
}

/// The speed of a broadcast.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Sessions per second on this shard.
    pub(crate) speed: NonZeroU32,
    /// Held while the broadcast runs; bounds how many run.
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

/// An answer to a call, or a note from another shard.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Logic has accepted or refused a token.
    Connected { connection: ConnectionId, disconnects: u64, result: Result<Accepted, ConnectError> },
    /// The backend has answered.
    Replied { connection: ConnectionId, result: Result<Bytes, LogicError> },
    /// Logic has found what follows a position at which a session resumes.
    Resumed { connection: ConnectionId, result: Result<Bytes, LogicError> },
    /// Logic has accepted or refused a new token.
    Refreshed { connection: ConnectionId, result: Result<Refreshed, ConnectError> },
    /// Another connection has the session key now.
    Superseded(ConnectionId),
    /// The members of a room on this shard are wanted.
    Members { room: RoomId, limit: usize, answer: tokio::sync::oneshot::Sender<RoomMembers> },
    /// Logic may have lost the record of this session: register it again.
    Register(ConnectionId),
    /// Logic may have lost the records of all sessions: register them again, at a pace.
    RegisterAll,
    /// Messages for this comet were dropped, the last of them `ago`: recover the sessions that were
    /// open then. With `register`, logic has lost their records too.
    Recover { ago: Duration, register: bool },
    /// The session is registered again: it is to sync.
    Sync(ConnectionId),
    /// Stop accepting; close all connections at this pace and by this time; then end.
    Drain { sessions_per_second: NonZeroU32, deadline: Duration, delay_max: Duration },
}

/// Copying this many bytes takes as long as one send.
const BYTES_PER_SEND: usize = 4096;

/// The work that a command causes, as far as its sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Sessions that receive it.
    pub(crate) receivers: usize,
    /// Bytes for each of them.
    pub(crate) bytes_each: usize,
}

/// The sends that a command holds of the bound; released when dropped.
#[derive(Debug)]
pub(crate) struct Sends {
    permits: OwnedSemaphorePermit,
    /// How many of them are for receivers; the others are for bytes.
    of_receivers: usize,
}

impl Sends {
    /// Releases the part of `joined` of `receivers`: something is about to be sent to these anyway,
    /// so they cost no further send. What is held for bytes stays held.
    pub(crate) fn joined(&mut self, joined: usize, receivers: usize) {
        let saved = self.of_receivers * joined.min(receivers) / receivers.max(1);
        drop(self.permits.split(saved.min(self.permits.num_permits().saturating_sub(1))));
        self.of_receivers -= saved;
    }
}

#[cfg(test)]
impl Sends {
    /// Holds no part of any bound.
    pub(crate) fn for_test() -> Self {
        let permits = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one is free");
        Self { permits, of_receivers: 1 }
    }
}

/// A command in the queue, or being handled.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) command: Command,
    pub(crate) sends: Sends,
}

/// The sending end of an inbox.
#[derive(Clone)]
pub(crate) struct ShardHandle {
    commands: mpsc::Sender<Queued>,
    sends: Arc<Semaphore>,
    sends_max: u32,
    notices: std_mpsc::Sender<Notice>,
    alarm: Arc<Alarm>,
}

/// Wakes a shard out of its poll, with a system call only when it sleeps.
struct Alarm {
    waker: mio::Waker,
    asleep: AtomicBool,
}

/// The receiving end of an inbox, owned by the shard.
pub(crate) struct Inbox {
    commands: mpsc::Receiver<Queued>,
    notices: std_mpsc::Receiver<Notice>,
    alarm: Arc<Alarm>,
    depth: Arc<AtomicUsize>,
    sends: Arc<Semaphore>,
    /// A notice that was received when the shard was about to sleep.
    found: Option<Notice>,
}

/// Why a command was not queued.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The queue is full; here is the command again.
    Full(Command),
    /// The shard has ended.
    Gone,
}

/// The bounds of a shard's queue of commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InboxBounds {
    pub(crate) commands_max: usize,
    /// Sends that commands may cause, queued and in flight. A single command may take all of them;
    /// then no other is accepted.
    pub(crate) sends_max: u32,
}

impl InboxBounds {
    /// The bounds of this configuration.
    pub(crate) fn of(config: &SendConfig) -> Self {
        Self { commands_max: config.queued_commands_max, sends_max: config.queued_sends_max.get() }
    }
}

/// Creates the two ends. `depth` is updated to the number of queued commands.
pub(crate) fn inbox(waker: mio::Waker, bounds: InboxBounds, depth: Arc<AtomicUsize>) -> (ShardHandle, Inbox) {
    let (commands_in, commands) = mpsc::channel(bounds.commands_max.max(1));
    let sends_max = bounds.sends_max.max(1);
    let sends = Arc::new(Semaphore::new(sends_max as usize));
    let (notices_in, notices) = std_mpsc::channel();
    let alarm = Arc::new(Alarm { waker, asleep: AtomicBool::new(false) });
    let inbox_sends = sends.clone();
    let handle =
        ShardHandle { commands: commands_in, sends, sends_max, notices: notices_in, alarm: alarm.clone() };
    (handle, Inbox { commands, notices, alarm, depth, sends: inbox_sends, found: None })
}

impl ShardHandle {
    /// Queues a command if there is room, and wakes the shard.
    pub(crate) fn try_command(&self, command: Command, cost: Cost) -> Result<(), Refused> {
        self.queue(command, cost).inspect(|()| self.ring())
    }

    /// Queues a command if there is room; [`ShardHandle::ring`] must follow. For callers with many
    /// commands: waking the shard on the first would preempt the caller before the rest are queued.
    pub(crate) fn queue(&self, command: Command, cost: Cost) -> Result<(), Refused> {
        let (permits, of_receivers) = self.permits(cost);
        let Ok(permits) = self.sends.clone().try_acquire_many_owned(permits) else {
            return Err(Refused::Full(command));
        };
        match self.commands.try_send(Queued { command, sends: Sends { permits, of_receivers } }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(queued)) => Err(Refused::Full(queued.command)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Refused::Gone),
        }
    }

    /// Wakes the shard if it sleeps.
    pub(crate) fn ring(&self) {
        self.alarm.ring();
    }

    /// Returns the sends that a command takes, and how many of them are for receivers. Receivers
    /// take at most a third, so that the next push to a large room can be queued before this one is
    /// flushed. No command takes more than there are.
    fn permits(&self, cost: Cost) -> (u32, usize) {
        let max = self.sends_max as usize;
        let of_receivers = cost.receivers.clamp(1, max.div_ceil(3));
        let of_bytes = cost.receivers.saturating_mul(cost.bytes_each) / BYTES_PER_SEND;
        let permits = of_receivers.saturating_add(of_bytes).min(max);
        (u32::try_from(permits).unwrap_or(self.sends_max), of_receivers)
    }

    /// Returns the sends that are held, by queued commands and by those in flight.
    pub(crate) fn sends_waiting(&self) -> u64 {
        (self.sends_max as usize).saturating_sub(self.sends.available_permits()) as u64
    }

    /// Queues a command, waiting for room. False when the shard has ended.
    ///
    /// # Cancel safety
    /// Dropped while waiting, nothing is queued.
    pub(crate) async fn command(&self, command: Command, cost: Cost) -> bool {
        let (permits, of_receivers) = self.permits(cost);
        let permits = self.sends.clone().acquire_many_owned(permits).await;
        let Ok(permits) = permits else { return false };
        let sent =
            self.commands.send(Queued { command, sends: Sends { permits, of_receivers } }).await.is_ok();
        self.alarm.ring();
        sent
    }

    /// Leaves a notice.
    pub(crate) fn notice(&self, notice: Notice) {
        // A shard that has ended has no connection that could miss it.
        let _ = self.notices.send(notice);
        self.alarm.ring();
    }
}

impl Alarm {
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the poll is closed, and with it the shard.
            let _ = self.waker.wake();
        }
    }
}

impl Inbox {
    /// Notes that the shard is about to poll. False when something was received meanwhile: then it
    /// must not sleep.
    pub(crate) fn fall_asleep(&mut self, pending: bool) -> bool {
        self.alarm.asleep.store(true, Ordering::SeqCst);
        if self.found.is_none() {
            self.found = self.notices.try_recv().ok();
        }
        !pending && self.found.is_none() && self.commands.is_empty()
    }

    /// Notes that the shard is awake and need not be woken.
    pub(crate) fn wake_up(&self) {
        self.alarm.asleep.store(false, Ordering::SeqCst);
    }

    /// Takes the next command, if there is one.
    pub(crate) fn command(&mut self) -> Option<Queued> {
        self.commands.try_recv().ok()
    }

    /// Publishes for the metrics how many commands are queued.
    pub(crate) fn publish_depth(&self) {
        self.depth.store(self.commands.len(), Ordering::Relaxed);
    }

    /// Takes the next notice, if there is one.
    pub(crate) fn notice(&mut self) -> Option<Notice> {
        self.found.take().or_else(|| self.notices.try_recv().ok())
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Senders that wait for room would wait forever otherwise.
        self.sends.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = 30_000;

    fn new() -> (ShardHandle, Inbox) {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        inbox(waker, InboxBounds { commands_max: 100, sends_max: MAX }, Arc::default())
    }

    fn command() -> Command {
        let packet = goim_ports::PacketBuf::push(Operation(1000), Bytes::from_static(b"x"));
        let profiles = Arc::new(crate::message::ReaderProfiles::new(
            goim_ports::VersionTable::default(),
            crate::config::CompressionConfig::default(),
            0,
        ));
        let (push, operation) =
            (Outgoing::new(goim_ports::Payload::plain(packet), Operation(1000), &profiles), Operation(1000));
        Command::Broadcast { operation, push, pace: None, accepted_at: None }
    }

    /// Receivers, bytes for each; what is taken then; how many receivers are sent to anyway, and
    /// what remains taken.
    const COSTS: [(usize, usize, u64, usize, u64); 8] = [
        (0, 0, 1, 0, 1),
        (1, 64, 1, 1, 1),
        (100, 0, 100, 100, 1),
        (100, 4096, 200, 100, 100),
        (10_000, 400, 10_976, 10_000, 976),
        (10_000, 400, 10_976, 5_000, 5_976),
        (1_000_000, 64, 25_625, 1_000_000, 15_625),
        (1_000_000, 1024, 30_000, 0, 30_000),
    ];

    #[test]
    fn a_command_takes_the_sends_that_it_causes_and_releases_the_others() {
        for (receivers, bytes_each, taken, joined, left) in COSTS {
            let (shard, mut inbox) = new();
            shard.queue(command(), Cost { receivers, bytes_each }).unwrap();
            assert_eq!(shard.sends_waiting(), taken, "{receivers} receivers, {bytes_each} bytes each");
            let mut queued = inbox.command().unwrap();
            queued.sends.joined(joined, receivers);
            assert_eq!(shard.sends_waiting(), left, "{joined} of {receivers} joined");
            drop(queued);
            assert_eq!(shard.sends_waiting(), 0);
        }
    }

    #[test]
    fn a_large_room_can_be_sent_to_again_while_the_last_push_is_in_flight() {
        let cost = Cost { receivers: 10_000, bytes_each: 400 };
        let (shard, mut inbox) = new();
        let mut staged = Vec::new();
        loop {
            match shard.queue(command(), cost) {
                Ok(()) => {}
                Err(Refused::Full(_)) => break,
                Err(Refused::Gone) => panic!("the shard exists"),
            }
            let mut queued = inbox.command().unwrap();
            let joined = if staged.is_empty() { 0 } else { cost.receivers };
            queued.sends.joined(joined, cost.receivers);
            staged.push(queued);
        }
        assert_eq!(staged.len(), 10, "bounded by their bytes");
    }
}
