//! job: takes the push log in order and hands each message to the comets that hold its receivers.
//!
//! | module | owns |
//! |---|---|
//! | `intake` | the loop: reading, splitting, waiting for room, telling the log what is done |
//! | `at_once` | pushes to keys that need no lane, since nothing is before them |
//! | `rooms` | which messages of a room travel together, and when |
//! | `lanes` | the queues: for each comet a few, each with a worker that makes one call after the other |
//! | `lane` | one such worker: deadline, retries, what a failure means |
//! | `losses` | comets for which messages were dropped, and telling them |
//! | `in_flight` | what was read and is not handed over; up to where a partition is done |
//!
//! What holds:
//! - Order: messages with the same key, and messages of the same room, reach each comet in the order in which the log
//!   has them. They share a lane, and a lane begins a call when the one before has been answered.
//! - Loss: a record is done when every comet that it is for has answered, has left, or was given up by name in a
//!   counter; so what was read and not handed over when the process dies is read again by the next.
//! - Isolation: comets have lanes of their own. One that does not answer fills its lanes; only when one of them is full does
//!   reading stop, and then only until the comet is given up: from then on until it answers a probe, what is for it is
//!   counted as undeliverable at once.
//! - Bounds: every queue has one, and what is in flight has one in all, in records and in bytes.

mod at_once;
mod config;
mod in_flight;
mod intake;
mod lane;
mod lanes;
mod losses;
mod metrics;
mod rooms;
mod routing;
mod silence;

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
    /// A job that reads from `reader` and knows the comets of `comets`. Nothing happens before [`Job::run`].
    #[must_use]
    pub fn new(config: Config, reader: Box<dyn PushLogReader>, comets: Arc<dyn CometPool>) -> Self {
        Self { config, reader, comets, metrics: Arc::default() }
    }

    /// Enters the job's metrics, all named `job_…`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Works until `shutdown` comes or the log ends, then hands over what it has read and returns.
    /// That takes no longer than [`Config::drain_timeout`] after the last read batch was spread
    /// over the lanes.
    ///
    /// A log that lives in this process should be closed rather than `shutdown` used: then
    /// everything that was accepted is read and handed over first.
    ///
    /// # Errors
    /// [`ReadError::Ended`] and [`ReadError::Fenced`], after the same hand-over: the reader is of
    /// no more use.
    ///
    /// # Cancel safety
    /// Dropping the future ends all workers at once. What was not handed over is not marked as
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
