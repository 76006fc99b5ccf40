//! The names of things: members, sessions, rooms, servers. One type each, so that none passes for another.

use std::fmt;
use std::sync::Arc;

/// A member: one user of the backend. Zero and below mean nobody in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mid(pub i64);

impl Mid {
    /// True for a session without a member: it can be reached by key and by room, not by member.
    #[must_use]
    pub fn is_anonymous(self) -> bool {
        self.0 <= 0
    }
}

impl fmt::Display for Mid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Cloning shares the text.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// One session of a member: a device, a browser tab. Given by the client or drawn by logic; never empty.
    SessionKey
}
name! {
    /// A room, by convention `type://room`. Opaque to everybody but the HTTP API.
    RoomId
}
name! {
    /// A comet, by its host name. Must be unique in a cluster: sessions are found by it.
    ServerId
}
