//! The HTTP API: goim's routes, its parameters, its texts.
//!
//! Map of the modules: `table` lists the routes with their parameters; everything else follows from it: `dispatch`
//! finds the route and keeps the order of checks, `query` reads parameters as Go does, `messages` reads those of
//! a batch, `action` does the work of a
//! route, `openapi` describes the table to machines. `reply` and `json` write what Go would write. `guard` decides
//! who may push, `rate` how often one may ask, `body` how much may be sent, `connection` owns the sockets.
//!
//! Where goim's answers are preserved, they are so to the byte, content types included: a parameter error is JSON
//! under `text/plain`. What goim does not have (`/v1/push`; 401, 403, 408, 413, 415, 429, 503) carries the same envelope under
//! `application/json`.

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
mod table;
mod timelines;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use tokio::net::TcpListener;

use crate::Logic;
use dispatch::Api;

pub(crate) use table::Route;

/// Serves the API on `listener` until `shutdown` is done, and then until the requests under way have their answers
/// or `shutdown_timeout` has passed. Paths that the API does not have are asked of `extra`, for example `/metrics`.
///
/// # Errors
/// None at present; the accept loop survives what a listener can come up with.
///
/// # Cancel safety
/// Dropping the future closes the listener and cuts all connections off.
pub async fn serve(
    logic: Arc<Logic>,
    listener: TcpListener,
    extra: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    connection::serve(Arc::new(Api::new(logic)), listener, extra, shutdown).await;
    Ok(())
}

/// The API as a service of its own, without the limits that concern connections. Who may push without an API key is
/// decided by the peer's address, which the server must provide as [`ConnectInfo`]; without it nobody may.
pub fn router(logic: Arc<Logic>) -> Router {
    with_api(Router::new(), Arc::new(Api::new(logic)))
}

/// `extra`, with everything that it does not have answered by the API.
fn with_api(extra: Router, api: Arc<Api>) -> Router {
    extra.fallback(move |request: Request| {
        let api = Arc::clone(&api);
        async move {
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
            api.answer(peer, request).await
        }
    })
}
