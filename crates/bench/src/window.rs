//! A measurement window: what one system did and used during a few seconds.

use std::time::Duration;

use crate::figures::{Figure, Unit, each, float};
use crate::latency::{Latency, Percentiles};

/// The timing of the messages of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LoadPattern {
    /// Closed loop: each burst follows when the previous one has reached all clients.
    Drained { bursts: u32 },
    /// Open loop: bursts at a fixed rate, whether or not earlier ones have arrived.
    Rate { per_second: f64, bursts: u32 },
    /// Each publisher sends as soon as its previous message is accepted.
    Flood { publishers: u32, seconds: f64 },
}

impl LoadPattern {
    /// Bursts at a fixed rate for a given time, one at least.
    pub(crate) fn rate_for(per_second: f64, time: Duration) -> Self {
        Self::Rate { per_second, bursts: (per_second * time.as_secs_f64()).ceil().max(1.0) as u32 }
    }
}

/// What one system did and used during a window.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) seconds: f64,
    pub(crate) deliveries: u64,
    pub(crate) messages: u64,
    /// Heartbeats answered.
    pub(crate) heartbeats: u64,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) client_cpu: Duration,
    /// Bytes received by all clients, framing included.
    pub(crate) received_bytes: u64,
    pub(crate) latency: Latency,
    /// Latency of the last receiver of each message.
    pub(crate) last_receiver: Latency,
    /// 429 responses to publishers.
    pub(crate) throttled: u64,
    /// Seconds since the start of the window, and messages received by then.
    pub(crate) timeline: Vec<(f64, f64)>,
}

impl Window {
    /// Appends a later window of the same system.
    pub(crate) fn add(&mut self, later: &Self) {
        let (shift, count) = (self.seconds, float(self.deliveries));
        self.timeline.extend(later.timeline.iter().map(|(at, received)| (at + shift, received + count)));
        self.seconds += later.seconds;
        self.deliveries += later.deliveries;
        self.messages += later.messages;
        self.heartbeats += later.heartbeats;
        self.server_cpu = match (self.server_cpu, later.server_cpu) {
            (Some(own), Some(later)) => Some(own + later),
            (own, later) => own.or(later),
        };
        self.client_cpu += later.client_cpu;
        self.received_bytes += later.received_bytes;
        self.latency.add(&later.latency.samples());
        self.last_receiver.add(&later.last_receiver.samples());
        self.throttled += later.throttled;
    }

    /// Subtracts the CPU time that the system uses when it only answers heartbeats.
    pub(crate) fn subtract_idle(&mut self, idle: &Self) {
        let share = self.seconds / idle.seconds.max(1e-9);
        let rest = |own: Duration, idle: Duration| own.saturating_sub(idle.mul_f64(share));
        self.server_cpu = self.server_cpu.zip(idle.server_cpu).map(|(own, idle)| rest(own, idle));
        self.client_cpu = rest(self.client_cpu, idle.client_cpu);
    }

    /// Returns CPU times per `count`. Names: of the server, of the clients.
    pub(crate) fn cpu_figures(&self, names: [&'static str; 2], count: u64) -> Vec<Figure> {
        let [server, client] = names;
        let server = self.server_cpu.map(|cpu| Figure::new(server, Unit::Microseconds, each(cpu, count)));
        let client = Figure::new(client, Unit::Microseconds, each(self.client_cpu, count));
        server.into_iter().chain([client]).collect()
    }

    /// Returns a CPU time as a share of one core, in percent.
    pub(crate) fn core_share(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() / self.seconds.max(1e-9) * 100.0
    }
}

/// Returns the figures of a latency distribution; one without samples has none. Quantiles without a
/// name are left out.
pub(crate) fn latency_figures<const N: usize>(
    latency: &Percentiles,
    quantiles: [(&'static str, fn(&Percentiles) -> Duration); N],
) -> Vec<Figure> {
    if latency.samples == 0 {
        return Vec::new();
    }
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let figure = |(name, of): (_, fn(&Percentiles) -> Duration)| {
        Figure::new(name, Unit::Milliseconds, millis(of(latency)))
    };
    quantiles.map(figure).into()
}

/// The quantiles of a latency distribution that benchmarks of messages show.
pub(crate) const QUANTILES: [(&str, fn(&Percentiles) -> Duration); 5] = [
    ("latency p50", |latency| latency.p50),
    ("latency p90", |latency| latency.p90),
    ("latency p99", |latency| latency.p99),
    ("latency p99.9", |latency| latency.p99_9),
    ("latency max", |latency| latency.max),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seconds: f64, server: u64, client: u64) -> Window {
        let millis = Duration::from_millis;
        Window { seconds, server_cpu: Some(millis(server)), client_cpu: millis(client), ..Window::default() }
    }

    #[test]
    fn windows_are_appended() {
        let mut sum = Window::default();
        let mut second = window(2.0, 30, 50);
        (second.deliveries, second.timeline) = (7, vec![(0.5, 3.0)]);
        sum.add(&second);
        sum.add(&second);
        assert_eq!((sum.seconds, sum.deliveries, sum.server_cpu), (4.0, 14, Some(Duration::from_millis(60))));
        assert_eq!(sum.timeline, [(0.5, 3.0), (2.5, 10.0)]);
    }

    #[test]
    fn the_cost_of_heartbeats_is_subtracted_in_proportion() {
        let mut busy = window(2.0, 100, 50);
        busy.subtract_idle(&window(4.0, 40, 200));
        assert_eq!((busy.server_cpu, busy.client_cpu), (Some(Duration::from_millis(80)), Duration::ZERO));
    }

    #[test]
    fn a_rate_has_one_burst_at_least() {
        let bursts =
            |per_second, millis| match LoadPattern::rate_for(per_second, Duration::from_millis(millis)) {
                LoadPattern::Rate { bursts, .. } => bursts,
                other => panic!("{other:?}"),
            };
        assert_eq!([bursts(20.0, 500), bursts(3.0, 500), bursts(0.1, 10)], [10, 2, 1]);
    }
}
