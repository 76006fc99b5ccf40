//! The figures of several runs: for each its median and its spread, of the server and of its ratio to the reference.
//!
//! Absolute times differ from machine to machine and drift from minute to minute; a ratio to what the same machine did
//! in the same minutes holds better. So each run of the server has a run of the reference beside it, and the ratios are
//! those of such pairs.

use serde::Serialize;

use crate::latency::Percentiles;
use crate::outcome::Outcome;
use crate::server::Usage;

/// What a figure is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    Count,
    Ratio,
    Microseconds,
    Milliseconds,
    Bytes,
    Mebibytes,
    Percent,
}

/// One figure of one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
    /// The reference has it too, in the same sense.
    pub(crate) comparable: bool,
}

impl Figure {
    /// A figure that the reference has too.
    pub(crate) fn compared(name: &'static str, unit: Unit, value: f64) -> Self {
        Self { name, unit, value, comparable: true }
    }

    /// A figure that is no measure beside the reference's.
    pub(crate) fn alone(name: &'static str, unit: Unit, value: f64) -> Self {
        Self { name, unit, value, comparable: false }
    }
}

/// A median with the range that it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// One figure over all runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) server: Spread,
    pub(crate) reference: Option<Spread>,
    pub(crate) ratio: Option<Spread>,
}

/// The figures of all runs, each of the server with the reference that was run beside it.
pub(crate) fn rows(runs: &[(Outcome, Option<Outcome>)]) -> Vec<Row> {
    let pairs: Vec<_> =
        runs.iter().map(|(server, reference)| (figures(server), reference.as_ref().map(figures))).collect();
    rows_of(&pairs)
}

/// The same of figures that are there already.
pub(crate) fn rows_of(pairs: &[Pair]) -> Vec<Row> {
    let Some((first, _)) = pairs.first() else { return Vec::new() };
    first.iter().filter_map(|figure| row(figure, pairs)).collect()
}

/// Figures of the server, and of the reference beside it.
pub(crate) type Pair = (Vec<Figure>, Option<Vec<Figure>>);

fn row(figure: &Figure, pairs: &[Pair]) -> Option<Row> {
    let of = |figures: &[Figure]| figures.iter().find(|one| one.name == figure.name).map(|one| one.value);
    let server: Vec<f64> = pairs.iter().filter_map(|(server, _)| of(server)).collect();
    let both = pairs
        .iter()
        .filter(|_| figure.comparable)
        .filter_map(|(server, reference)| Some((of(server)?, of(reference.as_ref()?)?)));
    let both: Vec<(f64, f64)> = both.collect();
    let ratios = both.iter().filter(|(_, reference)| *reference > 0.0);
    Some(Row {
        name: figure.name,
        unit: figure.unit,
        server: Spread::of(server)?,
        ratio: Spread::of(ratios.map(|(server, reference)| server / reference).collect()),
        reference: Spread::of(both.into_iter().map(|(_, reference)| reference).collect()),
    })
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let upper = *values.get(half)?;
        let median = match half.checked_sub(1).and_then(|lower| values.get(lower)) {
            Some(lower) if values.len().is_multiple_of(2) => f64::midpoint(*lower, upper),
            _ => upper,
        };
        Some(Self { median, min, max })
    }
}

fn figures(run: &Outcome) -> Vec<Figure> {
    let mut list = List(Vec::new());
    list.add("authenticated connections", Unit::PerSecond, run.connect.per_second);
    list.add_if("server CPU per connection", Unit::Microseconds, run.connect.server_cpu_us_each);
    list.times(["connect p50", "connect p99", ""], &run.connect.latency);
    list.add_if(
        "server CPU for heartbeats, of a core",
        Unit::Percent,
        run.quiet.server_core_share.map(|x| x * 100.0),
    );
    list.add_if("server CPU per heartbeat", Unit::Microseconds, run.quiet.server_cpu_us_each);
    list.times(["heartbeat p50", "heartbeat p99", ""], &run.heartbeats.latency);
    list.add_if("room: server CPU per delivery", Unit::Microseconds, run.room.server_cpu_us_each);
    list.times(["room: latency p50", "room: latency p99", "room: latency max"], &run.room.latency);
    list.times(["room: last receiver p50", "", ""], &run.room.last_receiver);
    list.add_if("broadcast: server CPU per delivery", Unit::Microseconds, run.all.server_cpu_us_each);
    let names = ["broadcast: latency p50", "broadcast: latency p99", "broadcast: latency max"];
    list.times(names, &run.all.latency);
    list.times(["broadcast: last receiver p50", "", ""], &run.all.last_receiver);
    list.add("broadcast: client CPU per delivery", Unit::Microseconds, run.all.client_cpu_us_each);
    if let Some(share) = run.others_share {
        list.alone("other processes, of all processors", Unit::Percent, share * 100.0);
    }
    memory(run, &mut list);
    list.0
}

/// The reference keeps nothing for its clients, so that its memory is no measure.
fn memory(run: &Outcome, list: &mut List) {
    let Some(memory) = &run.memory else { return };
    let mut add = |name, unit, value| list.alone(name, unit, value);
    let mebibytes = |usage: &Usage| crate::outcome::float(usage.rss_bytes) / 1_048_576.0;
    let rss = memory.per_client(run.clients, |usage| usage.rss_bytes);
    add("RSS per idle connection", Unit::Bytes, rss);
    add("PSS per idle connection", Unit::Bytes, memory.per_client(run.clients, |usage| usage.pss_bytes));
    add("RSS before", Unit::Mebibytes, mebibytes(&memory.before));
    add("RSS, everybody idle", Unit::Mebibytes, mebibytes(&memory.idle));
    add("RSS after the traffic", Unit::Mebibytes, mebibytes(&memory.after_traffic));
    add("RSS, everybody gone", Unit::Mebibytes, mebibytes(&memory.after_leaving));
}

struct List(Vec<Figure>);

impl List {
    fn add(&mut self, name: &'static str, unit: Unit, value: f64) {
        self.0.push(Figure { name, unit, value, comparable: true });
    }

    /// A figure that is no measure beside the reference's.
    fn alone(&mut self, name: &'static str, unit: Unit, value: f64) {
        self.0.push(Figure { name, unit, value, comparable: false });
    }

    fn add_if(&mut self, name: &'static str, unit: Unit, value: Option<f64>) {
        if let Some(value) = value {
            self.add(name, unit, value);
        }
    }

    /// Median, 99th percentile and maximum; those without a name are left out.
    fn times(&mut self, names: [&'static str; 3], of: &Percentiles) {
        if of.samples == 0 {
            return;
        }
        for (name, value) in
            names.into_iter().zip([of.p50, of.p99, of.max]).filter(|(name, _)| !name.is_empty())
        {
            self.add(name, Unit::Milliseconds, value.as_secs_f64() * 1e3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], median: f64, min: f64, max: f64) {
        assert_eq!(Spread::of(values.to_vec()), Some(Spread { median, min, max }), "{values:?}");
    }

    #[test]
    fn medians_and_spreads() {
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[3.0, 1.0], 2.0, 1.0, 3.0);
        check(&[5.0, 1.0, 2.0], 2.0, 1.0, 5.0);
        check(&[4.0, 1.0, 2.0, 100.0], 3.0, 1.0, 100.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn ratios_are_those_of_pairs() {
        let figure = |value, comparable| Figure { name: "x", unit: Unit::Microseconds, value, comparable };
        let pair = |server: f64, reference: Option<f64>, comparable| {
            (vec![figure(server, comparable)], reference.map(|value| vec![figure(value, comparable)]))
        };
        let row = |pairs: &[Pair]| super::row(&pairs[0].0[0], pairs).unwrap();
        // The machine became three times slower in between: the ratio does not care.
        let slower = row(&[pair(2.0, Some(1.0), true), pair(6.0, Some(3.0), true)]);
        assert_eq!(slower.ratio, Some(Spread { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(slower.server, Spread { median: 4.0, min: 2.0, max: 6.0 });
        assert_eq!(row(&[pair(2.0, None, true)]).ratio, None);
        assert_eq!(row(&[pair(2.0, Some(1.0), false)]).reference, None);
        assert_eq!(row(&[pair(2.0, Some(0.0), true)]).ratio, None);
    }
}
