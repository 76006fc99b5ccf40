//! The connection of a client: made when it is needed, made again when it is lost or seems dead, and a deadline on
//! every call.
//!
//! There are no pings: Go servers take more than one in five minutes for an attack, and close the connection. So a peer that
//! has vanished without a word is found by calls that are not answered, and by the kernel when it acknowledges nothing.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::address::{self, AddressError};

/// How another node is called.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How long one call may take. Default 5 s.
    pub call_timeout: Duration,
    /// How long making a connection may take. Default 1 s, as in goim.
    pub connect_timeout: Duration,
    /// Calls one after the other without an answer until the connection is thought dead and a new one made. Default 2.
    pub unanswered_max: u32,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            call_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            unanswered_max: 2,
        }
    }
}

/// What goim's clients give a server to send ahead, in bytes, for a stream and for all.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Largest reply that is taken, in bytes: what goim's clients take.
pub(super) const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Endpoint,
    config: ClientConfig,
    channel: Mutex<Option<Channel>>,
    /// Calls since the last answer.
    unanswered: AtomicU32,
}

impl Connection {
    pub(super) fn new(address: &str, config: ClientConfig) -> Result<Self, AddressError> {
        let endpoint = address::endpoint(address)?
            .connect_timeout(config.connect_timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let (channel, unanswered) = Default::default();
        Ok(Self { endpoint, config, channel, unanswered })
    }

    /// Makes a call. The connection is made by it when there is none.
    pub(super) async fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        if let Ok(answer) = timeout(self.config.call_timeout, call(self.channel())).await {
            self.unanswered.store(0, Ordering::Relaxed);
            return answer.map(tonic::Response::into_inner);
        }
        let unanswered = self.unanswered.fetch_add(1, Ordering::Relaxed) + 1;
        if unanswered >= self.config.unanswered_max {
            self.unanswered.store(0, Ordering::Relaxed);
            self.lock().take();
        }
        Err(Status::deadline_exceeded("no answer within the deadline"))
    }

    fn channel(&self) -> Channel {
        let make = || self.endpoint.connect_with_connector_lazy(self.connector());
        self.lock().get_or_insert_with(make).clone()
    }

    /// Of sockets that give up what is not acknowledged in time: a way that was cut and healed is tried again at ever longer
    /// intervals, up to minutes, where a new connection goes through at once.
    fn connector(&self) -> HttpConnector {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(self.config.connect_timeout));
        connector.set_tcp_user_timeout(Some(self.config.call_timeout));
        connector
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
