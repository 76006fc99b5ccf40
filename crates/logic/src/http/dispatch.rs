//! The way of a request through the API, whatever brought it: route, rate, protection, parameters, body, action.
//!
//! A step that ends the way early gives its answer as `Err`. Answers are large for an error, but as likely as the
//! other outcome; boxing them would only cost an allocation.
#![allow(clippy::result_large_err)]

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::EXPECT;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode};

use tokio::time::timeout_at;

use super::body::BodyError;
use super::query::{Values, unescape};
use super::rate::RateLimiter;
use super::table::{Action, Route};
use super::timelines::Asking;
use super::{action, body, guard, reply};
use crate::Logic;

/// The API of one logic with what it remembers between requests.
pub(crate) struct Api {
    pub(super) logic: Arc<Logic>,
    rate: Option<RateLimiter>,
}

impl Api {
    pub(super) fn new(logic: Arc<Logic>) -> Self {
        let rate = logic.config.http.requests_per_second_max.map(RateLimiter::new);
        Self { logic, rate }
    }

    /// Answers a request, whatever happens in it: a panic is an answer too.
    pub(super) async fn answer<B>(&self, peer: Option<IpAddr>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (parts, mut body) = request.into_parts();
        let route = find(&parts);
        let mut answered = pin!(self.route(route, peer, &parts, &mut body));
        let caught =
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| answered.as_mut().poll(context))) {
                Ok(poll) => poll.map(Some),
                Err(_) => Poll::Ready(None),
            });
        let response = caught.await.unwrap_or_else(|| {
            tracing::error!(path = parts.uri.path(), "a request ended in a panic");
            reply::broken()
        });
        self.logic.metrics.requests.count(route, response.status().as_u16());
        response
    }

    async fn route<B>(
        &self,
        route: Option<usize>,
        peer: Option<IpAddr>,
        parts: &Parts,
        body: &mut B,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        // Futures that are ready at once never arm the timer.
        let deadline = Instant::now() + self.logic.config.http.request_timeout;
        let (route, values) = match self.admit(route, peer, parts) {
            Ok(admitted) => admitted,
            Err(response) => {
                self.discard(body, parts, deadline).await;
                return response;
            }
        };
        let message = if route.has_body() {
            match self.read(body, parts, deadline).await {
                Ok(message) => message,
                Err(response) => return response,
            }
        } else {
            self.discard(body, parts, deadline).await;
            Bytes::new()
        };
        let asking = Asking { peer, headers: &parts.headers };
        let acted = action::act(&self.logic, route.action, &values, asking, message);
        // Whoever waits for messages is not late.
        let waits = route.action == Action::Sync;
        let deadline = if waits { deadline + self.logic.config.timelines.wait_max } else { deadline };
        match timeout_at(deadline.into(), acted).await {
            Ok(response) => response,
            Err(_) => action::late(&self.logic, route.action),
        }
    }

    /// Everything that is decided by the head of a request.
    fn admit<'q>(
        &self,
        route: Option<usize>,
        peer: Option<IpAddr>,
        parts: &'q Parts,
    ) -> Result<(&'static Route, Values<'q>), Response<Body>> {
        if let (Some(rate), Some(peer)) = (&self.rate, peer) {
            rate.take(peer, Instant::now())
                .map_err(|wait| reply::too_many("this address sends more requests than allowed", wait))?;
        }
        let Some(route) = route.and_then(|row| Route::ALL.get(row)) else {
            return Err(redirect(parts).unwrap_or_else(reply::not_found));
        };
        if route.is_protected() {
            guard::check(&self.logic.config.http.api_keys, peer, &parts.headers)
                .map_err(guard::Refusal::reply)?;
        }
        let values = Values::parse(route.params, parts.uri.query());
        values.map(|values| (route, values)).map_err(|message| reply::bad_parameter(&message))
    }

    /// The body of a request that has one.
    async fn read<B>(&self, body: &mut B, parts: &Parts, deadline: Instant) -> Result<Bytes, Response<Body>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let config = &self.logic.config.http;
        match timeout_at(deadline.into(), body::read(body, config.body_bytes_max)).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(BodyError::TooLarge)) => {
                self.discard(body, parts, deadline).await;
                let message = format!("the request's body is larger than {} bytes", config.body_bytes_max);
                Err(reply::refusal(StatusCode::PAYLOAD_TOO_LARGE, &message))
            }
            Ok(Err(BodyError::Broken)) => {
                Err(reply::refusal(StatusCode::BAD_REQUEST, "the request's body is broken"))
            }
            Err(_) => {
                let message =
                    format!("the request's body did not arrive within {:?}", config.request_timeout);
                Err(reply::refusal(StatusCode::REQUEST_TIMEOUT, &message))
            }
        }
    }

    /// Takes what a client is still sending, up to a limit, so that it gets to see the answer.
    async fn discard<B>(&self, body: &mut B, parts: &Parts, deadline: Instant)
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        // A client that waits to be told to go on has sent nothing, and should not be told.
        if body.is_end_stream() || parts.headers.contains_key(EXPECT) {
            return;
        }
        // Whether it all came does not matter: the answer is the same.
        let _ = timeout_at(deadline.into(), body::discard(body, self.logic.config.http.body_bytes_max)).await;
    }
}

/// The row of the request's route. goim looks at the path with its escapes resolved.
fn find(parts: &Parts) -> Option<usize> {
    let path = parts.uri.path();
    Route::find(&parts.method, path).or_else(|| {
        let decoded = if path.contains('%') { unescape(path, false)? } else { return None };
        Route::find(&parts.method, std::str::from_utf8(&decoded).ok()?)
    })
}

/// The way to the route whose path has a slash too many here.
fn redirect(parts: &Parts) -> Option<Response<Body>> {
    let path = parts.uri.path().strip_suffix('/')?;
    Route::find(&parts.method, path)?;
    let location = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    Some(reply::redirect(parts.method == Method::GET, &location))
}
