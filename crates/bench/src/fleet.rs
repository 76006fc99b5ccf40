//! The workers, seen from the parent: starting them, telling them, hearing from them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::control::{Command, Event, Plan, Progress, Report};
use crate::error::BenchError;
use crate::machine::{on_processors, open_files_max};

/// Open files of a worker besides its connections, with some to spare.
const OWN_FILES: u64 = 64;

/// How long workers may take for their reports.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// A command line that runs this same binary in one of its hidden roles.
///
/// # Errors
/// When the binary cannot be found.
pub(crate) fn own_command(role: &str) -> Result<Process, BenchError> {
    let program =
        std::env::current_exe().map_err(|error| BenchError::failed("cannot find this program", error))?;
    let mut command = Process::new(program);
    command.args(["bench", role]);
    Ok(command)
}

/// How many workers are needed at least for so many clients.
///
/// # Errors
/// When a process may have hardly any files at all.
pub(crate) fn workers_needed(clients: u32) -> Result<u32, BenchError> {
    let limit = open_files_max();
    let each = limit.saturating_sub(OWN_FILES).min(u64::from(u32::MAX));
    let each = u32::try_from(each).unwrap_or(u32::MAX);
    if each == 0 {
        let (who, needed) = ("a worker", OWN_FILES + 1);
        return Err(BenchError::Descriptors { who, needed, limit, way_out: "--connections" });
    }
    Ok(clients.div_ceil(each))
}

/// The workers. They end with this.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    events: Receiver<(usize, Option<Event>)>,
    pending: Vec<Report>,
    /// When how many messages had been received, over all workers and streams.
    timeline: Vec<(u64, u64)>,
    /// Clients that have come back and were not asked for yet.
    returned: Vec<u32>,
}

struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    progress: Progress,
}

/// How far all workers are together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overall {
    pub(crate) open: u32,
    pub(crate) ended: u32,
    pub(crate) last_opened_ns: u64,
    pub(crate) delivered: Vec<u64>,
    pub(crate) beats_sent: u64,
    pub(crate) beats_answered: u64,
    pub(crate) received_bytes: u64,
    pub(crate) cpu_ns: u64,
    /// Clients back after a return, see [`Fleet::take_returned`].
    pub(crate) returned: usize,
    pub(crate) reasons: BTreeMap<String, u32>,
}

impl Fleet {
    /// Starts `count` workers and has them connect the clients of `plan`, evenly divided.
    ///
    /// # Errors
    /// [`BenchError::Descriptors`] when a worker could not hold its share; when a process cannot be started.
    pub(crate) fn launch(count: u32, plan: &Plan, processors: &[usize]) -> Result<Self, BenchError> {
        let count = count.max(1);
        let share = u64::from(plan.count.div_ceil(count)) + OWN_FILES;
        let limit = open_files_max();
        if share > limit {
            let (who, needed) = ("a worker", share);
            return Err(BenchError::Descriptors { who, needed, limit, way_out: "more --workers" });
        }
        let (sender, events) = mpsc::channel();
        let mut fleet = Self {
            workers: Vec::new(),
            events,
            pending: Vec::new(),
            timeline: Vec::new(),
            returned: Vec::new(),
        };
        for index in 0..count {
            let worker = Worker::start(fleet.workers.len(), sender.clone(), processors)?;
            fleet.workers.push(worker);
            let bound = |at: u32| u64::from(plan.count) * u64::from(at) / u64::from(count);
            let (first, end) = (bound(index), bound(index + 1));
            let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            let share = Plan { first: narrow(first), count: narrow(end - first), ..plan.clone() };
            fleet.tell(fleet.workers.len() - 1, &Command::Connect(share))?;
        }
        Ok(fleet)
    }

    /// Tells every worker the same.
    ///
    /// # Errors
    /// When one has gone.
    pub(crate) fn tell_all(&mut self, command: &Command) -> Result<(), BenchError> {
        (0..self.workers.len()).try_for_each(|index| self.tell(index, command))
    }

    fn tell(&mut self, index: usize, command: &Command) -> Result<(), BenchError> {
        let line = serde_json::to_string(command).map_err(std::io::Error::from)?;
        if let Some(input) = self.workers.get_mut(index).and_then(|worker| worker.input.as_mut()) {
            writeln!(input, "{line}")?;
            input.flush()?;
        }
        Ok(())
    }

    /// Hears what workers have to say, until `enough` or the deadline. True when it was enough.
    ///
    /// # Errors
    /// When a worker has ended by itself.
    pub(crate) fn hear(
        &mut self,
        deadline: Instant,
        mut enough: impl FnMut(&Overall) -> bool,
    ) -> Result<bool, BenchError> {
        loop {
            // Whatever has been said already is taken before anything is decided.
            while let Ok(said) = self.events.try_recv() {
                self.note(said)?;
            }
            if enough(&self.overall()) {
                return Ok(true);
            }
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(said) => self.note(said)?,
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
        }
    }

    fn note(&mut self, (index, event): (usize, Option<Event>)) -> Result<(), BenchError> {
        match event {
            None => return Err(gone()),
            Some(Event::Progress(progress)) => {
                if let Some(worker) = self.workers.get_mut(index) {
                    worker.progress = progress;
                }
                let received = self.workers.iter().flat_map(|worker| &worker.progress.delivered).sum();
                self.timeline.push((crate::clock::now_ns(), received));
            }
            Some(Event::Report(report)) => self.pending.push(*report),
            Some(Event::Returned(clients)) => self.returned.extend(clients),
        }
        Ok(())
    }

    /// How far all workers are together.
    pub(crate) fn overall(&self) -> Overall {
        let mut all = Overall { returned: self.returned.len(), ..Overall::default() };
        for Worker { progress, .. } in &self.workers {
            all.open += progress.open;
            all.ended += progress.ended;
            all.last_opened_ns = all.last_opened_ns.max(progress.last_opened_ns);
            all.beats_sent += progress.beats_sent;
            all.beats_answered += progress.beats_answered;
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

    /// Processor time of all workers so far.
    pub(crate) fn cpu(&self) -> Duration {
        self.workers.iter().filter_map(|worker| crate::clock::cpu_of(worker.child.id())).sum()
    }

    /// When how many messages had been received, since this was asked for the last time.
    pub(crate) fn take_timeline(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.timeline)
    }

    /// Who has come back since this was asked for the last time.
    pub(crate) fn take_returned(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.returned)
    }

    /// Everything that the workers know, one report each.
    ///
    /// # Errors
    /// When one does not answer.
    pub(crate) fn reports(&mut self, published: &[u32]) -> Result<Vec<Report>, BenchError> {
        self.pending.clear();
        self.tell_all(&Command::Report { published: published.to_vec() })?;
        let deadline = Instant::now() + REPORT_DEADLINE;
        while self.pending.len() < self.workers.len() {
            let wait = deadline.saturating_duration_since(Instant::now());
            let said = self.events.recv_timeout(wait);
            let said = said.map_err(|_| BenchError::Failed("a worker does not answer".into()))?;
            self.note(said)?;
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Ends all connections and the workers, and waits for that.
    pub(crate) fn close(mut self) {
        // One that has gone is closed.
        let _ = self.tell_all(&Command::Close);
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
        let mut child = on_processors(processors, || command.spawn())?;
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
            // When the parent has closed the fleet, nobody listens any more.
            let _ = events.send((index, None));
        });
        Ok(Self { child, input, progress: Progress::default() })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Ends at the end of its input; one that hangs is made to.
        self.input = None;
        crate::server::end(&mut self.child);
    }
}

fn gone() -> BenchError {
    BenchError::Failed("a worker has ended by itself; its words are above".into())
}
