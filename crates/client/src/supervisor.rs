//! The task behind a client: connects, serves the connection, and decides when to connect again.

use std::time::Duration;

use goim_session::ReconnectPolicy;
use tokio::time::Instant;

use crate::backoff::Chance;
use crate::connection::Connection;
use crate::desk::Desk;
use crate::dial::Dialer;
use crate::drive::drive;
use crate::event::DisconnectReason;
use crate::{Endpoint, Event};

pub(crate) struct Supervisor {
    dialer: Dialer,
    desk: Desk,
    chance: Chance,
    /// Attempts since a connection has last held.
    attempt: u32,
    /// The delay before the last attempt.
    last_delay: Duration,
    /// Where the server has said to go.
    prefer: Option<Endpoint>,
}

impl Supervisor {
    pub(crate) fn new(dialer: Dialer, desk: Desk) -> Self {
        let (chance, last_delay) = (Chance::default(), Duration::ZERO);
        Self { dialer, desk, chance, attempt: 0, last_delay, prefer: None }
    }

    /// Runs until the application wants nothing more, or the server does not want the client.
    pub(crate) async fn run(mut self, mut ready: Option<Connection>) {
        loop {
            let connection = match ready.take() {
                Some(connection) => Some(connection),
                None => self.connect().await,
            };
            let Some(mut connection) = connection else { return };
            tracing::debug!(endpoint = %connection.endpoint, "connected");
            self.desk.shared.counters.connected.add_one();
            let since = Instant::now();
            let Some(reason) = drive(&mut connection, &mut self.desk).await else { return };
            tracing::debug!(endpoint = %connection.endpoint, %reason, "disconnected");
            self.note_end(&connection.endpoint, since.elapsed(), &reason);
            drop(connection);
            let hint = match &reason {
                DisconnectReason::Notice(notice) => notice.delay,
                _ => None,
            };
            let retry_in = self.retry_in(reason.reconnect(), hint);
            let event = Event::Disconnected { reason, retry_in };
            if !self.desk.tell(event).await || !self.rest(retry_in).await {
                return;
            }
        }
    }

    /// Tries until there is a connection. `None`: never.
    async fn connect(&mut self) -> Option<Connection> {
        loop {
            let wanted = self.desk.wanted.clone();
            // Nothing changes in it while there is no connection.
            let follower = self.desk.follower.take();
            let round = self.dialer.round(&wanted, follower.as_ref(), self.prefer.take());
            let tried = self.desk.meanwhile(round).await;
            self.desk.follower = follower;
            let error = match tried? {
                Ok(connection) => return Some(connection),
                Err(error) => error,
            };
            self.desk.shared.counters.connects_failed.add_one();
            if matches!(error, crate::ConnectError::ClosedDuringAuth { .. }) {
                // Perhaps the token was not good; goim does not say.
                self.dialer.renew_token();
            }
            let retry_in = self.retry_in(error.reconnect(), None);
            let event = Event::ConnectFailed { error, retry_in };
            if !self.desk.tell(event).await || !self.rest(retry_in).await {
                return None;
            }
        }
    }

    /// Waits before the next attempt. False: there is none.
    async fn rest(&mut self, retry_in: Option<Duration>) -> bool {
        let Some(delay) = retry_in else { return false };
        self.desk.meanwhile(tokio::time::sleep(delay)).await.is_some()
    }

    /// Starts the backoff anew after a connection that has held: longer than the wait for it, and than the shortest
    /// wait. One that is made and lost again at once must not be made again at once, over and over.
    fn note_end(&mut self, endpoint: &Endpoint, held: Duration, reason: &DisconnectReason) {
        if held >= self.last_delay.max(self.dialer.backoff().base_delay) {
            self.attempt = 0;
        }
        if let DisconnectReason::Notice(notice) = reason {
            self.prefer = notice.node.as_deref().and_then(|node| endpoint.on_node(node));
        }
    }

    /// When to try again, by what the server advises and at the earliest; `None`: never.
    fn retry_in(&mut self, reconnect: ReconnectPolicy, earliest: Option<Duration>) -> Option<Duration> {
        let backoff = self.dialer.backoff();
        let random = self.chance.fraction();
        let delay = match reconnect {
            ReconnectPolicy::Never => return None,
            ReconnectPolicy::NewToken if !self.dialer.renew_token() => return None,
            ReconnectPolicy::Now | ReconnectPolicy::NewToken => match self.attempt.checked_sub(1) {
                None => backoff.at_once(random),
                Some(attempt) => backoff.delay(attempt, random),
            },
            ReconnectPolicy::Backoff => backoff.delay(self.attempt, random),
        };
        self.attempt = self.attempt.saturating_add(1);
        self.last_delay = delay.max(earliest.unwrap_or_default());
        Some(self.last_delay)
    }
}
