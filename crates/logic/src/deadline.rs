//! Deadlines on calls to the directories and the push log.

use std::time::Duration;

use goim_ports::Call;

/// `call`, which fails with `late` when it takes longer than `deadline`. A ready answer is passed on as it is: no
/// timer, no boxing, no runtime needed.
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

/// A second call that depends on the answer of a first one. Ready when both are.
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
    async fn a_late_answer_is_given_up() {
        let never: Call<Result<(), &str>> = Call::pending(std::future::pending());
        assert_eq!(with_timeout(Duration::from_secs(3), never, || "late").await, Err("late"));
    }
}
