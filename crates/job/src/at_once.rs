//! Pushes to keys that need no lane: those for comets to which nothing else is on its way.
//!
//! A lane keeps the order of what is for one key while a call is out. When no call to a comet waits or is under way there is
//! nothing to keep apart, and all pushes for it that were read together can be left with it in one call, in the order in
//! which they were read. A comet in the same process takes them on the spot; the detour through a queue, a task and back would cost
//! more than the call.

use goim_ports::{KeyPush, LogEntry, PushRecord, PushTarget, ServerId};

use crate::in_flight::{InFlight, Ticket};
use crate::intake::raw;
use crate::lanes::Lanes;

/// The pushes to keys of one read, by comet.
#[derive(Default)]
pub(crate) struct AtOnce {
    comets: Vec<(ServerId, Way)>,
}

/// How what was read together goes to a comet: all of it in the same way, or a later push might overtake an earlier one.
enum Way {
    AtOnce(Vec<KeyPush>, Vec<Ticket>),
    Lanes,
}

/// What one idle comet gets; as many tickets as pushes, in the same order.
pub(crate) struct ToIdle {
    pub(crate) server: ServerId,
    pub(crate) pushes: Vec<KeyPush>,
    pub(crate) tickets: Vec<Ticket>,
}

impl AtOnce {
    /// Takes a record if it may go at once; gives it back if it must go through a lane, or is for no keys.
    pub(crate) fn take(&mut self, entry: LogEntry, lanes: &Lanes, in_flight: &InFlight) -> Option<LogEntry> {
        let PushTarget::Keys { server, .. } = &entry.record.target else { return Some(entry) };
        let way = match self.comets.iter().position(|(known, _)| known == server) {
            Some(index) => &mut self.comets[index].1,
            None => self.begin(server.clone(), lanes),
        };
        let Way::AtOnce(pushes, tickets) = way else { return Some(entry) };
        tickets.push(in_flight.enter(entry.position, &entry.record));
        let PushRecord { target, operation, payload, accepted_at } = entry.record;
        let PushTarget::Keys { keys, .. } = target else { return None };
        pushes.push(KeyPush {
            keys,
            operation,
            payload: payload.map(|body| raw(operation, body)),
            accepted_at: Some(accepted_at),
        });
        None
    }

    fn begin(&mut self, server: ServerId, lanes: &Lanes) -> &mut Way {
        let way = if lanes.is_idle(&server) { Way::AtOnce(Vec::new(), Vec::new()) } else { Way::Lanes };
        &mut self.comets.push_mut((server, way)).1
    }

    pub(crate) fn into_comets(self) -> impl Iterator<Item = ToIdle> {
        self.comets.into_iter().filter_map(|(server, way)| match way {
            Way::AtOnce(pushes, tickets) => Some(ToIdle { server, pushes, tickets }),
            Way::Lanes => None,
        })
    }
}
