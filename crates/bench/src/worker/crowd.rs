//! All clients of one worker: who connects when, who sends a heartbeat when, what they have received together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use goim_session::{ClientRules, Moment};
use goim_wire::Operation;
use mio::event::Event;
use mio::{Registry, Token};

use super::beats::{Beats, Windows};
use super::client::{Client, Phase};
use super::connecting::{Beginning, Source, receive_bytes};
use crate::clock::now_ns;
use crate::control::{BeatReport, Plan, Progress, Report};
use crate::latency::Latency;
use crate::ledger::Ledger;

/// One read takes at most this much.
const READ_BYTES: usize = 64 * 1024;

/// From the first step of connecting to the auth reply.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often clients that are not open yet are looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// All clients of one worker.
pub(super) struct Crowd {
    plan: Plan,
    rules: Arc<ClientRules>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// By number; `None` for one that has ended. Shorter than planned while there are more to begin.
    clients: Vec<Option<Client>>,
    /// What clients that have ended had received: what they did not is lost like any other.
    ended_trackers: Vec<Box<[crate::tracker::Tracker]>>,
    /// Of those who come back, the last first.
    returning: Vec<Box<[crate::tracker::Tracker]>>,
    /// Have come back, and the parent has not heard of it.
    returned: Vec<u32>,
    accounts: Accounts,
    beats: Option<Beats>,
    windows: Option<Windows>,
    checked_ns: u64,
    buffer: Vec<u8>,
}

/// What all clients of a worker write into.
pub(super) struct Accounts {
    pub(super) ledger: Ledger,
    began_ns: u64,
    connect: Latency,
    open: u32,
    opening: u32,
    ended: u32,
    last_opened_ns: u64,
    beats: BeatReport,
    beat_latency: Latency,
    online: Option<i32>,
    unasked: u64,
    pub(super) received_bytes: u64,
    /// How often everybody has vanished and come back.
    returns: u32,
    reasons: BTreeMap<String, u32>,
}

impl Crowd {
    pub(super) fn new(plan: Plan) -> Self {
        // Heartbeats are sent by the crowd, so that their rhythm and their latency are its own.
        let mut rules = ClientRules::default();
        rules.handshake_timeout = HANDSHAKE_TIMEOUT;
        rules.heartbeat_interval = Duration::MAX;
        let ledger = Ledger::new(plan.run, plan.streams, Operation(plan.operation));
        Self {
            rules: Arc::new(rules),
            // Without it a target inside TLS fails at its first byte, with the server's words for it.
            tls: crate::certificate::client_config().ok(),
            clients: Vec::with_capacity(usize::try_from(plan.count).unwrap_or_default()),
            ended_trackers: Vec::new(),
            returning: Vec::new(),
            returned: Vec::new(),
            accounts: Accounts::new(ledger),
            beats: None,
            windows: None,
            checked_ns: now_ns(),
            buffer: vec![0; READ_BYTES],
            plan,
        }
    }

    /// Something is to be done for one client.
    pub(super) fn ready(&mut self, event: &Event) {
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
            result = client.readable(&mut self.accounts, &mut self.buffer, event.is_read_closed());
        }
        if self.accounts.returns > 0 && !was_open && client.phase == Phase::Open {
            let local = u32::try_from(number).unwrap_or(u32::MAX);
            self.returned.push(self.plan.first.saturating_add(local));
        }
        if let Err(reason) = result {
            self.end(number, reason);
        }
    }

    /// What is to be done without an event: begin connections, send heartbeats, look at the time.
    pub(super) fn turn(&mut self, registry: &Registry) {
        while self.accounts.opening < self.plan.in_flight_max && self.begin(registry) {}
        let now_ns = now_ns();
        while let Some((number, due_ns)) = self.beats.as_mut().and_then(|beats| beats.next_due(now_ns)) {
            self.beat_one(number, due_ns);
        }
        let BeatReport { sent, answered, .. } = self.accounts.beats;
        for number in self.windows.as_mut().map_or(0..0, |windows| windows.next(sent, answered)) {
            let clients = self.clients.len().max(1);
            self.beat_one(number % clients, now_ns);
        }
        if now_ns.saturating_sub(self.checked_ns) >= crate::clock::nanos(CHECK_INTERVAL) {
            self.checked_ns = now_ns;
            self.check_times(now_ns);
        }
    }

    /// How long [`Crowd::turn`] can wait.
    pub(super) fn next_turn_in(&self) -> Duration {
        let mut beat = self.beats.as_ref().map_or(Duration::MAX, |beats| beats.next_in(now_ns()));
        let BeatReport { sent, answered, .. } = self.accounts.beats;
        if self.windows.is_some() && answered >= sent {
            beat = Duration::ZERO;
        }
        if self.accounts.opening > 0 { beat.min(CHECK_INTERVAL) } else { beat }
    }

    /// Begins one more connection; false when there is none to begin.
    fn begin(&mut self, registry: &Registry) -> bool {
        let number = self.clients.len();
        let Ok(local) = u32::try_from(number) else { return false };
        if local >= self.plan.count || self.plan.targets.is_empty() {
            return false;
        }
        let global = self.plan.first.saturating_add(local);
        let beginning = Beginning {
            target: pick(&self.plan.targets, global),
            source: source(&self.plan, global, self.accounts.returns),
            receive_bytes: receive_bytes(self.plan.count),
            rules: self.rules.clone(),
            tls: self.tls.as_ref(),
            token: token(&self.plan, global),
            trackers: self.returning.pop().unwrap_or_else(|| self.accounts.ledger.trackers()),
            number: global,
            now: self.accounts.moment(now_ns()),
        };
        let client = Client::begin(beginning, registry, Token(number));
        self.accounts.opening = self.accounts.opening.saturating_add(1);
        match client {
            Ok(client) => self.clients.push(Some(client)),
            Err(error) => {
                self.clients.push(None);
                self.ended_trackers.push(self.accounts.ledger.trackers());
                self.accounts.ended_while(Phase::Connecting, error.to_string());
            }
        }
        true
    }

    fn end(&mut self, number: usize, reason: String) {
        let Some(client) = self.clients.get_mut(number).and_then(Option::take) else { return };
        self.accounts.ended_while(client.phase, reason);
        self.ended_trackers.push(client.trackers);
    }

    fn beat_one(&mut self, number: usize, due_ns: u64) {
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        if client.phase != Phase::Open {
            return;
        }
        match client.beat(due_ns) {
            Ok(true) => self.accounts.beats.sent += 1,
            Ok(false) => self.accounts.beats.overdue += 1,
            Err(reason) => self.end(number, reason),
        }
    }

    fn check_times(&mut self, now_ns: u64) {
        if self.accounts.opening == 0 {
            return;
        }
        let now = self.accounts.moment(now_ns);
        let late = self.clients.iter_mut().enumerate().filter_map(|(number, client)| {
            let client = client.as_mut().filter(|client| client.phase != Phase::Open)?;
            client.check_time(now).err().map(|reason| (number, reason))
        });
        let late: Vec<_> = late.collect();
        late.into_iter().for_each(|(number, reason)| self.end(number, reason));
    }

    /// Begins to send heartbeats. All `clients` of the benchmark share the rhythm; this worker's begin at its place in it.
    pub(super) fn beat(&mut self, interval_ms: u64, clients: u32) {
        let interval = Duration::from_millis(interval_ms);
        let own = usize::try_from(self.plan.count).unwrap_or_default();
        // A part of one step: workers must not beat in unison.
        let place = f64::from(self.plan.first) / f64::from(clients.max(1));
        let shift = (interval / self.plan.count.max(1)).mul_f64(place);
        self.beats = Some(Beats::new(now_ns().saturating_add(crate::clock::nanos(shift)), interval, own));
    }

    /// Begins new distributions of latency.
    pub(super) fn fresh(&mut self) {
        self.accounts.ledger.fresh();
        self.accounts.beat_latency = Latency::default();
        self.accounts.connect = Latency::default();
    }

    /// Everybody vanishes, as when a network fails, and connects again with the same key. What was received stays known.
    pub(super) fn come_back(&mut self) {
        let trackers = self.clients.drain(..).flatten().map(|client| client.trackers);
        self.returning = trackers.rev().collect();
        (self.accounts.open, self.accounts.opening) = (0, 0);
        self.accounts.returns = self.accounts.returns.wrapping_add(1);
    }

    /// Who has come back since this was asked for the last time.
    pub(super) fn take_returned(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.returned)
    }

    /// Begins to send heartbeats as fast as they are answered, so many at once.
    pub(super) fn beat_densely(&mut self, window: u32) {
        self.windows = Some(Windows::new(usize::try_from(window).unwrap_or(usize::MAX)));
    }

    /// Sends no further heartbeats.
    pub(super) fn stop_beats(&mut self) {
        self.beats = None;
        self.windows = None;
    }

    /// From now on, an answer to a heartbeat must say this number.
    pub(super) fn expect_online(&mut self, count: i32) {
        self.accounts.online = Some(count);
    }

    /// True when messages have come that the parent has not heard of.
    pub(super) fn delivered_any_since(&self, told: &Progress) -> bool {
        let before: u64 = told.delivered.iter().sum();
        self.accounts.ledger.delivered().sum::<u64>() != before
    }

    pub(super) fn progress(&self) -> Progress {
        let accounts = &self.accounts;
        Progress {
            open: accounts.open,
            last_opened_ns: accounts.last_opened_ns,
            ended: accounts.ended,
            delivered: accounts.ledger.delivered().collect(),
            beats_sent: accounts.beats.sent,
            beats_answered: accounts.beats.answered,
            received_bytes: accounts.received_bytes,
            cpu_ns: crate::clock::nanos(crate::clock::own_cpu()),
            reasons: accounts.reasons.clone(),
        }
    }

    pub(super) fn report(&self, published: &[u32]) -> Report {
        let accounts = &self.accounts;
        let living = self.clients.iter().flatten().map(|client| &*client.trackers);
        let ended = self.ended_trackers.iter().map(|trackers| &**trackers);
        let mut strays = accounts.ledger.strays().clone();
        strays.mislabelled += accounts.unasked;
        Report {
            streams: accounts.ledger.reports(living.chain(ended), published),
            connect: accounts.connect.samples(),
            beats: BeatReport { latency: accounts.beat_latency.samples(), ..accounts.beats.clone() },
            strays,
        }
    }

    /// Ends all connections.
    pub(super) fn close(&mut self) {
        self.clients.iter_mut().flatten().for_each(Client::close);
        self.clients.clear();
    }
}

impl Accounts {
    fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            began_ns: now_ns(),
            connect: Latency::default(),
            open: 0,
            opening: 0,
            ended: 0,
            last_opened_ns: 0,
            beats: BeatReport::default(),
            beat_latency: Latency::default(),
            online: None,
            unasked: 0,
            received_bytes: 0,
            returns: 0,
            reasons: BTreeMap::new(),
        }
    }

    /// The sessions' clock.
    pub(super) fn moment(&self, now_ns: u64) -> Moment {
        Moment(now_ns.saturating_sub(self.began_ns) / 1_000_000)
    }

    /// A client was authenticated.
    pub(super) fn opened(&mut self, began_ns: u64, now_ns: u64) {
        self.connect.record(began_ns, now_ns);
        self.opening = self.opening.saturating_sub(1);
        self.open = self.open.saturating_add(1);
        self.last_opened_ns = now_ns;
    }

    fn ended_while(&mut self, phase: Phase, reason: String) {
        let (count, when) = match phase {
            Phase::Connecting => (&mut self.opening, "connecting"),
            Phase::Opening => (&mut self.opening, "authenticating"),
            Phase::Open => (&mut self.open, "open"),
        };
        *count = count.saturating_sub(1);
        self.ended = self.ended.saturating_add(1);
        *self.reasons.entry(format!("while {when}: {reason}")).or_default() += 1;
    }

    pub(super) fn beat_answered(&mut self, due_ns: u64, now_ns: u64, count: Option<i32>) {
        self.beats.answered += 1;
        self.beat_latency.record(due_ns, now_ns);
        if self.online.is_some() && self.online != count {
            self.beats.wrong_count += 1;
        }
    }

    /// A packet that answers nothing and pushes nothing.
    pub(super) fn unasked(&mut self) {
        self.unasked += 1;
    }
}

fn pick<T>(list: &[T], number: u32) -> &T {
    let at = usize::try_from(number).unwrap_or_default() % list.len().max(1);
    &list[at]
}

/// Where client `number` connects from: sources are filled one after the other. `None` leaves it to the system.
fn source(plan: &Plan, number: u32, returns: u32) -> Option<Source> {
    let each = plan.clients_per_source.max(1);
    let at = usize::try_from(number / each).ok()?;
    let addr = *plan.sources.get(at % plan.sources.len().max(1))?;
    let (first, count) = plan.ports;
    // Runs begin at different ports, since those of the last run are still in TIME_WAIT.
    let first_port = plan.run.wrapping_add(returns.wrapping_mul(each));
    let place = first_port.wrapping_add(number % each) % u32::from(count.max(1));
    Some(Source { addr, first, count, place: u16::try_from(place).unwrap_or_default() })
}

/// What client `number` says of itself: a key of 36 bytes, a member, the room, three subscriptions.
fn token(plan: &Plan, number: u32) -> Vec<u8> {
    let Plan { run, room, operation, protover, .. } = plan;
    let member = super::member(number);
    let accepts = [0, 1, 2].map(|more| operation.wrapping_add(more));
    let mut token = serde_json::json!({
        "mid": member,
        "key": super::key(*run, number),
        "room_id": room,
        "platform": "bench",
        "accepts": accepts,
    });
    if let Some(protover) = protover {
        token["protover"] = (*protover).into();
    }
    token.to_string().into_bytes()
}
