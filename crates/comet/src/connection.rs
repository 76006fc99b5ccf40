//! One connection as its shard holds it: socket, session, memberships. No behaviour beyond its own fields.

use std::net::IpAddr;

use goim_ports::{Mid, SessionKey};
use goim_session::{Moment, ServerSession};

use crate::rooms::Membership;
use crate::timers::Tick;
use crate::transport::Socket;

/// Names a connection of one shard. The generation tells it from those that had the slot before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) socket: Socket,
    pub(crate) session: ServerSession,
    /// Which listener it came through.
    pub(crate) listener: u16,
    pub(crate) remote: IpAddr,
    /// Who it is, once that is known.
    pub(crate) identity: Option<Identity>,
    pub(crate) membership: Option<Membership>,
    /// Input that was read and not taken yet, while an answer of others is outstanding.
    pub(crate) unread: Option<Box<[u8]>>,
    /// The tick of its entry on the timer wheel.
    pub(crate) armed: Option<Tick>,
    /// When the directory is to be told again that the session lives.
    pub(crate) touch_after: Moment,
    /// Packets that may come before the rate applies, in thousandths.
    pub(crate) rate_credit: u32,
    pub(crate) rate_seen: Moment,
    /// The rate is used up until then.
    pub(crate) throttled_until: Option<Moment>,
    /// The session is over; the socket is kept until the peer has seen the end, at most this long.
    pub(crate) closing: Option<Closing>,
    /// The kernel may hold input.
    pub(crate) readable: bool,
    /// The peer has ended its stream, or it broke: reads must go to the end.
    pub(crate) half_closed: bool,
    /// The kernel takes output.
    pub(crate) writable: bool,
    /// In the list of those to be flushed at the end of the turn.
    pub(crate) staged: bool,
    /// In the list of those whose input goes on in the next turn.
    pub(crate) resumed: bool,
}

/// Who a session is.
pub(crate) struct Identity {
    pub(crate) key: SessionKey,
    pub(crate) mid: Mid,
}

/// The end of a connection under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closing {
    /// Then the socket is closed whatever is left.
    pub(crate) until: Moment,
    /// Our side of the stream has been ended.
    pub(crate) ended: bool,
}

impl Connection {
    /// When the connection must be looked at, whatever happens until then.
    pub(crate) fn deadline(&self) -> Moment {
        if let Some(closing) = self.closing {
            return closing.until;
        }
        let throttle = self.throttled_until.unwrap_or(Moment::NEVER);
        self.session.deadline().min(throttle)
    }
}
