//! job: reads the push log in order and delivers each message to the comets of its receivers.
//!
//! | module | owns |
//! |---|---|
//! | `intake` | the loop: reading, dispatching, back-pressure, done positions; the fast path |
//! | `delivery` | the one type that travels: a call to one comet with what it completes |
//! | `completion` | the guards in a delivery: ack of a record, next batch of a room, open calls |
//! | `rooms` | which messages of a room form a batch, and when it leaves |
//! | `routing` | which comets a room's messages may skip |
//! | `lane` | queues and their workers: timeouts, retries, comets that are down |
//! | `losses` | comets for which messages were dropped, and their notification |
//! | `in_flight` | records that are read and not delivered; the done position of each partition |
//!
//! Invariants:
//! - Order: messages with the same key, and messages of the same room, reach each comet in log
//!   order. They share a lane, and a lane starts a call when the previous one has been answered.
//! - Loss: a record is done when each of its comets has answered, has left, or is counted as
//!   undeliverable. Records that are read but not delivered when the process crashes are read again
//!   by the next one.
//! - Isolation: comets have separate lanes. A comet that does not answer stops the reading only
//!   when the in-flight limit is reached, and only until it is marked down. From then on its
//!   messages are counted as undeliverable immediately, until it answers a probe.
//! - Bounds: every queue is bounded, by itself or by the in-flight limit in records and bytes.

mod completion;
mod config;
mod delivery;
mod in_flight;
mod intake;
mod lane;
mod losses;
mod metrics;
mod rooms;
mod routing;

use std::future::Future;
use std::sync::Arc;

use goim_ports::{CometPool, PushLogReader, ReadError};
use prometheus_client::registry::Registry;

pub use config::{CometConfig, Config, InFlightConfig, RoomConfig};

/// The worker between the push log and the comets.
pub struct Job {
    config: Config,
    reader: Box<dyn PushLogReader>,
    comets: Arc<dyn CometPool>,
    metrics: Arc<metrics::Metrics>,
}

impl Job {
    /// Creates a job that reads from `reader` and delivers to `comets`. It starts with
    /// [`Job::run`].
    #[must_use]
    pub fn new(config: Config, reader: Box<dyn PushLogReader>, comets: Arc<dyn CometPool>) -> Self {
        Self { config, reader, comets, metrics: Arc::default() }
    }

    /// Registers the job's metrics, all named `job_…`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Runs until `shutdown` completes or the log ends, then delivers what it has read and returns.
    ///
    /// The delivery takes at most [`Config::drain_timeout`] after the last read. For a log in this
    /// process, close the log instead of using `shutdown`: then every accepted record is read and
    /// delivered first.
    ///
    /// # Errors
    /// [`ReadError::Ended`] and [`ReadError::Fenced`], after the same delivery. The reader cannot
    /// be used again.
    ///
    /// # Cancel safety
    /// Dropping the future ends all workers immediately. Undelivered records are not marked as
    /// done.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ReadError> {
        intake::Intake::new(self.config, self.reader, self.comets, self.metrics).run(shutdown).await
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("config", &self.config).finish_non_exhaustive()
    }
}
