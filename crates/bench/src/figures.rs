//! Figures over several measurements: the median and range of each, and of its ratio to the
//! reference.
//!
//! Absolute times differ between machines and drift over minutes. Ratios of adjacent windows on the
//! same machine are more stable, so a ratio is computed for each pair, and the median is taken of
//! these ratios.

use std::time::Duration;

use serde::Serialize;

/// The unit of a figure.
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

/// A figure of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
    /// True when the reference has the same figure, in the same sense.
    pub(crate) comparable: bool,
}

impl Figure {
    /// Creates a figure that is compared with the reference.
    pub(crate) fn new(name: &'static str, unit: Unit, value: f64) -> Self {
        Self { name, unit, value, comparable: true }
    }

    /// Creates a figure that is not compared.
    pub(crate) fn absolute(name: &'static str, unit: Unit, value: f64) -> Self {
        Self { name, unit, value, comparable: false }
    }
}

/// The figures of a measurement, and of the reference beside it.
pub(crate) type Pair = (Vec<Figure>, Option<Vec<Figure>>);

/// The median and the range of several values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A figure over all measurements.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) server: Spread,
    pub(crate) reference: Option<Spread>,
    pub(crate) ratio: Option<Spread>,
}

/// Returns a row for each figure of the first pair.
pub(crate) fn rows(pairs: &[Pair]) -> Vec<Row> {
    let Some((first, _)) = pairs.first() else { return Vec::new() };
    first.iter().filter_map(|figure| row(figure, pairs)).collect()
}

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

/// Returns microseconds per item.
pub(crate) fn each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / float(count.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "figures that are shown are far below 2^53")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], median: f64, min: f64, max: f64) {
        assert_eq!(Spread::of(values.to_vec()), Some(Spread { median, min, max }), "{values:?}");
    }

    #[test]
    fn medians_and_ranges() {
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[3.0, 1.0], 2.0, 1.0, 3.0);
        check(&[5.0, 1.0, 2.0], 2.0, 1.0, 5.0);
        check(&[4.0, 1.0, 2.0, 100.0], 3.0, 1.0, 100.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn ratios_are_computed_for_each_pair() {
        let figure = |value, comparable| Figure { name: "x", unit: Unit::Microseconds, value, comparable };
        let pair = |server: f64, reference: Option<f64>, comparable| {
            (vec![figure(server, comparable)], reference.map(|value| vec![figure(value, comparable)]))
        };
        let row = |pairs: &[Pair]| super::row(&pairs[0].0[0], pairs).unwrap();
        // The machine became three times slower between the pairs, which does not change the ratio.
        let slower = row(&[pair(2.0, Some(1.0), true), pair(6.0, Some(3.0), true)]);
        assert_eq!(slower.ratio, Some(Spread { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(slower.server, Spread { median: 4.0, min: 2.0, max: 6.0 });
        assert_eq!(row(&[pair(2.0, None, true)]).ratio, None);
        assert_eq!(row(&[pair(2.0, Some(1.0), false)]).reference, None);
        assert_eq!(row(&[pair(2.0, Some(0.0), true)]).ratio, None);
    }
}
