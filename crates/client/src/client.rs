//! The handle that an application holds: requests, and their errors.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_compression::{Levels, compress_always};
use goim_wire::{Encoding, Operation, Version, VersionTable, control};
use tokio::sync::{mpsc, oneshot};

use crate::command::{Command, CommandQueue, Request, RequestFailure, Shared};
use crate::desired_state::DesiredState;
use crate::dialer::Dialer;
use crate::positions::SharedPositionStore;
use crate::supervisor::Supervisor;
use crate::timelines::Timelines;
use crate::{
    ClientConfig, ConfigError, ConnectError, Events, HeartbeatError, RoomError, SendError, Stats,
    SubscribeError, TimelineError, Token,
};

/// The length of the command queue. Small: a command waits only while the connection is busy.
const COMMANDS_MAX: usize = 16;

/// One client: a connection that is re-established when it ends.
///
/// A handle is cheap to clone; all clones are the same client. The client ends when it is closed,
/// when the server rejects it for good, or when all handles and [`Events`] are dropped. If only the
/// handles are dropped, it keeps receiving.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    request_timeout: Duration,
    body_bytes_max: usize,
    versions: Arc<VersionTable>,
    /// `None` when sync is not configured.
    positions: Option<SharedPositionStore>,
}

/// The reply to [`Client::join_rooms`] and [`Client::leave_rooms`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RoomsReply {
    /// Rooms that were joined, now or before; or left.
    pub done: Vec<String>,
    /// Rooms that the session may not join.
    pub refused: Vec<String>,
}

impl RoomsReply {
    fn parse(body: &[u8]) -> Self {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let list = |name: &str| {
            let names = value[name].as_array().into_iter().flatten();
            names.filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        Self { done: [list("joined"), list("left")].concat(), refused: list("refused") }
    }
}

impl Client {
    /// The maximum number of rooms, besides the first one, whose membership may differ from the
    /// token.
    pub const ROOM_CHANGES_MAX: usize = DesiredState::ROOMS_MAX;

    /// The maximum number of operations whose subscription may differ from the token.
    pub const SUBSCRIPTION_CHANGES_MAX: usize = DesiredState::OPERATIONS_MAX;

    /// Connects, trying each endpoint once, and authenticates. After that the client reconnects by
    /// itself whenever the connection ends.
    ///
    /// # Errors
    /// See [`ConnectError`]. With several endpoints, the error of the last one.
    ///
    /// # Cancel safety
    /// Dropping the future closes a half-made connection and leaves nothing behind.
    pub async fn connect(config: ClientConfig) -> Result<(Self, Events), ConnectError> {
        let config = Arc::new(config);
        let mut dialer = Dialer::new(Arc::clone(&config))?;
        let mut timelines = config.sync.as_ref().map(Timelines::new);
        if let Some(timelines) = &mut timelines {
            timelines.load().await?;
        }
        let resume = timelines.as_ref().map(Timelines::resume);
        let connection = dialer.round(&DesiredState::default(), resume, None).await?;
        let (client, events, supervisor) = Self::prepare(&config, dialer, timelines);
        tokio::spawn(supervisor.run(Some(connection)));
        Ok((client, events))
    }

    /// Like [`Client::connect`], but returns immediately. The client tries until it is connected
    /// and reports each failure as [`Event::ConnectFailed`](crate::Event::ConnectFailed).
    ///
    /// # Errors
    /// See [`ConfigError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: ClientConfig) -> Result<(Self, Events), ConfigError> {
        let config = Arc::new(config);
        let dialer = Dialer::new(Arc::clone(&config))?;
        let timelines = config.sync.as_ref().map(Timelines::new);
        let (client, events, supervisor) = Self::prepare(&config, dialer, timelines);
        tokio::spawn(supervisor.run(None));
        Ok((client, events))
    }

    fn prepare(
        config: &ClientConfig,
        dialer: Dialer,
        timelines: Option<Timelines>,
    ) -> (Self, Events, Supervisor) {
        let shared = Arc::new(Shared::default());
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (event_queue, events) = mpsc::channel(config.events_max.get());
        let queue = CommandQueue::new(Arc::clone(&shared), command_queue, event_queue, timelines);
        let supervisor = Supervisor::new(dialer, queue);
        let positions = config.sync.as_ref().map(|sync| sync.store.clone());
        let client = Self {
            commands,
            shared,
            request_timeout: config.request_timeout,
            body_bytes_max: config.outbound_body_bytes_max,
            versions: Arc::new(config.versions.clone()),
            positions: positions.clone(),
        };
        (client, Events::new(events, positions), supervisor)
    }

    /// Sends `body` with `operation` (4, or 1000 and above) to the application's backend and
    /// returns the body of the reply. The reply is empty if no backend handles the operation.
    ///
    /// Requests of one handle that are made one after the other arrive in that order. When the
    /// maximum number of requests is in flight ([`ClientConfig::requests_max`]), this waits.
    ///
    /// # Errors
    /// See [`SendError`], which also states whether the server may have received the message. The
    /// client never sends a message twice by itself.
    ///
    /// # Cancel safety
    /// If the future is dropped before its first poll, nothing is sent. If it is dropped later, the
    /// message may or may not be sent, and the reply is discarded.
    pub async fn send(&self, operation: Operation, body: impl Into<Bytes>) -> Result<Bytes, SendError> {
        self.send_as(Version::GOIM, operation, body).await
    }

    /// Like [`Client::send`], with a body in another version of the application's schema.
    ///
    /// `body` is uncompressed. If the version is a compressed one ([`ClientConfig::versions`]), it
    /// is compressed here, and the length limit applies to the compressed body.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// See [`Client::send`].
    pub async fn send_as(
        &self,
        version: Version,
        operation: Operation,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, SendError> {
        if operation != Operation::SEND && operation < Operation::BACKEND_MIN {
            return Err(SendError::Reserved(operation.0));
        }
        let body = match self.versions.row(version).map_or(Encoding::Identity, |row| row.encoding) {
            Encoding::Identity => body.into(),
            encoding => compress_always(encoding, &body.into(), Levels::default()).into(),
        };
        self.packet(version, operation, body).await.map_err(request_error)
    }

    /// Sends a packet of the application or of the protocol.
    pub(crate) async fn packet(
        &self,
        version: Version,
        operation: Operation,
        body: Bytes,
    ) -> Result<Bytes, RequestFailure> {
        self.check_len(body.len())?;
        self.call(Request::Packet { version, operation, body }).await
    }

    /// Moves to a room, named `type://room`. The client returns to it after a reconnect.
    ///
    /// `Ok` means that the server confirmed it, or that there is no connection and the next one
    /// starts in the room.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// If the future is dropped before its first poll, nothing changes. If it is dropped later, the
    /// room may or may not change.
    pub async fn change_room(&self, room: impl Into<String>) -> Result<(), RoomError> {
        self.request_room(Some(room.into()).filter(|room| !room.is_empty())).await
    }

    /// Leaves the room. After a reconnect the client is in no room, even if the token names one.
    ///
    /// `Ok` means the same as for [`Client::change_room`].
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// See [`Client::change_room`].
    pub async fn leave_room(&self) -> Result<(), RoomError> {
        self.request_room(None).await
    }

    async fn request_room(&self, room: Option<String>) -> Result<(), RoomError> {
        self.check_len(room.as_ref().map_or(0, String::len)).map_err(room_error)?;
        self.call(Request::ChangeRoom(room)).await.map(drop).map_err(room_error)
    }

    /// Joins rooms besides the first one, named `type://room`, now and after every reconnect.
    /// Returns which were joined and which were refused. A goim v2 server ignores the request; the
    /// reply is then empty.
    ///
    /// `Ok` means that the server replied, or that there is no connection and the next one joins
    /// the rooms.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// See [`Client::change_room`].
    pub async fn join_rooms(
        &self,
        rooms: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<RoomsReply, RoomError> {
        self.request_rooms(rooms.into_iter().map(Into::into).collect(), true).await
    }

    /// Leaves rooms that were joined with [`Client::join_rooms`] or by the token, now and after
    /// every reconnect.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// See [`Client::change_room`].
    pub async fn leave_rooms(
        &self,
        rooms: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<RoomsReply, RoomError> {
        self.request_rooms(rooms.into_iter().map(Into::into).collect(), false).await
    }

    async fn request_rooms(&self, rooms: Vec<String>, wanted: bool) -> Result<RoomsReply, RoomError> {
        // The length of the JSON list: quotes and a comma for each name, and the brackets.
        let len = rooms.iter().map(|room| room.len().saturating_add(3)).sum::<usize>().saturating_add(2);
        self.check_len(len).map_err(room_error)?;
        let reply = self.call(Request::ChangeRooms { rooms, wanted }).await.map_err(room_error)?;
        Ok(RoomsReply::parse(&reply))
    }

    /// Presents a new token to the server, so that the session outlives its present one. Later
    /// connections use [`ClientConfig::auth`], not this token.
    ///
    /// # Errors
    /// See [`SendError`]. A refused token has the same code as at the start of a connection.
    ///
    /// # Cancel safety
    /// See [`Client::send`].
    pub async fn refresh_token(&self, token: impl Into<Token>) -> Result<(), SendError> {
        let token = token.into();
        let text = String::from_utf8_lossy(token.expose());
        let body: Bytes = serde_json::json!({ "token": text }).to_string().into();
        let result = self.packet(Version::GOIM, Operation::REFRESH_TOKEN, body).await;
        result.map(drop).map_err(request_error)
    }

    /// Subscribes to operations, now and after every reconnect: pushes to keys, to members and to
    /// all reach a session only with operations that it subscribed to.
    ///
    /// `Ok` means that the server confirmed it, or that there is no connection and the next one
    /// subscribes.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// If the future is dropped before its first poll, nothing changes. If it is dropped later, the
    /// subscriptions may or may not change.
    pub async fn subscribe(&self, operations: &[Operation]) -> Result<(), SubscribeError> {
        self.request_operations(operations, true).await
    }

    /// Unsubscribes from operations, now and after every reconnect.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// See [`Client::subscribe`].
    pub async fn unsubscribe(&self, operations: &[Operation]) -> Result<(), SubscribeError> {
        self.request_operations(operations, false).await
    }

    async fn request_operations(&self, operations: &[Operation], wanted: bool) -> Result<(), SubscribeError> {
        if operations.is_empty() {
            return Ok(());
        }
        if operations.len() > Self::SUBSCRIPTION_CHANGES_MAX {
            return Err(subscribe_error(RequestFailure::TooMany));
        }
        let request = Request::ChangeOperations { operations: operations.to_vec(), wanted };
        self.call(request).await.map(drop).map_err(subscribe_error)
    }

    /// Sends a heartbeat now, besides the periodic ones, and returns the number of sessions online
    /// in the room; zero without a room.
    ///
    /// # Errors
    /// See [`HeartbeatError`].
    ///
    /// # Cancel safety
    /// Dropping the future loses only the count.
    pub async fn heartbeat(&self) -> Result<u32, HeartbeatError> {
        let reply = self.packet(Version::GOIM, Operation::HEARTBEAT, Bytes::new()).await;
        let body = reply.map_err(|failure| match failure {
            RequestFailure::Closed => HeartbeatError::Closed,
            RequestFailure::TimedOut => HeartbeatError::TimedOut,
            RequestFailure::Disconnected { .. } => HeartbeatError::Disconnected,
            _ => HeartbeatError::BadReply,
        })?;
        let count = control::parse_online_count(&body).and_then(|count| u32::try_from(count).ok());
        count.ok_or(HeartbeatError::BadReply)
    }

    /// Closes the client and waits until the connection is closed, at most a second. Queued events
    /// can still be received; after them [`Events::recv`] returns `None`. Does nothing if the
    /// client has ended.
    ///
    /// # Cancel safety
    /// Once polled, the client closes even if the future is dropped.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        self.commands.closed().await;
    }

    /// Returns the counters since the client was created.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    pub(crate) fn positions(&self) -> Option<&SharedPositionStore> {
        self.positions.as_ref()
    }

    fn check_len(&self, len: usize) -> Result<(), RequestFailure> {
        let limit = self.body_bytes_max;
        if len > limit { Err(RequestFailure::TooLong { len, limit }) } else { Ok(()) }
    }

    /// Passes a request to the task and waits for the reply, both within the request timeout.
    pub(crate) async fn call(&self, request: Request) -> Result<Bytes, RequestFailure> {
        let (reply, received) = oneshot::channel();
        let call = async {
            let command = Command { request, reply };
            self.commands.send(command).await.map_err(|_| RequestFailure::Closed)?;
            received.await.map_err(|_| RequestFailure::Closed)?
        };
        let result = tokio::time::timeout(self.request_timeout, call).await;
        result.map_err(|_| RequestFailure::TimedOut)?
    }
}

pub(crate) fn request_error(failure: RequestFailure) -> SendError {
    match failure {
        RequestFailure::TimedOut => SendError::TimedOut,
        RequestFailure::Disconnected { may_have_arrived } => SendError::Disconnected { may_have_arrived },
        RequestFailure::Refused(error) => SendError::Refused(error),
        RequestFailure::TooLong { len, limit } => SendError::BodyTooLong { len, limit },
        // The last two never happen to a packet.
        RequestFailure::Closed | RequestFailure::TooMany | RequestFailure::SyncDisabled => SendError::Closed,
    }
}

fn room_error(failure: RequestFailure) -> RoomError {
    match failure {
        RequestFailure::TimedOut => RoomError::TimedOut,
        RequestFailure::Refused(error) => RoomError::Refused(error),
        RequestFailure::TooLong { len, limit } => RoomError::NameTooLong { len, limit },
        RequestFailure::TooMany => RoomError::TooMany { limit: Client::ROOM_CHANGES_MAX },
        // The last two never happen to a change of state: it is recorded for the next connection.
        RequestFailure::Closed | RequestFailure::Disconnected { .. } | RequestFailure::SyncDisabled => {
            RoomError::Closed
        }
    }
}

fn subscribe_error(failure: RequestFailure) -> SubscribeError {
    match failure {
        RequestFailure::TimedOut => SubscribeError::TimedOut,
        RequestFailure::Refused(error) => SubscribeError::Refused(error),
        RequestFailure::TooMany | RequestFailure::TooLong { .. } => {
            SubscribeError::TooMany { limit: Client::SUBSCRIPTION_CHANGES_MAX }
        }
        RequestFailure::Closed | RequestFailure::Disconnected { .. } | RequestFailure::SyncDisabled => {
            SubscribeError::Closed
        }
    }
}

pub(crate) fn timeline_error(failure: RequestFailure) -> TimelineError {
    match failure {
        RequestFailure::TimedOut => TimelineError::TimedOut,
        RequestFailure::TooMany => TimelineError::TooMany { limit: Client::TIMELINES_MAX },
        RequestFailure::SyncDisabled => TimelineError::SyncDisabled,
        // The others never happen: subscriptions are not sent to the server.
        _ => TimelineError::Closed,
    }
}
