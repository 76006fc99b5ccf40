//! What checks the credentials of clients.

use goim_ports::{Call, ConnectError};

use super::grant::Grant;
use super::token::Token;

/// A client's token and the facts of its connection.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) token: Token,
    pub(super) remote: std::net::IpAddr,
    pub(super) cookie: String,
    pub(super) user_agent: String,
    pub(super) server: String,
}

/// Checks credentials.
pub(super) trait Authenticator: Send + Sync {
    /// Returns what the credentials grant, or why they are refused.
    fn authenticate(&self, credentials: Credentials) -> Call<Result<Grant, ConnectError>>;

    /// Returns why no credentials can be checked yet. By default they can.
    fn not_ready(&self) -> Option<&'static str> {
        None
    }

    /// Fetches what checks need. Returns true when it is complete.
    fn prepare(&self) -> Call<bool> {
        Call::Ready(true)
    }
}
