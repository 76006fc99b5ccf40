//! Why connections end and requests fail: the one table of codes, labels and reconnect policies.
//!
//! Server, client, metrics, logs and `docs/protocol.md` all use this table. Clients that have
//! negotiated a version get the code in the disconnect packet (operation 6) or in the error packet
//! (operation 25). The range of a code gives its [`ReconnectPolicy`], so a client can handle codes
//! that it does not know:
//!
//! | code | policy |
//! |---|---|
//! | 3000 to 3099 | reconnect now |
//! | 3100 to 3199 | reconnect after a backoff |
//! | 3200 to 3299 | reconnect with a new token |
//! | 3500 to 3599 | do not reconnect |
//!
//! Invariant: a code never changes its meaning, and a retired code is never reused.

use core::fmt;

/// What a client does after its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReconnectPolicy {
    /// Reconnect immediately.
    Now,
    /// Reconnect after a backoff.
    Backoff,
    /// Reconnect with a new token.
    NewToken,
    /// Do not reconnect: the next connection would end for the same reason.
    Never,
}

impl ReconnectPolicy {
    /// Returns the policy of a code by its range, also for codes that are not in the table.
    #[must_use]
    pub const fn for_code(code: u16) -> Self {
        match code {
            0..=3099 => Self::Now,
            3200..=3299 => Self::NewToken,
            3500..=3599 => Self::Never,
            _ => Self::Backoff,
        }
    }
}

macro_rules! reasons {
    ($(#[$doc_of:meta])* $name:ident: $($(#[$doc:meta])* $variant:ident = $code:literal, $label:literal;)+) => {
        $(#[$doc_of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All reasons, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the code that clients receive.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code),+ }
            }

            /// Returns the label for metrics, logs and clients.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// Returns what a client does next.
            #[must_use]
            pub const fn reconnect(self) -> ReconnectPolicy {
                ReconnectPolicy::for_code(self.code())
            }

            /// Returns the reason with this code, or `None` for a code that is not in the table.
            #[must_use]
            pub fn from_code(code: u16) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.code() == code)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

reasons! {
    /// Why a connection has ended.
    CloseReason:
    /// The client closed the connection: end of stream, or a WebSocket close frame.
    PeerClosed = 3000, "peer_closed";
    /// The connection broke.
    ConnectionLost = 3001, "connection_lost";
    /// This server is draining; other servers accept connections.
    Draining = 3002, "draining";
    /// This server is shutting down.
    Shutdown = 3003, "shutdown";
    /// No token was received in time.
    HandshakeTimeout = 3004, "handshake_timeout";
    /// No heartbeat was received in time.
    HeartbeatTimeout = 3005, "heartbeat_timeout";
    /// Messages for this session were dropped: a job had marked the server as down, but it was
    /// alive.
    MessagesMissed = 3006, "messages_missed";
    /// The client did not read fast enough.
    SlowConsumer = 3100, "slow_consumer";
    /// The token could not be checked.
    AuthUnavailable = 3101, "auth_unavailable";
    /// This server has reached its connection limit.
    TooManyConnections = 3102, "too_many_connections";
    /// The client's address has reached its connection limit.
    TooManyFromAddress = 3103, "too_many_from_address";
    /// The token was not accepted.
    AuthRefused = 3200, "auth_refused";
    /// The token has expired, before or during the session.
    TokenExpired = 3201, "token_expired";
    /// The token is not valid yet.
    TokenNotYetValid = 3202, "token_not_yet_valid";
    /// The token has the wrong audience or issuer.
    TokenAudience = 3203, "token_audience";
    /// The token's signature is wrong, or its algorithm or key is not accepted.
    TokenSignature = 3204, "token_signature";
    /// The client's own claims contradict the token.
    TokenMismatch = 3205, "token_mismatch";
    /// The backend refused the session.
    AuthDenied = 3206, "auth_denied";
    /// The token does not allow the room.
    RoomNotAllowed = 3207, "room_not_allowed";
    /// The backend ended the session; a new token is needed.
    Revoked = 3208, "revoked";
    /// Another session with the same key has replaced this one.
    Superseded = 3500, "superseded";
    /// The input was not a packet.
    BadPacket = 3501, "bad_packet";
    /// The input was not a WebSocket frame.
    BadFrame = 3502, "bad_frame";
    /// The request was not a WebSocket upgrade.
    BadUpgrade = 3503, "bad_upgrade";
    /// The TLS handshake failed.
    BadTls = 3504, "bad_tls";
    /// The backend ended the session permanently.
    Kicked = 3505, "kicked";
    /// The member connected with another device and has reached the device limit.
    TooManyDevices = 3506, "too_many_devices";
    /// A compressed body inflates to more than the limit.
    InflatedTooLarge = 3507, "inflated_too_large";
    /// A body cannot be inflated in the encoding of its version.
    BadCompression = 3508, "bad_compression";
}

/// Declares an enum with some of the reasons of [`CloseReason`], under the same names.
macro_rules! subset {
    ($(#[$doc_of:meta])* $name:ident: $($variant:ident),+ $(,)?) => {
        $(#[$doc_of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $(#[doc = concat!("[`CloseReason::", stringify!($variant), "`].")] $variant,)+
        }

        impl $name {
            /// All reasons, in declaration order.
            pub const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];

            /// Returns the same reason in the table of close reasons.
            #[must_use]
            pub const fn close_reason(self) -> CloseReason {
                match self { $(Self::$variant => CloseReason::$variant),+ }
            }

            /// Returns the label for metrics, logs and clients.
            #[must_use]
            pub const fn label(self) -> &'static str {
                self.close_reason().label()
            }
        }

        impl From<$name> for CloseReason {
            fn from(reason: $name) -> Self {
                reason.close_reason()
            }
        }
    };
}

subset! {
    /// Why a token gives no session: the reasons of [`CloseReason`] that authentication can have.
    AuthFailure: AuthUnavailable, AuthRefused, TokenExpired, TokenNotYetValid, TokenAudience, TokenSignature, TokenMismatch,
    AuthDenied, RoomNotAllowed,
}

reasons! {
    /// Why a request of a negotiated client failed: the code in the error packet (operation 25).
    /// The session continues.
    ///
    /// A refresh whose token is not accepted fails with a code of [`AuthFailure`] instead.
    RequestFailure:
    /// Too many requests of this kind are in flight.
    Busy = 3110, "busy";
    /// The request timed out. It may or may not have been handled.
    NotInTime = 3111, "not_in_time";
    /// The service that handles the request cannot be reached.
    Unavailable = 3112, "unavailable";
    /// The sender has exceeded its rate limit; the error packet has the time to wait.
    RateLimited = 3113, "rate_limited";
    /// The request cannot be read.
    BadRequest = 3510, "bad_request";
    /// The session would exceed its room limit.
    TooManyRooms = 3511, "too_many_rooms";
    /// The request was refused.
    Failed = 3512, "failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_a_range() {
        for (index, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(CloseReason::from_code(reason.code()), Some(*reason));
            assert!((3000..3600).contains(&reason.code()), "{reason}");
            for other in CloseReason::ALL.iter().skip(index + 1) {
                assert_ne!(reason.label(), other.label());
            }
        }
        for failure in RequestFailure::ALL {
            assert_eq!(RequestFailure::from_code(failure.code()), Some(*failure));
            assert!((3000..3600).contains(&failure.code()), "{failure}");
            assert_eq!(CloseReason::from_code(failure.code()), None, "{failure} shares a code");
        }
    }

    #[test]
    fn an_auth_failure_has_the_label_of_its_close_reason() {
        for failure in AuthFailure::ALL {
            assert_eq!(failure.label(), CloseReason::from(failure).label());
        }
    }
}
