//! Accepts HTTP connections, limits their number, times them out and closes them.
//!
//! Three timeouts guard a connection. `header_timeout` limits a request's head from its first byte,
//! or from the start of a connection; `request_timeout` limits the request (in `dispatch`);
//! `idle_timeout` limits the time between requests, and the time in which a client reads nothing of
//! a response. A response may take any time: a stream is not idle. One timer per connection checks
//! the first and the last twice per `header_timeout`, so a connection may live half a
//! `header_timeout` too long.
//!
//! A connection with an unread rest of a request is closed in two steps: first this side's half,
//! then the whole when the client has closed its half or sent a little more. An immediate close
//! would reach the client as a reset, before the response.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::http::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use super::dispatch::{Api, LeftUnread, with_api};
use crate::config::HttpConfig;

/// The pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
struct HttpServer {
    api: Arc<Api>,
    /// Serves paths outside of `/goim/` and `/v1/`: the caller's routes, with the API as the
    /// fallback.
    other: Router,
    http1: http1::Builder,
    /// Cancelled when connections should accept no request after the current one.
    draining: CancellationToken,
    /// Cancelled when connections should close immediately.
    closing: CancellationToken,
}

pub(super) async fn serve(
    api: Arc<Api>,
    listener: TcpListener,
    extra: Router,
    shutdown: impl Future<Output = ()>,
) {
    let config = api.logic.config.http.clone();
    let mut http1 = http1::Builder::new();
    http1
        // A client may close its sending half after its request and still read the response.
        .half_close(true)
        .title_case_headers(true)
        .max_headers(config.headers_max)
        .max_header_size(config.head_bytes_max);
    let server = Arc::new(HttpServer {
        other: with_api(extra, Arc::clone(&api)),
        api,
        http1,
        draining: CancellationToken::new(),
        closing: CancellationToken::new(),
    });
    // Dropping the future closes the connections too.
    let closing = server.closing.clone().drop_guard();
    let connections = u32::try_from(config.connections_max).unwrap_or(u32::MAX);
    let slots = Arc::new(Semaphore::new(connections as usize));

    let (mut shutdown, mut following) = (pin!(shutdown), pin!(server.api.logic.watch_session_ends()));
    let mut is_followed = true;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.as_mut() => break,
            () = following.as_mut(), if is_followed => {
                is_followed = false;
                continue;
            }
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((slot, stream, peer)) = accepted else { break };
        let connection = HttpConnection { stream, peer, server: Arc::clone(&server) };
        let open = server.api.logic.metrics.connections.clone();
        tokio::spawn(async move {
            open.inc();
            connection.serve().await;
            open.dec();
            drop(slot);
        });
    }
    drop(listener);
    server.draining.cancel();
    if let Some(timelines) = &server.api.logic.timelines {
        // Streams do not end by themselves.
        timelines.drain_long_polls();
    }
    if tokio::time::timeout(config.shutdown_timeout, slots.acquire_many(connections)).await.is_err() {
        tracing::warn!(timeout = ?config.shutdown_timeout, "HTTP requests are cut off");
    }
    drop(closing);
}

/// Accepts the next connection once a slot is free. An error concerns one connection or is
/// temporary, so the listener continues.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(tokio::sync::OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    // The semaphore is never closed.
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Some((slot, stream, peer)),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "HTTP connections cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

struct HttpConnection {
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<HttpServer>,
}

impl HttpConnection {
    async fn serve(self) {
        let Self { stream, peer, server } = self;
        // Without TCP_NODELAY a response may wait for an acknowledgement. A socket that refuses it
        // is served all the same.
        let _ = stream.set_nodelay(true);
        let clock = Arc::new(ConnectionClock::new());
        let io = TokioIo::new(WatchedStream { stream, clock: Arc::clone(&clock), lingering: None });
        let service = service_fn(|request| {
            clock.set(ConnectionPhase::Answering);
            let answer = server.answer(peer, request);
            let clock = Arc::clone(&clock);
            async move {
                let response = answer.await;
                clock.set(ConnectionPhase::Sending);
                if response.extensions().get::<LeftUnread>().is_some() {
                    clock.is_left_unread.store(true, Ordering::Relaxed);
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| ResponseBody { body, clock }))
            }
        });
        let mut connection = pin!(server.http1.serve_connection(io, service));
        let config = &server.api.logic.config.http;
        let look_every = config.header_timeout / 2;
        let mut look = pin!(tokio::time::sleep(look_every));
        let mut is_draining = false;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "HTTP connection ended");
                    }
                    return;
                }
                () = look.as_mut() => {
                    if clock.has_run_out(config) {
                        tracing::debug!(%peer, phase = ?clock.get().0, "HTTP connection was silent too long");
                        return;
                    }
                    look.as_mut().reset(Instant::now() + look_every);
                }
                () = server.closing.cancelled() => return,
                () = server.draining.cancelled(), if !is_draining => {
                    is_draining = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

impl HttpServer {
    async fn answer(&self, peer: SocketAddr, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if path.starts_with("/goim/") || path.starts_with("/v1/") {
            return self.api.answer(Some(peer.ip()), request).await;
        }
        request.extensions_mut().insert(ConnectInfo(peer));
        let Ok(response) = self.other.clone().call(request).await;
        response
    }
}

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionPhase {
    /// Between two requests.
    Idle,
    /// A head is incomplete.
    Head,
    /// A request is handled.
    Answering,
    /// A response is sent.
    Sending,
}

/// The phase of a connection and its start. Only the connection's own task uses it; atomic because
/// the task moves between threads.
struct ConnectionClock {
    start: Instant,
    /// Milliseconds since `start`, times four, plus the phase.
    state: AtomicU64,
    /// Milliseconds since `start`, plus one, when the client stopped reading the response; zero
    /// while it reads.
    stalled: AtomicU64,
    /// The client may still be sending a request that already has its response.
    is_left_unread: AtomicBool,
}

impl ConnectionClock {
    /// A new connection is in the phase of a head: its first byte is expected immediately.
    fn new() -> Self {
        let state = AtomicU64::new(ConnectionPhase::Head as u64);
        Self {
            start: Instant::now(),
            state,
            stalled: AtomicU64::new(0),
            is_left_unread: AtomicBool::new(false),
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX >> 2)
    }

    fn set(&self, phase: ConnectionPhase) {
        self.state.store(self.millis() << 2 | phase as u64, Ordering::Relaxed);
    }

    fn get(&self) -> (ConnectionPhase, Instant) {
        let state = self.state.load(Ordering::Relaxed);
        let phase = match state & 3 {
            0 => ConnectionPhase::Idle,
            1 => ConnectionPhase::Head,
            2 => ConnectionPhase::Answering,
            _ => ConnectionPhase::Sending,
        };
        (phase, self.start + Duration::from_millis(state >> 2))
    }

    fn has_run_out(&self, config: &HttpConfig) -> bool {
        let (phase, since) = self.get();
        match phase {
            ConnectionPhase::Idle => since.elapsed() >= config.idle_timeout,
            ConnectionPhase::Head => since.elapsed() >= config.header_timeout,
            ConnectionPhase::Answering => false,
            ConnectionPhase::Sending => match self.stalled.load(Ordering::Relaxed) {
                0 => false,
                since => self.millis().saturating_sub(since - 1) >= millis_of(config.idle_timeout),
            },
        }
    }

    /// Records a write: the socket took bytes, or it is full.
    fn wrote<T>(&self, poll: &Poll<T>) {
        if poll.is_ready() {
            self.stalled.store(0, Ordering::Relaxed);
        } else if self.stalled.load(Ordering::Relaxed) == 0 {
            self.stalled.store(self.millis() + 1, Ordering::Relaxed);
        }
    }

    /// Records that bytes were received.
    fn received(&self) {
        if self.get().0 == ConnectionPhase::Idle {
            self.set(ConnectionPhase::Head);
        }
    }
}

fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The body of a response. It sets the phase when it ends.
struct ResponseBody {
    body: Body,
    clock: Arc<ConnectionClock>,
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.clock.set(ConnectionPhase::Idle);
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How much is still read from a client before its connection is closed, and for how long.
const LINGER_BYTES_MAX: usize = 64 * 1024;
const LINGER_TIME: Duration = Duration::from_millis(500);

/// The state between the close of this half of a connection and the close of the whole.
struct LingerState {
    until: Pin<Box<tokio::time::Sleep>>,
    taken: usize,
}

/// A socket that records reads and writes in the connection's clock.
struct WatchedStream {
    stream: TcpStream,
    clock: Arc<ConnectionClock>,
    lingering: Option<LingerState>,
}

impl WatchedStream {
    /// Reads and drops what the client still sends, until its end, [`LINGER_TIME`] or
    /// [`LINGER_BYTES_MAX`].
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| LingerState {
            until: Box::pin(tokio::time::sleep(LINGER_TIME)),
            taken: 0,
        });
        loop {
            if lingering.taken >= LINGER_BYTES_MAX || lingering.until.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut room = [0; 4 * 1024];
            let mut buffer = ReadBuf::new(&mut room);
            match std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => lingering.taken += buffer.filled().len(),
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.clock.received();
        }
        poll
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.clock.wrote(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.clock.wrote(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            std::task::ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        if self.clock.is_left_unread.load(Ordering::Relaxed) {
            std::task::ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}
