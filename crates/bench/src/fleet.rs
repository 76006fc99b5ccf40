//! The worker processes, from the parent's side: starting them, sending commands, receiving events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::control::{Command, Event, Plan, Progress, WorkerReport};
use crate::error::BenchError;
use crate::machine::{bound_to_cpus, open_files_max};

/// Open files of a worker besides its connections, with a reserve.
const OWN_FILES: u64 = 64;

/// How long workers may take for their reports.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// Returns a command that runs this program with a hidden subcommand.
///
/// # Errors
/// When the path of the program is unknown.
pub(crate) fn own_command(role: &str) -> Result<Process, BenchError> {
    let program =
        std::env::current_exe().map_err(|error| BenchError::failed("cannot find this program", error))?;
    let mut command = Process::new(program);
    command.arg(role);
    Ok(command)
}

/// Returns the minimum number of workers for this many clients.
///
/// # Errors
/// When the limit of open files leaves no room for a client.
pub(crate) fn workers_needed(clients: u32) -> Result<u32, BenchError> {
    let limit = open_files_max();
    let each = limit.saturating_sub(OWN_FILES).min(u64::from(u32::MAX));
    let each = u32::try_from(each).unwrap_or(u32::MAX);
    if each == 0 {
        let (process, needed) = ("a worker", OWN_FILES + 1);
        return Err(BenchError::Descriptors { process, needed, limit, alternative: "fewer --connections" });
    }
    Ok(clients.div_ceil(each))
}

/// The workers. Dropping the fleet ends them.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    events: Receiver<(usize, Option<Event>)>,
    pending: Vec<WorkerReport>,
    /// Times, and the number of messages received by then, over all workers and streams.
    timeline: Vec<(u64, u64)>,
    /// Clients that have reconnected, see [`Fleet::take_reconnected`].
    reconnected: Vec<u32>,
}

struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    progress: Progress,
}

/// The progress of all workers, added up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overall {
    pub(crate) open: u32,
    pub(crate) ended: u32,
    pub(crate) last_opened_ns: u64,
    pub(crate) delivered: Vec<u64>,
    pub(crate) heartbeats_sent: u64,
    pub(crate) heartbeats_answered: u64,
    pub(crate) received_bytes: u64,
    pub(crate) cpu_ns: u64,
    /// Clients that have reconnected, see [`Fleet::take_reconnected`].
    pub(crate) reconnected: usize,
    pub(crate) reasons: BTreeMap<String, u32>,
}

impl Overall {
    /// Messages received for the first time, over all streams.
    pub(crate) fn received(&self) -> u64 {
        self.delivered.iter().sum()
    }
}

impl Fleet {
    /// Starts workers, which connect the clients of `plan`, evenly divided.
    ///
    /// # Errors
    /// [`BenchError::Descriptors`] when a worker cannot hold its share; when a process does not
    /// start.
    pub(crate) fn launch(count: u32, plan: &Plan, processors: &[usize]) -> Result<Self, BenchError> {
        let count = count.max(1);
        let share = u64::from(plan.count.div_ceil(count)) + OWN_FILES;
        let limit = open_files_max();
        if share > limit {
            let (process, needed) = ("a worker", share);
            return Err(BenchError::Descriptors { process, needed, limit, alternative: "more --workers" });
        }
        let (sender, events) = mpsc::channel();
        let mut fleet = Self {
            workers: Vec::new(),
            events,
            pending: Vec::new(),
            timeline: Vec::new(),
            reconnected: Vec::new(),
        };
        for index in 0..count {
            let worker = Worker::start(fleet.workers.len(), sender.clone(), processors)?;
            fleet.workers.push(worker);
            let bound = |at: u32| u64::from(plan.count) * u64::from(at) / u64::from(count);
            let (first, end) = (bound(index), bound(index + 1));
            let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            let share = Plan { first: narrow(first), count: narrow(end - first), ..plan.clone() };
            fleet.send(fleet.workers.len() - 1, &Command::Connect(share))?;
        }
        Ok(fleet)
    }

    /// Sends a command to every worker.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn send_all(&mut self, command: &Command) -> Result<(), BenchError> {
        (0..self.workers.len()).try_for_each(|index| self.send(index, command))
    }

    fn send(&mut self, index: usize, command: &Command) -> Result<(), BenchError> {
        let line = serde_json::to_string(command).map_err(std::io::Error::from)?;
        if let Some(input) = self.workers.get_mut(index).and_then(|worker| worker.input.as_mut()) {
            writeln!(input, "{line}")?;
            input.flush()?;
        }
        Ok(())
    }

    /// Receives events until `is_enough` returns true or until the deadline. Returns whether it was
    /// enough.
    ///
    /// # Errors
    /// When a worker has ended.
    pub(crate) fn wait_until(
        &mut self,
        deadline: Instant,
        mut is_enough: impl FnMut(&Overall) -> bool,
    ) -> Result<bool, BenchError> {
        loop {
            // Takes all events that are queued before it decides.
            while let Ok(event) = self.events.try_recv() {
                self.record(event)?;
            }
            if is_enough(&self.overall()) {
                return Ok(true);
            }
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => self.record(event)?,
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Err(worker_ended()),
            }
        }
    }

    fn record(&mut self, (index, event): (usize, Option<Event>)) -> Result<(), BenchError> {
        match event {
            None => return Err(worker_ended()),
            Some(Event::Progress(progress)) => {
                if let Some(worker) = self.workers.get_mut(index) {
                    worker.progress = progress;
                }
                let received = self.workers.iter().flat_map(|worker| &worker.progress.delivered).sum();
                self.timeline.push((crate::clock::now_ns(), received));
            }
            Some(Event::Report(report)) => self.pending.push(*report),
            Some(Event::Reconnected(clients)) => self.reconnected.extend(clients),
        }
        Ok(())
    }

    /// Returns the progress of all workers, added up.
    pub(crate) fn overall(&self) -> Overall {
        let mut all = Overall { reconnected: self.reconnected.len(), ..Overall::default() };
        for Worker { progress, .. } in &self.workers {
            all.open += progress.open;
            all.ended += progress.ended;
            all.last_opened_ns = all.last_opened_ns.max(progress.last_opened_ns);
            all.heartbeats_sent += progress.heartbeats_sent;
            all.heartbeats_answered += progress.heartbeats_answered;
            all.received_bytes += progress.received_bytes;
            all.cpu_ns += progress.cpu_ns;
            all.delivered.resize(all.delivered.len().max(progress.delivered.len()), 0);
            for (sum, more) in all.delivered.iter_mut().zip(&progress.delivered) {
                *sum += more;
            }
            for (reason, count) in &progress.reasons {
                *all.reasons.entry(reason.clone()).or_default() += count;
            }
        }
        all
    }

    /// Returns the CPU time of all workers.
    pub(crate) fn cpu(&self) -> Duration {
        self.workers.iter().filter_map(|worker| crate::clock::cpu_of(worker.child.id())).sum()
    }

    /// Takes the times, and the numbers of messages received by then, since the last call.
    pub(crate) fn take_timeline(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.timeline)
    }

    /// Takes the clients that have reconnected since the last call, by number.
    pub(crate) fn take_reconnected(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.reconnected)
    }

    /// Requests a report from each worker, given the number of messages published in each stream.
    ///
    /// # Errors
    /// When a worker does not answer in time.
    pub(crate) fn reports(&mut self, published: &[u32]) -> Result<Vec<WorkerReport>, BenchError> {
        self.pending.clear();
        self.send_all(&Command::Report { published: published.to_vec() })?;
        let deadline = Instant::now() + REPORT_DEADLINE;
        while self.pending.len() < self.workers.len() {
            let wait = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(wait);
            let event = event.map_err(|_| BenchError::Failed("a worker does not answer".into()))?;
            self.record(event)?;
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Closes all connections, and waits until the workers have ended.
    pub(crate) fn close(mut self) {
        // Fails for a worker that has ended, which needs no command.
        let _ = self.send_all(&Command::Close);
        for worker in &mut self.workers {
            worker.input = None;
            let _ = worker.child.wait();
        }
    }
}

impl Worker {
    fn start(
        index: usize,
        events: Sender<(usize, Option<Event>)>,
        processors: &[usize],
    ) -> Result<Self, BenchError> {
        let mut command = own_command("worker")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bound_to_cpus(processors, || command.spawn())?;
        let input = child.stdin.take();
        let Some(output) = child.stdout.take() else {
            return Err(BenchError::Failed("no pipe from a worker".into()));
        };
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else { break };
                if events.send((index, Some(event))).is_err() {
                    return;
                }
            }
            // Fails when the fleet is closed.
            let _ = events.send((index, None));
        });
        Ok(Self { child, input, progress: Progress::default() })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker ends at the end of its input.
        self.input = None;
        crate::spawn::stop(&mut self.child);
    }
}

fn worker_ended() -> BenchError {
    BenchError::Failed("a worker has ended; its message is above".into())
}
