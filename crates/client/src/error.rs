//! The errors: one enum for each kind of operation.

use std::io;
use std::time::Duration;

use goim_session::client::Ended;
use serde_json::Value;

use crate::auth::ProviderError;
use crate::positions::PositionStoreError;
use crate::{ConfigError, Endpoint, NodesError, ReconnectPolicy};

/// Why the client is not connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node list is not available, and there is no earlier one.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The token provider failed.
    #[error("no token: {0}")]
    Token(#[source] ProviderError),
    /// The position of a timeline could not be loaded.
    #[error("position of {timeline} not loaded: {source}")]
    Positions {
        /// The timeline.
        timeline: String,
        /// The error of the position store.
        source: PositionStoreError,
    },
    /// The token exceeds the limit. The server would close the connection.
    #[error("token of {len} bytes exceeds the limit of {limit}")]
    TokenTooLong {
        /// The length of the auth packet's body in bytes.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// The connection could not be made, or it failed before the auth reply.
    #[error("{endpoint}: {source}")]
    Io {
        /// The server's address.
        endpoint: Endpoint,
        /// The error of the system; for TLS also of the certificate check.
        source: io::Error,
    },
    /// There was no auth reply in time.
    #[error("{endpoint}: no reply to the token in time")]
    TimedOut {
        /// The server's address.
        endpoint: Endpoint,
    },
    /// The server closed instead of replying to the token. goim v2 does that when it refuses the
    /// token, and when it cannot check it.
    #[error("{endpoint}: closed instead of a reply to the token")]
    ClosedDuringAuth {
        /// The server's address.
        endpoint: Endpoint,
    },
    /// The server sent invalid data.
    #[error("{endpoint}: {reason}")]
    Protocol {
        /// The server's address.
        endpoint: Endpoint,
        /// What is invalid.
        reason: String,
    },
    /// The server refused the client.
    #[error("{endpoint}: refused with code {code}: {reason}")]
    Refused {
        /// The server's address.
        endpoint: Endpoint,
        /// The code of the reason.
        code: i64,
        /// The server's message.
        reason: String,
        /// What the client should do.
        reconnect: ReconnectPolicy,
    },
}

impl ConnectError {
    /// Returns what the client does next.
    #[must_use]
    pub fn reconnect(&self) -> ReconnectPolicy {
        match self {
            Self::Config(_) | Self::TokenTooLong { .. } => ReconnectPolicy::Never,
            Self::Nodes(_) | Self::Token(_) | Self::Positions { .. } | Self::Io { .. } => {
                ReconnectPolicy::Backoff
            }
            Self::TimedOut { .. } | Self::ClosedDuringAuth { .. } | Self::Protocol { .. } => {
                ReconnectPolicy::Backoff
            }
            Self::Refused { reconnect, .. } => *reconnect,
        }
    }

    pub(crate) fn from_ended(endpoint: &Endpoint, ended: Ended) -> Self {
        let endpoint = endpoint.clone();
        match ended {
            Ended::HandshakeTimeout | Ended::HeartbeatLost => Self::TimedOut { endpoint },
            Ended::Closed => Self::ClosedDuringAuth { endpoint },
            Ended::Framing(error) => Self::Protocol { endpoint, reason: error.to_string() },
        }
    }
}

/// The server's error for a request (operation 25).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("code {code}: {message}")]
pub struct ServerError {
    /// The code of the reason; -1 if there is none.
    pub code: i64,
    /// The error message.
    pub message: String,
    /// The time to wait before trying again.
    pub retry_after: Option<Duration>,
}

impl ServerError {
    pub(crate) fn from_json(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        Self {
            code: value["code"].as_i64().unwrap_or(-1),
            message: value["message"].as_str().unwrap_or_default().to_owned(),
            retry_after: value["retry_after_ms"].as_u64().map(Duration::from_millis),
        }
    }
}

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The operation is reserved for the protocol. Applications send 4, or 1000 and above.
    #[error("operation {0} is reserved: use 4, or 1000 and above")]
    Reserved(i32),
    /// The body exceeds the limit. Nothing was sent; the server would close the connection.
    #[error("body of {len} bytes exceeds the limit of {limit}")]
    BodyTooLong {
        /// The length of the body in bytes.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// There is no connection, or it ended before the reply.
    #[error("disconnected before the reply; the server {}", may_have(*.may_have_arrived))]
    Disconnected {
        /// False: no byte of the request was written. True: the server may have received it.
        may_have_arrived: bool,
    },
    /// No reply in time. The server may have received the request.
    #[error("no reply in time")]
    TimedOut,
    /// The server replied with an error.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// The reply is invalid: the server does not support timelines.
    #[error("invalid reply: the server does not support timelines")]
    BadReply,
    /// The client was closed, or it has stopped for good.
    #[error("the client is closed")]
    Closed,
}

fn may_have(arrived: bool) -> &'static str {
    if arrived { "may have received the request" } else { "has not received the request" }
}

/// Why rooms were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// The names exceed the limit of a packet. Nothing was sent.
    #[error("room name of {len} bytes exceeds the limit of {limit}")]
    NameTooLong {
        /// The length of the names in bytes.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// The server did not confirm in time. The change stays part of every later connection.
    #[error("not confirmed in time")]
    TimedOut,
    /// The server refused; the rooms are unchanged.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// More rooms would differ from the token than allowed.
    #[error("more than {limit} rooms would differ from the token")]
    TooMany {
        /// See [`crate::Client::ROOM_CHANGES_MAX`].
        limit: usize,
    },
    /// The client was closed, or it has stopped for good.
    #[error("the client is closed")]
    Closed,
}

/// Why subscriptions were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// More operations would differ from the token than allowed.
    #[error("more than {limit} operations would differ from the token")]
    TooMany {
        /// See [`crate::Client::SUBSCRIPTION_CHANGES_MAX`].
        limit: usize,
    },
    /// The server did not confirm in time. The change stays part of every later connection.
    #[error("not confirmed in time")]
    TimedOut,
    /// The server refused; the subscriptions are unchanged.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// The client was closed, or it has stopped for good.
    #[error("the client is closed")]
    Closed,
}

/// Why the subscription of a timeline was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// The client was configured without [`crate::ClientConfig::sync`].
    #[error("sync is not configured")]
    SyncDisabled,
    /// The position of the timeline could not be loaded.
    #[error("position not loaded: {0}")]
    Store(#[source] PositionStoreError),
    /// More timelines than allowed.
    #[error("more than {limit} timelines")]
    TooMany {
        /// See [`crate::Client::TIMELINES_MAX`].
        limit: usize,
    },
    /// The client did not process the request in time. The timeline may be subscribed or not.
    #[error("not processed in time")]
    TimedOut,
    /// The client was closed, or it has stopped for good.
    #[error("the client is closed")]
    Closed,
}

/// Why there is no online count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeartbeatError {
    /// There is no connection, or it ended before the reply.
    #[error("disconnected")]
    Disconnected,
    /// No reply in time.
    #[error("no reply in time")]
    TimedOut,
    /// The reply contains no count, or it is an error.
    #[error("invalid reply to a heartbeat")]
    BadReply,
    /// The client was closed, or it has stopped for good.
    #[error("the client is closed")]
    Closed,
}
