//! What an application is told, and the queue that it is told by.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use goim_session::client::{Ended, disconnect_code};
use goim_wire::PacketBuf;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{ConnectError, Endpoint, Position, PositionStore, ReconnectPolicy, TimelineMessage};

/// What has happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// There is a connection, and the server has accepted the token.
    Connected {
        /// Where to.
        endpoint: Endpoint,
        /// What the server said.
        reply: AuthReply,
    },
    /// Somebody has pushed this. Packets of a batch come one by one, in order.
    Push(PacketBuf),
    /// A member has sent this to a timeline that this client does not follow: a room that it is in, or its member's inbox.
    /// [`TimelineMessage::sender`] says who; the server vouches for it.
    MemberMessage {
        /// Which timeline.
        timeline: String,
        /// What was sent.
        message: TimelineMessage,
    },
    /// Messages of a timeline, in order and once. Taking the next event says that the application has them.
    Messages {
        /// Which timeline.
        timeline: String,
        /// What came, never empty.
        messages: Vec<TimelineMessage>,
        /// Where the application is when it has them.
        position: Position,
    },
    /// There may be a hole in a timeline: messages were not kept long enough, or the store was reset. What follows begins behind `position`,
    /// and what the application has of another epoch is of another life of the timeline.
    Gap {
        /// Which timeline.
        timeline: String,
        /// Where it goes on.
        position: Position,
    },
    /// The reply to a heartbeat that the client has sent by itself: how many are online in the room, zero in no room.
    Online(u32),
    /// The connection has ended.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
        /// When the client tries again; `None`: never, and this is the last event.
        retry_in: Option<Duration>,
    },
    /// An attempt has failed at every endpoint; the error is that of the last.
    ConnectFailed {
        /// Why.
        error: ConnectError,
        /// When the client tries again; `None`: never, and this is the last event.
        retry_in: Option<Duration>,
    },
}

/// The reply to the token. All empty from a server that knows nothing beyond goim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthReply {
    /// The body as it came.
    pub body: Bytes,
    /// The member.
    pub mid: Option<i64>,
    /// Name of this session.
    pub key: Option<String>,
    /// The packet version that was agreed on.
    pub protover: Option<i16>,
    /// The server ends the session when no heartbeat comes for this long.
    pub heartbeat: Option<Duration>,
    /// Name of the server.
    pub server: Option<String>,
}

impl AuthReply {
    /// Reads the reply; a body that is no JSON tells nothing. The second value is the code when it is not 0.
    pub(crate) fn parse(body: &[u8]) -> (Self, Option<i64>) {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| value[name].as_str().map(str::to_owned);
        let reply = Self {
            body: Bytes::copy_from_slice(body),
            mid: value["mid"].as_i64(),
            key: text("key"),
            protover: value["protover"].as_i64().and_then(|version| version.try_into().ok()),
            heartbeat: value["heartbeat"].as_u64().map(Duration::from_secs),
            server: text("server"),
        };
        (reply, value["code"].as_i64().filter(|code| *code != 0))
    }
}

/// What the server says before it closes (operation 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The reason's number.
    pub code: Option<u16>,
    /// The reason's word.
    pub reason: String,
    /// What to do next.
    pub reconnect: ReconnectPolicy,
    /// Not before this much time.
    pub delay: Option<Duration>,
    /// Where to: a host, or a host and a port.
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

/// Why a connection has ended.
#[derive(Debug)]
pub enum DisconnectReason {
    /// The server has said why.
    Notice(Notice),
    /// The server has closed without a word, as goim does.
    Closed,
    /// The server did not answer a heartbeat.
    HeartbeatLost,
    /// What came in is not the protocol.
    Protocol(String),
    /// The connection broke.
    Io(io::Error),
}

impl DisconnectReason {
    /// What is to be done about it.
    #[must_use]
    pub fn reconnect(&self) -> ReconnectPolicy {
        match self {
            Self::Notice(notice) => notice.reconnect,
            // A server that has gone has cut off many: they must not all return at once.
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
            Self::Notice(Notice { reason, .. }) => write!(f, "told to go: {reason}"),
            Self::Closed => f.write_str("closed by the server"),
            Self::HeartbeatLost => f.write_str("no reply to a heartbeat"),
            Self::Protocol(reason) => f.write_str(reason),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// The events of one client, in order.
///
/// The queue is bounded ([`crate::ClientConfig::events_max`]). An application that does not keep up stops the client
/// from reading its socket, replies to its own requests included; nothing is dropped here. So take events and await
/// requests in different tasks, or at the same time. An application that wants no events drops this: they are then
/// thrown away and counted.
pub struct Events {
    queue: mpsc::Receiver<Event>,
    positions: Option<Arc<dyn PositionStore>>,
    /// Where the application is when it has dealt with the last event.
    unsaved: Option<(String, Position)>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(queue: mpsc::Receiver<Event>, positions: Option<Arc<dyn PositionStore>>) -> Self {
        Self { queue, positions, unsaved: None }
    }

    /// The application has dealt with the event before.
    fn save(&mut self) {
        if let (Some((timeline, position)), Some(positions)) = (self.unsaved.take(), &self.positions) {
            positions.save(&timeline, position);
        }
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        if let Some(Event::Messages { timeline, position, .. } | Event::Gap { timeline, position }) = &event {
            self.unsaved = Some((timeline.clone(), *position));
        }
        event
    }

    /// The next event, or `None` when the client was closed or has stopped for good.
    ///
    /// # Cancel safety
    /// A dropped future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        self.save();
        let event = self.queue.recv().await;
        self.note(event)
    }

    /// The next event, if one waits.
    pub fn try_next(&mut self) -> Option<Event> {
        self.save();
        let event = self.queue.try_recv().ok();
        self.note(event)
    }

    /// As [`Events::next`], for code that polls: for example a `Stream` of another crate.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.save();
        self.queue.poll_recv(cx).map(|event| self.note(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_understood_as_far_as_they_go() {
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
    fn auth_replies_of_goim_and_of_extended_servers() {
        assert_eq!(AuthReply::parse(b""), (AuthReply::default(), None));
        let body = br#"{"code":0,"mid":7,"key":"k","protover":1,"heartbeat":480,"rooms":[],"server":"s"}"#;
        let (reply, code) = AuthReply::parse(body);
        assert_eq!((reply.mid, reply.key.as_deref(), reply.protover), (Some(7), Some("k"), Some(1)));
        assert_eq!((reply.heartbeat, code), (Some(Duration::from_secs(480)), None));
        assert_eq!(AuthReply::parse(br#"{"code":3200}"#).1, Some(3200));
    }
}
