//! Why operations fail: one enum for each.

use std::io;
use std::time::Duration;

use goim_session::client::Ended;
use serde_json::Value;

use crate::auth::ProviderError;
use crate::{ConfigError, Endpoint, NodesError, ReconnectPolicy};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no node list, and none from before.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The token provider has failed.
    #[error("no token: {0}")]
    Token(#[source] ProviderError),
    /// The server would end the connection over it.
    #[error("token of {len} bytes exceeds the limit of {limit}")]
    TokenTooLong {
        /// Bytes in the body of the auth packet.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// No connection could be made, or it broke before the auth reply.
    #[error("{endpoint}: {source}")]
    Io {
        /// Where.
        endpoint: Endpoint,
        /// What the system says; for TLS, what is wrong with the certificate.
        source: io::Error,
    },
    /// There was no auth reply in time.
    #[error("{endpoint}: no reply to the token in time")]
    TimedOut {
        /// Where.
        endpoint: Endpoint,
    },
    /// The server has closed instead of replying to the token. goim does so when it does not accept the token, and
    /// when it cannot check it.
    #[error("{endpoint}: closed instead of a reply to the token")]
    ClosedDuringAuth {
        /// Where.
        endpoint: Endpoint,
    },
    /// What the server has sent is not the protocol.
    #[error("{endpoint}: {reason}")]
    Protocol {
        /// Where.
        endpoint: Endpoint,
        /// What is wrong with it.
        reason: String,
    },
    /// The server does not want this client.
    #[error("{endpoint}: refused with code {code}: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// The reason's number.
        code: i64,
        /// The server's words.
        reason: String,
        /// What the server advises.
        reconnect: ReconnectPolicy,
    },
}

impl ConnectError {
    /// What is to be done about it.
    #[must_use]
    pub fn reconnect(&self) -> ReconnectPolicy {
        match self {
            Self::Config(_) | Self::TokenTooLong { .. } => ReconnectPolicy::Never,
            Self::Nodes(_) | Self::Token(_) | Self::Io { .. } | Self::TimedOut { .. } => {
                ReconnectPolicy::Backoff
            }
            Self::ClosedDuringAuth { .. } | Self::Protocol { .. } => ReconnectPolicy::Backoff,
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

/// What the server says about a request that has failed (operation 25).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("code {code}: {message}")]
pub struct ServerError {
    /// The reason's number; -1 when the server gave none.
    pub code: i64,
    /// The server's words.
    pub message: String,
    /// Not before this much time should the request be made again.
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

/// Why there is no reply to what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The operation belongs to the protocol: only 4, and 1000 and above, may be sent.
    #[error("operation {0} cannot be sent: 4, and 1000 and above, can")]
    Reserved(i32),
    /// The server would end the connection over it. Nothing was sent.
    #[error("body of {len} bytes exceeds the limit of {limit}")]
    BodyTooLong {
        /// Bytes in the body.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// There is no connection, or it ended before the reply.
    #[error("disconnected before the reply; the server {}", may_have(*.may_have_arrived))]
    Disconnected {
        /// False: not a byte of it was written. True: the server may have taken it.
        may_have_arrived: bool,
    },
    /// No reply in time. The server may have taken it.
    #[error("no reply in time")]
    TimedOut,
    /// The server has answered with an error.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// The reply makes no sense: the server knows nothing of timelines.
    #[error("bad reply: the server knows nothing of timelines")]
    BadReply,
    /// The client was closed, or has stopped for good.
    #[error("the client is closed")]
    Closed,
}

fn may_have(arrived: bool) -> &'static str {
    if arrived { "may have taken it" } else { "has not seen it" }
}

/// Why the room was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// The server would end the connection over the name.
    #[error("room name of {len} bytes exceeds the limit of {limit}")]
    NameTooLong {
        /// Bytes in the name.
        len: usize,
        /// See [`crate::ClientConfig::outbound_body_bytes_max`].
        limit: usize,
    },
    /// The server did not confirm in time. The client goes on wanting the room.
    #[error("not confirmed in time")]
    TimedOut,
    /// The server does not want it; the client stays where it was.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// More rooms than a client may have changed.
    #[error("more than {limit} rooms were changed")]
    TooMany {
        /// See [`crate::Client::ROOM_CHANGES_MAX`].
        limit: usize,
    },
    /// The client was closed, or has stopped for good.
    #[error("the client is closed")]
    Closed,
}

/// Why subscriptions were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// More than [`crate::Client::SUBSCRIPTION_CHANGES_MAX`] operations would differ from what the token says.
    #[error("subscriptions to more than {limit} operations cannot be changed")]
    TooMany {
        /// See [`crate::Client::SUBSCRIPTION_CHANGES_MAX`].
        limit: usize,
    },
    /// The server did not confirm in time. The client goes on wanting it.
    #[error("not confirmed in time")]
    TimedOut,
    /// The server does not want it; the subscriptions are as before.
    #[error("refused with {0}")]
    Refused(ServerError),
    /// The client was closed, or has stopped for good.
    #[error("the client is closed")]
    Closed,
}

/// Why there is no online count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no connection, or it ended before the reply.
    #[error("disconnected")]
    Disconnected,
    /// No reply in time.
    #[error("no reply in time")]
    TimedOut,
    /// The reply holds no count, or is an error.
    #[error("bad reply to a heartbeat")]
    BadReply,
    /// The client was closed, or has stopped for good.
    #[error("the client is closed")]
    Closed,
}
