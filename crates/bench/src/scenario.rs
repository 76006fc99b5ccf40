//! The course of a run: everybody connects, heartbeats go on, messages to the room come at a rate, broadcasts one by one,
//! everybody leaves. The same for a server and for the reference.

use std::time::{Duration, Instant};

use crate::clock::now_ns;
use crate::control::{Command, Target};
use crate::error::BenchError;
use crate::fleet::{Fleet, Overall};
use crate::load::Load;
use crate::machine::{Processors, processors};
use crate::message::Message;
use crate::outcome::{Connect, Memory, Outcome, Published, Quiet, Sum, each, float};
use crate::progress::Progress;
use crate::publisher::{Audience, Publisher};
use crate::server::{Usage, usage};

/// How long everybody together may take to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(180);

/// Between the end of traffic, or of the connections, and a look at the memory.
const MEMORY_SETTLES: Duration = Duration::from_secs(3);

/// What a run is done to.
pub(crate) struct Subject<'a> {
    pub(crate) targets: Vec<Target>,
    pub(crate) publisher: Publisher<'a>,
    /// The process to look at, when it is on this machine.
    pub(crate) pid: Option<u32>,
    pub(crate) run: u32,
}

/// Does one run.
///
/// # Errors
/// When not everybody could connect, a push was refused, or a process of the benchmark has gone. Losses are no error.
pub(crate) fn run(load: &Load, subject: Subject<'_>, progress: &Progress) -> Result<Outcome, BenchError> {
    let before = Snapshot::take(subject.pid, &Overall::default());
    let plan = load.plan(subject.run, subject.targets)?;
    let began_ns = now_ns();
    let fleet = Fleet::launch(load.workers()?, &plan, &load.client_cpus)?;
    let (pid, run) = (subject.pid, subject.run);
    let mut course =
        Course { load, progress, fleet, publisher: subject.publisher, pid, run, quiet_cost: None };
    let connect = course.connect(&before, began_ns)?;
    let interval_ms = u64::try_from(load.heartbeat.as_millis()).unwrap_or(u64::MAX).max(1);
    course.fleet.tell_all(&Command::Beat { interval_ms, clients: load.connections })?;
    course.pause("settle", load.settle)?;
    let online = i32::try_from(load.connections).unwrap_or(i32::MAX);
    course.fleet.tell_all(&Command::ExpectOnline(online))?;
    let idle = course.snapshot();
    let quiet = course.quiet()?;
    let room = course.room()?;
    let all = course.broadcasts()?;
    if subject.pid.is_some() {
        course.pause("settle", MEMORY_SETTLES)?;
    }
    let after_traffic = course.snapshot();
    course.finish([&room, &all], connect, quiet, [before, idle, after_traffic])
}

struct Course<'a> {
    load: &'a Load,
    progress: &'a Progress,
    fleet: Fleet,
    publisher: Publisher<'a>,
    pid: Option<u32>,
    run: u32,
    /// What the server and the clients spend on heartbeats in a second.
    quiet_cost: Option<(Duration, Duration)>,
}

/// What everybody had used and done at one moment.
#[derive(Debug, Clone)]
struct Snapshot {
    at: Instant,
    server: Option<Usage>,
    client_cpu: Duration,
    machine: Processors,
    beats_answered: u64,
}

impl Snapshot {
    fn take(pid: Option<u32>, overall: &Overall) -> Self {
        Self {
            at: Instant::now(),
            server: pid.and_then(usage),
            client_cpu: Duration::from_nanos(overall.cpu_ns),
            machine: processors(),
            beats_answered: overall.beats_answered,
        }
    }

    fn server_cpu_since(&self, before: &Self) -> Option<Duration> {
        let (now, then) = (self.server?, before.server?);
        let own = now.cpu_us.saturating_sub(then.cpu_us);
        Some(Duration::from_micros(own + now.softirq_us.saturating_sub(then.softirq_us)))
    }

    /// Share of the machine's processors that went to processes which have no part in this.
    fn others_since(&self, before: &Self) -> Option<f64> {
        let ours = self.server_cpu_since(before)? + self.client_cpu_since(before);
        let (busy, all) = (
            self.machine.busy.checked_sub(before.machine.busy)?,
            self.machine.all.checked_sub(before.machine.all)?,
        );
        Some(busy.saturating_sub(ours).as_secs_f64() / all.as_secs_f64().max(1e-9))
    }

    fn client_cpu_since(&self, before: &Self) -> Duration {
        self.client_cpu.saturating_sub(before.client_cpu)
    }
}

impl Course<'_> {
    fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.pid, &self.fleet.overall())
    }

    fn connect(&mut self, before: &Snapshot, began_ns: u64) -> Result<Connect, BenchError> {
        let clients = self.load.connections;
        self.progress.phase("connect", u64::from(clients));
        let progress = self.progress;
        self.fleet.hear(Instant::now() + CONNECT_DEADLINE, |all| {
            progress.at(u64::from(all.open));
            all.ended > 0 || all.open >= clients
        })?;
        let after = self.snapshot();
        let overall = self.fleet.overall();
        if overall.open < clients {
            return Err(self.not_connected());
        }
        let seconds = float(overall.last_opened_ns.saturating_sub(began_ns)) / 1e9;
        let per_second = f64::from(clients) / seconds.max(1e-9);
        self.progress.done(&format!("{} in {seconds:.2} s", crate::table::number(f64::from(clients))));
        let number = u64::from(clients);
        Ok(Connect {
            seconds,
            per_second,
            latency: crate::latency::Percentiles::default(),
            server_cpu_us_each: after.server_cpu_since(before).map(|cpu| each(cpu, number)),
            client_cpu_us_each: each(after.client_cpu_since(before), number),
        })
    }

    /// What kept clients from connecting. Waits a little for others to fail too, so that the numbers say something.
    fn not_connected(&mut self) -> BenchError {
        let _ = self.fleet.hear(Instant::now() + Duration::from_secs(1), |_| false);
        let Overall { open, ended, reasons, .. } = self.fleet.overall();
        let mut text =
            format!("{open} of {} clients are connected, {ended} have failed", self.load.connections);
        for (reason, count) in reasons.iter().take(5) {
            text.push_str(&format!("\n  {count} {reason}"));
        }
        BenchError::Failed(text)
    }

    /// Lets time pass and hears what workers say meanwhile.
    fn pause(&mut self, name: &str, time: Duration) -> Result<(), BenchError> {
        self.progress.phase(name, 0);
        self.fleet.hear(Instant::now() + time, |_| false)?;
        Ok(())
    }

    fn quiet(&mut self) -> Result<Quiet, BenchError> {
        let before = self.snapshot();
        self.progress.phase("heartbeats", 0);
        let progress = self.progress;
        self.fleet.hear(Instant::now() + self.load.quiet, |all| {
            progress.at(all.beats_answered.saturating_sub(before.beats_answered));
            false
        })?;
        let after = self.snapshot();
        let time = after.at.duration_since(before.at).max(Duration::from_nanos(1));
        let heartbeats = after.beats_answered.saturating_sub(before.beats_answered);
        let server_cpu = after.server_cpu_since(&before);
        let client_cpu = after.client_cpu_since(&before);
        let per_second = |cpu: Duration| cpu.div_f64(time.as_secs_f64());
        self.quiet_cost = Some((per_second(server_cpu.unwrap_or_default()), per_second(client_cpu)));
        self.progress.done(&format!("{} answered", crate::table::number(float(heartbeats))));
        Ok(Quiet {
            seconds: time.as_secs_f64(),
            heartbeats,
            server_core_share: server_cpu.map(|cpu| cpu.as_secs_f64() / time.as_secs_f64()),
            server_cpu_us_each: server_cpu.map(|cpu| each(cpu, heartbeats)),
            client_cpu_us_each: each(client_cpu, heartbeats),
        })
    }

    /// Messages to the room at the rate that was asked for, whether or not the ones before have arrived.
    fn room(&mut self) -> Result<Published, BenchError> {
        let before = self.snapshot();
        let mut published = Published::default();
        let interval_ns = 1e9 / self.load.rate;
        let began_ns = now_ns();
        self.progress.phase("room", u64::from(self.load.messages) * u64::from(self.load.connections));
        for number in 0..self.load.messages {
            let due_ns = began_ns.saturating_add(whole(interval_ns * f64::from(number)));
            let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns()));
            self.watch(0, Instant::now() + wait, u64::MAX)?;
            self.publish(0, Audience::Room, number, due_ns, &mut published)?;
        }
        self.drain(0, self.load.messages)?;
        self.account(0, &before, &mut published);
        Ok(published)
    }

    /// Broadcasts, each when the one before has reached everybody.
    fn broadcasts(&mut self) -> Result<Published, BenchError> {
        let before = self.snapshot();
        let mut published = Published::default();
        self.progress.phase("broadcast", u64::from(self.load.broadcasts) * u64::from(self.load.connections));
        for number in 0..self.load.broadcasts {
            self.publish(1, Audience::All, number, now_ns(), &mut published)?;
            self.drain(1, number + 1)?;
        }
        self.account(1, &before, &mut published);
        Ok(published)
    }

    fn publish(
        &mut self,
        stream: u32,
        audience: Audience,
        number: u32,
        due_ns: u64,
        published: &mut Published,
    ) -> Result<(), BenchError> {
        let message = Message { run: self.run, stream, number, due_ns };
        let asked_ns = now_ns();
        self.publisher.publish(audience, &message, self.load.size)?;
        published.answer.record(asked_ns, now_ns());
        published.due_ns.push(due_ns);
        Ok(())
    }

    /// Waits until the first `messages` of a stream have reached everybody, or nothing comes any more.
    fn drain(&mut self, stream: usize, messages: u32) -> Result<(), BenchError> {
        let wanted = u64::from(messages) * u64::from(self.load.connections);
        loop {
            let before = delivered(&self.fleet.overall(), stream);
            if self.watch(stream, Instant::now() + self.load.patience, wanted)? {
                return Ok(());
            }
            if delivered(&self.fleet.overall(), stream) == before {
                return Ok(());
            }
        }
    }

    /// Shows how a stream gets on until a deadline, or until as much as wanted has arrived: then it is true.
    fn watch(&mut self, stream: usize, deadline: Instant, wanted: u64) -> Result<bool, BenchError> {
        let progress = self.progress;
        self.fleet.hear(deadline, |all| {
            let delivered = delivered(all, stream);
            progress.at(delivered);
            delivered >= wanted
        })
    }

    /// Enters the processor time since `before`, without what heartbeats take.
    fn account(&mut self, stream: usize, before: &Snapshot, published: &mut Published) {
        let after = self.snapshot();
        let delivered = delivered(&self.fleet.overall(), stream);
        self.progress.done(&format!("{} deliveries", crate::table::number(float(delivered))));
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let (server_beats, client_beats) = self.quiet_cost.unwrap_or_default();
        let server = after.server_cpu_since(before);
        published.server_cpu = server.map(|cpu| cpu.saturating_sub(server_beats.mul_f64(seconds)));
        let client = after.client_cpu_since(before);
        published.client_cpu = client.saturating_sub(client_beats.mul_f64(seconds));
    }

    fn finish(
        mut self,
        [room, all]: [&Published; 2],
        connect: Connect,
        quiet: Quiet,
        [before, idle, after_traffic]: [Snapshot; 3],
    ) -> Result<Outcome, BenchError> {
        self.fleet.tell_all(&Command::StopBeats)?;
        self.fleet.hear(Instant::now() + self.load.patience, |all| all.beats_answered >= all.beats_sent)?;
        let count = |published: &Published| u32::try_from(published.due_ns.len()).unwrap_or(u32::MAX);
        let sum = Sum::of(&self.fleet.reports(&[count(room), count(all)])?);
        let ended = self.fleet.overall().reasons;
        self.progress.phase("leave", 0);
        self.fleet.close();
        let after_leaving = self.pid.and_then(|pid| {
            std::thread::sleep(MEMORY_SETTLES);
            usage(pid)
        });
        self.progress.over();
        let others = after_traffic.others_since(&before);
        let memory = (before.server, idle.server, after_traffic.server, after_leaving);
        let memory = match memory {
            (Some(before), Some(idle), Some(after_traffic), Some(after_leaving)) => {
                Some(Memory { before, idle, after_traffic, after_leaving })
            }
            _ => None,
        };
        let clients = self.load.connections;
        Ok(Outcome {
            clients,
            connect: Connect { latency: sum.connect.percentiles(), ..connect },
            quiet,
            room: sum.stream(0, clients, room),
            all: sum.stream(1, clients, all),
            heartbeats: sum.beats,
            memory,
            others_share: others,
            strays: sum.strays,
            ended,
        })
    }
}

fn delivered(all: &Overall, stream: usize) -> u64 {
    all.delivered.get(stream).copied().unwrap_or_default()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive time; a cast saturates"
)]
fn whole(number: f64) -> u64 {
    number as u64
}
