//! The admin endpoints of roles without an HTTP API.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::admin::{self, ServerState};
use crate::serve::Bound;

/// Serves them until `stop` is cancelled.
pub(super) async fn serve(bound: Bound, state: Arc<ServerState>, stop: CancellationToken) {
    let router = admin::router(state);
    let served = axum::serve(bound.listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin endpoints ended");
    }
}
