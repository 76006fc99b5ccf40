//! Sockets: accepting them, how many there may be, how long they may be silent, and how they end.
//!
//! Three clocks guard a connection. While a request's head is coming, `header_timeout` counts from its first byte (from
//! the start, on a new connection); while a request is worked on, `request_timeout` counts (in `dispatch`); between
//! two requests `idle_timeout` does, and so it does while a client does not take an answer. An answer may take as long as it
//! wants: a stream is not idle. One timer per connection serves the first and the last: it looks at the clock
//! twice per `header_timeout`, so that a connection may live half a `header_timeout` longer than it should.
//!
//! A connection on which a part of a request was left unread is closed in two steps: first this side's half, then, when the client has
//! closed its own or has sent a little more, all of it. Closed at once, the client would see a reset in place of its answer.

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
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tower_service::Service as _;

use super::dispatch::{Api, LeftUnread};
use super::with_api;
use crate::HttpConfig;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
struct Server {
    api: Arc<Api>,
    /// Everything that is neither below `/goim/` nor below `/v1/`: the caller's routes, and the API behind them.
    other: Router,
    http1: http1::Builder,
}

/// What the server wants of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// No request after the one under way.
    Draining,
    /// Now.
    Ending,
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
        // A client may close its sending half behind its request and still wants the answer.
        .half_close(true)
        .title_case_headers(true)
        .max_headers(config.headers_max)
        .max_header_size(config.head_bytes_max);
    let server = Arc::new(Server { other: with_api(extra, Arc::clone(&api)), api, http1 });
    let connections = u32::try_from(config.connections_max).unwrap_or(u32::MAX);
    let slots = Arc::new(Semaphore::new(connections as usize));
    let (stage, stages) = watch::channel(Stage::Serving);

    let (mut shutdown, mut following) = (pin!(shutdown), pin!(server.api.logic.follow_ends()));
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
        let connection = Connection::new(stream, peer, Arc::clone(&server), stages.clone());
        let open = server.api.logic.metrics.connections.clone();
        tokio::spawn(async move {
            open.inc();
            connection.serve().await;
            open.dec();
            drop(slot);
        });
    }
    drop(listener);
    stage.send_replace(Stage::Draining);
    if let Some(timelines) = &server.api.logic.timelines {
        // Streams would not end by themselves.
        timelines.drain_waits();
    }
    if tokio::time::timeout(config.shutdown_timeout, slots.acquire_many(connections)).await.is_err() {
        tracing::warn!(timeout = ?config.shutdown_timeout, "HTTP requests are cut off");
    }
    stage.send_replace(Stage::Ending);
}

/// The next connection, once there is a slot for it. A failure concerns one connection or passes; the listener goes on.
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

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<Server>,
    stages: watch::Receiver<Stage>,
}

impl Connection {
    fn new(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, stages: watch::Receiver<Stage>) -> Self {
        Self { stream, peer, server, stages }
    }

    async fn serve(self) {
        let Self { stream, peer, server, mut stages } = self;
        // Without it an answer may wait for an acknowledgement; a socket that cannot is served all the same.
        let _ = stream.set_nodelay(true);
        let clock = Arc::new(Clock::new());
        let io = TokioIo::new(Watched { stream, clock: Arc::clone(&clock), lingering: None });
        let service = service_fn(|request| {
            clock.set(Phase::Answering);
            let answer = server.answer(peer, request);
            let clock = Arc::clone(&clock);
            async move {
                let response = answer.await;
                clock.set(Phase::Sending);
                if response.extensions().get::<LeftUnread>().is_some() {
                    clock.is_left_unread.store(true, Ordering::Relaxed);
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| Sent { body, clock }))
            }
        });
        let mut connection = pin!(server.http1.serve_connection(io, service));
        let config = &server.api.logic.config.http;
        let look_every = config.header_timeout / 2;
        let mut look = pin!(tokio::time::sleep(look_every));
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
                changed = stages.changed() => {
                    if changed.is_err() || *stages.borrow_and_update() == Stage::Ending {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

impl Server {
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

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between two requests.
    Idle,
    /// A head has begun and is not complete.
    Head,
    /// A request is being worked on.
    Answering,
    /// An answer is on its way out.
    Sending,
}

/// Since when a connection has been doing what. Written and read by the connection's own task only; atomic because
/// the task moves between threads.
struct Clock {
    start: Instant,
    /// Milliseconds since `start`, times four, plus the phase.
    state: AtomicU64,
    /// Milliseconds since `start`, plus one, when the client began to take nothing of what is to be sent; zero while it does.
    stalled: AtomicU64,
    /// The client may still be sending a request that has its answer.
    is_left_unread: AtomicBool,
}

impl Clock {
    /// A new connection has to begin at once.
    fn new() -> Self {
        let state = AtomicU64::new(Phase::Head as u64);
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

    fn set(&self, phase: Phase) {
        self.state.store(self.millis() << 2 | phase as u64, Ordering::Relaxed);
    }

    fn get(&self) -> (Phase, Instant) {
        let state = self.state.load(Ordering::Relaxed);
        let phase = match state & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Answering,
            _ => Phase::Sending,
        };
        (phase, self.start + Duration::from_millis(state >> 2))
    }

    fn has_run_out(&self, config: &HttpConfig) -> bool {
        let (phase, since) = self.get();
        match phase {
            Phase::Idle => since.elapsed() >= config.idle_timeout,
            Phase::Head => since.elapsed() >= config.header_timeout,
            Phase::Answering => false,
            Phase::Sending => match self.stalled.load(Ordering::Relaxed) {
                0 => false,
                since => self.millis().saturating_sub(since - 1) >= millis_of(config.idle_timeout),
            },
        }
    }

    /// Something was written, or nothing could be.
    fn wrote<T>(&self, poll: &Poll<T>) {
        if poll.is_ready() {
            self.stalled.store(0, Ordering::Relaxed);
        } else if self.stalled.load(Ordering::Relaxed) == 0 {
            self.stalled.store(self.millis() + 1, Ordering::Relaxed);
        }
    }

    /// Bytes have come in.
    fn received(&self) {
        if self.get().0 == Phase::Idle {
            self.set(Phase::Head);
        }
    }
}

fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The body of an answer, which tells the clock of its end.
struct Sent {
    body: Body,
    clock: Arc<Clock>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.clock.set(Phase::Idle);
    }
}

impl HttpBody for Sent {
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

/// What is still taken of a client before its connection is closed, and for how long.
const LINGER_BYTES_MAX: usize = 64 * 1024;
const LINGER_TIME: Duration = Duration::from_millis(500);

/// The time between the end of one half of a connection and that of the other.
struct Lingering {
    until: Pin<Box<tokio::time::Sleep>>,
    taken: usize,
}

/// A socket that tells the clock of what comes in and what goes out.
struct Watched {
    stream: TcpStream,
    clock: Arc<Clock>,
    lingering: Option<Lingering>,
}

impl Watched {
    /// Takes what the client still sends, until its end, the time's or the limit's.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lingering = self
            .lingering
            .get_or_insert_with(|| Lingering { until: Box::pin(tokio::time::sleep(LINGER_TIME)), taken: 0 });
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

impl AsyncRead for Watched {
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

impl AsyncWrite for Watched {
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
