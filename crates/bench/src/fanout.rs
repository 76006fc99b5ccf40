//! `goim-bench room` and `goim-bench all`: messages to many sessions at once.

use std::time::Duration;

use clap::Args;

use crate::error::BenchError;
use crate::figures::{Figure, Unit, each, float};
use crate::options::{Options, duration, rate};
use crate::pair::{Both, Systems, figures};
use crate::progress::Progress;
use crate::publisher::{Audience, HttpPublisher};
use crate::report::{Plot, PlotKind, Report, Series};
use crate::sizes::Sizes;
use crate::system::{Source, System};
use crate::window::{LoadPattern, QUANTILES, Window, latency_figures};

/// Publishes to all clients at once and accounts for every delivery, in windows that alternate with
/// the bare send loop.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Bytes in the body of a message, at least 32; `json:2048`: bytes of JSON; `chat`: sizes of
    /// real chat messages
    #[arg(long, default_value = "64", value_name = "BYTES", value_parser = Sizes::parse)]
    size: Sizes,
    /// Messages that are published together, in one request
    #[arg(long, default_value_t = 1, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    burst: u32,
    /// Bursts in a window, each sent when the previous one has reached all clients
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Publish at this rate instead, whether or not earlier messages have arrived; the reference
    /// still sends one burst after the other
    #[arg(long, value_name = "PER SECOND", conflicts_with = "flood", value_parser = rate)]
    rate: Option<f64>,
    /// Publish as fast as messages are accepted instead; the reference then sends 20 at a time as
    /// fast as it can
    #[arg(long)]
    flood: bool,
    /// Publishers of --flood, each with its own connection
    #[arg(long, default_value_t = 8, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    publishers: u32,
    /// Length of a window of --rate or --flood
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = duration)]
    seconds: Duration,
}

const AFTER_HELP: &str = "\
Examples:
  goim-bench room --spawn                                     one message at a time to a room of 10,000
  goim-bench room --spawn --over ws --size 1024               WebSocket, larger messages
  goim-bench room --spawn --burst 20                          20 messages published together
  goim-bench room --spawn --size json:2048 --protover 2       JSON of 2 KiB, compressed with zlib
  goim-bench room --spawn --rate 100 --seconds 10s            100 messages per second
  goim-bench room --spawn --flood --publishers 64             as fast as the server accepts
  goim-bench room --reference only                            the bare send loop alone
  goim-bench room --server-pid $(pidof comet) --connections 8000 --heartbeat 30s    goim's Go server";

impl Arguments {
    /// Returns the load patterns of the server and of the reference.
    fn patterns(&self) -> (LoadPattern, LoadPattern) {
        let drained = LoadPattern::Drained { bursts: self.messages };
        match self.rate {
            Some(per_second) => (LoadPattern::rate_for(per_second, self.seconds), drained),
            None if self.flood => {
                let seconds = self.seconds.as_secs_f64();
                let flood = LoadPattern::Flood { publishers: self.publishers, seconds };
                (flood, flood)
            }
            None => (drained, drained),
        }
    }

    fn describe(&self) -> Vec<(&'static str, String)> {
        let pattern = match (self.rate, self.flood) {
            (Some(rate), _) => format!("{rate} per second for {:?}", self.seconds),
            (None, true) => {
                format!("as fast as accepted, {} publishers for {:?}", self.publishers, self.seconds)
            }
            (None, false) => format!("{} bursts, each drained", self.messages),
        };
        let protover = self.options.clients.protover;
        vec![
            ("protocol", protover.map_or("goim v2".to_owned(), |protover| format!("up to {protover}"))),
            ("size", self.size.to_string()),
            ("burst", self.burst.to_string()),
            ("load", pattern),
        ]
    }

    /// Measures a pair. The speed of the machine may change from one second to the next, so drained
    /// bursts alternate one by one.
    fn measure(
        &self,
        systems: &mut Systems,
        audience: Audience,
        pair: u32,
        progress: &Progress,
    ) -> Result<Both<Window>, BenchError> {
        let (of_server, of_reference) = self.patterns();
        let (turns, of_server, of_reference) = match (of_server, of_reference) {
            (LoadPattern::Drained { bursts }, _) => {
                let one = LoadPattern::Drained { bursts: 1 };
                (bursts, one, one)
            }
            (of_server, of_reference) => (1, of_server, of_reference),
        };
        let mut sum = (Window::default(), systems.reference.as_ref().map(|_| Window::default()));
        for turn in 0..turns {
            let (measured, reference) = systems.alternate(pair + turn, |system| {
                let pattern = if system.is_reference() { of_reference } else { of_server };
                system.window(audience, pattern, self.burst, progress)
            })?;
            sum.0.add(&measured);
            if let Some((sum, window)) = sum.1.as_mut().zip(reference) {
                sum.add(&window);
            }
        }
        Ok(sum)
    }
}

/// Measures all pairs of windows.
///
/// # Errors
/// See [`System::window`].
pub(crate) fn run(
    what: &'static str,
    audience: Audience,
    arguments: &Arguments,
) -> Result<Report, BenchError> {
    let options = &arguments.options;
    let progress = Progress::new(what);
    let streams = if arguments.flood { arguments.publishers } else { 1 };
    let mut systems = Systems::connect(options, streams, arguments.size, &progress)?;
    // The first messages run code that has never run before.
    let warm_up = LoadPattern::Drained { bursts: 3 };
    systems.for_each(|system| system.window(audience, warm_up, 1, &progress).map(drop))?;
    let mut windows = Vec::new();
    for pair in 0..options.run.repeat {
        let both = arguments.measure(&mut systems, audience, pair, &progress)?;
        progress.done(&format!("pair {} of {}: {}", pair + 1, options.run.repeat, cpu_per_delivery(&both)));
        windows.push(both);
    }
    let pairs = figures(&windows, window_figures);
    let mut report = Report::new(what, options, &arguments.describe(), pairs);
    report.plots = vec![Plot::latency("deliveries", &windows, |window| &window.latency), timeline(&windows)];
    report.accounts = systems.accounts();
    report.accounts.extend(no_batches(&systems.measured));
    report.faults = systems.faults()?;
    Ok(report)
}

/// Returns a line where bursts could not be published in one request.
fn no_batches(system: &System) -> Option<String> {
    let Source::Server(_, HttpPublisher { batches: Some(false), .. }) = &system.source else { return None };
    Some("the server takes one message per request: a burst was as many requests, written at once".into())
}

/// Returns the CPU time per delivery of a pair, for progress.
fn cpu_per_delivery((server, reference): &Both<Window>) -> String {
    let cpu = |window: &Window| window.server_cpu.map(|cpu| each(cpu, window.deliveries)).unwrap_or_default();
    let own = format!("{:.2} us of server CPU per delivery", cpu(server));
    match reference {
        Some(reference) => format!("{own}, reference {:.2}", cpu(reference)),
        None => own,
    }
}

/// Returns the figures of a window of messages.
fn window_figures(window: &Window) -> Vec<Figure> {
    let mut list =
        vec![Figure::new("deliveries", Unit::PerSecond, float(window.deliveries) / window.seconds)];
    list.extend(
        window.cpu_figures(["server CPU per delivery", "client CPU per delivery"], window.deliveries),
    );
    if let Some(cpu) = window.server_cpu {
        list.push(Figure::new("server CPU, of a core", Unit::Percent, window.core_share(cpu)));
    }
    list.push(Figure::new("client CPU, of a core", Unit::Percent, window.core_share(window.client_cpu)));
    let bytes = float(window.received_bytes) / float(window.deliveries.max(1));
    list.push(Figure::new("bytes per delivery", Unit::Bytes, bytes));
    list.extend(latency_figures(&window.latency.percentiles(), QUANTILES));
    let last = window.last_receiver.percentiles();
    list.extend(latency_figures(
        &last,
        [("last receiver p50", |last| last.p50), ("last receiver p99", |last| last.p99)],
    ));
    let accepted = float(window.messages) / window.seconds;
    list.push(Figure::absolute("messages accepted", Unit::PerSecond, accepted));
    if window.throttled > 0 {
        list.push(Figure::absolute("responses with status 429", Unit::Count, float(window.throttled)));
    }
    list
}

/// Plots the deliveries of the first pair over time.
fn timeline(windows: &[Both<Window>]) -> Plot {
    let line = |name: &str, window: &Window| Series { name: name.into(), points: slope(&window.timeline) };
    let first = windows.first();
    let server = first.map(|(server, _)| line("server", server));
    let reference =
        first.and_then(|(_, reference)| reference.as_ref()).map(|window| line("reference", window));
    Plot {
        title: "Deliveries over time".into(),
        x: "seconds".into(),
        y: "deliveries per second".into(),
        kind: PlotKind::Linear,
        series: server.into_iter().chain(reference).collect(),
    }
}

/// Converts a running count into counts per second, in steps of at least 0.1 s.
fn slope(timeline: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let (mut since, mut count) = (0.0, 0.0);
    for (at, received) in timeline {
        if at - since >= 0.1 {
            points.push((*at, (received - count) / (at - since)));
            (since, count) = (*at, *received);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_from_a_running_count() {
        let points = slope(&[(0.05, 10.0), (0.1, 20.0), (0.15, 30.0), (0.3, 60.0)]);
        assert_eq!(points.len(), 2);
        assert!((points[0].1 - 200.0).abs() < 1e-6 && (points[1].1 - 200.0).abs() < 1e-6, "{points:?}");
    }
}
