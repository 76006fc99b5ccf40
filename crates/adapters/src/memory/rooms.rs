//! Session counts of rooms: one report per comet, and their sum.
//!
//! The sum is computed on the first read after a change and then shared. With one comet its report
//! is the sum.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use goim_ports::{Call, DirectoryError, RoomCounts, RoomDirectory, ServerId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The age above which a report is ignored: its comet is dead.
const FRESH_FOR: Duration = Duration::from_secs(5 * 60);

/// A room directory in memory.
#[derive(Debug, Default)]
pub struct MemoryRooms(Mutex<RoomsState>);

#[derive(Debug, Default)]
struct RoomsState {
    reports: HashMap<ServerId, Report>,
    totals: Option<RoomCounts>,
}

#[derive(Debug)]
struct Report {
    rooms: RoomCounts,
    at: Instant,
}

impl MemoryRooms {
    /// Creates a directory without reports.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl RoomsState {
    /// Replaces a report. Returns the replaced report and sum, so that the caller frees them after
    /// unlocking.
    fn report(
        &mut self,
        server: ServerId,
        rooms: RoomCounts,
        now: Instant,
    ) -> (Option<Report>, Option<RoomCounts>) {
        (self.reports.insert(server, Report { rooms, at: now }), self.totals.take())
    }

    fn totals(&mut self, now: Instant) -> RoomCounts {
        let count_before = self.reports.len();
        self.reports.retain(|_, report| now.saturating_duration_since(report.at) <= FRESH_FOR);
        if self.reports.len() != count_before {
            self.totals = None;
        }
        Arc::clone(self.totals.get_or_insert_with(|| sum(&self.reports)))
    }
}

fn sum(reports: &HashMap<ServerId, Report>) -> RoomCounts {
    let mut reports = reports.values();
    match (reports.next(), reports.next()) {
        (None, _) => RoomCounts::default(),
        (Some(only), None) => Arc::clone(&only.rooms),
        (Some(first), Some(second)) => {
            let mut totals = HashMap::clone(&first.rooms);
            for report in std::iter::once(second).chain(reports) {
                for (room, count) in report.rooms.iter() {
                    let total = totals.entry(room.clone()).or_insert(0);
                    *total = total.saturating_add(*count);
                }
            }
            Arc::new(totals)
        }
    }
}

impl RoomDirectory for MemoryRooms {
    fn report(&self, server: ServerId, rooms: RoomCounts) -> Call<Result<(), DirectoryError>> {
        let replaced = self.0.lock().report(server, rooms, Instant::now());
        drop(replaced);
        Call::Ready(Ok(()))
    }

    fn totals(&self) -> Call<Result<RoomCounts, DirectoryError>> {
        Call::Ready(Ok(self.0.lock().totals(Instant::now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        conformance::rooms(async || MemoryRooms::new()).await;
        conformance::rooms_expire(async || MemoryRooms::new(), tokio::time::advance).await;
    }

    #[tokio::test]
    async fn the_only_report_is_served_without_a_copy() {
        let rooms = MemoryRooms::new();
        let report: RoomCounts = Arc::new(HashMap::from([("live://1".into(), 3)]));
        rooms.report("comet".into(), Arc::clone(&report)).await.unwrap();
        assert!(Arc::ptr_eq(&rooms.totals().await.unwrap(), &report));
    }

    #[tokio::test]
    async fn totals_are_added_up_once() {
        let rooms = MemoryRooms::new();
        for comet in ["a", "b"] {
            rooms.report(comet.into(), Arc::new(HashMap::from([("r".into(), 1)]))).await.unwrap();
        }
        assert!(Arc::ptr_eq(&rooms.totals().await.unwrap(), &rooms.totals().await.unwrap()));
    }
}
