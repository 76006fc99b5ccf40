//! Where packets of clients go that the backend answers.

use std::time::Duration;

use bytes::Bytes;

use crate::{Call, LogicError, Upstream};

/// The backend behind some transport.
pub trait UpstreamPort: Send + Sync {
    /// Hands a packet over, once, and gives the body of the reply; empty where the transport has no answers.
    ///
    /// # Errors
    /// [`LogicError::Failed`] when the backend has said no; [`LogicError::Unavailable`] when it cannot have dealt with the packet, or
    /// says so itself; [`LogicError::Late`] when there is no answer within `timeout`.
    fn send(&self, upstream: Upstream, timeout: Duration) -> Call<Result<Bytes, LogicError>>;
}
