//! The queues between the application's handles and the client's task.
//!
//! [`CommandQueue`] takes requests in, gives events out, and holds the state that survives a
//! connection. Both queues are bounded: callers wait for room, nothing is dropped.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use goim_wire::{Operation, Version};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::desired_state::DesiredState;
use crate::positions::Position;
use crate::stats::Counters;
use crate::timelines::Timelines;
use crate::{Event, ServerError};

/// One request of the application, with the channel for its reply.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: Request,
    pub(crate) reply: ReplySender,
}

pub(crate) type ReplySender = oneshot::Sender<Result<Bytes, RequestFailure>>;

#[derive(Debug)]
pub(crate) enum Request {
    /// Sends a packet. It changes nothing that a later connection has to restore.
    Packet { version: Version, operation: Operation, body: Bytes },
    /// Moves to a room; `None` leaves it.
    ChangeRoom(Option<String>),
    /// Subscribes to operations, or unsubscribes.
    ChangeOperations { operations: Vec<Operation>, wanted: bool },
    /// Joins rooms besides the first one, or leaves them.
    ChangeRooms { rooms: Vec<String>, wanted: bool },
    /// Syncs one more timeline, from this position in the application's store.
    SubscribeTimeline { timeline: String, position: Position },
    /// Stops syncing a timeline.
    UnsubscribeTimeline { timeline: String },
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum RequestFailure {
    /// The client was closed, or has stopped for good.
    Closed,
    /// No reply within the request timeout.
    TimedOut,
    /// There is no connection, or it ended before the reply.
    Disconnected { may_have_arrived: bool },
    /// The server replied with an error.
    Refused(ServerError),
    /// The body exceeds the limit.
    TooLong { len: usize, limit: usize },
    /// The change would exceed a bound of [`DesiredState`] or [`Timelines`].
    TooMany,
    /// The client was configured without timelines.
    SyncDisabled,
}

/// State shared between the handles and the task.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Cancelled when the application closes the client.
    pub(crate) stop: CancellationToken,
    pub(crate) counters: Counters,
}

/// The task's side of both queues, and the state that outlives connections.
pub(crate) struct CommandQueue {
    pub(crate) shared: Arc<Shared>,
    pub(crate) desired: DesiredState,
    /// The timelines that are synced; `None` when sync is not configured.
    pub(crate) timelines: Option<Timelines>,
    commands: mpsc::Receiver<Command>,
    /// Every handle was dropped.
    commands_closed: bool,
    events: mpsc::Sender<Event>,
}

/// The result of [`CommandQueue::next`].
pub(crate) enum Wakeup {
    Command(Command),
    /// The event queue has room; `None` when the application dropped [`crate::Events`].
    EventPermit(Option<mpsc::OwnedPermit<Event>>),
    /// The client was closed, or every handle and the events were dropped.
    Stop,
}

/// The result of [`CommandQueue::try_send_event`].
pub(crate) enum SendResult {
    /// The event is queued, or was discarded because nothing receives events.
    Sent,
    /// The queue is full; the event is handed back.
    Full(Event),
}

impl CommandQueue {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        timelines: Option<Timelines>,
    ) -> Self {
        Self { shared, desired: DesiredState::default(), timelines, commands, commands_closed: false, events }
    }

    /// Queues an event if there is room for it.
    pub(crate) fn try_send_event(&self, event: Event) -> SendResult {
        match self.events.try_send(event) {
            Ok(()) => SendResult::Sent,
            Err(mpsc::error::TrySendError::Full(event)) => SendResult::Full(event),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.shared.counters.events_discarded.add_one();
                SendResult::Sent
            }
        }
    }

    /// Waits for a command if `commands` is true, and for room for an event if `permit` is true.
    ///
    /// # Cancel safety
    /// No command and no permit is lost.
    pub(crate) async fn next(&mut self, commands: bool, permit: bool) -> Wakeup {
        loop {
            let watch_events = !permit && self.commands_closed;
            let events = self.events.clone();
            tokio::select! {
                () = self.shared.stop.cancelled() => return Wakeup::Stop,
                command = self.commands.recv(), if commands && !self.commands_closed => match command {
                    Some(command) => return Wakeup::Command(command),
                    None => self.commands_closed = true,
                },
                permit = events.reserve_owned(), if permit => match permit {
                    Err(_) if self.commands_closed => return Wakeup::Stop,
                    permit => return Wakeup::EventPermit(permit.ok()),
                },
                () = self.events.closed(), if watch_events => return Wakeup::Stop,
            }
        }
    }

    /// Runs `work` while there is no connection. Changes of state are recorded for the next
    /// connection; packets fail. Returns `None` when the client is to stop.
    pub(crate) async fn while_disconnected<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                output = &mut work => return Some(output),
                wakeup = self.next(true, false) => match wakeup {
                    Wakeup::Command(command) => self.handle_disconnected(command),
                    Wakeup::EventPermit(_) => {}
                    Wakeup::Stop => return None,
                },
            }
        }
    }

    /// Queues an event, waiting for room. Returns false when the client is to stop.
    pub(crate) async fn send_event(&mut self, event: Event) -> bool {
        let events = self.events.clone();
        match self.while_disconnected(async move { events.send(event).await }).await {
            Some(Ok(())) => true,
            Some(Err(_)) => {
                self.shared.counters.events_discarded.add_one();
                true
            }
            None => false,
        }
    }

    /// Handles a command without a connection.
    pub(crate) fn handle_disconnected(&mut self, command: Command) {
        let result = match command.request {
            Request::Packet { .. } => Err(RequestFailure::Disconnected { may_have_arrived: false }),
            Request::ChangeRoom(room) => {
                self.desired.room = Some(room);
                Ok(())
            }
            Request::ChangeOperations { operations, wanted } => {
                self.desired.change_operations(&operations, wanted)
            }
            Request::ChangeRooms { rooms, wanted } => self.desired.change_rooms(&rooms, wanted),
            Request::SubscribeTimeline { timeline, position } => self.subscribe_timeline(&timeline, position),
            Request::UnsubscribeTimeline { timeline } => self.unsubscribe_timeline(&timeline),
        };
        // The caller may no longer wait for the reply.
        let _ = command.reply.send(result.map(|()| Bytes::new()));
    }

    pub(crate) fn subscribe_timeline(
        &mut self,
        timeline: &str,
        position: Position,
    ) -> Result<(), RequestFailure> {
        let timelines = self.timelines.as_mut().ok_or(RequestFailure::SyncDisabled)?;
        timelines.subscribe(timeline, position)
    }

    pub(crate) fn unsubscribe_timeline(&mut self, timeline: &str) -> Result<(), RequestFailure> {
        let timelines = self.timelines.as_mut().ok_or(RequestFailure::SyncDisabled)?;
        timelines.unsubscribe(timeline);
        Ok(())
    }
}
