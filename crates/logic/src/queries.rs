//! What clients and the backend read from logic: nodes and online counts.

use std::cmp::Reverse;

use goim_ports::{CometNode, RoomCounts};

use crate::logic::Logic;
use crate::nodes::NodesReply;
use crate::online::{OnlineTotal, RoomOnline};

impl Logic {
    /// Returns the comets that a client on `platform` should use. `web` gets domain names, because
    /// of certificates; every other platform gets the comets' public addresses.
    ///
    /// Each call adds one client to the first comet of the answer, until that comet reports its own
    /// number.
    #[must_use]
    pub fn weighted_nodes(&self, platform: &str) -> NodesReply {
        self.nodes.select(platform)
    }

    /// Returns the comets that accept clients, in the order of the directory.
    #[must_use]
    pub fn instances(&self) -> Vec<CometNode> {
        self.nodes.comets().iter().filter(|comet| !comet.offline).cloned().collect()
    }

    /// Returns the largest rooms of a type, by count and then by name, at most `limit`.
    pub async fn online_top(&self, kind: &str, limit: usize) -> Vec<RoomOnline> {
        let counts = self.room_counts().await;
        let prefix = [kind, "://"].concat();
        let mut rooms: Vec<(Reverse<u32>, &str)> = counts
            .iter()
            .filter_map(|(id, count)| Some((Reverse(*count), id.as_str().strip_prefix(&prefix)?)))
            .collect();
        if limit < rooms.len() {
            if limit > 0 {
                rooms.select_nth_unstable(limit - 1);
            }
            rooms.truncate(limit);
        }
        rooms.sort_unstable();
        rooms.into_iter().map(|(Reverse(count), room)| RoomOnline { room: room.to_owned(), count }).collect()
    }

    /// Returns the number of sessions of each room over all comets. The last known numbers when the
    /// directory does not answer.
    pub async fn room_counts(&self) -> RoomCounts {
        self.online.totals().await
    }

    /// Returns the totals over the comets that accept clients.
    #[must_use]
    pub fn online_total(&self) -> OnlineTotal {
        let comets = self.nodes.comets();
        comets.iter().filter(|comet| !comet.offline).fold(OnlineTotal::default(), |total, comet| {
            OnlineTotal {
                connections: total.connections.saturating_add(comet.connections),
                addresses: total.addresses.saturating_add(comet.addresses),
            }
        })
    }
}
