//! Waiting during startup for engines that are unavailable.
//!
//! A process that ends because Redis is unavailable for a moment is restarted at ever longer
//! intervals, and its neighbours with it. So it waits instead: not ready, with the reason on
//! `/readyz` and once in the log, for as long as it takes. What waiting does not fix, such as a
//! wrong password, ends it immediately.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{self, ServerState};
use crate::serve::{Bound, StartError};

/// The first and the longest delay between attempts. Each is shortened by up to a half, so that the
/// processes of a fleet do not retry at the same moment.
const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(3);

/// An error that may pass.
pub(crate) trait Transient: std::fmt::Display {
    /// What to wait for and why, without addresses; `None` if waiting does not help.
    fn waiting_for(&self) -> Option<String>;
}

/// Repeats `attempt` until it succeeds or fails with an error that waiting does not fix.
///
/// # Cancel safety
/// Dropping the future cancels the current attempt.
pub(crate) async fn until_available<T, E, F>(
    state: &ServerState,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Transient,
    F: Future<Output = Result<T, E>>,
{
    state.set_waiting(Some(what.to_owned()));
    let began = Instant::now();
    let mut delay = DELAY_MIN;
    let mut is_logged = false;
    loop {
        let error = match attempt().await {
            Ok(available) => {
                state.set_waiting(None);
                if is_logged {
                    tracing::info!(what, waited = ?began.elapsed(), "available; startup continues");
                }
                return Ok(available);
            }
            Err(error) => error,
        };
        let Some(reason) = error.waiting_for() else { return Err(error) };
        if is_logged {
            tracing::debug!(what, %error, "still waiting");
        } else {
            tracing::warn!(what, %error, "startup waits until this is available");
            is_logged = true;
        }
        state.set_waiting(Some(reason));
        tokio::time::sleep(shortened(delay)).await;
        delay = (delay * 2).min(DELAY_MAX);
    }
}

fn shortened(delay: Duration) -> Duration {
    // A RandomState has other keys each time.
    let random = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    delay.mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// The admin endpoints during startup, on the listener of the later API. Dropping it stops
/// accepting; connections that are open get one response each.
pub(crate) struct StartupEndpoints {
    _serving: AbortOnDropHandle<()>,
}

impl StartupEndpoints {
    /// Serves them on a copy of the listener `bound`.
    ///
    /// # Errors
    /// [`StartError::Listen`] when there are no descriptors left.
    pub(crate) fn beside(bound: Bound, state: &Arc<ServerState>) -> Result<(Self, Bound), StartError> {
        let Bound { listener, addr } = bound;
        let twice = || {
            let own = listener.into_std()?;
            let copy = TcpListener::from_std(own.try_clone()?)?;
            Ok((TcpListener::from_std(own)?, copy))
        };
        let (listener, copy) =
            twice().map_err(|error| StartError::Listen { addr, setting: "http.listen".to_owned(), error })?;
        let router = admin::router_while_starting(Arc::clone(state));
        // Connections are separate tasks, which continue when this one ends.
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(copy, router).await {
                tracing::error!(%error, "the admin endpoints ended during startup");
            }
        });
        Ok((Self { _serving: AbortOnDropHandle::new(serving) }, Bound { listener, addr }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Unavailable {
        transient: bool,
    }

    impl std::fmt::Display for Unavailable {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("unavailable")
        }
    }

    impl Transient for Unavailable {
        fn waiting_for(&self) -> Option<String> {
            self.transient.then(|| "an engine".to_owned())
        }
    }

    #[tokio::test]
    async fn attempts_end_with_success_or_a_permanent_error() {
        let state = ServerState::default();
        let mut attempts = 0;
        let available = until_available(&state, "an engine", || {
            attempts += 1;
            let result = if attempts < 4 { Err(Unavailable { transient: true }) } else { Ok(attempts) };
            async move { result }
        });
        let began = Instant::now();
        assert_eq!(available.await, Ok(4));
        assert!(began.elapsed() >= Duration::from_millis(350), "half of 100, 200 and 400 ms at least");
        let permanent: Result<(), _> =
            until_available(&state, "an engine", || async { Err(Unavailable { transient: false }) }).await;
        assert_eq!(permanent, Err(Unavailable { transient: false }));
    }

    #[test]
    fn delays_are_shortened_by_up_to_a_half() {
        for _ in 0..1000 {
            let delay = shortened(DELAY_MAX);
            assert!(delay >= DELAY_MAX.mul_f64(0.49) && delay <= DELAY_MAX, "{delay:?}");
        }
    }
}
