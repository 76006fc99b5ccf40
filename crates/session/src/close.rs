//! Why connections end and requests fail: one table of reasons, their codes and what a client should do next.
//!
//! The reason is the label of the metric, the word in the log and, for negotiated clients, the code in the last packet
//! (operation 6) or in the answer to a request that has failed (operation 25). Codes are grouped so that a client that does not know one still knows what to do:
//!
//! | code | what the client does |
//! |---|---|
//! | 3000 to 3099 | comes back at once |
//! | 3100 to 3199 | comes back after a delay |
//! | 3200 to 3299 | comes back with a new token |
//! | 3500 to 3599 | stays away |
//!
//! A number never changes its meaning; one that is given up stays unused.

use core::fmt;

/// What a client should do after its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Return {
    /// Come back at once.
    AtOnce,
    /// Come back after a delay.
    Later,
    /// Come back with a new token.
    WithNewToken,
    /// Stay away: the same would happen again.
    Never,
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
            /// Every reason, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The number for clients.
            #[must_use]
            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $code),+ }
            }

            /// The word for metrics and logs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// What a client should do next, by the range of the code.
            #[must_use]
            pub const fn advice(self) -> Return {
                Return::for_code(self.code())
            }

            /// The one with this code, or `None` when there is none.
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
    /// The client has ended it, by the end of its stream or by a close frame.
    PeerClosed = 3000, "peer_closed";
    /// The connection broke.
    ConnectionLost = 3001, "connection_lost";
    /// This server is going away; others are there.
    Draining = 3002, "draining";
    /// This server stops now.
    Shutdown = 3003, "shutdown";
    /// No token came in time.
    HandshakeTimeout = 3004, "handshake_timeout";
    /// No heartbeat came in time.
    HeartbeatTimeout = 3005, "heartbeat_timeout";
    /// Messages for this session were dropped: the server was taken for dead, and was not.
    MessagesMissed = 3006, "messages_missed";
    /// The client did not take what was sent to it.
    SlowConsumer = 3100, "slow_consumer";
    /// Whoever decides about tokens could not be asked.
    AuthUnavailable = 3101, "auth_unavailable";
    /// This server holds as many connections as it may.
    TooManyConnections = 3102, "too_many_connections";
    /// This address has as many connections as it may.
    TooManyFromAddress = 3103, "too_many_from_address";
    /// The token was not accepted.
    AuthRefused = 3200, "auth_refused";
    /// The token has ended, before the session began or during it.
    TokenExpired = 3201, "token_expired";
    /// The token begins later.
    TokenNotYetValid = 3202, "token_not_yet_valid";
    /// The token is for somebody else, or from somebody else.
    TokenAudience = 3203, "token_audience";
    /// The token's signature is wrong, or of a kind or key that is not taken.
    TokenSignature = 3204, "token_signature";
    /// What the client says of itself is not what the token says.
    TokenMismatch = 3205, "token_mismatch";
    /// The backend has said no.
    AuthDenied = 3206, "auth_denied";
    /// The token does not allow the room.
    RoomNotAllowed = 3207, "room_not_allowed";
    /// The backend has ended the session; it takes a new token to come back.
    Revoked = 3208, "revoked";
    /// Another session with the same key has taken over.
    Superseded = 3500, "superseded";
    /// The bytes were no packet.
    BadPacket = 3501, "bad_packet";
    /// The bytes were no WebSocket frame.
    BadFrame = 3502, "bad_frame";
    /// The request was no upgrade to WebSocket.
    BadUpgrade = 3503, "bad_upgrade";
    /// The bytes were not TLS, or TLS could not be agreed on.
    BadTls = 3504, "bad_tls";
    /// The backend has ended the session, for good.
    Kicked = 3505, "kicked";
    /// The member has come with another device, and may have no more of them.
    TooManyDevices = 3506, "too_many_devices";
    /// A compressed body would be larger than is taken.
    InflatedTooLarge = 3507, "inflated_too_large";
    /// A body is not compressed as its version says.
    BadCompression = 3508, "bad_compression";
}

impl Return {
    /// What a code tells a client, whether or not it knows the code.
    #[must_use]
    pub const fn for_code(code: u16) -> Self {
        match code {
            0..=3099 => Self::AtOnce,
            3200..=3299 => Self::WithNewToken,
            3500..=3599 => Self::Never,
            _ => Self::Later,
        }
    }
}

reasons! {
    /// Why a request of an negotiated client has failed: the code of operation 25. The session goes on. A new token that is not
    /// accepted has the code that it would have had at the beginning.
    RequestFailure:
    /// As many requests of the kind are under way as may be.
    Busy = 3110, "busy";
    /// Whoever answers the request did not in time. It may or may not have been dealt with.
    NotInTime = 3111, "not_in_time";
    /// Whoever answers the request cannot be reached.
    Unavailable = 3112, "unavailable";
    /// The sender has sent more than it may; it is told when there is room again.
    RateLimited = 3113, "rate_limited";
    /// The request cannot be read.
    BadRequest = 3510, "bad_request";
    /// The session would be in more rooms than it may.
    TooManyRooms = 3511, "too_many_rooms";
    /// Whoever answers the request has said no.
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
            for other in &CloseReason::ALL[index + 1..] {
                assert_ne!(reason.label(), other.label());
            }
        }
        for failure in RequestFailure::ALL {
            assert_eq!(RequestFailure::from_code(failure.code()), Some(*failure));
            assert!((3000..3600).contains(&failure.code()), "{failure}");
            assert_eq!(CloseReason::from_code(failure.code()), None, "{failure} has a code of its own");
        }
    }
}
