//! One worker: a process with a share of the clients, all in one single-threaded loop.
//!
//! It does what the parent says ([`Command`]) and reports ([`Event`]); which phase of a benchmark is under way it does
//! not know. It ends when told to, or when the parent has gone.

mod beats;
mod client;
mod connecting;
mod crowd;
mod wire;

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::control::{Command, Event, Progress};
use crate::error::BenchError;
use crowd::Crowd;

/// How often the parent hears of progress when nothing else makes it worth telling.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// A wave of messages is over when nothing has come for this long.
const WAVE_END: Duration = Duration::from_millis(3);

const COMMANDS: Token = Token(usize::MAX);

/// The key of a client: 36 bytes.
pub(crate) fn key(run: u32, client: u32) -> String {
    format!("bench-{run:08x}-client-{client:014}")
}

/// The member of a client.
pub(crate) fn member(client: u32) -> u32 {
    client.saturating_add(1)
}

/// Runs a worker on standard input and output until it is told to end.
///
/// # Errors
/// When there are no events to be had from the system, or the parent cannot be written to.
pub(crate) fn run() -> Result<(), BenchError> {
    let failed = |error| BenchError::failed("no events from the system", error);
    let poll = Poll::new().map_err(failed)?;
    let waker = Waker::new(poll.registry(), COMMANDS).map_err(failed)?;
    let commands = listen(waker)?;
    Loop { poll, commands, crowd: None, told: Progress::default(), told_at: Instant::now() }.run()
}

/// Reads commands on a thread of its own: a pipe has no readiness that could be relied on everywhere.
fn listen(waker: Waker) -> Result<Receiver<Command>, BenchError> {
    let (sender, commands) = mpsc::channel();
    let reading = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let command = match serde_json::from_str(&line) {
                Ok(command) => command,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "goim bench: not a command: {error}");
                    break;
                }
            };
            if sender.send(command).is_err() || waker.wake().is_err() {
                return;
            }
        }
        // The parent has gone: so does the sender, which the loop notices.
        drop(sender);
        let _ = waker.wake();
    };
    let thread = std::thread::Builder::new().name("commands".into());
    thread.spawn(reading).map_err(|error| BenchError::failed("cannot start a thread", error))?;
    Ok(commands)
}

struct Loop {
    poll: Poll,
    commands: Receiver<Command>,
    crowd: Option<Crowd>,
    told: Progress,
    told_at: Instant,
}

impl Loop {
    fn run(mut self) -> Result<(), BenchError> {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = self.crowd.as_ref().map_or(PROGRESS_INTERVAL, |crowd| self.wait(crowd));
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(BenchError::failed("no events from the system", error));
                }
                _ => {}
            }
            if let Some(crowd) = &mut self.crowd {
                for event in events.iter().filter(|event| event.token() != COMMANDS) {
                    crowd.ready(event);
                }
                crowd.turn(self.poll.registry());
                let returned = crowd.take_returned();
                if !returned.is_empty() {
                    say(&Event::Returned(returned))?;
                }
            }
            if !self.obey()? {
                return Ok(());
            }
            self.tell(events.is_empty())?;
        }
    }

    /// How long to wait for events at most.
    fn wait(&self, crowd: &Crowd) -> Duration {
        let own = if crowd.delivered_any_since(&self.told) { WAVE_END } else { PROGRESS_INTERVAL };
        own.min(crowd.next_turn_in())
    }

    /// Does what has been asked; false when it is time to end.
    fn obey(&mut self) -> Result<bool, BenchError> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => {
                    self.crowd.iter_mut().for_each(Crowd::close);
                    return Ok(false);
                }
                Err(TryRecvError::Empty) => return Ok(true),
                Ok(Command::Connect(plan)) => self.crowd = Some(Crowd::new(plan)),
                Ok(Command::Beat { interval_ms, clients }) => {
                    self.crowd.iter_mut().for_each(|crowd| crowd.beat(interval_ms, clients));
                }
                Ok(Command::Dense { window }) => {
                    self.crowd.iter_mut().for_each(|crowd| crowd.beat_densely(window));
                }
                Ok(Command::StopBeats) => self.crowd.iter_mut().for_each(Crowd::stop_beats),
                Ok(Command::ExpectOnline(count)) => {
                    self.crowd.iter_mut().for_each(|crowd| crowd.expect_online(count));
                }
                Ok(Command::Fresh) => self.crowd.iter_mut().for_each(Crowd::fresh),
                Ok(Command::Return) => self.crowd.iter_mut().for_each(Crowd::come_back),
                Ok(Command::Report { published }) => {
                    let report = self.crowd.as_ref().map(|crowd| crowd.report(&published));
                    say(&Event::Report(Box::new(report.unwrap_or_default())))?;
                }
            }
        }
    }

    /// Reports progress when it is time or a wave has just ended (`idle`).
    fn tell(&mut self, idle: bool) -> Result<(), BenchError> {
        let Some(crowd) = &self.crowd else { return Ok(()) };
        let wave_ended = idle && crowd.delivered_any_since(&self.told);
        if !wave_ended && self.told_at.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.told_at = Instant::now();
        let progress = crowd.progress();
        if progress != self.told {
            say(&Event::Progress(progress.clone()))?;
            self.told = progress;
        }
        Ok(())
    }
}

fn say(event: &Event) -> Result<(), BenchError> {
    let line = serde_json::to_string(event).map_err(|error| BenchError::failed("cannot report", error))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
