//! Several logics as one: calls take turns, and go to another when one does not answer.
//!
//! A logic that failed a call is passed over for a while, so that one that hangs costs each caller one deadline at most, and
//! few of them. When all have failed, they are all asked again. Which logics there are is asked with each call: a list may change.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use goim_ports::{
    Accepted, Call, ConnectError, ConnectRequest, LifecycleEvent, LogicError, LogicPort, OnlineReport,
    OnlineTotals, RefreshRequest, Refreshed, SessionRef, TimelineRequest, Upstream,
};

use super::channel::ClientConfig;
use super::logic_client::GrpcLogic;

/// How long a logic that failed a call is passed over.
const REST: Duration = Duration::from_secs(3);

/// What is wrong before the first call.
const NOT_ASKED: &str = "none has been asked yet";

/// Gives the addresses of the logics that there are; the same `Arc` while nothing has changed.
pub type LogicAddresses = Arc<dyn Fn() -> Arc<Vec<String>> + Send + Sync>;

/// The logics that a comet knows.
#[derive(Debug, Clone)]
pub struct GrpcLogics {
    shared: Arc<Shared>,
}

struct Shared {
    addresses: LogicAddresses,
    config: ClientConfig,
    known: Mutex<Known>,
    next: AtomicUsize,
    started: Instant,
    /// No logic has done what it was asked for, the last time that one was asked.
    trouble: Mutex<Option<String>>,
    is_troubled: AtomicBool,
}

#[derive(Default)]
struct Known {
    /// What `places` was made of.
    list: Arc<Vec<String>>,
    places: Arc<Vec<Arc<Place>>>,
}

#[derive(Debug)]
struct Place {
    address: String,
    logic: GrpcLogic,
    /// Until when it is passed over, in milliseconds since the start.
    rests_until: AtomicU64,
}

impl GrpcLogics {
    /// The logics at `addresses`, whichever they are when one is called.
    #[must_use]
    pub fn new(addresses: LogicAddresses, config: ClientConfig) -> Self {
        let (known, next, started) = (Mutex::default(), AtomicUsize::new(0), Instant::now());
        let (trouble, is_troubled) = (Mutex::new(Some(NOT_ASKED.to_owned())), AtomicBool::new(true));
        let shared = Shared { addresses, config, known, next, started, trouble, is_troubled };
        Self { shared: Arc::new(shared) }
    }

    /// Why no logic does what it is asked for, as of the last call; `None` while one does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if !self.shared.is_troubled.load(Ordering::Relaxed) {
            return None;
        }
        self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        E: std::fmt::Display + Send + Unpin + 'static,
    {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            let mut last = None;
            for place in shared.in_turn() {
                match call(&place.logic).await {
                    Err(error) if is_unavailable(&error) => {
                        shared.failed(&place);
                        last = Some(error);
                    }
                    answer => {
                        shared.is_served();
                        return answer;
                    }
                }
            }
            let error = last.unwrap_or_else(none);
            shared.is_in_trouble(error.to_string());
            Err(error)
        })
    }
}

impl GrpcLogics {
    /// Makes a call at one logic only: for calls that must not be made twice.
    fn ask_once<T: Send + Unpin + 'static>(
        &self,
        call: impl FnOnce(&GrpcLogic) -> Call<Result<T, LogicError>> + Send + 'static,
    ) -> Call<Result<T, LogicError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            let Some(place) = shared.in_turn().next() else { return Err(no_logic()) };
            let answer = call(&place.logic).await;
            if answer.as_ref().is_err_and(is_unavailable) {
                shared.failed(&place);
            }
            answer
        })
    }
}

impl Shared {
    fn places(&self) -> Arc<Vec<Arc<Place>>> {
        let list = (self.addresses)();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.list, &list) {
            known.learn(list, &self.config);
        }
        Arc::clone(&known.places)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// All logics, from the one whose turn it is; those that rest come last.
    fn in_turn(&self) -> impl Iterator<Item = Arc<Place>> + use<> {
        let places = self.places();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % places.len().max(1);
        let now = self.now();
        let turn = places[first..].iter().chain(&places[..first]);
        let (rest, awake): (Vec<_>, Vec<_>) =
            turn.cloned().partition(|place| place.rests_until.load(Ordering::Relaxed) > now);
        awake.into_iter().chain(rest)
    }

    fn is_served(&self) {
        if self.is_troubled.load(Ordering::Relaxed) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.is_troubled.store(false, Ordering::Relaxed);
        }
    }

    fn is_in_trouble(&self, reason: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    fn failed(&self, place: &Place) {
        let rest = u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
        place.rests_until.store(self.now().saturating_add(rest), Ordering::Relaxed);
    }
}

impl Known {
    fn learn(&mut self, list: Arc<Vec<String>>, config: &ClientConfig) {
        let place = |address: &String| {
            // One that stays keeps its connection.
            if let Some(known) = self.places.iter().find(|known| known.address == *address) {
                return Some(Arc::clone(known));
            }
            match GrpcLogic::new(address, config.clone()) {
                Ok(logic) => {
                    tracing::info!(address, "a logic has come");
                    let place = Place { address: address.clone(), logic, rests_until: AtomicU64::new(0) };
                    Some(Arc::new(place))
                }
                Err(error) => {
                    tracing::warn!(%error, "a logic cannot be reached");
                    None
                }
            }
        };
        let places: Vec<Arc<Place>> = list.iter().filter_map(place).collect();
        for gone in self.places.iter().filter(|known| !list.contains(&known.address)) {
            tracing::info!(address = gone.address, "a logic has gone");
        }
        (self.list, self.places) = (list, Arc::new(places));
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("logics", &self.places()).finish_non_exhaustive()
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
            || ConnectError::unavailable("no logic is known"),
            ConnectError::is_unavailable,
            move |logic| logic.connect(request.clone()),
        )
    }

    fn refresh(&self, request: RefreshRequest) -> Call<Result<Refreshed, ConnectError>> {
        self.ask(
            || ConnectError::unavailable("no logic is known"),
            ConnectError::is_unavailable,
            move |logic| logic.refresh(request.clone()),
        )
    }

    fn events(&self, events: Vec<LifecycleEvent>) -> Call<Result<(), LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.events(events.clone()))
    }

    fn disconnect(&self, session: SessionRef) -> Call<Result<bool, LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.disconnect(session.clone()))
    }

    fn heartbeat(&self, session: SessionRef) -> Call<Result<(), LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.heartbeat(session.clone()))
    }

    fn renew_online(&self, report: OnlineReport) -> Call<Result<OnlineTotals, LogicError>> {
        self.ask(no_logic, is_unavailable, move |logic| logic.renew_online(report.clone()))
    }

    /// Made once: what the backend has done may not be done twice.
    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        self.ask_once(move |logic| logic.receive(upstream))
    }

    /// Made once: a message may not be appended twice.
    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        self.ask_once(move |logic| logic.timeline(request))
    }
}
