//! The task behind a client: connects, serves the connection, and decides when to reconnect.

use std::time::Duration;

use goim_session::ReconnectPolicy;
use tokio::time::Instant;

use crate::backoff::Random;
use crate::command::CommandQueue;
use crate::connection::Connection;
use crate::connection_task;
use crate::dialer::Dialer;
use crate::event::DisconnectReason;
use crate::timelines::Timelines;
use crate::{ConnectError, Endpoint, Event};

/// A connection that ends sooner does not reset the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(5);

pub(crate) struct Supervisor {
    dialer: Dialer,
    queue: CommandQueue,
    random: Random,
    /// Attempts since the last stable connection.
    attempt: u32,
    /// The wait before the last attempt, before jitter.
    last_delay: Duration,
    /// The node that the server named in its disconnect notice.
    preferred: Option<Endpoint>,
}

impl Supervisor {
    pub(crate) fn new(dialer: Dialer, queue: CommandQueue) -> Self {
        let (random, last_delay) = (Random::default(), Duration::ZERO);
        Self { dialer, queue, random, attempt: 0, last_delay, preferred: None }
    }

    /// Runs until the client is closed, or the server rejects it for good.
    pub(crate) async fn run(mut self, mut ready: Option<Connection>) {
        loop {
            let connection = match ready.take() {
                Some(connection) => Some(connection),
                None => self.connect().await,
            };
            let Some(mut connection) = connection else { return };
            tracing::debug!(endpoint = %connection.endpoint, "connected");
            self.queue.shared.counters.connected.add_one();
            let since = Instant::now();
            let Some(reason) = connection_task::run(&mut connection, &mut self.queue).await else { return };
            tracing::debug!(endpoint = %connection.endpoint, %reason, "disconnected");
            self.connection_ended(&connection.endpoint, since.elapsed(), &reason);
            drop(connection);
            let server_delay = match &reason {
                DisconnectReason::Notice(notice) => notice.delay,
                _ => None,
            };
            let retry_in = self.retry_in(reason.reconnect(), server_delay);
            let event = Event::Disconnected { reason, retry_in };
            if !self.queue.send_event(event).await || !self.wait(retry_in).await {
                return;
            }
        }
    }

    /// Tries until there is a connection. Returns `None` when the client is to stop.
    async fn connect(&mut self) -> Option<Connection> {
        loop {
            let error = match self.attempt().await? {
                Ok(connection) => return Some(connection),
                Err(error) => error,
            };
            self.queue.shared.counters.connects_failed.add_one();
            if matches!(error, ConnectError::ClosedDuringAuth { .. }) {
                // The token may have been refused; a goim v2 server does not report that.
                self.dialer.renew_token();
            }
            let retry_in = self.retry_in(error.reconnect(), None);
            let event = Event::ConnectFailed { error, retry_in };
            if !self.queue.send_event(event).await || !self.wait(retry_in).await {
                return None;
            }
        }
    }

    /// Loads positions that are missing, then tries every endpoint once.
    async fn attempt(&mut self) -> Option<Result<Connection, ConnectError>> {
        while let Some((timeline, load)) = self.queue.timelines.as_ref().and_then(Timelines::next_load) {
            let position = match self.queue.while_disconnected(load).await? {
                Ok(position) => position,
                Err(error) => return Some(Err(error)),
            };
            if let Some(timelines) = &mut self.queue.timelines {
                timelines.loaded(&timeline, position);
            }
        }
        let desired = self.queue.desired.clone();
        let resume = self.queue.timelines.as_ref().map(Timelines::resume);
        let round = self.dialer.round(&desired, resume, self.preferred.take());
        self.queue.while_disconnected(round).await
    }

    /// Waits before the next attempt. Returns false when there is none.
    async fn wait(&mut self, retry_in: Option<Duration>) -> bool {
        let Some(delay) = retry_in else { return false };
        self.queue.while_disconnected(tokio::time::sleep(delay)).await.is_some()
    }

    /// Resets the backoff after a stable connection: one that lasted longer than the wait for it
    /// and than [`STABLE_AFTER`]. Without that, a server that accepts and closes would be
    /// reconnected to in a tight loop.
    fn connection_ended(&mut self, endpoint: &Endpoint, lasted: Duration, reason: &DisconnectReason) {
        let stable_after = STABLE_AFTER.min(self.dialer.backoff().max_delay);
        if lasted >= self.last_delay.max(stable_after) {
            self.attempt = 0;
        }
        if let DisconnectReason::Notice(notice) = reason {
            self.preferred = notice.node.as_deref().and_then(|node| endpoint.on_node(node));
        }
    }

    /// Returns how long to wait before the next attempt; `None` for never. A delay that the server
    /// asked for replaces the backoff: the server spreads the reconnects itself.
    fn retry_in(&mut self, reconnect: ReconnectPolicy, server_delay: Option<Duration>) -> Option<Duration> {
        let backoff = self.dialer.backoff();
        let random = self.random.fraction();
        let later = |attempt| (backoff.ceiling(attempt), backoff.delay(attempt, random));
        let (ceiling, delay) = match reconnect {
            ReconnectPolicy::Never => return None,
            ReconnectPolicy::NewToken if !self.dialer.renew_token() => return None,
            ReconnectPolicy::Now | ReconnectPolicy::NewToken => match self.attempt.checked_sub(1) {
                None => (Duration::ZERO, backoff.immediate(random)),
                Some(attempt) => later(attempt),
            },
            ReconnectPolicy::Backoff => later(self.attempt),
        };
        self.attempt = self.attempt.saturating_add(1);
        let server_delay = server_delay.filter(|delay| !delay.is_zero());
        self.last_delay = server_delay.unwrap_or(ceiling);
        Some(server_delay.unwrap_or(delay))
    }
}
