//! Timeouts for calls of ports.

use std::time::Duration;

use goim_ports::{Call, DirectoryError};

/// Limits `call` to `deadline`, after which it fails with `late`. A ready call is returned as it
/// is: without timer, allocation or runtime.
pub(crate) fn with_timeout<T, E>(
    deadline: Duration,
    call: Call<Result<T, E>>,
    late: impl FnOnce() -> E + Send + 'static,
) -> Call<Result<T, E>>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match call {
        Call::Ready(answer) => Call::Ready(answer),
        Call::Pending(future) => Call::pending(async move {
            tokio::time::timeout(deadline, future).await.unwrap_or_else(|_| Err(late()))
        }),
    }
}

/// Chains a call that depends on the result of another. The result is ready when both are.
pub(crate) fn and_then<T, U>(call: Call<T>, next: impl FnOnce(T) -> Call<U> + Send + 'static) -> Call<U>
where
    T: Send + Unpin + 'static,
    U: Send + Unpin + 'static,
{
    match call {
        Call::Ready(answer) => next(answer),
        Call::Pending(future) => Call::pending(async move { next(future.await).await }),
    }
}

/// The error of a directory that timed out.
pub(crate) fn directory_late() -> DirectoryError {
    DirectoryError::Unavailable("the directory did not answer in time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_answer_stays_ready_outside_a_runtime() {
        let call = with_timeout(Duration::ZERO, Call::Ready(Ok::<_, ()>(1)), || ());
        let call = and_then(call, |one| Call::Ready(one.map(|one| one + 1)));
        assert!(matches!(call, Call::Ready(Ok(2))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_times_out() {
        let never: Call<Result<(), &str>> = Call::pending(std::future::pending());
        assert_eq!(with_timeout(Duration::from_secs(3), never, || "late").await, Err("late"));
    }
}
