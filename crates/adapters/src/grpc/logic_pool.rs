//! Several logics as one: round robin, with failover.
//!
//! After a failed call a logic is tried last for a while, so that one that hangs costs a caller at
//! most one deadline, and only a few callers. The list of logics is read with each call, since it
//! may change.

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

/// How long a logic is tried last after a failed call.
const FAILED_FOR: Duration = Duration::from_secs(3);

/// The error before the first call.
const NO_CALL_YET: &str = "no call has been made yet";

/// Returns the addresses of the logics; the same `Arc` while they have not changed.
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
    /// The last error, if no logic has served the last call.
    last_error: Mutex<Option<String>>,
    has_error: AtomicBool,
}

#[derive(Default)]
struct Known {
    /// The address list of `endpoints`.
    list: Arc<Vec<String>>,
    endpoints: Arc<Vec<Arc<Endpoint>>>,
}

#[derive(Debug)]
struct Endpoint {
    address: String,
    logic: GrpcLogic,
    /// Until when it is tried last, in milliseconds since the start.
    deprioritized_until: AtomicU64,
}

impl GrpcLogics {
    /// Creates a pool of the logics that `addresses` returns at each call.
    #[must_use]
    pub fn new(addresses: LogicAddresses, config: ClientConfig) -> Self {
        let (known, next, started) = (Mutex::default(), AtomicUsize::new(0), Instant::now());
        let (last_error, has_error) = (Mutex::new(Some(NO_CALL_YET.to_owned())), AtomicBool::new(true));
        let shared = Shared { addresses, config, known, next, started, last_error, has_error };
        Self { shared: Arc::new(shared) }
    }

    /// Returns why no logic served the last call; `None` if one did.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        if !self.shared.has_error.load(Ordering::Relaxed) {
            return None;
        }
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes an idempotent call, at one logic after the other until one replies.
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
            for endpoint in shared.in_turn() {
                match call(&endpoint.logic).await {
                    Err(error) if is_unavailable(&error) => {
                        shared.failed(&endpoint);
                        last = Some(error);
                    }
                    answer => {
                        shared.record_success();
                        return answer;
                    }
                }
            }
            let error = last.unwrap_or_else(none);
            shared.record_error(error.to_string());
            Err(error)
        })
    }
}

impl GrpcLogics {
    /// Makes a call at one logic only: for calls that must not be repeated.
    fn ask_once<T: Send + Unpin + 'static>(
        &self,
        call: impl FnOnce(&GrpcLogic) -> Call<Result<T, LogicError>> + Send + 'static,
    ) -> Call<Result<T, LogicError>> {
        let shared = Arc::clone(&self.shared);
        Call::pending(async move {
            let Some(endpoint) = shared.in_turn().next() else { return Err(no_logic()) };
            let answer = call(&endpoint.logic).await;
            if answer.as_ref().is_err_and(is_unavailable) {
                shared.failed(&endpoint);
            }
            answer
        })
    }
}

impl Shared {
    fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        let list = (self.addresses)();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.list, &list) {
            known.update(list, &self.config);
        }
        Arc::clone(&known.endpoints)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns all logics in turn; those that failed recently are last.
    fn in_turn(&self) -> impl Iterator<Item = Arc<Endpoint>> + use<> {
        let endpoints = self.endpoints();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % endpoints.len().max(1);
        let now = self.now();
        let turn = endpoints[first..].iter().chain(&endpoints[..first]);
        let (rest, awake): (Vec<_>, Vec<_>) =
            turn.cloned().partition(|endpoint| endpoint.deprioritized_until.load(Ordering::Relaxed) > now);
        awake.into_iter().chain(rest)
    }

    fn record_success(&self) {
        if self.has_error.load(Ordering::Relaxed) {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.has_error.store(false, Ordering::Relaxed);
        }
    }

    fn record_error(&self, reason: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.has_error.store(true, Ordering::Relaxed);
    }

    fn failed(&self, endpoint: &Endpoint) {
        let rest = u64::try_from(FAILED_FOR.as_millis()).unwrap_or(u64::MAX);
        endpoint.deprioritized_until.store(self.now().saturating_add(rest), Ordering::Relaxed);
    }
}

impl Known {
    fn update(&mut self, list: Arc<Vec<String>>, config: &ClientConfig) {
        let endpoint = |address: &String| {
            // A logic that stays in the list keeps its connection.
            if let Some(known) = self.endpoints.iter().find(|known| known.address == *address) {
                return Some(Arc::clone(known));
            }
            match GrpcLogic::new(address, config.clone()) {
                Ok(logic) => {
                    tracing::info!(address, "a logic was added");
                    let endpoint =
                        Endpoint { address: address.clone(), logic, deprioritized_until: AtomicU64::new(0) };
                    Some(Arc::new(endpoint))
                }
                Err(error) => {
                    tracing::warn!(%error, "a logic cannot be reached");
                    None
                }
            }
        };
        let endpoints: Vec<Arc<Endpoint>> = list.iter().filter_map(endpoint).collect();
        for gone in self.endpoints.iter().filter(|known| !list.contains(&known.address)) {
            tracing::info!(address = gone.address, "a logic was removed");
        }
        (self.list, self.endpoints) = (list, Arc::new(endpoints));
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("logics", &self.endpoints()).finish_non_exhaustive()
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

    /// Called once: the backend may have handled the packet.
    fn receive(&self, upstream: Upstream) -> Call<Result<Bytes, LogicError>> {
        self.ask_once(move |logic| logic.receive(upstream))
    }

    /// Called once: the message may have been appended.
    fn timeline(&self, request: TimelineRequest) -> Call<Result<Bytes, LogicError>> {
        self.ask_once(move |logic| logic.timeline(request))
    }
}
