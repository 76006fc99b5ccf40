//! Several logics as one: calls take turns, and go to another when one does not answer.
//!
//! A logic that failed a call is passed over for a while, so that one that hangs costs each caller one deadline at most, and
//! few of them. When all have failed, they are all asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, LogicError, LogicPort, OnlineReport, RoomCounts,
    SessionRef, Upstream,
};

use super::address::AddressError;
use super::channel::ClientConfig;
use super::logic_client::GrpcLogic;

/// How long a logic that failed a call is passed over.
const REST: Duration = Duration::from_secs(3);

/// The logics that a comet knows.
#[derive(Debug, Clone)]
pub struct GrpcLogics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    logics: Vec<Place>,
    next: AtomicUsize,
    started: Instant,
}

#[derive(Debug)]
struct Place {
    logic: GrpcLogic,
    /// Until when it is passed over, in milliseconds since the start.
    rests_until: AtomicU64,
}

impl GrpcLogics {
    /// The logics at `addresses`, of which there must be one at least.
    ///
    /// # Errors
    /// [`AddressError`] for the first address that makes no sense.
    pub fn new(addresses: &[String], config: &ClientConfig) -> Result<Self, AddressError> {
        let place = |address: &String| {
            let logic = GrpcLogic::new(address, config.clone())?;
            Ok(Place { logic, rests_until: AtomicU64::new(0) })
        };
        let logics = addresses.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let (next, started) = (AtomicUsize::new(0), Instant::now());
        Ok(Self { shared: Arc::new(Shared { logics, next, started }) })
    }

    /// Makes a call, and makes it again at others while none has answered: for calls that may be made twice.
    fn ask<T, E>(
        &self,
        none: fn() -> E,
        is_unavailable: fn(&E) -> bool,
        call: impl Fn(&GrpcLogic) -> Call<Result<T, E>> + Send + Sync + 'static,
    ) -> Call<Result<T, E>>
    where
        T: Send + Unpin + 'static,
        E: Send + Unpin + 'static,
    {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            let mut last = None;
            for place in shared.in_turn() {
                match call(&place.logic).await {
                    Err(error) if is_unavailable(&error) => {
                        shared.failed(place);
                        last = Some(error);
                    }
                    answer => return answer,
                }
            }
            Err(last.unwrap_or_else(none))
        })
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// All logics, from the one whose turn it is; those that rest come last.
    fn in_turn(&self) -> impl Iterator<Item = &Place> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.logics.len();
        let turn = move |at: usize| &self.logics[(first + at) % count];
        let now = self.now();
        let rests = move |place: &&Place| place.rests_until.load(Ordering::Relaxed) > now;
        let awake = (0..count).map(turn).filter(move |place| !rests(place));
        awake.chain((0..count).map(turn).filter(move |place| rests(place)))
    }

    fn failed(&self, place: &Place) {
        let rest = u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
        place.rests_until.store(self.now().saturating_add(rest), Ordering::Relaxed);
    }
}

fn is_unavailable(error: &LogicError) -> bool {
    matches!(error, LogicError::Unavailable(_))
}

fn no_logic() -> LogicError {
    LogicError::Unavailable("no logic is known".to_owned())
}

impl LogicPort for GrpcLogics {
    fn connect(&self, request: ConnectRequest) -> Call<Result<Accepted, ConnectError>> {
        self.ask(
            || ConnectError::Unavailable("no logic is known".to_owned()),
            |error| matches!(error, ConnectError::Unavailable(_)),
            move |logic| logic.connect(request.clone()),
        )
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.disconnect(session.clone()))
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.heartbeat(session.clone()))
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<RoomCounts, LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.renew_online(report.clone()))
    }

    /// Made once: what the business has done may not be done twice.
    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            let Some(place) = shared.in_turn().next() else { return Err(no_logic()) };
            let answer = place.logic.receive(upstream).await;
            if answer.as_ref().is_err_and(is_unavailable) {
                shared.failed(place);
            }
            answer
        })
    }
}
