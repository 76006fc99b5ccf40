//! Online counts: of a room, of the largest rooms, in total.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use goim_ports::{Call, DirectoryError, RoomCounts, RoomDirectory, ServerId};
use prometheus_client::metrics::counter::Counter;

use crate::deadline::{and_then, directory_late, with_timeout};

/// A room and its count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomOnline {
    /// The room's id without `type://`.
    pub room: String,
    /// The number of sessions in it.
    pub count: u32,
}

/// Totals over all comets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnlineTotal {
    /// The number of connections.
    pub connections: u64,
    /// The number of distinct client addresses, counted per comet and added up.
    pub addresses: u64,
}

/// The room counts of the directory, with the last known ones as a fallback.
pub(crate) struct OnlineCounts {
    directory: Arc<dyn RoomDirectory>,
    timeout: Duration,
    /// Served while the directory does not answer.
    last: ArcSwap<<RoomCounts as Deref>::Target>,
    stale: Counter,
}

impl OnlineCounts {
    /// `stale` counts the answers with old counts.
    pub(crate) fn new(directory: Arc<dyn RoomDirectory>, timeout: Duration, stale: Counter) -> Self {
        Self { directory, timeout, last: ArcSwap::default(), stale }
    }

    /// Reports the counts of one comet and returns the totals over all comets.
    pub(crate) fn report(
        &self,
        server: ServerId,
        counts: RoomCounts,
    ) -> Call<Result<RoomCounts, DirectoryError>> {
        let (directory, timeout) = (Arc::clone(&self.directory), self.timeout);
        let reported = with_timeout(timeout, directory.report(server, counts), directory_late);
        and_then(reported, move |reported| match reported {
            Ok(()) => with_timeout(timeout, directory.totals(), directory_late),
            Err(error) => Call::Ready(Err(error)),
        })
    }

    /// Returns the totals over all comets. The last known ones when the directory does not answer.
    pub(crate) async fn totals(&self) -> RoomCounts {
        match with_timeout(self.timeout, self.directory.totals(), directory_late).await {
            Ok(totals) => {
                if !Arc::ptr_eq(&totals, &self.last.load()) {
                    self.last.store(Arc::clone(&totals));
                }
                totals
            }
            Err(error) => {
                self.stale.inc();
                tracing::debug!(%error, "the room directory does not answer; the last known counts are used");
                self.last.load_full()
            }
        }
    }
}
