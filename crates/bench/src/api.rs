//! `goim-bench api`: pushes per second through the HTTP API, one per request and many, compared
//! with an HTTP server of the same stack that only answers.

mod driver;

use std::time::{Duration, Instant};

use clap::Args;

use crate::bare_http::BareHttp;
use crate::clock::now_ns;
use crate::error::BenchError;
use crate::figures::float;
use crate::figures::{Figure, Pair, Unit};
use crate::machine::bound_to_cpus;
use crate::message::Message;
use crate::options::{ClientOptions, OPERATION, Options, ReferenceMode, duration};
use crate::progress::Progress;
use crate::publisher::{base64, batch};
use crate::report::Report;
use crate::sizes::Sizes;
use crate::system::{Server, System};
use crate::usage::cpu_time;
use crate::window::Window;
use driver::Driver;

/// Pushes by key to connected sessions over persistent HTTP connections, each with one request
/// outstanding. Every push is accounted for. Windows alternate: single pushes, the HTTP server that
/// only answers, batches.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// HTTP connections; each pushes to its own session
    #[arg(long, default_value_t = 32, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Messages in a request of the batch form
    #[arg(long, default_value_t = 100, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    together: u32,
    /// Leave out the batch forms, which only goim has
    #[arg(long)]
    no_batch: bool,
    /// Length of a window
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
    /// Bytes in the body of a message, at least 32
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    size: usize,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench api --spawn
  goim-bench api --spawn --clients 64 --together 500";

/// The form of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Json,
    Ndjson,
}

/// How often workers report what has arrived. A delivery may be this much older than its report.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// The result of a window: `messages` are those that the server accepted, `deliveries` those that
/// arrived.
type Accepted = Window;

/// Records what happened after the last response: all messages have arrived after so long, or some
/// are missing. Waiting for missing messages does not count as time.
fn record_arrival(window: &mut Accepted, missing: u64, after: Duration) {
    window.deliveries = window.messages.saturating_sub(missing);
    if missing == 0 {
        window.seconds += after.saturating_sub(REPORT_INTERVAL).as_secs_f64();
    }
}

/// Returns the messages per second that arrived.
fn per_second(window: &Accepted) -> f64 {
    float(window.deliveries) / window.seconds.max(1e-9)
}

/// Measures all windows.
///
/// # Errors
/// When a push is refused.
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let mut options = arguments.options.clone();
    options.clients = ClientOptions { connections: arguments.clients, ..options.clients };
    let progress = Progress::new("goim-bench api");
    let bare = match options.run.reference {
        ReferenceMode::Without => None,
        _ => Some(BareHttp::start(&options.run.server_cpus())?),
    };
    let server = Server::start(&options)?;
    let url = server.endpoints.http.clone();
    let mut system = System::of_server(&options, server, 1, Sizes::Fixed(arguments.size), &progress)?;
    let has_batches = system.publisher()?.has_batches()?;
    let mut runner =
        Runner { arguments, options: &options, url, numbers: vec![0; arguments.clients as usize], progress };
    let mut pairs = Vec::new();
    for pair in 0..options.run.repeat {
        let (pair_figures, single) = runner.pair(&mut system, bare.as_ref(), has_batches)?;
        let text =
            format!("pair {} of {}: {single:.0} single pushes per second", pair + 1, options.run.repeat);
        runner.progress.done(&text);
        pairs.push(pair_figures);
    }
    let more = [
        ("HTTP connections", arguments.clients.to_string()),
        ("messages per batch", arguments.together.to_string()),
        ("size", format!("{} B", arguments.size)),
    ];
    let mut report = Report::new("goim-bench api", &options, &more, pairs);
    let (published, received) = (runner.published(), system.received());
    let number = |count: u64| crate::table::number(float(count));
    report.accounts.push(format!("server: {} of {} pushes arrived", number(received), number(published)));
    if !has_batches {
        report.accounts.push("the server takes one message per request: batches were not measured".into());
    }
    if received < published {
        report.faults.push(format!("server: {} pushes lost", published - received));
    }
    // Clients have separate numbers, so the losses follow from the sums above.
    system.published = vec![0];
    report.faults.extend(system.faults()?);
    Ok(report)
}

struct Runner<'a> {
    arguments: &'a Arguments,
    options: &'a Options,
    url: String,
    /// The number of the next message of each connection.
    numbers: Vec<u32>,
    progress: Progress,
}

impl Runner<'_> {
    /// Measures all forms of requests, and the reference. Also returns the single pushes per
    /// second.
    fn pair(
        &mut self,
        system: &mut System,
        bare: Option<&BareHttp>,
        has_batches: bool,
    ) -> Result<(Pair, f64), BenchError> {
        let single = self.push(system, Form::Single)?;
        let reference = bare.map(|bare| self.push_to_bare(bare)).transpose()?;
        let mut own = figures(Form::Single, &single, 0.0);
        if has_batches && !self.arguments.no_batch {
            for form in [Form::Json, Form::Ndjson] {
                own.extend(figures(form, &self.push(system, form)?, per_second(&single)));
            }
        }
        let reference = reference.map(|window| figures(Form::Single, &window, 0.0));
        Ok(((own, reference), per_second(&single)))
    }

    /// Pushes to the server's sessions in one form of request.
    fn push(&mut self, system: &mut System, form: Form) -> Result<Accepted, BenchError> {
        let together = if form == Form::Single { 1 } else { self.arguments.together };
        let (run, size) = (system.run, self.arguments.size);
        let make = |connection: usize, first: u32| {
            let due_ns = now_ns();
            let bodies = (first..first + together)
                .map(|number| Message { run, stream: 0, number, due_ns }.encode(size))
                .collect::<Vec<_>>();
            request(form, &crate::control::key(run, connection as u32), &bodies)
        };
        self.progress.phase(if form == Form::Single { "single pushes" } else { "batches" }, 0);
        let (client_before, received) = (system.fleet.cpu(), system.received());
        let pid = system.server().and_then(|server| server.pid);
        let url = self.url.clone();
        let mut numbers = std::mem::take(&mut self.numbers);
        let driven = self.drive(&url, pid, together, &mut numbers, make);
        self.numbers = numbers;
        let mut window = driven?;
        // The rate counts what arrives. Messages that earlier windows lost will not arrive any
        // more.
        let (expected, began) = (received + window.messages, Instant::now());
        let deadline = began + self.options.clients.patience;
        system.fleet.wait_until(deadline, |all| all.received() >= expected)?;
        record_arrival(&mut window, expected.saturating_sub(system.received()), began.elapsed());
        window.client_cpu += system.fleet.cpu().saturating_sub(client_before);
        self.progress.clear();
        Ok(window)
    }

    /// Sends the requests of single pushes to the server that only answers.
    fn push_to_bare(&self, bare: &BareHttp) -> Result<Accepted, BenchError> {
        let mut numbers = vec![0; self.arguments.clients as usize];
        let size = self.arguments.size;
        let make = |connection: usize, number: u32| {
            let body = Message { run: 0, stream: 0, number, due_ns: now_ns() }.encode(size);
            request(Form::Single, &crate::control::key(0, connection as u32), &[body])
        };
        self.progress.phase("reference", 0);
        let mut window = self.drive(&bare.url, Some(bare.pid()), 1, &mut numbers, make)?;
        window.deliveries = window.messages;
        self.progress.clear();
        Ok(window)
    }

    /// Sends requests for the length of a window, on the CPUs of the clients. `numbers` advance by
    /// what is accepted.
    fn drive(
        &self,
        url: &str,
        pid: Option<u32>,
        together: u32,
        numbers: &mut [u32],
        make: impl Fn(usize, u32) -> Vec<u8>,
    ) -> Result<Accepted, BenchError> {
        let server_cpus = self.options.run.server_cpus();
        bound_to_cpus(&self.options.run.client_cpus(), || {
            let mut driver = match Driver::connect(url, numbers, together, make) {
                Ok(driver) => driver,
                Err(error) => return Ok(Err(error)),
            };
            let (before, own) = (cpu_time(pid, &server_cpus), crate::clock::own_cpu());
            let began = Instant::now();
            Ok(driver.run(began + self.arguments.seconds).map(|counts| Window {
                seconds: began.elapsed().as_secs_f64(),
                messages: counts.messages,
                throttled: counts.throttled,
                server_cpu: cpu_time(pid, &server_cpus)
                    .zip(before)
                    .map(|(after, before)| after.saturating_sub(before)),
                client_cpu: crate::clock::own_cpu().saturating_sub(own),
                ..Window::default()
            }))
        })?
    }

    fn published(&self) -> u64 {
        self.numbers.iter().map(|number| u64::from(*number)).sum()
    }
}

/// Returns the figures of a window. `single` is the rate of single pushes, for the batch forms.
fn figures(form: Form, window: &Accepted, single: f64) -> Vec<Figure> {
    let (rate, ratio, cpu) = match form {
        Form::Single => {
            ("single: pushes", None, ["single: server CPU per push", "single: client CPU per push"])
        }
        Form::Json => (
            "JSON: messages",
            Some("JSON: ratio to single pushes"),
            ["JSON: server CPU per message", "JSON: client CPU per message"],
        ),
        Form::Ndjson => (
            "NDJSON: messages",
            Some("NDJSON: ratio to single pushes"),
            ["NDJSON: server CPU per message", "NDJSON: client CPU per message"],
        ),
    };
    let mut list = vec![Figure::new(rate, Unit::PerSecond, per_second(window))];
    list.extend(ratio.map(|name| Figure::absolute(name, Unit::Ratio, per_second(window) / single.max(1e-9))));
    list.extend(window.cpu_figures(cpu, window.messages));
    let lost = window.messages.saturating_sub(window.deliveries);
    for (name, count) in [("accepted and lost", lost), ("responses with status 429", window.throttled)] {
        if count > 0 {
            list.push(Figure::absolute(name, Unit::Count, float(count)));
        }
    }
    list
}

/// Encodes a request.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepted within 2 s, missing, milliseconds until that is known; expected rate, expected
    /// number of lost ones.
    const CASES: [(u64, u64, u64, f64, u64); 5] = [
        (1000, 0, 0, 500.0, 0),
        (1000, 0, 200, 500.0, 0),
        (1000, 0, 2250, 250.0, 0),
        (1000, 10, 10_000, 495.0, 10),
        (1000, 5000, 10_000, 0.0, 1000),
    ];

    #[test]
    fn lost_messages_are_counted_and_their_wait_is_not_part_of_the_rate() {
        for (messages, missing, after, rate, lost) in CASES {
            let mut window = Window { messages, seconds: 2.0, ..Window::default() };
            record_arrival(&mut window, missing, Duration::from_millis(after));
            assert!((per_second(&window) - rate).abs() < 0.01, "{window:?}: expected {rate}");
            let list = figures(Form::Single, &window, 0.0);
            let shown = list.iter().find(|figure| figure.name == "accepted and lost");
            assert_eq!(
                shown.map_or(0.0, |figure| figure.value),
                float(lost),
                "{messages}, {missing} missing"
            );
        }
    }
}
