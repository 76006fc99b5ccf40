//! Where packets of clients to the backend are sent.

use std::time::Duration;

use bytes::Bytes;

use crate::{Call, LogicError, Upstream};

/// The backend over some transport.
pub trait UpstreamPort: Send + Sync {
    /// Sends a packet once and returns the body of the reply: empty if the transport has no
    /// replies.
    ///
    /// # Errors
    /// [`LogicError::Failed`] if the backend refused; [`LogicError::Unavailable`] if it cannot have
    /// handled the packet, or replies that it is not available; [`LogicError::Late`] if there is no
    /// reply within `timeout`.
    fn send(&self, upstream: Upstream, timeout: Duration) -> Call<Result<Bytes, LogicError>>;
}
