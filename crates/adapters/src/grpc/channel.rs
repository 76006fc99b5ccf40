//! The connection of a client: opened on demand, replaced after a loss or when it seems dead, with
//! a deadline on every call.
//!
//! There are no pings: Go servers treat more than one in five minutes as an attack and close the
//! connection. A peer that has vanished is detected by calls without a reply, and by the kernel
//! when nothing is acknowledged.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::address::{self, AddressError};

/// Timeouts and limits of calls to another node.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Timeout of a call. Default 5 s.
    pub call_timeout: Duration,
    /// Timeout of connecting. Default 1 s, as in goim.
    pub connect_timeout: Duration,
    /// Number of consecutive calls without a reply after which the connection is replaced. Default
    /// 2.
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

/// The windows of goim's clients in bytes, for a stream and for the connection.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Maximum size of a reply in bytes, as in goim's clients.
pub(super) const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    endpoint: Endpoint,
    config: ClientConfig,
    channel: Mutex<Option<Channel>>,
    /// Calls since the last reply.
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

    /// Makes a call, and connects first if there is no connection.
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

    /// Opens sockets that fail if nothing is acknowledged in time: after a network partition the
    /// kernel retries at growing intervals, up to minutes, while a new connection succeeds
    /// immediately.
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
