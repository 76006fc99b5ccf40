//! The listeners of a shard, and how fast connections are accepted from them.
//!
//! Owns the sockets that are listened on, their tokens in the poll, and what their connections have
//! in common. What happens to an accepted connection is in `accept`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use goim_ports::RateLimitedLog;
use goim_session::{Millis, ServerRules};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Poll, Token};

use crate::config::LimitsConfig;
use crate::listener::ListenerKind;
use crate::token_bucket::{Rate, TokenBucket};

/// The poll's token for the inbox. Listeners count down from here; connections count up from zero.
pub(crate) const WAKE: Token = Token(usize::MAX);
/// Pause after an error that is likely to last (no descriptors, no memory), unless a connection is
/// closed before.
const PAUSE: Duration = Duration::from_millis(100);
/// How much of a second's accepts may happen at once.
const BURST: Duration = Duration::from_millis(100);

struct Listener {
    socket: TcpListener,
    /// Connections may wait.
    ready: bool,
}

/// The result of one accept.
pub(super) enum Accept {
    Connection(TcpStream, SocketAddr),
    /// No connection can be accepted from this listener now.
    Nothing,
    /// The connection was lost before it was accepted; the next one may be good.
    Lost(io::Error),
    /// Accepting pauses, since the error is likely to last.
    Paused {
        error: io::Error,
        /// The error is to be logged, with the number of those that were not; the counter has each.
        log: Option<u64>,
    },
}

/// The listeners of a shard.
pub(super) struct Listeners {
    sockets: Vec<Listener>,
    /// Kind of each listener; remains when the sockets are closed, since connections remain.
    kinds: Vec<ListenerKind>,
    /// Rules of all sessions.
    rules: Arc<ServerRules>,
    limit: Option<(Rate, TokenBucket)>,
    paused_until: Option<Millis>,
    log: RateLimitedLog,
}

impl Listeners {
    /// Registers the listeners in the poll.
    ///
    /// # Errors
    /// When the poll does not take one.
    pub(super) fn new(
        poll: &Poll,
        listeners: Vec<(TcpListener, ListenerKind)>,
        rules: ServerRules,
        limits: &LimitsConfig,
    ) -> io::Result<Self> {
        let kinds = listeners.iter().map(|(_, kind)| *kind).collect();
        let mut sockets = Vec::new();
        for (index, (mut socket, _)) in listeners.into_iter().enumerate() {
            poll.registry().register(&mut socket, token_of(index), Interest::READABLE)?;
            sockets.push(Listener { socket, ready: false });
        }
        let limit = limits
            .accepts_per_second_max
            .map(|per_second| (Rate::with_burst_time(per_second, BURST), TokenBucket::empty(Millis(0))));
        let (paused_until, log) = Default::default();
        Ok(Self { sockets, kinds, rules: Arc::new(rules), limit, paused_until, log })
    }

    /// Listeners without sockets, whose connections the caller makes.
    #[cfg(feature = "harness")]
    pub(super) fn set_kinds(&mut self, kinds: Vec<ListenerKind>) {
        self.kinds = kinds;
    }

    /// The kind of a connection's listener.
    pub(super) fn kind(&self, listener: u8) -> ListenerKind {
        self.kinds[usize::from(listener)]
    }

    /// The rules of all sessions.
    #[inline]
    pub(super) fn rules(&self) -> &Arc<ServerRules> {
        &self.rules
    }

    /// How many listeners are open.
    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// True for the token of an open listener.
    #[inline]
    pub(super) fn has(&self, token: Token) -> bool {
        token.0 < WAKE.0 && WAKE.0 - 1 - token.0 < self.sockets.len()
    }

    /// Notes that connections may wait.
    pub(super) fn set_ready(&mut self, token: Token) {
        self.sockets[WAKE.0 - 1 - token.0].ready = true;
    }

    /// True when connections may wait and may be accepted now.
    pub(super) fn can_accept(&self, now: Millis) -> bool {
        self.paused_until.is_none_or(|until| until <= now)
            && self.sockets.iter().any(|listener| listener.ready)
    }

    /// Begins to accept in this turn.
    pub(super) fn begin(&mut self, now: Millis) {
        self.paused_until = None;
        if let Some((rate, bucket)) = &mut self.limit {
            bucket.refill(now, rate);
        }
    }

    /// Accepts one connection from listener `index`.
    pub(super) fn accept(&mut self, index: usize, now: Millis) -> Accept {
        let listener = &mut self.sockets[index];
        if !listener.ready {
            return Accept::Nothing;
        }
        if let Some((rate, bucket)) = &mut self.limit
            && !bucket.try_spend()
        {
            self.paused_until = Some(now.after(bucket.until_token(rate)));
            return Accept::Nothing;
        }
        match listener.socket.accept() {
            Ok((stream, from)) => Accept::Connection(stream, from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                listener.ready = false;
                Accept::Nothing
            }
            Err(error) if is_lasting(&error) => {
                self.paused_until = Some(now.after(PAUSE));
                Accept::Paused { error, log: self.log.try_log(Instant::now()) }
            }
            Err(error) => Accept::Lost(error),
        }
    }

    /// Time until a pause ends, if there is one.
    pub(super) fn pause(&self, now: Millis) -> Option<Duration> {
        self.paused_until.map(|until| now.until(until))
    }

    /// Ends a pause early: a descriptor is free again.
    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Closes the sockets.
    pub(super) fn close(&mut self) {
        self.sockets.clear();
    }
}

fn token_of(index: usize) -> Token {
    Token(WAKE.0 - 1 - index)
}

/// True for an error that the next accept would meet too.
fn is_lasting(error: &io::Error) -> bool {
    let lasting = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| lasting.contains(&code))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use mio::Events;

    use super::*;
    use crate::config::Config;
    use crate::shared::session_rules;

    /// One listener that admits ten connections per second, and clients that have connected to it.
    fn listening(clients: usize) -> (Listeners, Poll, Vec<std::net::TcpStream>) {
        let mut poll = Poll::new().unwrap();
        let socket = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = socket.local_addr().unwrap();
        let mut limits = Config::default().limits;
        limits.accepts_per_second_max = NonZeroU32::new(10);
        let rules = session_rules(&Config::default());
        let listeners = Listeners::new(&poll, vec![(socket, ListenerKind::Tcp)], rules, &limits).unwrap();
        let clients = (0..clients).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        (listeners, poll, clients)
    }

    #[test]
    fn connections_are_accepted_at_the_rate() {
        let (mut listeners, _poll, _clients) = listening(2);
        let token = token_of(0);
        assert!(listeners.has(token) && !listeners.has(WAKE) && !listeners.has(Token(0)));
        assert!(!listeners.can_accept(Millis(0)), "nothing is known to wait");
        listeners.set_ready(token);
        assert!(listeners.can_accept(Millis(0)));
        listeners.begin(Millis(0));
        assert!(matches!(listeners.accept(0, Millis(0)), Accept::Nothing), "no token yet");
        assert_eq!(listeners.pause(Millis(0)), Some(Duration::from_millis(100)));
        assert!(!listeners.can_accept(Millis(99)) && listeners.can_accept(Millis(100)));
        listeners.begin(Millis(1000));
        assert!(matches!(listeners.accept(0, Millis(1000)), Accept::Connection(..)));
        assert!(matches!(listeners.accept(0, Millis(1000)), Accept::Nothing), "the burst is one");
        listeners.resume();
        assert!(listeners.can_accept(Millis(1000)));
        listeners.begin(Millis(2000));
        assert!(matches!(listeners.accept(0, Millis(2000)), Accept::Connection(..)));
        listeners.begin(Millis(3000));
        assert!(matches!(listeners.accept(0, Millis(3000)), Accept::Nothing), "no client waits any more");
        assert!(!listeners.can_accept(Millis(4000)));
        listeners.close();
        assert!(listeners.len() == 0 && !listeners.has(token) && listeners.kind(0) == ListenerKind::Tcp);
    }

    #[test]
    fn errors_that_last_are_told_from_others() {
        let lasts = |code| is_lasting(&io::Error::from_raw_os_error(code));
        assert!(lasts(libc::EMFILE) && lasts(libc::ENOMEM) && !lasts(libc::ECONNABORTED));
        assert!(!is_lasting(&io::Error::other("no code")));
    }
}
