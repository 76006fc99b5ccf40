//! The HTTP API: goim v2's routes and those of this server.
//!
//! `table` lists the routes; `dispatch` handles a request in the order of its checks; `action`
//! calls the handler; `error` and `reply` render the result; `connection` owns the sockets.
//!
//! Answers that goim v2 has are the same byte for byte, content types included: a parameter error
//! is JSON under `text/plain`. Every other error is the same envelope under `application/json`.

mod action;
mod body;
mod connection;
mod directory;
mod dispatch;
mod error;
mod guard;
mod json;
mod messages;
mod openapi;
mod push;
mod query;
mod rate;
mod reply;
pub(crate) mod table;
mod timelines;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

use crate::logic::Logic;
use dispatch::Api;

/// Serves the API on `listener` until `shutdown` completes, then until the requests in flight are
/// answered or `shutdown_timeout` has passed. Paths that the API does not have go to `extra`, for
/// example `/metrics`.
///
/// # Errors
/// None at present; the accept loop survives errors of the listener.
///
/// # Cancel safety
/// Dropping the future closes the listener and all connections.
pub async fn serve(
    logic: Arc<Logic>,
    listener: TcpListener,
    extra: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    connection::serve(Arc::new(Api::new(logic)), listener, extra, shutdown).await;
    Ok(())
}

/// Returns the API as a router, without the limits on connections. Without an API key a push is
/// authorized by the peer's address, which the server must provide as `ConnectInfo`; without it
/// no push is authorized.
pub fn router(logic: Arc<Logic>) -> Router {
    dispatch::with_api(Router::new(), Arc::new(Api::new(logic)))
}
