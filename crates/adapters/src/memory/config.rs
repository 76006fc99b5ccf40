//! The settings of the push log in memory, with the reasons for the defaults.

use std::time::Duration;

use goim_settings::settings;

settings! {
    /// The push log inside this process: what logic has accepted and job has not delivered yet.
    #[derive(Debug, Clone)]
    pub struct PushLogConfig {
        /// The maximum number of records between their acceptance and their delivery to comets.
        #[setting(at_least = 1)]
        pub records_max: usize = 65_536,
        /// The maximum size of these records, with an overhead of 160 B for each. It bounds the
        /// memory of a burst. An empty log accepts one record of any size that
        /// logic.push.record_bytes_max allows.
        #[setting(bytes)]
        pub bytes_max: usize = 64 * 1024 * 1024,
        /// How long a push waits for space before it is rejected; it is not in the log then. Zero:
        /// not at all.
        pub append_timeout: Duration = Duration::from_secs(3),
        /// The maximum number of pushes that wait for space. Further ones are rejected immediately.
        pub pending_appends_max: usize = 1_024,
        /// The maximum size of one record in bytes, counted as goim's Kafka client counts it: 26
        /// and the lengths of the record's key and of its protobuf form.
        #[setting(derived)]
        pub record_bytes_max: usize = 1_000_000,
        /// The maximum age of the oldest unread record; beyond it, pushes wait as if the log were
        /// full. It bounds the time that a message waits here: job stops reading when the receivers
        /// do not keep up. Pushes also wait while as many records are unread as were recently read
        /// in such a time.
        pub age_max: Duration = Duration::from_millis(100),
        /// The maximum number of records that job reads at once. The default is what publishers
        /// append in one round of the runtime, so that job keeps up with them.
        #[setting(at_least = 1)]
        pub read_records_max: usize = 1_024,
    }
}
