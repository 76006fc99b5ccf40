//! The handle that an application holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use goim_compression::{Levels, compress_always};
use goim_session::follow::Follower;
use goim_wire::{Encoding, Operation, Version, VersionTable, control};
use tokio::sync::{mpsc, oneshot};

use crate::desk::{Command, Desk, Failure, Shared, Wish};
use crate::dial::Dialer;
use crate::supervisor::Supervisor;
use crate::wanted::Wanted;
use crate::{
    ClientConfig, ConfigError, ConnectError, Events, HeartbeatError, RoomError, SendError, Stats,
    SubscribeError, SyncConfig, Token,
};

/// Commands that wait for the task. Few: a command waits only while the session has no room for it.
const COMMANDS_MAX: usize = 16;

/// One client: a connection that is made again when it ends.
///
/// A handle is cheap to clone; all clones are the same client. The client ends when it is closed, when the server does
/// not want it any more, or when all handles and [`Events`] are dropped. With the handles dropped and `Events` kept it
/// goes on receiving.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    request_timeout: Duration,
    body_bytes_max: usize,
    versions: Arc<VersionTable>,
}

/// Why a wish came to nothing.
enum Unfulfilled {
    Closed,
    TimedOut,
    Failed(Failure),
}

fn send_error(why: Unfulfilled) -> SendError {
    match why {
        Unfulfilled::Closed => SendError::Closed,
        Unfulfilled::TimedOut => SendError::TimedOut,
        Unfulfilled::Failed(Failure::Disconnected { may_have_arrived }) => {
            SendError::Disconnected { may_have_arrived }
        }
        Unfulfilled::Failed(Failure::Refused(error)) => SendError::Refused(error),
        Unfulfilled::Failed(Failure::TooLong { len, limit }) => SendError::BodyTooLong { len, limit },
        // Only subscriptions and rooms fail so.
        Unfulfilled::Failed(Failure::TooManyChanges) => SendError::Closed,
    }
}

/// What a server says of rooms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoomsReply {
    /// Joined, or joined before; or left.
    pub done: Vec<String>,
    /// Not allowed.
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
    /// Rooms, at most, that the application may join or leave besides the one.
    pub const ROOM_CHANGES_MAX: usize = Wanted::ROOMS_MAX;

    /// Operations, at most, whose subscription the application may change against what its token says.
    pub const SUBSCRIPTION_CHANGES_MAX: usize = Wanted::OPERATIONS_MAX;

    /// Connects, trying each endpoint once, and authenticates. From then on the client connects again by itself
    /// whenever the connection ends.
    ///
    /// # Errors
    /// See [`ConnectError`]: that of the last endpoint tried.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing behind; a connection that was half made is closed.
    pub async fn connect(config: ClientConfig) -> Result<(Self, Events), ConnectError> {
        let config = Arc::new(config);
        let mut dialer = Dialer::new(Arc::clone(&config))?;
        let follower = config.sync.as_ref().map(SyncConfig::follower);
        let connection = dialer.round(&Wanted::default(), follower.as_ref(), None).await?;
        let (client, events, supervisor) = Self::prepare(&config, dialer, follower);
        tokio::spawn(supervisor.run(Some(connection)));
        Ok((client, events))
    }

    /// Like [`Client::connect`], but does not wait: attempts go on until one succeeds, and [`Events`] tells of them.
    ///
    /// # Errors
    /// See [`ConfigError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(config: ClientConfig) -> Result<(Self, Events), ConfigError> {
        let config = Arc::new(config);
        let dialer = Dialer::new(Arc::clone(&config))?;
        let follower = config.sync.as_ref().map(SyncConfig::follower);
        let (client, events, supervisor) = Self::prepare(&config, dialer, follower);
        tokio::spawn(supervisor.run(None));
        Ok((client, events))
    }

    fn prepare(
        config: &ClientConfig,
        dialer: Dialer,
        follower: Option<Follower>,
    ) -> (Self, Events, Supervisor) {
        let shared = Arc::new(Shared::default());
        let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
        let (event_queue, events) = mpsc::channel(config.events_max.get());
        let supervisor =
            Supervisor::new(dialer, Desk::new(Arc::clone(&shared), command_queue, event_queue, follower));
        let positions = config.sync.as_ref().map(|sync| Arc::clone(&sync.positions));
        let client = Self {
            commands,
            shared,
            request_timeout: config.request_timeout,
            body_bytes_max: config.outbound_body_bytes_max,
            versions: Arc::new(config.versions.clone()),
        };
        (client, Events::new(events, positions), supervisor)
    }

    /// Sends `body` with `operation` (4, or 1000 and above) to the backend and gives the body of its reply; empty
    /// from a server on which no backend answers.
    ///
    /// Requests of one handle that are made one after the other arrive in that order. When as many wait as allowed
    /// ([`ClientConfig::requests_max`]), this waits for its turn.
    ///
    /// # Errors
    /// See [`SendError`], which also says whether the server may have taken the message. Nothing is sent a second
    /// time by itself.
    ///
    /// # Cancel safety
    /// Dropped before the first poll nothing is sent. Later it may have been sent, or may still be; the reply is
    /// then thrown away.
    pub async fn send(&self, operation: Operation, body: impl Into<Bytes>) -> Result<Bytes, SendError> {
        self.send_as(Version::GOIM, operation, body).await
    }

    /// As [`Client::send`], with a body in another version of the backend's schema. `body` is as the backend reads it: where the
    /// version is a compressed one ([`ClientConfig::versions`]) it is compressed here, and the limit of its length is for what is sent.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Cancel safety
    /// As [`Client::send`].
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
        let (len, limit) = (body.len(), self.body_bytes_max);
        if len > limit {
            return Err(SendError::BodyTooLong { len, limit });
        }
        self.ask(Wish::Request { version, operation, body }).await.map_err(send_error)
    }

    /// A request of the protocol's own.
    pub(crate) async fn request(&self, operation: Operation, body: Bytes) -> Result<Bytes, SendError> {
        let (len, limit) = (body.len(), self.body_bytes_max);
        if len > limit {
            return Err(SendError::BodyTooLong { len, limit });
        }
        self.ask(Wish::Request { version: Version::GOIM, operation, body }).await.map_err(send_error)
    }

    /// Moves to a room, given as `type://room`; the client is in one room at a time. After a reconnect it goes there
    /// again.
    ///
    /// `Ok`: the server has confirmed it, or there is no connection at the moment and the next one begins with it.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// Dropped before the first poll nothing changes. Later the client may or may not want the room.
    pub async fn change_room(&self, room: impl Into<String>) -> Result<(), RoomError> {
        let room = room.into();
        let (len, limit) = (room.len(), self.body_bytes_max);
        if len > limit {
            return Err(RoomError::NameTooLong { len, limit });
        }
        self.room(Some(room).filter(|room| !room.is_empty())).await
    }

    /// Leaves the room. After a reconnect the client is in none, whatever the token says.
    ///
    /// `Ok`: as for [`Client::change_room`].
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// As [`Client::change_room`].
    pub async fn leave_room(&self) -> Result<(), RoomError> {
        self.room(None).await
    }

    async fn room(&self, room: Option<String>) -> Result<(), RoomError> {
        match self.ask(Wish::Room(room)).await {
            // Without a connection the wish is kept.
            Ok(_) | Err(Unfulfilled::Failed(Failure::Disconnected { .. } | Failure::TooManyChanges)) => {
                Ok(())
            }
            Err(Unfulfilled::Closed) => Err(RoomError::Closed),
            Err(Unfulfilled::TimedOut) => Err(RoomError::TimedOut),
            Err(Unfulfilled::Failed(Failure::Refused(error))) => Err(RoomError::Refused(error)),
            Err(Unfulfilled::Failed(Failure::TooLong { len, limit })) => {
                Err(RoomError::NameTooLong { len, limit })
            }
        }
    }

    /// Joins rooms besides the one, given as `type://room`, now and after every reconnect. Gives the server's answer: what was joined
    /// and what was refused. A server that knows nothing beyond goim answers nothing and does nothing.
    ///
    /// `Ok`: the server has answered, or there is no connection at the moment and the next one begins with it.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// As [`Client::change_room`].
    pub async fn join_rooms(
        &self,
        rooms: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<RoomsReply, RoomError> {
        self.rooms(rooms.into_iter().map(Into::into).collect(), true).await
    }

    /// Leaves rooms of those that were joined so, now and after every reconnect.
    ///
    /// # Errors
    /// See [`RoomError`].
    ///
    /// # Cancel safety
    /// As [`Client::change_room`].
    pub async fn leave_rooms(
        &self,
        rooms: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<RoomsReply, RoomError> {
        self.rooms(rooms.into_iter().map(Into::into).collect(), false).await
    }

    async fn rooms(&self, rooms: Vec<String>, wanted: bool) -> Result<RoomsReply, RoomError> {
        let len = rooms.iter().map(|room| room.len().saturating_add(3)).sum::<usize>().saturating_add(2);
        let limit = self.body_bytes_max;
        if len > limit {
            return Err(RoomError::NameTooLong { len, limit });
        }
        match self.ask(Wish::Rooms { rooms, wanted }).await {
            Ok(body) => Ok(RoomsReply::parse(&body)),
            Err(Unfulfilled::Failed(Failure::Disconnected { .. })) => Ok(RoomsReply::default()),
            Err(Unfulfilled::Closed) => Err(RoomError::Closed),
            Err(Unfulfilled::TimedOut) => Err(RoomError::TimedOut),
            Err(Unfulfilled::Failed(Failure::Refused(error))) => Err(RoomError::Refused(error)),
            Err(Unfulfilled::Failed(Failure::TooLong { len, limit })) => {
                Err(RoomError::NameTooLong { len, limit })
            }
            Err(Unfulfilled::Failed(Failure::TooManyChanges)) => {
                Err(RoomError::TooMany { limit: Self::ROOM_CHANGES_MAX })
            }
        }
    }

    /// Presents a new token to the server, so that the session goes on when the one that it has ends. What a later connection
    /// presents is for [`ClientConfig::auth`] to know.
    ///
    /// # Errors
    /// See [`SendError`]; refused with the code that the token would have had at the beginning.
    ///
    /// # Cancel safety
    /// As [`Client::send`].
    pub async fn refresh_token(&self, token: impl Into<Token>) -> Result<(), SendError> {
        let token = token.into();
        let text = String::from_utf8_lossy(token.expose());
        let body: Bytes = serde_json::json!({ "token": text }).to_string().into();
        let (version, operation) = (Version::GOIM, Operation::REFRESH_TOKEN);
        let result = self.ask(Wish::Request { version, operation, body }).await;
        result.map(drop).map_err(send_error)
    }

    /// Asks for pushes of these operations, now and after every reconnect.
    ///
    /// `Ok`: the server has confirmed it, or there is no connection at the moment and the next one begins with it.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// Dropped before the first poll nothing changes. Later the client may or may not want the operations.
    pub async fn subscribe(&self, operations: &[Operation]) -> Result<(), SubscribeError> {
        self.operations(operations, true).await
    }

    /// Asks for no more pushes of these operations, now and after every reconnect.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// As [`Client::subscribe`].
    pub async fn unsubscribe(&self, operations: &[Operation]) -> Result<(), SubscribeError> {
        self.operations(operations, false).await
    }

    async fn operations(&self, operations: &[Operation], wanted: bool) -> Result<(), SubscribeError> {
        let too_many = SubscribeError::TooMany { limit: Self::SUBSCRIPTION_CHANGES_MAX };
        if operations.is_empty() {
            return Ok(());
        }
        if operations.len() > Self::SUBSCRIPTION_CHANGES_MAX {
            return Err(too_many);
        }
        match self.ask(Wish::Operations { operations: operations.to_vec(), wanted }).await {
            Ok(_) | Err(Unfulfilled::Failed(Failure::Disconnected { .. })) => Ok(()),
            Err(Unfulfilled::Closed) => Err(SubscribeError::Closed),
            Err(Unfulfilled::TimedOut) => Err(SubscribeError::TimedOut),
            Err(Unfulfilled::Failed(Failure::Refused(error))) => Err(SubscribeError::Refused(error)),
            Err(Unfulfilled::Failed(Failure::TooManyChanges | Failure::TooLong { .. })) => Err(too_many),
        }
    }

    /// Sends a heartbeat now, besides those that the client sends by itself, and gives the number of sessions online
    /// in the room; zero in no room.
    ///
    /// # Errors
    /// See [`HeartbeatError`].
    ///
    /// # Cancel safety
    /// Nothing is lost with a dropped future but the count.
    pub async fn heartbeat(&self) -> Result<u32, HeartbeatError> {
        let (version, operation, body) = (Version::GOIM, Operation::HEARTBEAT, Bytes::new());
        match self.ask(Wish::Request { version, operation, body }).await {
            Ok(body) => control::parse_online_count(&body)
                .and_then(|count| u32::try_from(count).ok())
                .ok_or(HeartbeatError::BadReply),
            Err(Unfulfilled::Closed) => Err(HeartbeatError::Closed),
            Err(Unfulfilled::TimedOut) => Err(HeartbeatError::TimedOut),
            Err(Unfulfilled::Failed(Failure::Disconnected { .. })) => Err(HeartbeatError::Disconnected),
            Err(Unfulfilled::Failed(_)) => Err(HeartbeatError::BadReply),
        }
    }

    /// Ends the client and waits until the connection is closed, a second at most. Events that still wait can be
    /// taken; behind them [`Events::next`] gives `None`. No error: a client that has ended is closed already.
    ///
    /// # Cancel safety
    /// The client ends though the future is dropped, once it was polled.
    pub async fn close(&self) {
        self.shared.stop.send_replace(true);
        self.commands.closed().await;
    }

    /// Counters since the client was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot()
    }

    async fn ask(&self, wish: Wish) -> Result<Bytes, Unfulfilled> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let command = Command { wish, answer };
            self.commands.send(command).await.map_err(|_| Unfulfilled::Closed)?;
            answered.await.map_err(|_| Unfulfilled::Closed)
        };
        let answer = tokio::time::timeout(self.request_timeout, asked).await;
        answer.map_err(|_| Unfulfilled::TimedOut)??.map_err(Unfulfilled::Failed)
    }
}
