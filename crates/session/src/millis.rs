//! Time as a number, so that whoever drives a session decides what the clock is.

use core::time::Duration;

/// Milliseconds since some moment that the driver chose. Never goes backwards within one driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// A moment that does not come: for what has no deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// This moment and a while. Saturates at [`Millis::NEVER`].
    #[must_use]
    pub fn after(self, while_: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(while_.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from this moment until `later`; zero when that has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}
