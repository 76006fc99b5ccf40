//! Waiting for engines that are away while a process starts.
//!
//! A process that ends because Redis is away for a moment is started again by somebody, at ever
//! longer intervals, and its neighbours with it. So it waits: not ready, with what it waits for on
//! `/readyz`, once in the log, and as long as it takes. What waiting does not mend, such as a wrong
//! password, ends it at once.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::operate::{self, Operation};
use crate::serve::{Bound, StartError};

/// The pause after the first try, and the longest; each is shortened by up to a half, so that a
/// fleet does not come at once.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// An error that waiting may mend.
pub(crate) trait Passing: std::fmt::Display {
    /// What is waited for and why, without addresses; `None` when waiting does not mend it.
    fn waits_for(&self) -> Option<String>;
}

/// Tries to reach `what` until it works, or until it is sure that it will not.
///
/// # Cancel safety
/// Dropping the future ends the try that is under way.
pub(crate) async fn until_there<T, E, F>(
    operation: &Operation,
    what: &'static str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Passing,
    F: Future<Output = Result<T, E>>,
{
    operation.waits_for(Some(what.to_owned()));
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    let mut is_said = false;
    loop {
        let error = match attempt().await {
            Ok(there) => {
                operation.waits_for(None);
                if is_said {
                    tracing::info!(what, waited = ?began.elapsed(), "what was waited for is there");
                }
                return Ok(there);
            }
            Err(error) => error,
        };
        let Some(reason) = error.waits_for() else { return Err(error) };
        if is_said {
            tracing::debug!(what, %error, "still waiting");
        } else {
            tracing::warn!(what, %error, "the start waits; it goes on when this is over");
            is_said = true;
        }
        operation.waits_for(Some(reason));
        tokio::time::sleep(shortened(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn shortened(pause: Duration) -> Duration {
    // Keyed anew for each process, and each time.
    let random = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    pause.mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// The operator's pages while a process starts, on the listener that its API will have. Dropping it
/// ends them: nobody else is let in, and who has connected already gets one answer.
pub(crate) struct StartPages(JoinHandle<()>);

impl StartPages {
    /// Serves them beside `bound`, which stays as it is: what connects is taken by whoever asks
    /// first.
    ///
    /// # Errors
    /// [`StartError::Listen`] when there are no descriptors left.
    pub(crate) fn beside(bound: Bound, operation: &Arc<Operation>) -> Result<(Self, Bound), StartError> {
        let Bound { listener, addr } = bound;
        let twice = || {
            let own = listener.into_std()?;
            let other = TcpListener::from_std(own.try_clone()?)?;
            Ok((TcpListener::from_std(own)?, other))
        };
        let (listener, other) =
            twice().map_err(|error| StartError::Listen { addr, setting: "http.listen", error })?;
        let pages = operate::router_while_starting(Arc::clone(operation));
        // Connections are tasks of their own, which go on when this one ends.
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(other, pages).await {
                tracing::error!(%error, "the operator's pages have ended");
            }
        });
        Ok((Self(serving), Bound { listener, addr }))
    }
}

impl Drop for StartPages {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Away(bool);

    impl std::fmt::Display for Away {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("away")
        }
    }

    impl Passing for Away {
        fn waits_for(&self) -> Option<String> {
            self.0.then(|| "an engine".to_owned())
        }
    }

    #[tokio::test]
    async fn it_is_tried_until_it_is_there_or_hopeless() {
        let operation = Operation::default();
        let mut tries = 0;
        let there = until_there(&operation, "an engine", || {
            tries += 1;
            let result = if tries < 4 { Err(Away(true)) } else { Ok(tries) };
            async move { result }
        });
        let began = Instant::now();
        assert_eq!(there.await, Ok(4));
        assert!(began.elapsed() >= Duration::from_millis(350), "half of 100, 200 and 400 ms at least");
        let hopeless: Result<(), _> =
            until_there(&operation, "an engine", || async { Err(Away(false)) }).await;
        assert_eq!(hopeless, Err(Away(false)));
    }

    #[test]
    fn pauses_are_shortened_by_up_to_a_half() {
        for _ in 0..1000 {
            let pause = shortened(PAUSE_MAX);
            assert!(pause >= PAUSE_MAX.mul_f64(0.49) && pause <= PAUSE_MAX, "{pause:?}");
        }
    }
}
