//! What an operator can set of a job, with the reasons for the defaults.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Everything that a job can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// How messages of one room travel together.
    pub room: RoomConfig,
    /// How comets are called.
    pub comet: CometConfig,
    /// What may be on its way at once.
    pub in_flight: InFlightConfig,
    /// How long a stopping job goes on handing over what it has read. Default 30 s. What is left then is not marked as
    /// done, and is read again by the next job.
    pub drain_timeout: Duration,
}

/// Batches of room messages.
///
/// A message to a quiet room leaves at once. Those that come within `batch_interval` after it, or before the comet has
/// taken it, leave together after that, or when a batch is full; each comet has batches of its own. Full batches that cannot
/// leave yet stop the reading of the log: one where there is a single comet, 32 where others would be held up. A room is
/// forgotten when an interval passes without a message.
#[derive(Debug, Clone)]
pub struct RoomConfig {
    /// Messages in one batch. Default 64; goim has 20, but gathers by the clock, where this gathers while comets are busy.
    pub batch_messages_max: NonZeroUsize,
    /// Bytes in one batch, headers included. Default 1 MiB. A larger message is a batch of its own. With messages of at most
    /// 1 MB a batch stays below the 4 MiB that goim's gRPC servers take.
    pub batch_bytes_max: usize,
    /// How long messages of a busy room are gathered. Default 10 ms: nobody sees it, and a room with a hundred messages a
    /// second and more already shares its system calls. Zero gathers only what was read together.
    pub batch_interval: Duration,
}

/// Calls to comets.
#[derive(Debug, Clone)]
pub struct CometConfig {
    /// Lanes for each comet, besides one for broadcasts: calls that may be under way at once. Keys and rooms are spread
    /// over them. Default 8.
    pub lanes: NonZeroUsize,
    /// How long one call may take. Default 5 s.
    pub call_timeout: Duration,
    /// How often a call is made again after a comet was not reached or did not answer in time. Default 2. A comet that did
    /// not answer in time may have had the message, and then gets it twice. When the last try fails, the comet is given up
    /// until it answers a probe, and what is for it meanwhile is undeliverable.
    pub retries_max: u32,
    /// Pause before a call is made again. Default 200 ms.
    pub retry_backoff: Duration,
    /// How often a comet that was given up is asked whether it is back. Default 1 s.
    pub probe_interval: Duration,
    /// How long a broadcast with a speed waits for a comet that has as many under way as it allows. Default 60 s.
    pub busy_timeout: Duration,
}

/// Records that were read and are not handed over. Beyond either bound nothing is read, and comets that have answered nothing
/// for a second are given up.
#[derive(Debug, Clone)]
pub struct InFlightConfig {
    /// Their number. Default 100,000.
    pub records_max: NonZeroUsize,
    /// Their bytes, with a fixed addition for each. Default 256 MiB.
    pub bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            room: RoomConfig::default(),
            comet: CometConfig::default(),
            in_flight: InFlightConfig::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for RoomConfig {
    fn default() -> Self {
        Self {
            batch_messages_max: NonZeroUsize::MIN.saturating_add(63),
            batch_bytes_max: 1024 * 1024,
            batch_interval: Duration::from_millis(10),
        }
    }
}

impl Default for CometConfig {
    fn default() -> Self {
        Self {
            lanes: NonZeroUsize::MIN.saturating_add(7),
            call_timeout: Duration::from_secs(5),
            retries_max: 2,
            retry_backoff: Duration::from_millis(200),
            probe_interval: Duration::from_secs(1),
            busy_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for InFlightConfig {
    fn default() -> Self {
        Self { records_max: NonZeroUsize::MIN.saturating_add(99_999), bytes_max: 256 * 1024 * 1024 }
    }
}
