//! The settings of a job, with the reasons for the defaults.

use std::num::NonZeroUsize;
use std::time::Duration;

use goim_settings::settings;

settings! {
    /// Job: reads the push log in order and delivers to the comets.
    #[derive(Debug, Clone)]
    pub struct Config {
        #[setting(group)]
        pub room: RoomConfig,
        #[setting(group)]
        pub comet: CometConfig,
        #[setting(group)]
        pub in_flight: InFlightConfig,
        /// How long a stopping job continues to deliver what it has read. The rest is not
        /// committed, and the next job reads it again.
        pub drain_timeout: Duration = Duration::from_secs(30),
    }
}

settings! {
    /// Batches of room messages. A message to a quiet room is sent immediately. Messages that
    /// arrive within batch_interval after it, or before the comet has accepted it, are sent
    /// together when the interval ends, or earlier when a batch is full; each comet has separate
    /// batches. Full batches that cannot be sent yet pause the reading of the log: one batch where
    /// there is a single comet, 32 where other comets would be delayed.
    #[derive(Debug, Clone)]
    pub struct RoomConfig {
        /// The maximum number of messages in one batch. goim has 20, but batches by the clock; this
        /// batches while comets are busy.
        pub batch_messages_max: NonZeroUsize = NonZeroUsize::MIN.saturating_add(63),
        /// The maximum size of one batch, headers included. A larger message is sent alone.
        /// With messages of at most 1 MB, a batch stays below the 4 MiB that goim's gRPC servers
        /// accept.
        #[setting(bytes)]
        pub batch_bytes_max: usize = 1024 * 1024,
        /// How long messages of a busy room are collected. Zero: only messages that were read
        /// together are.
        pub batch_interval: Duration = Duration::from_millis(10),
    }
}

settings! {
    /// Calls to comets.
    #[derive(Debug, Clone)]
    pub struct CometConfig {
        /// The number of lanes per comet, besides one for broadcasts. A lane has one call in
        /// flight. Keys and rooms are spread over the lanes.
        pub lanes: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7),
        /// The maximum duration of one call.
        #[setting(above_zero)]
        pub call_timeout: Duration = Duration::from_secs(5),
        /// The maximum number of retries after a comet was not reached or did not answer in time. A
        /// comet that did not answer in time may have received the message, and then receives it
        /// twice. When the last retry fails, the comet is considered down until it answers a probe,
        /// and its messages are undeliverable meanwhile.
        pub retries_max: u32 = 2,
        /// The pause before a retry.
        pub retry_backoff: Duration = Duration::from_millis(200),
        /// How often a comet that is considered down is probed.
        #[setting(above_zero)]
        pub probe_interval: Duration = Duration::from_secs(1),
        /// How long a broadcast with a speed waits for a comet that runs as many of them as it
        /// allows.
        pub busy_timeout: Duration = Duration::from_secs(60),
    }
}

settings! {
    /// Records that were read and are not delivered yet. At either bound reading stops, and comets
    /// that have answered nothing for a second are considered down.
    #[derive(Debug, Clone)]
    pub struct InFlightConfig {
        /// The maximum number of records.
        pub records_max: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999),
        /// The maximum size of the records, with a fixed overhead for each.
        #[setting(bytes, at_least = 1)]
        pub bytes_max: usize = 256 * 1024 * 1024,
    }
}
