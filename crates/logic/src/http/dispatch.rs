//! Handles one request: route, rate limit, authorization, parameters, identity, body, handler.
//!
//! Everything that the head decides is decided before a byte of the body is read. Little is read of
//! the body of a rejected request.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::header::{CONNECTION, EXPECT};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::timeout_at;

use super::body::BodyError;
use super::error::{ApiError, Reply};
use super::query::{QueryValues, unescape};
use super::rate::RateLimiter;
use super::reply;
use super::table::{Action, Route};
use super::timelines::Requester;
use super::{action, body, guard, timelines};
use crate::logic::Logic;
use crate::timelines::reader::Reader;

/// The API of one logic and its state between requests.
pub(crate) struct Api {
    pub(super) logic: Arc<Logic>,
    rate: Option<RateLimiter>,
}

impl Api {
    pub(super) fn new(logic: Arc<Logic>) -> Self {
        let rate = logic.config.http.requests_per_second_max.map(RateLimiter::new);
        Self { logic, rate }
    }

    /// Answers a request. A panic in a handler becomes an answer too.
    pub(super) async fn answer<B>(&self, peer: Option<IpAddr>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (parts, body) = request.into_parts();
        let mut body = RequestBody { is_done: body.is_end_stream(), body };
        let route = find(&parts);
        let caught = {
            let mut handled = pin!(self.handle(route, peer, &parts, &mut body));
            poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| handled.as_mut().poll(context))) {
                Ok(poll) => poll.map(Some),
                Err(_) => Poll::Ready(None),
            })
            .await
        };
        let reply = caught.unwrap_or_else(|| {
            tracing::error!(path = parts.uri.path(), "a request ended in a panic");
            Err(ApiError::internal())
        });
        let mut response = reply.unwrap_or_else(ApiError::into_response);
        if !body.is_done {
            // The rest of this request must not be parsed as the next one.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response.extensions_mut().insert(LeftUnread);
        }
        self.logic.metrics.requests.count(route, response.status().as_u16());
        response
    }

    async fn handle<B>(
        &self,
        route: Option<usize>,
        peer: Option<IpAddr>,
        parts: &Parts,
        body: &mut RequestBody<B>,
    ) -> Reply
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        // Futures that are ready on the first poll never arm the timer.
        let deadline = Instant::now() + self.logic.config.http.request_timeout;
        let budget = self.discard_budget(route, peer, parts);
        let requester = Requester { peer, headers: &parts.headers, reader: None };
        let admitted = match self.admit(route, requester, parts, deadline).await {
            Ok(Some(admitted)) => admitted,
            rejected => {
                discard(body, parts, budget, deadline).await;
                return rejected.and_then(|_| redirect(parts));
            }
        };
        let Admitted { route, values, reader } = admitted;
        let message = if route.has_body() {
            self.read(body, route, parts, budget, deadline).await?
        } else {
            discard(body, parts, budget, deadline).await;
            Bytes::new()
        };
        let requester = Requester { reader: reader.as_ref(), ..requester };
        let reply = action::call(&self.logic, route.action, &values, requester, message);
        // A long poll may take its own timeout in addition.
        let is_long_poll = route.action == Action::Sync;
        let deadline =
            if is_long_poll { deadline + self.logic.config.timelines.long_poll_timeout } else { deadline };
        let late = |_| Err(action::timed_out(&self.logic, route.action));
        timeout_at(deadline.into(), reply).await.unwrap_or_else(late)
    }

    /// How much of the body is read when the request is rejected.
    fn discard_budget(&self, route: Option<usize>, peer: Option<IpAddr>, parts: &Parts) -> DiscardBudget {
        let config = &self.logic.config.http;
        let is_for_members = route.and_then(|row| Route::ALL.get(row)).is_some_and(Route::is_for_members);
        let is_backend = !is_for_members && guard::check(&config.api_keys, peer, &parts.headers).is_ok();
        if is_backend {
            DiscardBudget::Trusted { bytes_max: config.body_bytes_max }
        } else {
            DiscardBudget::Untrusted
        }
    }

    /// Decides everything that the head of a request decides. Returns `None` when no route has the
    /// path.
    ///
    /// # Errors
    /// The requester is over the rate limit, not authorized or not identified, or a parameter is
    /// wrong.
    async fn admit<'q>(
        &self,
        route: Option<usize>,
        requester: Requester<'_>,
        parts: &'q Parts,
        deadline: Instant,
    ) -> Result<Option<Admitted<'q>>, ApiError> {
        let Requester { peer, headers, .. } = requester;
        if let (Some(rate), Some(peer)) = (&self.rate, peer) {
            rate.take(peer, Instant::now()).map_err(|wait| {
                ApiError::too_many_requests("this address sends more requests than allowed", wait)
            })?;
        }
        let Some(route) = route.and_then(|row| Route::ALL.get(row)) else { return Ok(None) };
        if route.is_protected() {
            guard::check(&self.logic.config.http.api_keys, peer, headers)?;
        }
        let values = QueryValues::parse(route.params, parts.uri.query()).map_err(ApiError::bad_parameter)?;
        let reader = if route.action == Action::Ack {
            let reader = timelines::acknowledging_member(&self.logic, &values, requester);
            let late = |_| Err(action::timed_out(&self.logic, route.action));
            Some(timeout_at(deadline.into(), reader).await.unwrap_or_else(late)?)
        } else {
            None
        };
        Ok(Some(Admitted { route, values, reader }))
    }

    /// Reads the body of a request.
    async fn read<B>(
        &self,
        body: &mut RequestBody<B>,
        route: &Route,
        parts: &Parts,
        budget: DiscardBudget,
        deadline: Instant,
    ) -> Result<Bytes, ApiError>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let config = &self.logic.config.http;
        let limit = route.body.bytes(config.body_bytes_max);
        match timeout_at(deadline.into(), body::read(&mut body.body, limit)).await {
            Ok(Ok(message)) => {
                body.is_done = true;
                Ok(message)
            }
            Ok(Err(BodyError::TooLarge)) => {
                discard(body, parts, budget, deadline).await;
                let message = format!("the request's body is larger than {limit} bytes");
                Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message))
            }
            Ok(Err(BodyError::Broken)) => Err(ApiError::bad_request("the request's body is broken")),
            Err(_) => {
                let timeout = config.request_timeout;
                let message = format!("the request's body did not arrive within {timeout:?}");
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }
}

/// A request that passed every check of its head.
struct Admitted<'q> {
    route: &'static Route,
    values: QueryValues<'q>,
    /// The member, on a route that identifies it before it reads the body.
    reader: Option<Reader>,
}

/// The body of a request while it is read.
struct RequestBody<B> {
    body: B,
    /// All of it was read.
    is_done: bool,
}

/// Marks the response to a request whose body was not read completely.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeftUnread;

/// How much is read of the body of a rejected request.
#[derive(Debug, Clone, Copy)]
enum DiscardBudget {
    /// The backend: a whole body, so that it sees the response and can reuse the connection.
    Trusted { bytes_max: usize },
    /// Any other client: [`UNTRUSTED_BYTES_MAX`] within [`UNTRUSTED_TIMEOUT`].
    Untrusted,
}

/// The part of a rejected body that is read from an untrusted client, and for how long.
const UNTRUSTED_BYTES_MAX: usize = 16 * 1024;
const UNTRUSTED_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads and drops what the client still sends, up to a limit, so that the client reads the
/// response instead of a reset. Nothing is read when the announced length is over the limit.
async fn discard<B>(body: &mut RequestBody<B>, parts: &Parts, budget: DiscardBudget, deadline: Instant)
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    // A client that waits for `100 Continue` has sent nothing, and reading would send it the 100.
    if body.is_done || parts.headers.contains_key(EXPECT) {
        return;
    }
    let (bytes_max, deadline) = match budget {
        DiscardBudget::Trusted { bytes_max } => (bytes_max, deadline),
        DiscardBudget::Untrusted => {
            if body.body.size_hint().lower() > UNTRUSTED_BYTES_MAX as u64 {
                return;
            }
            (UNTRUSTED_BYTES_MAX, deadline.min(Instant::now() + UNTRUSTED_TIMEOUT))
        }
    };
    let discarded = timeout_at(deadline.into(), body::discard(&mut body.body, bytes_max)).await;
    body.is_done = discarded == Ok(true);
}

/// The index of the request's route in [`Route::ALL`]. goim v2 matches the percent-decoded path.
fn find(parts: &Parts) -> Option<usize> {
    let path = parts.uri.path();
    Route::find(&parts.method, path).or_else(|| {
        let decoded = if path.contains('%') { unescape(path, false)? } else { return None };
        Route::find(&parts.method, std::str::from_utf8(&decoded).ok()?)
    })
}

/// Redirects a path with a trailing slash to its route.
///
/// # Errors
/// 404 when there is no such route either.
fn redirect(parts: &Parts) -> Reply {
    let path = parts.uri.path();
    let path = path.strip_suffix('/').filter(|path| Route::find(&parts.method, path).is_some());
    let path = path.ok_or_else(ApiError::not_found)?;
    let location = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    reply::redirect(parts.method == Method::GET, &location).ok_or_else(ApiError::not_found)
}

/// Adds the API to `extra` as the fallback.
pub(super) fn with_api(extra: Router, api: Arc<Api>) -> Router {
    extra.fallback(move |request: axum::extract::Request| {
        let api = Arc::clone(&api);
        async move {
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
            api.answer(peer, request).await
        }
    })
}
