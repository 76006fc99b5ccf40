//! The result of a port's method: ready, or pending.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result of a port's method.
///
/// An adapter in memory returns a ready result, one over the network a pending one. comet's shards
/// are plain threads that must not block: they take a ready result immediately, without a switch to
/// another thread, and await a pending one on the runtime.
///
/// # Cancel safety
/// Dropping a pending call drops the result, not necessarily the work: the request may have been
/// sent already.
pub enum Call<T> {
    /// The result is ready.
    Ready(T),
    /// The result is pending. Must be polled inside a tokio runtime.
    Pending(BoxFuture<'static, T>),
}

impl<T> Call<T> {
    /// Creates a call that is answered by `future`.
    pub fn pending(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// Maps the result with `f`.
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

/// The future of a [`Call`].
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
