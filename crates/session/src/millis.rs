//! Time as a number, so that the driver of a session chooses the clock.

use core::time::Duration;

/// Milliseconds since a time that the driver chose. Never decreases within one driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// A time that is never reached: no deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// Adds a duration. Saturates at [`Millis::NEVER`].
    #[must_use]
    pub fn after(self, while_: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(while_.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns the time until `later`; zero if that has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}
