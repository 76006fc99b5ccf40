//! Chaos: processes of a cluster are killed at random, then its engines and comets fail in one way
//! after the other, under pushes that are each retried until they are answered with success.
//! docs/reliability.md quotes the table that this prints.
//!
//! **What is required.** A session *lives* from the auth reply to its end, as its client sees both.
//! A push is required at a session that it targets when two things hold: the request that was
//! answered with success was made after the auth reply, and the session lived until the log was
//! drained, that is until the jobs had committed everything in the log at the time of the answer. A
//! client that is cut off and reconnects is two sessions. Pushes accepted between them, or in
//! flight at the end of the first, are required at neither. A session on a comet that is frozen or
//! cut off must be open at the end of the phase to count, since a comet that resumes closes its
//! sessions with a reason to reconnect.
//!
//! `scripts/chaos.sh` runs this and documents the environment variables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::fleet::{Fleet, ROLES};
use crate::harness::insist::{Insisted, Publishers};
use crate::harness::load::{Life, Profile, Push, Session, whole_again_within};
use crate::harness::log_watch::LogWatch;
use crate::harness::random::Random;
use crate::harness::server::RUNTIME;
use crate::harness::{Transport, eventually};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;

/// One of each kind on each comet: TCP and WebSocket, goim's and extended, those that stay with a
/// comet and those that go to the other one.
const SESSIONS: usize = 16;
/// How long there are pushes before a fault.
const LOAD_BEFORE: Duration = Duration::from_secs(1);
/// Between two kills.
const KILL_EVERY: Duration = Duration::from_secs(3);
/// A role that ends by itself is started again after this time, as systemd does with
/// `RestartSec=1`.
const RESTARTED_AFTER: Duration = Duration::from_secs(1);
/// How long anything may take until all are reached again; after it the phase has failed.
const WHOLE_AGAIN: Duration = Duration::from_secs(180);
/// How long the jobs may take to find new partitions.
const FOUND_WITHIN: Duration = Duration::from_secs(90);
/// How long the jobs may take to drain the log at the end of a phase.
const DRAINED: Duration = Duration::from_secs(120);
/// From the delivery of a message by the job to its arrival.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// A session lived until the log was drained when its end was seen so much later: more than it
/// takes to see it.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// What nearly all messages must arrive within while processes are killed.
const STALL_GOAL: Duration = Duration::from_secs(8);
/// The exit status of a role that cannot reach what it needs.
const GAVE_UP: i32 = 69;
/// The name of the topic, and of the group before there is another one.
const TOPIC: &str = "goim-push-topic";
const GROUP: &str = "goim-push-group-job";

/// The environment's variables.
struct Plan {
    seed: u64,
    kills_for: Duration,
    fault: Duration,
    lease: Duration,
    only: Vec<String>,
    settings: Vec<String>,
    has_namespaces: bool,
}

impl Plan {
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str, default: f64| {
            text(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
        };
        let notifications = |name: &str, by: char| -> Vec<String> {
            text(name).iter().flat_map(|text| text.split(by)).map(str::to_owned).collect()
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self {
            seed: Random::seed("SEED", u64::from(now.subsec_nanos())),
            kills_for: Duration::from_secs_f64(number("MINUTES", 3.0) * 60.0),
            fault: Duration::from_secs_f64(number("FAULT_SECONDS", 8.0)),
            lease: Duration::from_secs_f64(number("LEASE_SECONDS", 3.0)),
            only: notifications("CHAOS_OF", ','),
            settings: notifications("CHAOS_SETTINGS", ';'),
            has_namespaces: std::env::var_os("PARTITION_ID").is_some(),
        }
    }

    /// As few settings as possible: the results should hold for the defaults.
    fn settings(&self) -> Vec<String> {
        let mut settings = vec![format!("cluster.lease={}ms", self.lease.as_millis())];
        settings.extend(self.settings.iter().cloned());
        settings
    }

    fn is_chosen(&self, phase: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == phase)
    }

    /// Longer than a lease, whatever else is wanted.
    fn beyond_the_lease(&self) -> Duration {
        self.fault.max(self.lease + Duration::from_secs(2))
    }
}

/// Roles that ended by themselves, by exit status.
type Endings = BTreeMap<i32, usize>;

/// Starts roles again that end by themselves, as a service manager does.
struct Keeper {
    fleet: Arc<Fleet>,
    /// Held while a role is stopped on purpose.
    turn: Arc<Mutex<()>>,
    endings: Arc<Mutex<Endings>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Keeper {
    fn start(fleet: &Arc<Fleet>) -> Self {
        let (turn, endings, stop) = Default::default();
        let mut keeper = Self { fleet: Arc::clone(fleet), turn, endings, stop, thread: None };
        let (fleet, turn) = (Arc::clone(fleet), Arc::clone(&keeper.turn));
        let (endings, stop) = (Arc::clone(&keeper.endings), Arc::clone(&keeper.stop));
        keeper.thread = Some(std::thread::spawn(move || {
            let mut seen: BTreeMap<&str, Instant> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let _turn = turn.lock().unwrap();
                for role in ROLES {
                    let Some(status) = fleet.ended(role) else {
                        seen.remove(role);
                        continue;
                    };
                    let since = *seen.entry(role).or_insert_with(|| {
                        eprintln!("{role} has ended by itself with status {status}");
                        *endings.lock().unwrap().entry(status).or_default() += 1;
                        Instant::now()
                    });
                    if since.elapsed() >= RESTARTED_AFTER {
                        seen.remove(role);
                        fleet.tell("launch", role);
                    }
                }
            }
        }));
        keeper
    }

    /// Ends roles as crashes would, and starts them again at once.
    fn kill(&self, roles: &[&str]) {
        let _turn = self.turn.lock().unwrap();
        roles.iter().for_each(|role| self.fleet.tell("kill", role));
        roles.iter().for_each(|role| self.fleet.tell("launch", role));
    }

    /// How roles have ended since this was asked last.
    fn take_endings(&self) -> Endings {
        std::mem::take(&mut *self.endings.lock().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread holds a share of the fleet, which stops when the last share is dropped; the
        // process does not join threads by itself.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// What is put to the test.
struct World {
    fleet: Arc<Fleet>,
    keeper: Keeper,
    watch: LogWatch,
    sessions: Vec<Arc<Session>>,
}

impl World {
    fn start(plan: &Plan) -> Self {
        let settings = plan.settings();
        eprintln!("settings: {}", settings.join(" "));
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let fleet = Arc::new(Fleet::start_as(&settings, 4));
        let watch = LogWatch::start(&fleet.broker(), TOPIC, GROUP);
        let sessions = (0..SESSIONS).map(|nth| Session::start(nth, profile(&fleet, nth))).collect();
        let keeper = Keeper::start(&fleet);
        let world = Self { fleet, keeper, watch, sessions };
        assert!(world.whole_again().is_some(), "the cluster is whole at the start");
        world
    }

    fn whole_again(&self) -> Option<Duration> {
        let all: Vec<usize> = (0..SESSIONS).collect();
        whole_again_within(WHOLE_AGAIN, self.fleet.logics, &self.sessions, &all)
    }

    fn endings_of_sessions(&self) -> usize {
        let ended =
            |session: &Arc<Session>| session.lives().iter().filter(|life| life.ended.is_some()).count();
        self.sessions.iter().map(ended).sum()
    }

    /// What a comet listens on.
    fn endpoints(&self, comet: usize) -> [SocketAddr; 2] {
        [self.fleet.comets[comet], self.fleet.websockets[comet]]
    }

    /// Load before, while `fault` is done, and after it until all are reached and the log is
    /// drained; then what became of it.
    fn phase(&self, name: &str, rules: Rules, fault: impl FnOnce() -> Option<Instant>) -> Row {
        eprintln!("{name}");
        let (began, ended_before) = (Instant::now(), self.endings_of_sessions());
        let publishers = Publishers::start("chaos", self.fleet.logics, SESSIONS);
        std::thread::sleep(LOAD_BEFORE);
        let demanded_from = fault().unwrap_or(began);
        let whole_again = self.whole_again();
        std::thread::sleep(Duration::from_secs(1));
        let insisted = publishers.stop();
        let is_drained = self.watch.is_drained_within(DRAINED);
        let verdict = self.judge(&insisted.accepted, demanded_from, rules);
        let (endings, sessions_ended) =
            (self.keeper.take_endings(), self.endings_of_sessions() - ended_before);
        let reasons = self.reasons_since(began);
        let name = name.to_owned();
        let row = Row {
            name,
            began,
            rules,
            insisted,
            verdict,
            whole_again,
            is_drained,
            sessions_ended,
            reasons,
            endings,
        };
        eprintln!("{}", row.text());
        row
    }

    /// Waits for pushes in flight, then judges.
    fn judge(&self, accepted: &[Push], demanded_from: Instant, rules: Rules) -> Verdict {
        let until = Instant::now() + ARRIVES_WITHIN;
        loop {
            let verdict = self.judge_now(accepted, demanded_from, rules);
            if verdict.lost.is_empty() || Instant::now() > until {
                return verdict;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn judge_now(&self, accepted: &[Push], demanded_from: Instant, rules: Rules) -> Verdict {
        let mut verdict = Verdict::default();
        for push in accepted {
            let drained = self.watch.drained_at(push.accepted_at);
            let receivers = (0..SESSIONS).filter(|nth| push.to.is_none_or(|to| to == *nth));
            for nth in receivers {
                for life in self.sessions[nth].lives().iter() {
                    let count = life.received(&push.body).map_or(0, |(count, _)| count);
                    verdict.duplicates += count.saturating_sub(1);
                    let is_demanded = push.begun_at >= demanded_from
                        && life.began < push.begun_at
                        && self.lived_until(life, drained, rules);
                    if !is_demanded {
                        continue;
                    }
                    verdict.demanded += 1;
                    match life.received(&push.body) {
                        Some((_, at)) => verdict.stalls.push(at.saturating_duration_since(push.accepted_at)),
                        None => verdict.lost.push(Lost {
                            body: push.body.clone(),
                            session: nth,
                            accepted: push.accepted_at,
                            life: (life.began, life.ended),
                        }),
                    }
                }
            }
        }
        verdict.stalls.sort_unstable();
        verdict
    }

    fn lived_until(&self, life: &Life, drained: Option<Instant>, rules: Rules) -> bool {
        let Some(ended) = life.ended else { return true };
        let is_told = rules.silent_comet.is_some_and(|comet| self.endpoints(comet).contains(&life.comet));
        !is_told && drained.is_some_and(|drained| ended > drained + SEEN_WITHIN)
    }

    /// The server's reasons for ended sessions: negotiated clients receive one, unless the process
    /// died.
    fn reasons_since(&self, began: Instant) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for session in &self.sessions {
            for life in session.lives().iter().filter(|life| life.ended.is_some_and(|ended| ended > began)) {
                let other = if life.is_negotiated { "nothing" } else { "goim's clients: nothing" };
                let reason = life.reason.as_deref().unwrap_or(other);
                *reasons.entry(reason.to_owned()).or_default() += 1;
            }
        }
        reasons
    }
}

fn profile(fleet: &Fleet, nth: usize) -> Profile {
    let is_set = |bit: usize| nth >> bit & 1 == 1;
    let transport = if is_set(1) { Transport::Ws } else { Transport::Tcp };
    let mut comets = match transport {
        Transport::Tcp => fleet.comets.to_vec(),
        Transport::Ws => fleet.websockets.to_vec(),
    };
    comets.rotate_left(nth % 2);
    if !is_set(3) {
        // It stays with its comet.
        comets.truncate(1);
    }
    Profile { comets, transport, is_negotiated: is_set(2) }
}

/// What is different about a phase.
#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// A comet that is frozen or cut off: 0 or 1.
    silent_comet: Option<usize>,
    /// The stall is compared with the goal.
    has_goal: bool,
}

/// What became of what was accepted.
#[derive(Debug, Default)]
struct Verdict {
    /// Deliveries that were to be made.
    demanded: usize,
    /// Those that were not.
    lost: Vec<Lost>,
    /// Beyond the first of each message to a session.
    duplicates: usize,
    /// From the answer to the arrival of those that were, sorted.
    stalls: Vec<Duration>,
}

/// A delivery that was to be made and was not.
#[derive(Debug)]
struct Lost {
    body: String,
    session: usize,
    accepted: Instant,
    life: (Instant, Option<Instant>),
}

impl Lost {
    /// With times since the phase began.
    fn text(&self, phase: Instant) -> String {
        let at = |time: Instant| match time.checked_duration_since(phase) {
            Some(since) => format!("{:.2} s", since.as_secs_f64()),
            None => "before".to_owned(),
        };
        let (began, ended) = (at(self.life.0), self.life.1.map_or("now".to_owned(), at));
        let Self { body, session, accepted, .. } = self;
        format!("{body} at session {session}, accepted at {}, lived from {began} to {ended}", at(*accepted))
    }
}

impl Verdict {
    fn stall(&self, percent: usize) -> Duration {
        let last = self.stalls.len().saturating_sub(1);
        self.stalls.get(last * percent / 100).copied().unwrap_or_default()
    }
}

struct Row {
    name: String,
    began: Instant,
    rules: Rules,
    insisted: Insisted,
    verdict: Verdict,
    whole_again: Option<Duration>,
    is_drained: bool,
    sessions_ended: usize,
    reasons: BTreeMap<String, usize>,
    endings: Endings,
}

impl Row {
    const HEAD: &str = "| what | accepted | tried again | deliveries demanded | lost | duplicates | sessions ended | roles that gave up | \
        whole again after | stall p50 | p99 | longest |\n|---|---|---|---|---|---|---|---|---|---|---|---|";

    fn text(&self) -> String {
        let Self { insisted, verdict, .. } = self;
        let whole =
            self.whole_again.map_or("never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {whole} | {} ms | {} ms | {} ms |",
            self.name,
            insisted.accepted.len(),
            insisted.retried,
            verdict.demanded,
            verdict.lost.len(),
            verdict.duplicates,
            self.sessions_ended,
            self.endings.get(&GAVE_UP).copied().unwrap_or_default(),
            verdict.stall(50).as_millis(),
            verdict.stall(99).as_millis(),
            verdict.stall(100).as_millis(),
        )
    }

    /// The notes below the table.
    fn print_notes(&self) {
        let name = &self.name;
        if !self.reasons.is_empty() {
            eprintln!("{name}: why sessions ended: {:?}", self.reasons);
        }
        if self.rules.has_goal {
            let (p99, is_met) = (self.verdict.stall(99), self.verdict.stall(99) < STALL_GOAL);
            let notification = if is_met { "met" } else { "MISSED" };
            eprintln!("{name}: p99 of the stall is {p99:?}; the goal of {STALL_GOAL:?} is {notification}");
        }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault =
            |is_so: bool, text: String| faults.extend(is_so.then(|| format!("{}: {text}", self.name)));
        let lost = &self.verdict.lost;
        let some =
            lost.iter().step_by(lost.len() / 10 + 1).map(|lost| format!("\n  {}", lost.text(self.began)));
        fault(!lost.is_empty(), format!("{} lost, among them:{}", lost.len(), some.collect::<String>()));
        fault(self.insisted.unanswered > 0, format!("{} never answered", self.insisted.unanswered));
        fault(self.insisted.accepted.len() < 100, "hardly anything was accepted".to_owned());
        fault(self.verdict.demanded < 100, "hardly anything was demanded".to_owned());
        fault(self.whole_again.is_none(), format!("not whole again within {WHOLE_AGAIN:?}"));
        fault(!self.is_drained, format!("the log is not drained within {DRAINED:?}"));
        let crashes: Vec<_> = self.endings.iter().filter(|(status, _)| **status != GAVE_UP).collect();
        fault(!crashes.is_empty(), format!("roles crashed, by exit status: {crashes:?}"));
        faults
    }
}

/// Every three seconds a role at random.
fn kill_at_random(world: &World, plan: &Plan, random: &mut Random) {
    // As the times of what is lost.
    let began = Instant::now() - LOAD_BEFORE;
    for nth in 1.. {
        let next = began + KILL_EVERY * nth;
        if next > began + LOAD_BEFORE + plan.kills_for {
            return;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let kind = *random.one(&["job", "logic", "comet"]);
        let role = format!("{kind}{}", 1 + random.below(2));
        let at = began.elapsed();
        world.keeper.kill(&[&role]);
        eprintln!(
            "{:.2} s: {role} killed, started again at {:.2} s",
            at.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
    }
}

/// Stops an engine for a while in which a role that needs it is killed, and has to be started
/// without it.
fn without_engine(world: &World, plan: &Plan, role: &str, stop: impl FnOnce(), start: impl FnOnce()) {
    stop();
    std::thread::sleep(plan.fault / 2);
    world.keeper.kill(&[role]);
    std::thread::sleep(plan.fault / 2);
    start();
}

/// Makes Redis refuse writes for longer than a lease.
fn refusing(world: &World, plan: &Plan, refuse: &[&str], undo: &[&str]) {
    let ask = |notifications: &[&str]| {
        assert_eq!(world.fleet.redis(notifications).trim(), "OK", "{notifications:?}")
    };
    ask(refuse);
    std::thread::sleep(plan.beyond_the_lease());
    ask(undo);
}

/// The jobs are of a new group; they are killed in its first second, before they need have
/// committed anything. Gives the moment from which the group has its partitions.
fn new_group(world: &World, random: &mut Random) -> Option<Instant> {
    let total = partitions(world);
    let group = harness::unique(GROUP);
    {
        let _turn = world.keeper.turn.lock().unwrap();
        ["job1", "job2"].iter().for_each(|job| world.fleet.tell("kill", job));
        world.fleet.set(&format!("kafka.group={group}"));
        world.watch.set_group(&group);
        ["job1", "job2"].iter().for_each(|job| world.fleet.tell("launch", job));
    }
    eventually("the new group has the partitions", || {
        world.fleet.partitions_read().into_iter().flatten().sum::<u32>() == total
    });
    let joined = Instant::now();
    std::thread::sleep(Duration::from_millis(100 + random.below(800) as u64));
    world.keeper.kill(&["job1", "job2"]);
    Some(joined)
}

fn partitions(world: &World) -> u32 {
    let client: rdkafka::consumer::BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", world.fleet.broker()).create().unwrap();
    let metadata =
        rdkafka::consumer::Consumer::fetch_metadata(&client, Some(TOPIC), Duration::from_secs(10)).unwrap();
    u32::try_from(metadata.topics()[0].partitions().len()).unwrap()
}

/// Three times as many partitions, and a logic that knows of them before the jobs do.
fn raise_partitions(world: &World, random: &mut Random) {
    let count = partitions(world) as usize * 3;
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", world.fleet.broker()).create().unwrap();
    let results = RUNTIME
        .block_on(admin.create_partitions(&[NewPartitions::new(TOPIC, count)], &AdminOptions::new()))
        .unwrap();
    results.into_iter().for_each(|result| assert_eq!(result.unwrap(), TOPIC));
    world.keeper.kill(&[&format!("logic{}", 1 + random.below(2))]);
    // Consumers look for new partitions from time to time, once a minute at least.
    let read = || world.fleet.partitions_read().into_iter().flatten().sum::<u32>() as usize;
    let until = Instant::now() + FOUND_WITHIN;
    while read() < count && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("{} of {count} partitions are read", read());
}

fn partition(verb: &str, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/cluster-partition.sh");
    assert!(Command::new(script).args([verb, name]).status().unwrap().success(), "{verb} {name}");
}

/// All phases that are chosen, in order.
fn run(world: &World, plan: &Plan) -> Vec<Row> {
    let (fleet, random) = (&world.fleet, &mut Random::new(plan.seed));
    let (seconds, lease) = (plan.fault.as_secs_f64(), plan.lease.as_secs_f64());
    let either = |random: &mut Random, kind: &str| format!("{kind}{}", 1 + random.below(2));
    let plain = Rules::default();
    let mut rows = Vec::new();
    if plan.is_chosen("kills") {
        let name = format!("kill -9 of a random role every 3 s for {} s", plan.kills_for.as_secs());
        let rules = Rules { has_goal: true, ..plain };
        rows.push(world.phase(&name, rules, || {
            kill_at_random(world, plan, random);
            None
        }));
    }
    if plan.is_chosen("redis-stopped") {
        let role = either(random, "logic");
        rows.push(world.phase(
            &format!("Redis stopped for {seconds} s; {role} killed meanwhile"),
            plain,
            || {
                let (stop, go_on) = (|| fleet.tell("freeze", "redis"), || fleet.tell("thaw", "redis"));
                without_engine(world, plan, &role, stop, go_on);
                None
            },
        ));
    }
    if plan.is_chosen("redis-restarted") {
        let role = either(random, "job");
        rows.push(world.phase(
            &format!("Redis gone for {seconds} s, back empty; {role} killed meanwhile"),
            plain,
            || {
                let (stop, start) = (|| fleet.tell("kill", "redis"), || fleet.tell("again", "redis"));
                without_engine(world, plan, &role, stop, start);
                None
            },
        ));
    }
    let refusals: [(&str, &str, &[&str], &[&str]); 3] = [
        (
            "redis-memory",
            "without memory",
            &["config", "set", "maxmemory", "1"],
            &["config", "set", "maxmemory", "0"],
        ),
        (
            "redis-replicas",
            "without enough replicas",
            &["config", "set", "min-replicas-to-write", "3"],
            &["config", "set", "min-replicas-to-write", "0"],
        ),
        ("redis-readonly", "read-only", &["replicaof", "127.0.0.1", "1"], &["replicaof", "no", "one"]),
    ];
    for (phase, what, refuse, undo) in refusals {
        if plan.is_chosen(phase) {
            let name = format!(
                "Redis {what} for {} s, a lease being {lease} s",
                plan.beyond_the_lease().as_secs_f64()
            );
            rows.push(world.phase(&name, plain, || {
                refusing(world, plan, refuse, undo);
                None
            }));
        }
    }
    if plan.is_chosen("kafka-stopped") {
        let role = either(random, "job");
        rows.push(world.phase(
            &format!("Kafka stopped for {seconds} s; {role} killed meanwhile"),
            plain,
            || {
                let (stop, go_on) = (|| fleet.tell("freeze", "kafka"), || fleet.tell("thaw", "kafka"));
                without_engine(world, plan, &role, stop, go_on);
                None
            },
        ));
    }
    if plan.is_chosen("new-group") {
        rows.push(world.phase("both jobs of a new group killed in its first second", plain, || {
            new_group(world, random)
        }));
    }
    if plan.is_chosen("partitions") {
        rows.push(world.phase("partitions of the topic raised from 4 to 12", plain, || {
            raise_partitions(world, random);
            None
        }));
    }
    for (phase, verbs) in [("comet-cut-off", ("cut", "heal")), ("comet-frozen", ("freeze", "thaw"))] {
        let is_cut = phase == "comet-cut-off";
        if !plan.is_chosen(phase) {
            continue;
        }
        if is_cut && !plan.has_namespaces {
            eprintln!("passed over: cutting a comet off needs network namespaces");
            continue;
        }
        let nth = random.below(2);
        let comet = format!("comet{}", nth + 1);
        let time = plan.beyond_the_lease();
        let what = if is_cut { "cut off" } else { "frozen" };
        let name = format!("{comet} {what} for {} s, a lease being {lease} s", time.as_secs_f64());
        rows.push(world.phase(&name, Rules { silent_comet: Some(nth), ..plain }, || {
            let tell = |verb: &str| if is_cut { partition(verb, &comet) } else { fleet.tell(verb, &comet) };
            tell(verbs.0);
            std::thread::sleep(time);
            tell(verbs.1);
            None
        }));
    }
    rows
}

#[test]
#[ignore = "kills processes and stops engines for minutes; run by scripts/chaos.sh"]
fn nothing_is_lost_to_sessions_that_live() {
    let plan = Plan::read();
    let world = World::start(&plan);
    let rows = run(&world, &plan);
    eprintln!("\nSEED={}\n{}", plan.seed, Row::HEAD);
    rows.iter().for_each(|row| eprintln!("{}", row.text()));
    rows.iter().for_each(Row::print_notes);
    let faults: Vec<String> = rows.iter().flat_map(Row::faults).collect();
    assert!(!rows.is_empty(), "CHAOS_OF names no phase");
    world.sessions.iter().for_each(|session| session.stop());
    assert!(faults.is_empty(), "SEED={}:\n{}", plan.seed, faults.join("\n"));
}
