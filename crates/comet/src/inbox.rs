//! The way into a shard for everybody else.
//!
//! Two queues. *Commands* come from outside (job, by way of the port) and are bounded twice, by their number and by the
//! sends that they lead to: a message to a room of ten thousand is as much work as ten thousand messages to one. What a
//! command takes of the second bound it holds until it is flushed, not only until the shard has taken it, so that the
//! bound is one of time. A full queue makes the caller wait. *Notices* are answers to calls that the shard itself has started, and words between shards; there is at most
//! one outstanding call per connection and at most one word per connection replaced, which bounds them without a limit
//! of their own, and a shard must be able to leave one without waiting.

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

/// Something to send, from outside.
#[derive(Debug)]
pub(crate) enum Command {
    /// To these connections, if they subscribed.
    Push { targets: Targets, operation: Operation, push: Outgoing, accepted_at: Option<AcceptedAt> },
    /// To all in the room.
    Room {
        room: RoomId,
        /// Of the room's name, by the census.
        hash: u64,
        operation: Operation,
        push: Outgoing,
        accepted_at: Option<AcceptedAt>,
    },
    /// To all that subscribed.
    Broadcast { operation: Operation, push: Outgoing, pace: Option<Pace>, accepted_at: Option<AcceptedAt> },
}

impl Command {
    /// What is sent.
    pub(crate) fn push(&self) -> &Outgoing {
        let (Self::Push { push, .. } | Self::Room { push, .. } | Self::Broadcast { push, .. }) = self;
        push
    }
}

/// Connections that a push is for; mostly one.
pub(crate) type Located = SmallVec<[ConnectionId; 2]>;

/// The receivers of a push to keys.
#[derive(Debug)]
pub(crate) enum Targets {
    /// Looked up already.
    Connections(Located),
    /// Those with these keys: the shard looks them up, many at a time.
    Keys(Vec<SessionKey>),
}

/// A broadcast that is not to go out in one burst.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Sessions per second on this shard.
    pub(crate) speed: NonZeroU32,
    /// Held while the broadcast is under way; bounds how many there are.
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

/// An answer, or a word of another shard.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Logic has decided about a token.
    Connected { connection: ConnectionId, disconnects: u64, result: Result<Accepted, ConnectError> },
    /// The backend has answered.
    Replied { connection: ConnectionId, result: Result<Bytes, LogicError> },
    /// What comes behind a position that a session came with.
    Resumed { connection: ConnectionId, result: Result<Bytes, LogicError> },
    /// Logic has decided about a new token.
    Refreshed { connection: ConnectionId, result: Result<Refreshed, ConnectError> },
    /// Another connection has the key now.
    Superseded(ConnectionId),
    /// Somebody asks who is in a room here.
    Members { room: RoomId, limit: usize, answer: tokio::sync::oneshot::Sender<RoomMembers> },
    /// Logic may have forgotten this session: tell it again.
    Register(ConnectionId),
    /// Logic may have forgotten everybody: tell it again, at a pace.
    RegisterAll,
    /// Messages for this comet were dropped, the last of them so long ago: see to the sessions that were there. With `enter`, the directory
    /// has lost them too.
    Recover { ago: Duration, register: bool },
    /// The session is in the directory again: what it syncs may have grown meanwhile.
    Sync(ConnectionId),
    /// Stop accepting; close everything at this pace and by this time; then end.
    Drain { sessions_per_second: NonZeroU32, deadline: Duration, delay_max: Duration },
}

/// Bytes that take as long to copy as a send takes.
const BYTES_LIKE_A_SEND: usize = 4096;

/// The work that a command leads to, as far as is known when it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Sessions that it goes to.
    pub(crate) receivers: usize,
    /// Bytes for each of them.
    pub(crate) bytes_each: usize,
}

/// What a command takes of the sends that may wait; given back when dropped.
#[derive(Debug)]
pub(crate) struct Sends {
    permits: OwnedSemaphorePermit,
    /// How many of them are for receivers; the others are for bytes.
    of_receivers: usize,
}

impl Sends {
    /// Says that for so many of so many receivers it leads to no send of its own, since something is about to be sent to
    /// them anyway. What is taken for bytes stays taken.
    pub(crate) fn joined(&mut self, joined: usize, receivers: usize) {
        let saved = self.of_receivers * joined.min(receivers) / receivers.max(1);
        drop(self.permits.split(saved.min(self.permits.num_permits().saturating_sub(1))));
        self.of_receivers -= saved;
    }
}

#[cfg(test)]
impl Sends {
    /// Takes nothing of any bound.
    pub(crate) fn for_test() -> Self {
        let permits = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one is free");
        Self { permits, of_receivers: 1 }
    }
}

/// A command on its way, or staged.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) command: Command,
    pub(crate) sends: Sends,
}

/// A shard, seen from outside.
#[derive(Clone)]
pub(crate) struct ShardHandle {
    commands: mpsc::Sender<Queued>,
    sends: Arc<Semaphore>,
    sends_max: u32,
    notices: std_mpsc::Sender<Notice>,
    alarm: Arc<Alarm>,
}

/// Wakes a shard out of its poll, at the price of a system call only when it sleeps.
struct Alarm {
    waker: mio::Waker,
    asleep: AtomicBool,
}

/// The shard's end.
pub(crate) struct Inbox {
    commands: mpsc::Receiver<Queued>,
    notices: std_mpsc::Receiver<Notice>,
    alarm: Arc<Alarm>,
    depth: Arc<AtomicUsize>,
    sends: Arc<Semaphore>,
    /// A notice that was found when the shard was about to sleep.
    found: Option<Notice>,
}

/// Why a command was not left.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The inbox is full; the command is handed back.
    Full(Command),
    /// The shard is gone.
    Gone,
}

/// How much may wait for a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InboxBounds {
    pub(crate) commands_max: usize,
    /// Sends that commands may lead to, waiting and staged. One command may take all of them, and then stands alone.
    pub(crate) sends_max: u32,
}

impl InboxBounds {
    /// The bounds of this configuration.
    pub(crate) fn of(config: &SendConfig) -> Self {
        Self { commands_max: config.queued_commands_max, sends_max: config.queued_sends_max.get() }
    }
}

/// Makes the two ends. `depth` is kept at the number of commands that wait.
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
    /// Leaves a command if there is room, and wakes the shard.
    pub(crate) fn try_command(&self, command: Command, cost: Cost) -> Result<(), Refused> {
        self.leave(command, cost).inspect(|()| self.ring())
    }

    /// Leaves a command if there is room; [`ShardHandle::ring`] must follow. For those who leave many: a shard that wakes
    /// at the first takes the processor from who is about to leave the others.
    pub(crate) fn leave(&self, command: Command, cost: Cost) -> Result<(), Refused> {
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

    /// What a command takes, and how much of it is for receivers: at most a third, so that the next of a large room can be
    /// staged before it is out. All of it for one command is the most.
    fn permits(&self, cost: Cost) -> (u32, usize) {
        let max = self.sends_max as usize;
        let of_receivers = cost.receivers.clamp(1, max.div_ceil(3));
        let of_bytes = cost.receivers.saturating_mul(cost.bytes_each) / BYTES_LIKE_A_SEND;
        let permits = of_receivers.saturating_add(of_bytes).min(max);
        (u32::try_from(permits).unwrap_or(self.sends_max), of_receivers)
    }

    /// Sends that wait, in commands and staged.
    pub(crate) fn sends_waiting(&self) -> u64 {
        (self.sends_max as usize).saturating_sub(self.sends.available_permits()) as u64
    }

    /// Leaves a command, waiting for room. False when the shard is gone.
    ///
    /// # Cancel safety
    /// Dropped while waiting, nothing was left.
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
        // A shard that is gone has no connection that could miss it.
        let _ = self.notices.send(notice);
        self.alarm.ring();
    }
}

impl Alarm {
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the poll is gone, and with it the shard.
            let _ = self.waker.wake();
        }
    }
}

impl Inbox {
    /// Says that the shard is about to poll. False when something has come in meanwhile: then it must not sleep.
    pub(crate) fn fall_asleep(&mut self, pending: bool) -> bool {
        self.alarm.asleep.store(true, Ordering::SeqCst);
        if self.found.is_none() {
            self.found = self.notices.try_recv().ok();
        }
        !pending && self.found.is_none() && self.commands.is_empty()
    }

    /// Says that the shard is awake: nobody needs to ring.
    pub(crate) fn wake_up(&self) {
        self.alarm.asleep.store(false, Ordering::SeqCst);
    }

    /// The next command, if there is one.
    pub(crate) fn command(&mut self) -> Option<Queued> {
        self.commands.try_recv().ok()
    }

    /// Says for the metrics how many commands wait.
    pub(crate) fn publish_depth(&self) {
        self.depth.store(self.commands.len(), Ordering::Relaxed);
    }

    /// The next notice, if there is one.
    pub(crate) fn notice(&mut self) -> Option<Notice> {
        self.found.take().or_else(|| self.notices.try_recv().ok())
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Who waits for room would wait for ever otherwise.
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
        let versions = Arc::new(crate::message::Versions::new(
            goim_ports::VersionTable::default(),
            crate::config::CompressionConfig::default(),
            0,
        ));
        let (push, operation) = (Outgoing::new(packet, None, &versions), Operation(1000));
        Command::Broadcast { operation, push, pace: None, accepted_at: None }
    }

    /// Receivers, bytes for each; what is taken then; what is taken when so many of the receivers are sent to anyway.
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
    fn a_command_takes_what_it_leads_to_and_gives_back_what_it_does_not() {
        for (receivers, bytes_each, taken, joined, left) in COSTS {
            let (shard, mut inbox) = new();
            shard.leave(command(), Cost { receivers, bytes_each }).unwrap();
            assert_eq!(shard.sends_waiting(), taken, "{receivers} receivers, {bytes_each} bytes each");
            let mut queued = inbox.command().unwrap();
            queued.sends.joined(joined, receivers);
            assert_eq!(shard.sends_waiting(), left, "{joined} of {receivers} joined");
            drop(queued);
            assert_eq!(shard.sends_waiting(), 0);
        }
    }

    #[test]
    fn a_room_of_many_is_left_again_while_the_last_is_on_its_way() {
        let cost = Cost { receivers: 10_000, bytes_each: 400 };
        let (shard, mut inbox) = new();
        let mut staged = Vec::new();
        loop {
            match shard.leave(command(), cost) {
                Ok(()) => {}
                Err(Refused::Full(_)) => break,
                Err(Refused::Gone) => panic!("the shard is there"),
            }
            let mut queued = inbox.command().unwrap();
            let joined = if staged.is_empty() { 0 } else { cost.receivers };
            queued.sends.joined(joined, cost.receivers);
            staged.push(queued);
        }
        assert_eq!(staged.len(), 10, "bounded by their bytes");
    }
}
