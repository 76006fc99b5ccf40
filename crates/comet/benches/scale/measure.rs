//! Clock, memory, medians, and the table of results.

use std::fmt::Write as _;
use std::io;

use serde_json::{Value, json};

/// Processor time of this thread.
pub(crate) fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Resident memory of the process.
pub(crate) fn resident_bytes() -> io::Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

/// Median, minimum and maximum.
#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// The same operation on a small and on a large shard, alternating.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paired {
    small: Spread,
    large: Spread,
    ratio: Spread,
}

impl Paired {
    /// Takes `repeat` pairs of samples, after one that does not count.
    pub(crate) fn sample(repeat: usize, mut pair: impl FnMut() -> (f64, f64)) -> Self {
        pair();
        let pairs: Vec<(f64, f64)> = (0..repeat).map(|_| pair()).collect();
        Self::of(&pairs)
    }

    pub(crate) fn of(pairs: &[(f64, f64)]) -> Self {
        Self {
            small: Spread::of(pairs.iter().map(|pair| pair.0)),
            large: Spread::of(pairs.iter().map(|pair| pair.1)),
            ratio: Spread::of(pairs.iter().map(|pair| pair.1 / pair.0)),
        }
    }

    pub(crate) fn large(&self) -> f64 {
        self.large.median
    }
}

/// All results, in order.
pub(crate) struct Report {
    sessions: usize,
    few: usize,
    repeat: usize,
    paired: Vec<(String, Paired)>,
    single: Vec<(String, Spread, &'static str)>,
}

impl Report {
    pub(crate) fn new(sessions: usize, few: usize, repeat: usize) -> Self {
        Self { sessions, few, repeat, paired: Vec::new(), single: Vec::new() }
    }

    pub(crate) fn paired(&mut self, name: &str, paired: Paired) {
        self.paired.push((name.to_owned(), paired));
    }

    pub(crate) fn bytes(&mut self, name: &str, bytes: f64) {
        self.single.push((name.to_owned(), Spread::of(std::iter::once(bytes)), "bytes"));
    }

    pub(crate) fn time(&mut self, name: &str, ns: f64) {
        self.single.push((name.to_owned(), Spread::of(std::iter::once(ns / 1e6)), "ms"));
    }

    pub(crate) fn percent(&mut self, name: &str, values: &[f64]) {
        self.single.push((name.to_owned(), Spread::of(values.iter().copied()), "percent"));
    }

    pub(crate) fn table(&self) -> String {
        let Self { sessions, few, repeat, .. } = self;
        let mut text = format!("medians of {repeat} pairs [least..most], ns of processor time each\n\n");
        let _ = writeln!(text, "| | {few} sessions | {sessions} sessions | ratio |\n|---|---|---|---|");
        for (name, Paired { small, large, ratio }) in &self.paired {
            let _ = writeln!(
                text,
                "| {name} | {:.0} [{:.0}..{:.0}] | {:.0} [{:.0}..{:.0}] | {:.2} [{:.2}..{:.2}] |",
                small.median,
                small.min,
                small.max,
                large.median,
                large.min,
                large.max,
                ratio.median,
                ratio.min,
                ratio.max
            );
        }
        let _ = writeln!(text, "\n| {sessions} sessions | | |\n|---|---|---|");
        for (name, spread, unit) in &self.single {
            let _ = writeln!(
                text,
                "| {name} | {:.1} {unit} | [{:.1}..{:.1}] |",
                spread.median, spread.min, spread.max
            );
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let paired: Vec<Value> = self
            .paired
            .iter()
            .map(|(name, paired)| {
                let Paired { small, large, ratio } = paired;
                let (small, large, ratio) = (small.json(), large.json(), ratio.json());
                json!({ "name": name, "unit": "ns", "small": small, "large": large, "ratio": ratio })
            })
            .collect();
        let single = self.single.iter();
        let single: Vec<Value> = single
            .map(|(name, spread, unit)| json!({ "name": name, "unit": unit, "value": spread.json() }))
            .collect();
        let Self { sessions, few, repeat, .. } = self;
        let all =
            json!({ "sessions": sessions, "few": few, "repeat": repeat, "paired": paired, "single": single });
        format!("{all:#}\n")
    }
}
