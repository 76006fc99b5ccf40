//! The result of a paired benchmark, as text, as JSON and as a page. Owns no figure and no measurement.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::error::BenchError;
use crate::machine::{Facts, facts};
use crate::pair::Subject;
use crate::summary::{Pair, Row, rows_of};

/// A plot of the page.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) kind: PlotKind,
    pub(crate) series: Vec<Series>,
}

/// What a plot's axes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlotKind {
    /// Quantiles, the rare ones spread out, against a logarithmic axis of times.
    Latency,
    Linear,
}

/// One line of a plot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The result of a benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Paper {
    pub(crate) what: &'static str,
    version: &'static str,
    machine: Facts,
    asked: Vec<(String, String)>,
    pub(crate) figures: Vec<Row>,
    /// The figures of each pair.
    pairs: Vec<Pair>,
    pub(crate) accounts: Vec<String>,
    pub(crate) faults: Vec<String>,
    pub(crate) plots: Vec<Plot>,
}

impl Paper {
    pub(crate) fn new(
        what: &'static str,
        subject: &Subject,
        more: &[(&str, String)],
        pairs: Vec<Pair>,
    ) -> Result<Self, BenchError> {
        let mut asked = subject.asked()?;
        asked.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Ok(Self {
            what,
            version: env!("CARGO_PKG_VERSION"),
            machine: facts(),
            asked,
            figures: rows_of(&pairs),
            pairs,
            accounts: Vec::new(),
            faults: Vec::new(),
            plots: Vec::new(),
        })
    }

    /// Shows the result and writes the files that were asked for. True when nothing was wrong.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn publish(&self, subject: &Subject) -> Result<bool, BenchError> {
        match io::stdout().lock().write_all(self.text().as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(BenchError::failed("cannot write to standard output", error));
            }
            _ => {}
        }
        if let Some(path) = &subject.json {
            let json = serde_json::to_vec_pretty(self).map_err(io::Error::from);
            write(path, json)?;
        }
        if let Some(path) = &subject.html {
            write(path, Ok(crate::page::of(self).into_bytes()))?;
        }
        Ok(self.faults.is_empty())
    }

    /// Facts about the run, for a reader of the page.
    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let machine = &self.machine;
        let memory = crate::table::number(crate::outcome::float(machine.memory_bytes) / 1_073_741_824.0);
        let mut facts = self.asked.clone();
        facts.extend([
            ("machine".to_owned(), format!("{} x {}, {memory} GiB", machine.processors, machine.processor)),
            ("kernel".to_owned(), format!("Linux {}, {}", machine.kernel, machine.congestion_control)),
            ("program".to_owned(), format!("goim {}", self.version)),
        ]);
        facts
    }

    fn text(&self) -> String {
        let facts: Vec<String> = self.facts().iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut text = format!("{}: {}\n\n", self.what, facts.join("; "));
        crate::table::figures(&mut text, &self.figures);
        text.push('\n');
        for account in &self.accounts {
            text.push_str(&format!("{account}\n"));
        }
        if self.faults.is_empty() {
            text.push_str("  nothing lost, nothing doubled, everything in order\n");
        }
        for fault in &self.faults {
            text.push_str(&format!("  WRONG: {fault}\n"));
        }
        text
    }
}

fn write(path: &Path, content: io::Result<Vec<u8>>) -> Result<(), BenchError> {
    content
        .and_then(|content| std::fs::write(path, content))
        .map_err(|error| BenchError::failed(format!("cannot write {}", path.display()), error))
}
