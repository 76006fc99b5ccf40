//! What an application learns about its client, and the queue it receives that from.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_core::Stream;
use goim_session::client::{Ended, disconnect_code};
use goim_wire::PacketBuf;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::positions::{Position, PositionStoreError, SharedPositionStore};
use crate::{ConnectError, Endpoint, ReconnectPolicy, TimelineMessage};

/// One event of a client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The client is connected, and the server has accepted the token.
    Connected {
        /// The server's address.
        endpoint: Endpoint,
        /// The reply to the token.
        reply: AuthReply,
    },
    /// A push. The packets of a batch are separate events, in order.
    Push(PacketBuf),
    /// A member sent this message to a timeline that the client does not sync: the inbox of its
    /// member, or a room it is in. [`TimelineMessage::sender`] is verified by the server.
    MemberMessage {
        /// The timeline.
        timeline: String,
        /// The message.
        message: TimelineMessage,
    },
    /// Messages of a timeline, in order and once. Receiving the event after this one marks them as
    /// processed, and their position is saved.
    Messages {
        /// The timeline.
        timeline: String,
        /// The messages, never empty.
        messages: Vec<TimelineMessage>,
        /// The position of the last message.
        position: Position,
    },
    /// A gap in a timeline: messages may be missing because they are no longer stored, or because
    /// the timeline was created again. The next message follows `position`. If its epoch differs
    /// from the application's, everything received before belongs to an earlier incarnation.
    Gap {
        /// The timeline.
        timeline: String,
        /// The position after the gap.
        position: Position,
    },
    /// The position of processed messages could not be saved. The client does not retry; the next
    /// save for the timeline replaces this one. After a restart, the application may receive these
    /// messages again.
    PositionNotSaved {
        /// The timeline.
        timeline: String,
        /// The position.
        position: Position,
        /// The error of the position store.
        error: PositionStoreError,
    },
    /// The reply to a periodic heartbeat: the number of sessions online in the room, zero without a
    /// room.
    Online(u32),
    /// The connection has ended.
    Disconnected {
        /// The reason.
        reason: DisconnectReason,
        /// The time until the next attempt; `None` if there is none, and this is the last event.
        retry_in: Option<Duration>,
    },
    /// Every endpoint failed.
    ConnectFailed {
        /// The error of the last endpoint.
        error: ConnectError,
        /// The time until the next attempt; `None` if there is none, and this is the last event.
        retry_in: Option<Duration>,
    },
}

/// The reply to the token. A goim v2 server sends none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthReply {
    /// The body as received.
    pub body: Bytes,
    /// The member.
    pub mid: Option<i64>,
    /// The key of this session.
    pub key: Option<String>,
    /// The negotiated packet version.
    pub protover: Option<i16>,
    /// The server ends the session after this time without a heartbeat.
    pub heartbeat: Option<Duration>,
    /// The name of the server.
    pub server: Option<String>,
    /// When the token, and with it the session, expires. See [`crate::Client::refresh_token`].
    pub expires_at: Option<SystemTime>,
}

impl AuthReply {
    /// Parses the reply; a body that is not JSON gives an empty one. The second value is the code
    /// if it is not 0.
    pub(crate) fn parse(body: &[u8]) -> (Self, Option<i64>) {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| value[name].as_str().map(str::to_owned);
        let expires_at = value["expires_at"].as_u64().map(Duration::from_secs);
        let reply = Self {
            body: Bytes::copy_from_slice(body),
            mid: value["mid"].as_i64(),
            key: text("key"),
            protover: value["protover"].as_i64().and_then(|version| version.try_into().ok()),
            heartbeat: value["heartbeat"].as_u64().map(Duration::from_secs),
            server: text("server"),
            expires_at: expires_at.and_then(|since| UNIX_EPOCH.checked_add(since)),
        };
        (reply, value["code"].as_i64().filter(|code| *code != 0))
    }
}

/// The disconnect notice that the server sends before it closes (operation 6).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// The code of the reason.
    pub code: Option<u16>,
    /// The name of the reason.
    pub reason: String,
    /// What the client should do.
    pub reconnect: ReconnectPolicy,
    /// The time to wait before reconnecting. If it is not zero, it replaces the backoff.
    pub delay: Option<Duration>,
    /// The node to connect to: a host, or a host and a port.
    pub node: Option<String>,
}

impl Notice {
    pub(crate) fn from_json(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let code = disconnect_code(body);
        Self {
            code,
            reason: value["reason"].as_str().unwrap_or_default().to_owned(),
            reconnect: code.map_or(ReconnectPolicy::Backoff, ReconnectPolicy::for_code),
            delay: value["delay_ms"].as_u64().map(Duration::from_millis),
            node: value["node"].as_str().filter(|node| !node.is_empty()).map(str::to_owned),
        }
    }
}

/// Why a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The server sent a disconnect notice.
    Notice(Notice),
    /// The server closed without a notice, as goim v2 does.
    Closed,
    /// The server did not reply to a heartbeat in time.
    HeartbeatLost,
    /// The server sent invalid data.
    Protocol(String),
    /// The connection failed.
    Io(io::Error),
}

impl DisconnectReason {
    /// Returns what the client does next.
    #[must_use]
    pub fn reconnect(&self) -> ReconnectPolicy {
        match self {
            Self::Notice(notice) => notice.reconnect,
            // A crashed server disconnects many clients: they must not reconnect at the same
            // moment.
            Self::Closed | Self::HeartbeatLost | Self::Protocol(_) | Self::Io(_) => ReconnectPolicy::Backoff,
        }
    }
}

impl From<Ended> for DisconnectReason {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed => Self::Closed,
            Ended::HandshakeTimeout | Ended::HeartbeatLost => Self::HeartbeatLost,
            Ended::Framing(error) => Self::Protocol(error.to_string()),
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notice(Notice { code: Some(code), reason, .. }) => write!(f, "{reason} ({code})"),
            Self::Notice(Notice { reason, .. }) => write!(f, "disconnected by the server: {reason}"),
            Self::Closed => f.write_str("closed by the server"),
            Self::HeartbeatLost => f.write_str("no reply to a heartbeat"),
            Self::Protocol(reason) => f.write_str(reason),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// The events of one client, in order. Use [`Events::recv`], or the [`Stream`] implementation.
///
/// The queue is bounded ([`crate::ClientConfig::events_max`]) and drops nothing: if the application
/// does not receive its events, the client stops reading its socket, including the replies to the
/// application's own requests. Receive events and await requests concurrently. An application that
/// needs no events drops this value; events are then discarded and counted.
///
/// For messages of timelines, asking for the next event marks the one before as processed. Its
/// position is saved before the next event is returned, with at most one save in progress. If the
/// save fails, the next event is [`Event::PositionNotSaved`].
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Receiver<Event>,
    positions: Option<SharedPositionStore>,
    /// The position of the last returned event; saved when the next one is asked for.
    unsaved: Option<(String, Position)>,
    saving: Option<Saving>,
}

/// A save in progress. It is owned by [`Events`], so that a dropped `recv` does not interrupt it.
struct Saving {
    timeline: String,
    position: Position,
    result: Pin<Box<dyn Future<Output = Result<(), PositionStoreError>> + Send>>,
}

impl fmt::Debug for Saving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, position, .. } = self;
        f.debug_struct("Saving")
            .field("timeline", timeline)
            .field("position", position)
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(queue: mpsc::Receiver<Event>, positions: Option<SharedPositionStore>) -> Self {
        Self { queue, positions, unsaved: None, saving: None }
    }

    /// Receives the next event. Returns `None` when the client was closed or has stopped for good.
    ///
    /// # Cancel safety
    /// If the future is dropped, no event is lost, and a save in progress continues with the
    /// next call.
    pub async fn recv(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Returns the next event if one is queued. Returns `None` also while a position is being
    /// saved.
    pub fn try_recv(&mut self) -> Option<Event> {
        match self.poll_recv(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    /// Polls for the next event, like [`Events::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some((timeline, position, error)) = ready!(self.poll_save(cx)) {
            return Poll::Ready(Some(Event::PositionNotSaved { timeline, position, error }));
        }
        let event = ready!(self.queue.poll_recv(cx));
        if let Some(Event::Messages { timeline, position, .. } | Event::Gap { timeline, position }) = &event {
            self.unsaved = Some((timeline.clone(), *position));
        }
        Poll::Ready(event)
    }

    /// Marks the last received event as processed and saves its position now, without waiting for
    /// the next event. Call this before the application exits, so that it does not receive the last
    /// messages again. Does nothing if there is nothing to save.
    ///
    /// # Errors
    /// The error of the position store.
    ///
    /// # Cancel safety
    /// If the future is dropped, the save continues with the next call of any method.
    pub async fn save_position(&mut self) -> Result<(), PositionStoreError> {
        match poll_fn(|cx| self.poll_save(cx)).await {
            Some((_, _, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Completes the save in progress and the one that is due. Ready with `None` when nothing is
    /// left to save, with the failed position otherwise.
    fn poll_save(&mut self, cx: &mut Context<'_>) -> Poll<Option<(String, Position, PositionStoreError)>> {
        loop {
            if let Some(saving) = &mut self.saving {
                let result = ready!(saving.result.as_mut().poll(cx));
                let saved = self.saving.take();
                if let (Err(error), Some(Saving { timeline, position, .. })) = (result, saved) {
                    return Poll::Ready(Some((timeline, position, error)));
                }
            }
            let (Some((timeline, position)), Some(positions)) = (self.unsaved.take(), &self.positions) else {
                return Poll::Ready(None);
            };
            let result = positions.save(timeline.clone(), position);
            self.saving = Some(Saving { timeline, position, result });
        }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::PositionStore;

    #[test]
    fn notices_are_parsed_leniently() {
        let full = Notice::from_json(
            br#"{"code":3002,"reason":"draining","reconnect":true,"delay_ms":1500,"node":"n2"}"#,
        );
        let expect = Notice {
            code: Some(3002),
            reason: "draining".to_owned(),
            reconnect: ReconnectPolicy::Now,
            delay: Some(Duration::from_millis(1500)),
            node: Some("n2".to_owned()),
        };
        assert_eq!(full, expect);
        let empty = Notice::from_json(b"");
        assert_eq!((empty.code, empty.reconnect, empty.node), (None, ReconnectPolicy::Backoff, None));
    }

    #[test]
    fn auth_replies_of_goim_v2_and_of_this_server_are_parsed() {
        assert_eq!(AuthReply::parse(b""), (AuthReply::default(), None));
        let body = br#"{"code":0,"mid":7,"key":"k","protover":1,"heartbeat":480,"rooms":[],"server":"s",
            "expires_at":1790000000}"#;
        let (reply, code) = AuthReply::parse(body);
        assert_eq!((reply.mid, reply.key.as_deref(), reply.protover), (Some(7), Some("k"), Some(1)));
        assert_eq!((reply.heartbeat, code), (Some(Duration::from_secs(480)), None));
        assert_eq!(reply.expires_at, Some(UNIX_EPOCH + Duration::from_secs(1_790_000_000)));
        assert_eq!(AuthReply::parse(br#"{"code":3200}"#).1, Some(3200));
    }

    /// Saves as many positions as it has permits, and fails for sequence 3.
    #[derive(Default)]
    struct SlowStore {
        started: Mutex<Vec<u64>>,
        saved: Mutex<Vec<u64>>,
        permits: Option<Semaphore>,
    }

    impl PositionStore for SlowStore {
        async fn load(&self, _: &str) -> Result<Option<Position>, PositionStoreError> {
            Ok(None)
        }

        async fn save(&self, _: &str, position: Position) -> Result<(), PositionStoreError> {
            self.started.lock().push(position.seq);
            if let Some(permits) = &self.permits {
                permits.acquire().await?.forget();
            }
            if position.seq == 3 {
                return Err("the disk is full".into());
            }
            self.saved.lock().push(position.seq);
            Ok(())
        }
    }

    fn messages(seq: u64) -> Event {
        Event::Messages {
            timeline: "t".to_owned(),
            messages: Vec::new(),
            position: Position { epoch: 1, seq },
        }
    }

    fn seq(event: Option<Event>) -> u64 {
        match event {
            Some(Event::Messages { position, .. }) => position.seq,
            other => panic!("{other:?}"),
        }
    }

    fn events(store: &Arc<SlowStore>) -> (mpsc::Sender<Event>, Events) {
        let (sender, queue) = mpsc::channel(8);
        (sender, Events::new(queue, Some(SharedPositionStore::new(Arc::clone(store)))))
    }

    #[tokio::test]
    async fn a_position_is_saved_only_when_the_next_event_is_asked_for() {
        let store = Arc::new(SlowStore::default());
        let (sender, mut events) = events(&store);
        sender.try_send(messages(1)).unwrap();
        sender.try_send(messages(2)).unwrap();
        assert_eq!(seq(events.recv().await), 1);
        assert!(store.started.lock().is_empty(), "saved before the application has processed it");
        assert_eq!(seq(events.recv().await), 2);
        assert_eq!(*store.saved.lock(), [1]);
        // Nothing else is queued; the position is saved nevertheless.
        assert!(events.try_recv().is_none());
        assert_eq!(*store.saved.lock(), [1, 2]);
    }

    #[tokio::test]
    async fn one_save_is_in_progress_and_a_dropped_recv_does_not_interrupt_it() {
        let store = Arc::new(SlowStore { permits: Some(Semaphore::new(0)), ..SlowStore::default() });
        let (sender, mut events) = events(&store);
        sender.try_send(messages(1)).unwrap();
        sender.try_send(messages(2)).unwrap();
        assert_eq!(seq(events.recv().await), 1);
        for _ in 0..3 {
            let mut recv = Box::pin(events.recv());
            let polled = poll_fn(|cx| Poll::Ready(recv.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "the next event overtook the save");
        }
        assert_eq!((store.started.lock().len(), store.saved.lock().len()), (1, 0));
        let permits = store.permits.as_ref().unwrap();
        permits.add_permits(1);
        assert_eq!(seq(events.recv().await), 2);
        assert_eq!(*store.saved.lock(), [1]);
        permits.add_permits(1);
        events.save_position().await.unwrap();
        assert_eq!(*store.saved.lock(), [1, 2]);
        events.save_position().await.unwrap();
        assert_eq!(store.started.lock().len(), 2, "nothing is left to save");
    }

    #[tokio::test]
    async fn a_failed_save_is_an_event_and_the_next_one_proceeds() {
        let store = Arc::new(SlowStore::default());
        let (sender, mut events) = events(&store);
        for seq in [3, 4] {
            sender.try_send(messages(seq)).unwrap();
        }
        drop(sender);
        assert_eq!(seq(events.recv().await), 3);
        match events.recv().await {
            Some(Event::PositionNotSaved { position, error, .. }) => {
                assert_eq!((position.seq, error.to_string().as_str()), (3, "the disk is full"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(seq(events.recv().await), 4);
        assert!(events.recv().await.is_none());
        assert_eq!(*store.saved.lock(), [4]);
    }

    #[tokio::test]
    async fn events_are_a_stream() {
        let store = Arc::new(SlowStore::default());
        let (sender, events) = events(&store);
        sender.try_send(messages(1)).unwrap();
        sender.try_send(messages(2)).unwrap();
        drop(sender);
        let mut events = Box::pin(events);
        let mut received = Vec::new();
        while let Some(event) = poll_fn(|cx| events.as_mut().poll_next(cx)).await {
            received.push(seq(Some(event)));
        }
        assert_eq!(received, [1, 2]);
        assert_eq!(*store.saved.lock(), [1, 2]);
    }
}
