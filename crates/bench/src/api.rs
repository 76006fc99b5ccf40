//! `goim bench api`: how many pushes a second the HTTP API takes, one in a request and many, beside an HTTP server of the
//! same stack that only answers.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use clap::Args;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::answer::Answer;
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::load::duration;
use crate::machine::on_processors;
use crate::message::Message;
use crate::outcome::{each, float};
use crate::pair::{OPERATION, Side, Source, Subject};
use crate::paper::Paper;
use crate::progress::Progress;
use crate::publisher::{base64, batch};
use crate::server::softirq_us;
use crate::sizes::Sizes;
use crate::summary::{Figure, Pair, Unit};

/// Pushes to connected sessions by key over kept HTTP connections, each with one request outstanding; every push is
/// accounted for. Blocks take turns: single pushes, an HTTP server that only answers, many pushes in a request.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) subject: Subject,
    /// Kept HTTP connections; each pushes to a session of its own
    #[arg(long, default_value_t = 32, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Messages in one request of the batch form
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    together: u32,
    /// Leave out the batch forms, which other servers do not have
    #[arg(long)]
    no_batch: bool,
    /// Length of a block
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    size: usize,
}

const AFTER_HELP: &str = "\
Examples:
  goim bench api --spawn
  goim bench api --spawn --clients 64 --together 500";

/// How messages are put into requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Json,
    Ndjson,
}

/// What one block came to.
#[derive(Debug, Clone, PartialEq)]
struct Rate {
    /// Accepted by the server.
    messages: u64,
    /// Of these, those that did not arrive in time.
    lost: u64,
    /// From the first request until the last answer, and until the last message has arrived where that is later.
    took: Duration,
    server_cpu: Option<Duration>,
    client_cpu: Duration,
    held_back: u64,
}

impl Rate {
    /// Messages that arrived, a second. Waiting for what never comes does not count as time.
    fn per_second(&self) -> f64 {
        float(self.messages.saturating_sub(self.lost)) / self.took.as_secs_f64().max(1e-9)
    }

    /// Takes in what became of the messages after the last answer: all arrived, after so long, or some did not.
    fn arrived(&mut self, missing: u64, after: Duration) {
        self.lost = missing.min(self.messages);
        if missing == 0 {
            self.took += after.saturating_sub(REPORT_INTERVAL);
        }
    }
}

/// How often clients tell what has arrived: what is heard of so much later may have been there before.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// All blocks.
///
/// # Errors
/// When a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Paper, BenchError> {
    let subject = Subject { connections: arguments.clients, ..arguments.subject.clone() };
    let progress = Progress::new("goim bench api");
    let (server_cpus, client_cpus) = subject.processors()?;
    let answer = if subject.no_reference { None } else { Some(Answer::start(&server_cpus)?) };
    let mut side = Side::of_server(&subject, subject.server()?, 1, Sizes::Fixed(arguments.size), &progress)?;
    let Source::Server(_, http) = &mut side.source else {
        return Err(BenchError::Failed("no server".into()));
    };
    let has_batches = http.has_batches()?;
    let forms: &[Form] = if arguments.no_batch || !has_batches {
        &[Form::Single]
    } else {
        &[Form::Single, Form::Json, Form::Ndjson]
    };
    let mut numbers = vec![0_u32; arguments.clients as usize];
    let mut pairs: Vec<Pair> = Vec::new();
    for pair in 0..subject.repeat {
        let mut own = Vec::new();
        let mut single = 0.0;
        let mut reference = None;
        for form in forms {
            let rate =
                push(arguments, &mut side, *form, &mut numbers, &client_cpus, &server_cpus, &progress)?;
            own.extend(figures(*form, &rate, single));
            if *form == Form::Single {
                single = rate.per_second();
                reference = match &answer {
                    Some(answer) => Some(ask(arguments, answer, &client_cpus, &server_cpus, &progress)?),
                    None => None,
                };
            }
        }
        progress.done(&format!(
            "pair {} of {}: {single:.0} single pushes a second",
            pair + 1,
            subject.repeat
        ));
        pairs.push((own, reference.map(|rate| figures(Form::Single, &rate, 0.0))));
    }
    let more = [
        ("HTTP connections", arguments.clients.to_string()),
        ("messages in a request of the batch form", arguments.together.to_string()),
        ("size", format!("{} B", arguments.size)),
    ];
    let mut paper = Paper::new("goim bench api", &subject, &more, pairs)?;
    // Every client has its own count: what is missing is the sum of what is published and of what has arrived.
    let published: u64 = numbers.iter().map(|number| u64::from(*number)).sum();
    let received: u64 = side.fleet.overall().delivered.iter().sum();
    let number = |count: u64| crate::table::number(float(count));
    paper.accounts.push(format!("server: {} of {} pushes arrived", number(received), number(published)));
    if !has_batches {
        paper
            .accounts
            .push("the server takes one message in a request, so that only that was measured".into());
    }
    side.published = vec![0];
    paper.faults = side.faults()?;
    if received < published {
        paper.faults.insert(0, format!("server: {} pushes lost", published - received));
    }
    Ok(paper)
}

fn figures(form: Form, rate: &Rate, single: f64) -> Vec<Figure> {
    let name = match form {
        Form::Single => "single: pushes",
        Form::Json => "JSON: messages",
        Form::Ndjson => "NDJSON: messages",
    };
    let mut list = vec![Figure::compared(name, Unit::PerSecond, rate.per_second())];
    let (times, cpu, client) = match form {
        Form::Single => ("", "single: server CPU per push", "single: client CPU per push"),
        Form::Json => {
            ("JSON: beside single pushes", "JSON: server CPU per message", "JSON: client CPU per message")
        }
        Form::Ndjson => (
            "NDJSON: beside single pushes",
            "NDJSON: server CPU per message",
            "NDJSON: client CPU per message",
        ),
    };
    if form != Form::Single {
        list.push(Figure::alone(times, Unit::Ratio, rate.per_second() / single.max(1e-9)));
    }
    if let Some(time) = rate.server_cpu {
        list.push(Figure::compared(cpu, Unit::Microseconds, each(time, rate.messages)));
    }
    list.push(Figure::compared(client, Unit::Microseconds, each(rate.client_cpu, rate.messages)));
    if rate.lost > 0 {
        list.push(Figure::alone("accepted and not arrived", Unit::Count, float(rate.lost)));
    }
    if rate.held_back > 0 {
        list.push(Figure::alone("told to wait (429)", Unit::Count, float(rate.held_back)));
    }
    list
}

fn push(
    arguments: &Arguments,
    side: &mut Side,
    form: Form,
    numbers: &mut [u32],
    client_cpus: &[usize],
    server_cpus: &[usize],
    progress: &Progress,
) -> Result<Rate, BenchError> {
    let Source::Server(server, _) = &side.source else { return Err(BenchError::Failed("no server".into())) };
    let url = server.doors.http.clone();
    let together = if form == Form::Single { 1 } else { arguments.together };
    let (run, size) = (side.run, arguments.size);
    let make = |connection: usize, first: u32| {
        let due_ns = now_ns();
        let bodies = (first..first + together)
            .map(|number| Message { run, stream: 0, number, due_ns }.encode(size))
            .collect::<Vec<_>>();
        request(form, &crate::worker::key(run, connection as u32), &bodies)
    };
    progress.phase(if form == Form::Single { "single pushes" } else { "batches" }, 0);
    let pid = side.pid;
    let before = side.fleet.cpu();
    let received_before: u64 = side.fleet.overall().delivered.iter().sum();
    let mut rate = drive(arguments, &url, pid, numbers, together, client_cpus, server_cpus, make)?;
    // The rate is that of what arrives too. What was lost in blocks before does not come any more.
    let expected = received_before + rate.messages;
    let began = Instant::now();
    side.fleet
        .hear(began + arguments.subject.patience, |all| all.delivered.iter().sum::<u64>() >= expected)?;
    let received: u64 = side.fleet.overall().delivered.iter().sum();
    rate.arrived(expected.saturating_sub(received), began.elapsed());
    rate.client_cpu += side.fleet.cpu().saturating_sub(before);
    progress.over();
    Ok(rate)
}

/// The same requests to the server that only answers.
fn ask(
    arguments: &Arguments,
    answer: &Answer,
    client_cpus: &[usize],
    server_cpus: &[usize],
    progress: &Progress,
) -> Result<Rate, BenchError> {
    let mut numbers = vec![0; arguments.clients as usize];
    let size = arguments.size;
    let make = |connection: usize, number: u32| {
        let body = Message { run: 0, stream: 0, number, due_ns: now_ns() }.encode(size);
        request(Form::Single, &crate::worker::key(0, connection as u32), &[body])
    };
    progress.phase("answers", 0);
    let pid = Some(answer.pid());
    let rate = drive(arguments, &answer.url, pid, &mut numbers, 1, client_cpus, server_cpus, make);
    progress.over();
    rate
}

/// A whole request.
fn request(form: Form, key: &str, bodies: &[Vec<u8>]) -> Vec<u8> {
    let (path, kind, body) = match form {
        Form::Single => {
            let path = format!("/goim/push/keys?operation={OPERATION}&keys={key}");
            (path, "application/octet-stream", bodies.concat())
        }
        Form::Json => {
            let to = format!(r#"{{"keys":["{key}"]}}"#);
            ("/v1/push".to_owned(), "application/json", batch(&to, OPERATION, bodies).into_bytes())
        }
        Form::Ndjson => {
            let lines = bodies.iter().map(|body| {
                let body = base64(body);
                format!("{{\"to\":{{\"keys\":[\"{key}\"]}},\"operation\":{OPERATION},\"body_base64\":\"{body}\"}}\n")
            });
            ("/v1/push".to_owned(), "application/x-ndjson", lines.collect::<String>().into_bytes())
        }
    };
    let length = body.len();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend(body);
    request
}

/// One kept connection.
struct Asking {
    stream: TcpStream,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    /// Not before then: it was told to wait.
    not_before: Option<Instant>,
}

/// Keeps one request outstanding on each connection until the time is over, and hears all answers.
#[expect(clippy::too_many_arguments, reason = "two callers, which differ in all of them")]
fn drive(
    arguments: &Arguments,
    url: &str,
    pid: Option<u32>,
    numbers: &mut [u32],
    together: u32,
    client_cpus: &[usize],
    server_cpus: &[usize],
    make: impl Fn(usize, u32) -> Vec<u8>,
) -> Result<Rate, BenchError> {
    // Bound to where the clients run; what this thread does is the client's work.
    on_processors(client_cpus, || {
        let result = drive_here(arguments, url, pid, numbers, together, server_cpus, &make);
        Ok(result)
    })?
}

fn drive_here(
    arguments: &Arguments,
    url: &str,
    pid: Option<u32>,
    numbers: &mut [u32],
    together: u32,
    server_cpus: &[usize],
    make: &impl Fn(usize, u32) -> Vec<u8>,
) -> Result<Rate, BenchError> {
    let failed = |error: std::io::Error| BenchError::failed("the HTTP API", error);
    let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let mut poll = Poll::new().map_err(failed)?;
    let mut connections = Vec::new();
    for index in 0..arguments.clients as usize {
        let stream = std::net::TcpStream::connect(authority).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(index), interest).map_err(failed)?;
        connections.push(Asking {
            stream,
            output: Vec::new(),
            written: 0,
            input: Vec::new(),
            not_before: None,
        });
    }
    let cpu = || Some(pid.and_then(crate::clock::cpu_of)? + Duration::from_micros(softirq_us(server_cpus)));
    let (before, own) = (cpu(), crate::clock::own_cpu());
    let began = Instant::now();
    let until = began + arguments.seconds;
    let (mut messages, mut held_back, mut outstanding) = (0_u64, 0_u64, 0_usize);
    for (index, asking) in connections.iter_mut().enumerate() {
        asking.ask(make(index, numbers[index])).map_err(failed)?;
        outstanding += 1;
    }
    let mut events = Events::with_capacity(1024);
    // All may have been told to wait; the block goes on until its time is over.
    while outstanding > 0 || (Instant::now() < until && connections.iter().any(Asking::waits)) {
        poll.poll(&mut events, Some(Duration::from_millis(20))).map_err(failed)?;
        let over = Instant::now() >= until;
        for event in &events {
            let Token(index) = event.token();
            let asking = &mut connections[index];
            asking.flush().map_err(failed)?;
            if !event.is_readable() {
                continue;
            }
            let Some(accepted) = asking.hear(together)? else { continue };
            outstanding -= 1;
            messages += u64::from(accepted);
            numbers[index] += accepted;
            if over {
                continue;
            }
            if accepted < together {
                held_back += 1;
                asking.not_before = Some(Instant::now() + Duration::from_millis(50));
            } else {
                asking.ask(make(index, numbers[index])).map_err(failed)?;
                outstanding += 1;
            }
        }
        for (index, asking) in connections.iter_mut().enumerate() {
            if asking.not_before.is_some_and(|at| Instant::now() >= at) {
                asking.not_before = None;
                if !over {
                    asking.ask(make(index, numbers[index])).map_err(failed)?;
                    outstanding += 1;
                }
            }
        }
    }
    Ok(Rate {
        lost: 0,
        took: began.elapsed(),
        server_cpu: cpu().zip(before).map(|(after, before)| after.saturating_sub(before)),
        client_cpu: crate::clock::own_cpu().saturating_sub(own),
        messages,
        held_back,
    })
}

impl Asking {
    fn waits(&self) -> bool {
        self.not_before.is_some()
    }

    fn ask(&mut self, request: Vec<u8>) -> std::io::Result<()> {
        (self.output, self.written) = (request, 0);
        self.flush()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The answer, once it is there in whole: how many of the messages asked for were accepted.
    fn hear(&mut self, together: u32) -> Result<Option<u32>, BenchError> {
        let mut piece = [0; 4096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(BenchError::Failed("the HTTP API has closed a kept connection".into())),
                Ok(len) => self.input.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(BenchError::failed("the HTTP API", error)),
            }
        }
        let answer = crate::http::read_answer(&self.input).map_err(BenchError::Failed)?;
        let Some((answer, _)) = answer else { return Ok(None) };
        self.input.clear();
        if answer.status == 200 && answer.body.starts_with(br#"{"code":0,"#) {
            return Ok(Some(together));
        }
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if answer.status == 429 {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let accepted = value.get("accepted").and_then(serde_json::Value::as_u64).unwrap_or_default();
            return Ok(Some(u32::try_from(accepted).unwrap_or(together).min(together)));
        }
        Err(BenchError::Refused(format!("status {}, {}", answer.status, text.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(messages: u64) -> Rate {
        let (server_cpu, client_cpu) = (None, Duration::ZERO);
        Rate { messages, lost: 0, took: Duration::from_secs(2), server_cpu, client_cpu, held_back: 0 }
    }

    /// Accepted in 2 s, missing, heard of so many milliseconds later; a second, lost.
    const CASES: [(u64, u64, u64, f64, u64); 5] = [
        (1000, 0, 0, 500.0, 0),
        (1000, 0, 200, 500.0, 0),
        (1000, 0, 2250, 250.0, 0),
        (1000, 10, 10_000, 495.0, 10),
        (1000, 5000, 10_000, 0.0, 1000),
    ];

    #[test]
    fn what_is_lost_is_counted_and_not_waited_for_in_the_rate() {
        for (messages, missing, after, per_second, lost) in CASES {
            let mut rate = rate(messages);
            rate.arrived(missing, Duration::from_millis(after));
            assert!((rate.per_second() - per_second).abs() < 0.01, "{rate:?}: wanted {per_second}");
            assert_eq!(rate.lost, lost);
            let shown = figures(Form::Single, &rate, 0.0);
            let says_so = shown.iter().any(|figure| figure.name == "accepted and not arrived");
            assert_eq!(says_so, lost > 0, "{messages} of which {missing} are missing");
        }
    }
}
