//! Why connections end: one table of reasons, their codes and what a client should do next.
//!
//! The reason is the label of the metric, the word in the log and, for extended clients, the code in the last packet
//! (operation 6). Codes are grouped so that a client that does not know one still knows what to do:
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
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $label:literal;)+) => {
        /// Why a connection has ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CloseReason {
            $($(#[$doc])* $variant,)+
        }

        impl CloseReason {
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
        }
    };
}

reasons! {
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
}

impl CloseReason {
    /// What a client should do next, by the range of the code.
    #[must_use]
    pub const fn advice(self) -> Return {
        Return::for_code(self.code())
    }

    /// The reason with this code, or `None` when there is none.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }
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

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
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
    }
}
