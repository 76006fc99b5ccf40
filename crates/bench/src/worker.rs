//! A worker: a process with a share of the clients, all in one single-threaded loop.
//!
//! It executes commands ([`Command`]) and reports events ([`Event`]). It does not know which
//! benchmark it is part of. It ends with [`Command::Close`], or when the parent ends.

mod client;
mod clients;
mod connecting;
mod counters;
mod heartbeats;
mod socket;

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::control::{Command, Event, Progress};
use crate::error::BenchError;
use clients::Clients;

/// Time between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// A wave of messages is over when nothing has arrived for this long.
const WAVE_END: Duration = Duration::from_millis(3);

const COMMANDS: Token = Token(usize::MAX);

/// Runs a worker, with commands on standard input and events on standard output.
///
/// # Errors
/// When a poll cannot be created, or when writing to the parent fails.
pub(crate) fn run() -> Result<(), BenchError> {
    let failed = |error| BenchError::failed("cannot poll", error);
    let poll = Poll::new().map_err(failed)?;
    let waker = Waker::new(poll.registry(), COMMANDS).map_err(failed)?;
    let commands = read_commands(waker)?;
    Loop { poll, commands, clients: None, reported: Progress::default(), reported_at: Instant::now() }.run()
}

/// Reads commands on a separate thread, since reading from standard input blocks.
fn read_commands(waker: Waker) -> Result<Receiver<Command>, BenchError> {
    let (sender, commands) = mpsc::channel();
    let read = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let command = match serde_json::from_str(&line) {
                Ok(command) => command,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "goim-bench: invalid command: {error}");
                    break;
                }
            };
            if sender.send(command).is_err() || waker.wake().is_err() {
                return;
            }
        }
        // The parent has ended. The loop sees that the sender is dropped.
        drop(sender);
        let _ = waker.wake();
    };
    let thread = std::thread::Builder::new().name("commands".into());
    thread.spawn(read).map_err(|error| BenchError::failed("cannot start a thread", error))?;
    Ok(commands)
}

struct Loop {
    poll: Poll,
    commands: Receiver<Command>,
    clients: Option<Clients>,
    reported: Progress,
    reported_at: Instant,
}

impl Loop {
    fn run(mut self) -> Result<(), BenchError> {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = self.clients.as_ref().map_or(PROGRESS_INTERVAL, |clients| self.wait(clients));
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(BenchError::failed("cannot poll", error));
                }
                _ => {}
            }
            if let Some(clients) = &mut self.clients {
                for event in events.iter().filter(|event| event.token() != COMMANDS) {
                    clients.handle_event(event);
                }
                clients.handle_time(self.poll.registry());
                let reconnected = clients.take_reconnected();
                if !reconnected.is_empty() {
                    send(&Event::Reconnected(reconnected))?;
                }
            }
            if !self.execute()? {
                return Ok(());
            }
            self.report(events.is_empty())?;
        }
    }

    /// Returns the maximum time to wait for events.
    fn wait(&self, clients: &Clients) -> Duration {
        let own = if clients.delivered_any_since(&self.reported) { WAVE_END } else { PROGRESS_INTERVAL };
        own.min(clients.next_wake_in())
    }

    /// Executes all commands that have arrived. Returns false when the worker must end.
    fn execute(&mut self) -> Result<bool, BenchError> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => {
                    self.clients.iter_mut().for_each(Clients::close);
                    return Ok(false);
                }
                Err(TryRecvError::Empty) => return Ok(true),
                Ok(Command::Connect(plan)) => self.clients = Some(Clients::new(plan)),
                Ok(Command::Heartbeat { interval_ms, clients }) => {
                    self.clients.iter_mut().for_each(|own| own.start_heartbeats(interval_ms, clients));
                }
                Ok(Command::HeartbeatWindows { window }) => {
                    self.clients.iter_mut().for_each(|own| own.start_windows(window));
                }
                Ok(Command::StopHeartbeats) => self.clients.iter_mut().for_each(Clients::stop_heartbeats),
                Ok(Command::ExpectOnline(count)) => {
                    self.clients.iter_mut().for_each(|clients| clients.expect_online(count));
                }
                Ok(Command::ResetLatency) => self.clients.iter_mut().for_each(Clients::reset_latency),
                Ok(Command::Reconnect) => self.clients.iter_mut().for_each(Clients::reconnect_all),
                Ok(Command::Report { published }) => {
                    let report = self.clients.as_ref().map(|clients| clients.report(&published));
                    send(&Event::Report(Box::new(report.unwrap_or_default())))?;
                }
            }
        }
    }

    /// Reports progress when the interval has passed, or when a wave has ended, which `is_idle`
    /// indicates.
    fn report(&mut self, is_idle: bool) -> Result<(), BenchError> {
        let Some(clients) = &self.clients else { return Ok(()) };
        let wave_ended = is_idle && clients.delivered_any_since(&self.reported);
        if !wave_ended && self.reported_at.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.reported_at = Instant::now();
        let progress = clients.progress();
        if progress != self.reported {
            send(&Event::Progress(progress.clone()))?;
            self.reported = progress;
        }
        Ok(())
    }
}

fn send(event: &Event) -> Result<(), BenchError> {
    let line =
        serde_json::to_string(event).map_err(|error| BenchError::failed("cannot encode an event", error))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
