//! The application's side of the task: its requests, its wishes, the queue of its events.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use goim_session::follow::Follower;
use goim_wire::{Operation, Version};
use tokio::sync::{mpsc, oneshot, watch};

use crate::stats::Counters;
use crate::wanted::Wanted;
use crate::{Event, ServerError};

/// Something that the application asks for.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) wish: Wish,
    pub(crate) answer: Answer,
}

pub(crate) type Answer = oneshot::Sender<Result<Bytes, Failure>>;

#[derive(Debug)]
pub(crate) enum Wish {
    Request { version: Version, operation: Operation, body: Bytes },
    Room(Option<String>),
    Operations { operations: Vec<Operation>, wanted: bool },
    Rooms { rooms: Vec<String>, wanted: bool },
}

/// Why a wish was not fulfilled.
#[derive(Debug)]
pub(crate) enum Failure {
    Disconnected { may_have_arrived: bool },
    Refused(ServerError),
    TooLong { len: usize, limit: usize },
    TooManyChanges,
}

/// What handles and task share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// True: the application has closed the client.
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) counters: Counters,
}

/// Takes commands and gives events.
pub(crate) struct Desk {
    pub(crate) shared: Arc<Shared>,
    pub(crate) wanted: Wanted,
    /// The timelines that are followed.
    pub(crate) follower: Option<Follower>,
    commands: mpsc::Receiver<Command>,
    /// No handle is left.
    commands_gone: bool,
    events: mpsc::Sender<Event>,
    stop: watch::Receiver<bool>,
}

/// What [`Desk::next`] came to.
pub(crate) enum Call {
    Command(Command),
    /// There is room for an event; `None`: nobody takes events any more.
    Room(Option<mpsc::OwnedPermit<Event>>),
    /// The application wants nothing more.
    Stop,
}

/// What became of an event.
pub(crate) enum Offered {
    Taken,
    /// The queue is full.
    Full(Event),
}

impl Desk {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        follower: Option<Follower>,
    ) -> Self {
        let stop = shared.stop.subscribe();
        Self { shared, wanted: Wanted::default(), follower, commands, commands_gone: false, events, stop }
    }

    /// Gives an event to the application, if there is room for it.
    pub(crate) fn offer(&self, event: Event) -> Offered {
        match self.events.try_send(event) {
            Ok(()) => Offered::Taken,
            Err(mpsc::error::TrySendError::Full(event)) => Offered::Full(event),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.shared.counters.events_discarded.add_one();
                Offered::Taken
            }
        }
    }

    /// Waits for the application: for a command if `commands`, for room for an event if `room`.
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self, commands: bool, room: bool) -> Call {
        loop {
            let listening = !room && self.commands_gone;
            let events = self.events.clone();
            tokio::select! {
                () = stopped(&mut self.stop) => return Call::Stop,
                command = self.commands.recv(), if commands && !self.commands_gone => match command {
                    Some(command) => return Call::Command(command),
                    None => self.commands_gone = true,
                },
                permit = events.reserve_owned(), if room => match permit {
                    Err(_) if self.commands_gone => return Call::Stop,
                    permit => return Call::Room(permit.ok()),
                },
                () = self.events.closed(), if listening => return Call::Stop,
            }
        }
    }

    /// Does `work` while there is no connection: wishes are kept, requests fail. `None`: the application wants
    /// nothing more.
    pub(crate) async fn meanwhile<F: Future>(&mut self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                output = &mut work => return Some(output),
                call = self.next(true, false) => match call {
                    Call::Command(command) => self.refuse(command),
                    Call::Room(_) => {}
                    Call::Stop => return None,
                },
            }
        }
    }

    /// Gives an event to the application, however long that takes. False: the application wants nothing more.
    pub(crate) async fn tell(&mut self, event: Event) -> bool {
        let events = self.events.clone();
        match self.meanwhile(async move { events.send(event).await }).await {
            Some(Ok(())) => true,
            Some(Err(_)) => {
                self.shared.counters.events_discarded.add_one();
                true
            }
            None => false,
        }
    }

    /// Answers a command for which there is no connection.
    pub(crate) fn refuse(&mut self, command: Command) {
        let answer = match command.wish {
            Wish::Request { .. } => Err(Failure::Disconnected { may_have_arrived: false }),
            Wish::Room(room) => {
                self.wanted.room = Some(room);
                Ok(Bytes::new())
            }
            Wish::Operations { operations, .. } if !self.wanted.has_room_for(&operations) => {
                Err(Failure::TooManyChanges)
            }
            Wish::Operations { operations, wanted } => {
                self.wanted.set(&operations, wanted);
                Ok(Bytes::new())
            }
            Wish::Rooms { rooms, .. } if !self.wanted.has_room_for_rooms(&rooms) => {
                Err(Failure::TooManyChanges)
            }
            Wish::Rooms { rooms, wanted } => {
                self.wanted.set_rooms(&rooms, wanted);
                Ok(Bytes::new())
            }
        };
        // Whoever asked may have gone.
        let _ = command.answer.send(answer);
    }
}

/// Waits until the client is closed.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        // Cannot be: the sender is shared with this task.
        std::future::pending::<()>().await;
    }
}
