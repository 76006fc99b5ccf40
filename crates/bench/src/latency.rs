//! Latency distributions, in microseconds, with three significant digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A latency distribution.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    /// In microseconds.
    histogram: Histogram<u64>,
}

/// Three significant digits: an error of at most 0.1 %.
const DIGITS: u8 = 3;

/// The maximum in microseconds: one hour. Longer latencies count as this.
const LONGEST_US: u64 = 3_600_000_000;

impl Default for Latency {
    #[expect(clippy::expect_used, reason = "fails only for bounds out of range, and these are constants")]
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self { histogram: histogram.expect("1 < an hour, three digits") }
    }
}

impl Latency {
    /// Records the time between two values of [`crate::clock::now_ns`].
    pub(crate) fn record(&mut self, from_ns: u64, to_ns: u64) {
        self.histogram.saturating_record(to_ns.saturating_sub(from_ns) / 1_000);
    }

    /// Returns all latencies as pairs of microseconds and count, for another process.
    pub(crate) fn samples(&self) -> Samples {
        let pairs = self.histogram.iter_recorded();
        Samples(pairs.map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    /// Adds latencies of another process.
    pub(crate) fn add(&mut self, samples: &Samples) {
        for (micros, times) in &samples.0 {
            self.histogram.saturating_record_n(*micros, *times);
        }
    }

    /// Returns points of a plot: quantiles, and their latency in milliseconds.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let quantiles = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];
        if self.histogram.is_empty() {
            return Vec::new();
        }
        let at = |quantile: f64| crate::figures::float(self.histogram.value_at_quantile(quantile)) / 1e3;
        quantiles.into_iter().map(|quantile| (quantile, at(quantile))).collect()
    }

    /// Returns the quantiles that are reported.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let at = |quantile| Duration::from_micros(self.histogram.value_at_quantile(quantile));
        if self.histogram.is_empty() {
            return Percentiles::default();
        }
        Percentiles {
            samples: self.histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: Duration::from_micros(self.histogram.max()),
        }
    }
}

/// A distribution, as it is sent between processes: pairs of microseconds and count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Samples(Vec<(u64, u64)>);

/// The quantiles that are reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Percentiles {
    /// The number of latencies.
    pub(crate) samples: u64,
    #[serde(rename = "p50_us", serialize_with = "micros")]
    pub(crate) p50: Duration,
    #[serde(rename = "p90_us", serialize_with = "micros")]
    pub(crate) p90: Duration,
    #[serde(rename = "p99_us", serialize_with = "micros")]
    pub(crate) p99: Duration,
    #[serde(rename = "p99_9_us", serialize_with = "micros")]
    pub(crate) p99_9: Duration,
    #[serde(rename = "max_us", serialize_with = "micros")]
    pub(crate) max: Duration,
}

fn micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 to 1,000 ms, each once.
    fn thousand() -> Latency {
        let mut latency = Latency::default();
        (1..=1_000_u64).for_each(|millis| latency.record(5_000, 5_000 + millis * 1_000_000));
        latency
    }

    fn about(got: Duration, millis: u64) {
        let expect = Duration::from_millis(millis);
        assert!(got.abs_diff(expect) <= expect / 1_000 + Duration::from_micros(1), "{got:?}, not {expect:?}");
    }

    #[test]
    fn percentiles_of_an_even_distribution() {
        let figures = thousand().percentiles();
        assert_eq!(figures.samples, 1_000);
        about(figures.p50, 500);
        about(figures.p90, 900);
        about(figures.p99, 990);
        about(figures.p99_9, 999);
        about(figures.max, 1_000);
    }

    #[test]
    fn samples_keep_the_whole_distribution() {
        let mut sum = Latency::default();
        let json = serde_json::to_string(&thousand().samples()).unwrap();
        (0..2).for_each(|_| sum.add(&serde_json::from_str(&json).unwrap()));
        let (sum, one) = (sum.percentiles(), thousand().percentiles());
        assert_eq!(sum.samples, 2_000);
        about(sum.p50, 500);
        about(sum.max, 1_000);
        assert_eq!(sum.p99, one.p99);
    }

    #[test]
    fn the_edges() {
        assert_eq!(Latency::default().percentiles(), Percentiles::default());
        let mut latency = Latency::default();
        latency.record(9, 3);
        latency.record(0, u64::MAX);
        let figures = latency.percentiles();
        assert_eq!(figures.samples, 2);
        assert!(figures.max >= Duration::from_secs(3_600), "{figures:?}");
    }
}
