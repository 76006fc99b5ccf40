//! The way of a request through the API, whatever brought it: route, rate, protection, parameters, who asks, body, action.
//!
//! Invariant: all that can be decided by the head is, before a byte of the body is read. Of a body that is refused little is taken.
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
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};

use tokio::time::timeout_at;

use super::body::BodyError;
use super::query::{Values, unescape};
use super::rate::RateLimiter;
use super::table::{Action, Route};
use super::timelines::Asking;
use super::{action, body, guard, reply, timelines};
use crate::Logic;
use crate::timelines::Reader;

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
        let (parts, body) = request.into_parts();
        let mut body = Incoming { is_done: body.is_end_stream(), body };
        let route = find(&parts);
        let caught = {
            let mut answered = pin!(self.route(route, peer, &parts, &mut body));
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| answered.as_mut().poll(context))) {
                Ok(poll) => poll.map(Some),
                Err(_) => Poll::Ready(None),
            })
            .await
        };
        let mut response = caught.unwrap_or_else(|| {
            tracing::error!(path = parts.uri.path(), "a request ended in a panic");
            reply::broken()
        });
        if !body.is_done {
            // What is left of the request is no other request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response.extensions_mut().insert(LeftUnread);
        }
        self.logic.metrics.requests.count(route, response.status().as_u16());
        response
    }

    async fn route<B>(
        &self,
        route: Option<usize>,
        peer: Option<IpAddr>,
        parts: &Parts,
        body: &mut Incoming<B>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        // Futures that are ready at once never arm the timer.
        let deadline = Instant::now() + self.logic.config.http.request_timeout;
        let trust = self.trust(route, peer, parts);
        let asking = Asking { peer, headers: &parts.headers, reader: None };
        let admitted = match self.admit(route, peer, parts) {
            Ok((route, values)) => self.identify(route, values, asking, deadline).await,
            Err(response) => Err(response),
        };
        let (route, values, reader) = match admitted {
            Ok(admitted) => admitted,
            Err(response) => {
                discard(body, parts, trust, deadline).await;
                return response;
            }
        };
        let message = if route.has_body() {
            match self.read(body, route, parts, trust, deadline).await {
                Ok(message) => message,
                Err(response) => return response,
            }
        } else {
            discard(body, parts, trust, deadline).await;
            Bytes::new()
        };
        let asking = Asking { reader: reader.as_ref(), ..asking };
        let acted = action::act(&self.logic, route.action, &values, asking, message);
        // Whoever waits for messages is not late.
        let waits = route.action == Action::Sync;
        let deadline =
            if waits { deadline + self.logic.config.timelines.long_poll_timeout } else { deadline };
        match timeout_at(deadline.into(), acted).await {
            Ok(response) => response,
            Err(_) => action::late(&self.logic, route.action),
        }
    }

    /// How much of a body that nobody wants is taken from whoever asks.
    fn trust(&self, route: Option<usize>, peer: Option<IpAddr>, parts: &Parts) -> Trust {
        let config = &self.logic.config.http;
        let is_for_members = route.and_then(|row| Route::ALL.get(row)).is_some_and(Route::is_for_members);
        let is_backend = !is_for_members && guard::check(&config.api_keys, peer, &parts.headers).is_ok();
        if is_backend { Trust::Backend { bytes_max: config.body_bytes_max } } else { Trust::Nobody }
    }

    /// Who asks, for a route that reads a body of whoever it may be from.
    async fn identify<'q>(
        &self,
        route: &'static Route,
        values: Values<'q>,
        asking: Asking<'_>,
        deadline: Instant,
    ) -> Result<(&'static Route, Values<'q>, Option<Reader>), Response<Body>> {
        if route.action != Action::Ack {
            return Ok((route, values, None));
        }
        let reader = timelines::acknowledging(&self.logic, &values, asking);
        match timeout_at(deadline.into(), reader).await {
            Ok(reader) => reader.map(|reader| (route, values, Some(reader))),
            Err(_) => Err(action::late(&self.logic, route.action)),
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
    async fn read<B>(
        &self,
        body: &mut Incoming<B>,
        route: &Route,
        parts: &Parts,
        trust: Trust,
        deadline: Instant,
    ) -> Result<Bytes, Response<Body>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let config = &self.logic.config.http;
        let most = route.body.bytes(config.body_bytes_max);
        match timeout_at(deadline.into(), body::read(&mut body.body, most)).await {
            Ok(Ok(message)) => {
                body.is_done = true;
                Ok(message)
            }
            Ok(Err(BodyError::TooLarge)) => {
                discard(body, parts, trust, deadline).await;
                let message = format!("the request's body is larger than {most} bytes");
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
}

/// A body on its way in.
struct Incoming<B> {
    body: B,
    /// All of it was taken.
    is_done: bool,
}

/// Marks the answer to a request of whose body something may still come.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeftUnread;

/// From whom a body is taken that nobody wants.
#[derive(Debug, Clone, Copy)]
enum Trust {
    /// From the backend: so much that it sees its answer, and may use the connection again.
    Backend { bytes_max: usize },
    /// From anybody: so little that it costs nothing.
    Nobody,
}

/// What is taken of a body that nobody wants, from anybody, and for how long.
const UNKNOWN_BYTES_MAX: usize = 16 * 1024;
const UNKNOWN_TIME: Duration = Duration::from_secs(1);

/// Takes what a client is still sending, up to a limit, so that it gets to see the answer. Where more is announced than is taken,
/// nothing is.
async fn discard<B>(body: &mut Incoming<B>, parts: &Parts, trust: Trust, deadline: Instant)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    // A client that waits to be told to go on has sent nothing, and should not be told.
    if body.is_done || parts.headers.contains_key(EXPECT) {
        return;
    }
    let (bytes_max, deadline) = match trust {
        Trust::Backend { bytes_max } => (bytes_max, deadline),
        Trust::Nobody => {
            let announced = body.body.size_hint().lower();
            if announced > UNKNOWN_BYTES_MAX as u64 {
                return;
            }
            (UNKNOWN_BYTES_MAX, deadline.min(Instant::now() + UNKNOWN_TIME))
        }
    };
    let taken = timeout_at(deadline.into(), body::discard(&mut body.body, bytes_max)).await;
    body.is_done = taken == Ok(true);
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
