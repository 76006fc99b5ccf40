//! All clients of one worker: when each connects and sends heartbeats, and what they have received
//! together.

use std::sync::Arc;
use std::time::Duration;

use goim_session::ClientRules;
use goim_wire::Operation;
use mio::event::Event;
use mio::{Registry, Token};

use super::client::Client;
use super::connecting::{Setup, Source, receive_bytes};
use super::counters::{Counters, Phase};
use super::heartbeats::{Schedule, Windows};
use crate::clock::now_ns;
use crate::control::{HeartbeatReport, Plan, Progress, WorkerReport};
use crate::latency::Latency;
use crate::ledger::Ledger;

/// The maximum size of one read, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// From the first step of connecting to the auth reply.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two checks of clients that are not open yet.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// All clients of one worker.
pub(super) struct Clients {
    plan: Plan,
    rules: Arc<ClientRules>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// By number; `None` for a client that has ended. Clients that have not started yet are not in
    /// the list.
    clients: Vec<Option<Client>>,
    /// Trackers of clients that have ended. What such clients missed counts as lost too.
    ended_trackers: Vec<Box<[crate::tracker::Tracker]>>,
    /// Trackers of clients that reconnect, the last client first.
    returning: Vec<Box<[crate::tracker::Tracker]>>,
    /// Clients that have reconnected and were not reported yet.
    reconnected: Vec<u32>,
    counters: Counters,
    heartbeats: Option<Schedule>,
    windows: Option<Windows>,
    checked_ns: u64,
    buffer: Vec<u8>,
}

impl Clients {
    pub(super) fn new(plan: Plan) -> Self {
        // Heartbeats are scheduled here, so the session sends none by itself.
        let mut rules = ClientRules::default();
        rules.handshake_timeout = HANDSHAKE_TIMEOUT;
        rules.heartbeat_interval = Duration::MAX;
        let ledger = Ledger::new(plan.run, plan.streams, Operation(plan.operation));
        Self {
            rules: Arc::new(rules),
            // Without a configuration, TLS targets fail with the error of the server.
            tls: crate::certificate::client_config().ok(),
            clients: Vec::with_capacity(usize::try_from(plan.count).unwrap_or_default()),
            ended_trackers: Vec::new(),
            returning: Vec::new(),
            reconnected: Vec::new(),
            counters: Counters::new(ledger),
            heartbeats: None,
            windows: None,
            checked_ns: now_ns(),
            buffer: vec![0; READ_BYTES],
            plan,
        }
    }

    /// Handles an event of one client.
    pub(super) fn handle_event(&mut self, event: &Event) {
        let number = event.token().0;
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        let was_open = client.phase == Phase::Open;
        let mut result = Ok(());
        if event.is_writable() || event.is_error() {
            result = client.writable();
        }
        if result.is_ok()
            && (event.is_readable() || event.is_read_closed())
            && client.phase != Phase::Connecting
        {
            result = client.readable(&mut self.counters, &mut self.buffer, event.is_read_closed());
        }
        if self.counters.reconnects > 0 && !was_open && client.phase == Phase::Open {
            let local = u32::try_from(number).unwrap_or(u32::MAX);
            self.reconnected.push(self.plan.first.saturating_add(local));
        }
        if let Err(reason) = result {
            self.end(number, reason);
        }
    }

    /// Does what is due: starts connections, sends heartbeats, checks timeouts.
    pub(super) fn handle_time(&mut self, registry: &Registry) {
        while self.counters.opening < self.plan.connecting_max && self.start_next(registry) {}
        let now_ns = now_ns();
        while let Some((number, due_ns)) =
            self.heartbeats.as_mut().and_then(|heartbeats| heartbeats.next_due(now_ns))
        {
            self.send_heartbeat(number, due_ns);
        }
        let HeartbeatReport { sent, answered, .. } = self.counters.heartbeats;
        for number in self.windows.as_mut().map_or(0..0, |windows| windows.next(sent, answered)) {
            let clients = self.clients.len().max(1);
            self.send_heartbeat(number % clients, now_ns);
        }
        if now_ns.saturating_sub(self.checked_ns) >= crate::clock::nanos(CHECK_INTERVAL) {
            self.checked_ns = now_ns;
            self.check_times(now_ns);
        }
    }

    /// Returns the time until [`Clients::handle_time`] must be called.
    pub(super) fn next_wake_in(&self) -> Duration {
        let mut next =
            self.heartbeats.as_ref().map_or(Duration::MAX, |heartbeats| heartbeats.next_in(now_ns()));
        let HeartbeatReport { sent, answered, .. } = self.counters.heartbeats;
        if self.windows.is_some() && answered >= sent {
            next = Duration::ZERO;
        }
        if self.counters.opening > 0 { next.min(CHECK_INTERVAL) } else { next }
    }

    /// Starts the next connection. Returns false when all have started.
    fn start_next(&mut self, registry: &Registry) -> bool {
        let number = self.clients.len();
        let Ok(local) = u32::try_from(number) else { return false };
        if local >= self.plan.count || self.plan.targets.is_empty() {
            return false;
        }
        let global = self.plan.first.saturating_add(local);
        let setup = Setup {
            target: pick(&self.plan.targets, global),
            source: source(&self.plan, global, self.counters.reconnects),
            receive_bytes: receive_bytes(self.plan.count),
            rules: self.rules.clone(),
            tls: self.tls.as_ref(),
            token: token(&self.plan, global),
            trackers: self.returning.pop().unwrap_or_else(|| self.counters.ledger.trackers()),
            number: global,
            now: self.counters.session_time(now_ns()),
        };
        let client = Client::connect(setup, registry, Token(number));
        self.counters.opening = self.counters.opening.saturating_add(1);
        match client {
            Ok(client) => self.clients.push(Some(client)),
            Err(error) => {
                self.clients.push(None);
                self.ended_trackers.push(self.counters.ledger.trackers());
                self.counters.record_ended(Phase::Connecting, error.to_string());
            }
        }
        true
    }

    fn end(&mut self, number: usize, reason: String) {
        let Some(client) = self.clients.get_mut(number).and_then(Option::take) else { return };
        self.counters.record_ended(client.phase, reason);
        self.ended_trackers.push(client.trackers);
    }

    fn send_heartbeat(&mut self, number: usize, due_ns: u64) {
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        if client.phase != Phase::Open {
            return;
        }
        match client.send_heartbeat(due_ns) {
            Ok(true) => self.counters.heartbeats.sent += 1,
            Ok(false) => self.counters.heartbeats.overdue += 1,
            Err(reason) => self.end(number, reason),
        }
    }

    fn check_times(&mut self, now_ns: u64) {
        if self.counters.opening == 0 {
            return;
        }
        let now = self.counters.session_time(now_ns);
        let late = self.clients.iter_mut().enumerate().filter_map(|(number, client)| {
            let client = client.as_mut().filter(|client| client.phase != Phase::Open)?;
            client.check_time(now).err().map(|reason| (number, reason))
        });
        let late: Vec<_> = late.collect();
        late.into_iter().for_each(|(number, reason)| self.end(number, reason));
    }

    /// Starts heartbeats. The clients of all workers share the interval; this worker starts at its
    /// share of it.
    pub(super) fn start_heartbeats(&mut self, interval_ms: u64, clients: u32) {
        let interval = Duration::from_millis(interval_ms);
        let own = usize::try_from(self.plan.count).unwrap_or_default();
        // A part of one step: workers must not send at the same times.
        let share = f64::from(self.plan.first) / f64::from(clients.max(1));
        let shift = (interval / self.plan.count.max(1)).mul_f64(share);
        self.heartbeats =
            Some(Schedule::new(now_ns().saturating_add(crate::clock::nanos(shift)), interval, own));
    }

    /// Discards the latencies.
    pub(super) fn reset_latency(&mut self) {
        self.counters.ledger.reset_latency();
        self.counters.heartbeat_latency = Latency::default();
        self.counters.connect = Latency::default();
    }

    /// Closes all connections, as when a network fails, and connects again with the same keys.
    /// Received messages are still known.
    pub(super) fn reconnect_all(&mut self) {
        let trackers = self.clients.drain(..).flatten().map(|client| client.trackers);
        self.returning = trackers.rev().collect();
        (self.counters.open, self.counters.opening) = (0, 0);
        self.counters.reconnects = self.counters.reconnects.wrapping_add(1);
    }

    /// Takes the clients that have reconnected since the last call, by number.
    pub(super) fn take_reconnected(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.reconnected)
    }

    /// Starts heartbeats in windows, as fast as they are answered.
    pub(super) fn start_windows(&mut self, window: u32) {
        self.windows = Some(Windows::new(usize::try_from(window).unwrap_or(usize::MAX)));
    }

    /// Stops heartbeats.
    pub(super) fn stop_heartbeats(&mut self) {
        self.heartbeats = None;
        self.windows = None;
    }

    /// Sets the number of online sessions that heartbeat replies must contain.
    pub(super) fn expect_online(&mut self, count: i32) {
        self.counters.online = Some(count);
    }

    /// Returns true when messages have arrived since this progress was reported.
    pub(super) fn delivered_any_since(&self, reported: &Progress) -> bool {
        let before: u64 = reported.delivered.iter().sum();
        self.counters.ledger.delivered().sum::<u64>() != before
    }

    pub(super) fn progress(&self) -> Progress {
        let counters = &self.counters;
        Progress {
            open: counters.open,
            last_opened_ns: counters.last_opened_ns,
            ended: counters.ended,
            delivered: counters.ledger.delivered().collect(),
            heartbeats_sent: counters.heartbeats.sent,
            heartbeats_answered: counters.heartbeats.answered,
            received_bytes: counters.received_bytes,
            cpu_ns: crate::clock::nanos(crate::clock::own_cpu()),
            reasons: counters.reasons.clone(),
        }
    }

    pub(super) fn report(&self, published: &[u32]) -> WorkerReport {
        let counters = &self.counters;
        let living = self.clients.iter().flatten().map(|client| &*client.trackers);
        let ended = self.ended_trackers.iter().map(|trackers| &**trackers);
        let mut unexpected = counters.ledger.unexpected().clone();
        unexpected.mislabelled += counters.unexpected_replies;
        WorkerReport {
            streams: counters.ledger.reports(living.chain(ended), published),
            connect: counters.connect.samples(),
            heartbeats: HeartbeatReport {
                latency: counters.heartbeat_latency.samples(),
                ..counters.heartbeats.clone()
            },
            unexpected,
        }
    }

    /// Closes all connections.
    pub(super) fn close(&mut self) {
        self.clients.iter_mut().flatten().for_each(Client::close);
        self.clients.clear();
    }
}

fn pick<T>(list: &[T], number: u32) -> &T {
    let at = usize::try_from(number).unwrap_or_default() % list.len().max(1);
    &list[at]
}

/// Returns the source of a client: source addresses are filled one after the other. `None` lets the
/// kernel choose.
fn source(plan: &Plan, number: u32, reconnects: u32) -> Option<Source> {
    let each = plan.clients_per_source.max(1);
    let at = usize::try_from(number / each).ok()?;
    let addr = *plan.sources.get(at % plan.sources.len().max(1))?;
    let (first, count) = plan.ports;
    // Runs start at different ports, since those of the previous run are in TIME_WAIT.
    let start = plan.run.wrapping_add(reconnects.wrapping_mul(each));
    let offset = start.wrapping_add(number % each) % u32::from(count.max(1));
    Some(Source { addr, first, count, offset: u16::try_from(offset).unwrap_or_default() })
}

/// Returns the token of a client: a key of 36 bytes, a member, the room, three subscriptions.
fn token(plan: &Plan, number: u32) -> Vec<u8> {
    let Plan { run, room, operation, protover, .. } = plan;
    let member = crate::control::member(number);
    let accepts = [0, 1, 2].map(|more| operation.wrapping_add(more));
    let mut token = serde_json::json!({
        "mid": member,
        "key": crate::control::key(*run, number),
        "room_id": room,
        "platform": "bench",
        "accepts": accepts,
    });
    if let Some(protover) = protover {
        token["protover"] = (*protover).into();
    }
    token.to_string().into_bytes()
}
