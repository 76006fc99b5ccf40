//! The answer of a port: there at once, or later.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A future that owns what it needs and may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a port's method returns.
///
/// An adapter in memory has its answer at once, one over the network has not. comet's shards are plain threads that
/// must not wait: they take a ready answer on the spot, without a trip through another thread, and hand a pending
/// one to the runtime. The same code serves both.
///
/// # Cancel safety
/// Dropping a pending call gives up the answer, not necessarily the work: the request may have left already.
pub enum Call<T> {
    /// The answer is there.
    Ready(T),
    /// The answer is on its way. Must be polled inside a tokio runtime.
    Pending(BoxFuture<'static, T>),
}

impl<T> Call<T> {
    /// A call that needs `future` to be answered.
    pub fn pending(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// The same call with its answer passed through `f`.
    pub fn map<U>(self, f: impl FnOnce(T) -> U + Send + 'static) -> Call<U>
    where
        T: 'static,
    {
        match self {
            Self::Ready(answer) => Call::Ready(f(answer)),
            Self::Pending(future) => Call::pending(async move { f(future.await) }),
        }
    }
}

impl<T> std::fmt::Debug for Call<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Call::Ready",
            Self::Pending(_) => "Call::Pending",
        })
    }
}

impl<T: Unpin + Send + 'static> IntoFuture for Call<T> {
    type Output = T;
    type IntoFuture = CallFuture<T>;

    fn into_future(self) -> CallFuture<T> {
        CallFuture(match self {
            Self::Ready(answer) => State::Ready(Some(answer)),
            Self::Pending(future) => State::Pending(future),
        })
    }
}

/// A [`Call`] being awaited.
pub struct CallFuture<T>(State<T>);

enum State<T> {
    Ready(Option<T>),
    Pending(BoxFuture<'static, T>),
}

impl<T: Unpin> Future for CallFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            State::Ready(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            State::Pending(future) => future.as_mut().poll(context),
        }
    }
}
