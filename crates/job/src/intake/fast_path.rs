//! Pushes to keys that need no lane, because their comet has nothing in flight.
//!
//! A lane preserves the order per key while a call is out. With no call queued or in flight there
//! is no order to preserve, so all pushes of one read for that comet go to it in one call, in the
//! order of the log. A comet in the same process accepts them immediately: a queue, a task and a
//! wake-up would cost more than the call itself.

use goim_ports::{KeyPush, LogEntry, PushRecord, PushTarget, ServerId};

use crate::delivery::encode;
use crate::in_flight::{InFlight, RecordId};
use crate::lane::Lanes;

/// The pushes to keys of one read, by comet.
#[derive(Default)]
pub(super) struct FastPath {
    comets: Vec<(ServerId, Path)>,
}

/// The path of one read's pushes to a comet. All take the same one, or a later push could overtake
/// an earlier one.
enum Path {
    Fast(Vec<KeyPush>, Vec<RecordId>),
    Lanes,
}

/// The pushes for one idle comet. `records` has one entry per push, in the same order.
pub(super) struct IdleComet {
    pub(super) server: ServerId,
    pub(super) pushes: Vec<KeyPush>,
    pub(super) records: Vec<RecordId>,
}

impl FastPath {
    /// Adds a record whose comet is idle. Returns it if it must go through a lane or is not for
    /// keys.
    pub(super) fn add(&mut self, entry: LogEntry, lanes: &Lanes, in_flight: &InFlight) -> Option<LogEntry> {
        let PushTarget::Keys { server, .. } = &entry.record.target else { return Some(entry) };
        let path = match self.comets.iter().position(|(known, _)| known == server) {
            Some(index) => &mut self.comets[index].1,
            None => self.choose_path(server.clone(), lanes),
        };
        let Path::Fast(pushes, records) = path else { return Some(entry) };
        records.push(in_flight.register(entry.position, &entry.record));
        let PushRecord { target, operation, payload, accepted_at } = entry.record;
        let PushTarget::Keys { keys, .. } = target else { return None };
        let payload = payload.map(|body| encode(operation, body));
        pushes.push(KeyPush { keys, operation, payload, accepted_at: Some(accepted_at) });
        None
    }

    fn choose_path(&mut self, server: ServerId, lanes: &Lanes) -> &mut Path {
        let path = if lanes.is_idle(&server) { Path::Fast(Vec::new(), Vec::new()) } else { Path::Lanes };
        &mut self.comets.push_mut((server, path)).1
    }

    pub(super) fn into_comets(self) -> impl Iterator<Item = IdleComet> {
        self.comets.into_iter().filter_map(|(server, path)| match path {
            Path::Fast(pushes, records) => Some(IdleComet { server, pushes, records }),
            Path::Lanes => None,
        })
    }
}
