//! The operator's pages of roles that have no HTTP API.

use std::sync::Arc;

use tokio::sync::watch;

use crate::operate::{self, Operation};
use crate::serve::{Bound, told};

/// Serves them until told to stop.
pub(super) async fn serve(bound: Bound, operation: Arc<Operation>, stopping: watch::Receiver<bool>) {
    let pages = operate::router(operation);
    let served = axum::serve(bound.listener, pages).with_graceful_shutdown(told(stopping));
    if let Err(error) = served.await {
        tracing::error!(%error, "the operator's pages have ended");
    }
}
