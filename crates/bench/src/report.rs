//! The result of a benchmark, as text and JSON, and as HTML through `html_report`. Computes no
//! figure.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::error::BenchError;
use crate::figures::{Figure, Pair, Row, rows};
use crate::latency::Latency;
use crate::machine::{Facts, facts};
use crate::options::Options;
use crate::pair::Both;

/// A plot of the HTML page.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) kind: PlotKind,
    pub(crate) series: Vec<Series>,
}

/// The axes of a plot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PlotKind {
    /// Quantiles, with the high ones spread out, against a logarithmic time axis.
    Latency,
    Linear,
}

/// A line of a plot.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    /// Creates a plot of the latencies of all windows.
    pub(crate) fn latency<T>(what: &str, windows: &[Both<T>], of: impl Fn(&T) -> &Latency) -> Self {
        let line = |system: &str, index: usize, window: &T| Series {
            name: format!("{system}, window {}", index + 1),
            points: of(window).curve(),
        };
        let series = windows.iter().enumerate().flat_map(|(index, (server, reference))| {
            let reference = reference.as_ref().map(|window| line("reference", index, window));
            std::iter::once(line("server", index, server)).chain(reference)
        });
        Self {
            title: format!("Latency of {what}"),
            x: format!("share of {what}"),
            y: "ms".into(),
            kind: PlotKind::Latency,
            series: series.collect(),
        }
    }
}

/// The result of a benchmark.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) what: &'static str,
    version: &'static str,
    machine: Facts,
    options: Vec<(String, String)>,
    pub(crate) figures: Vec<Row>,
    /// The figures of each pair of windows.
    pairs: Vec<Pair>,
    /// Lines about everything that arrived.
    pub(crate) accounts: Vec<String>,
    /// What was lost, duplicated, reordered or otherwise wrong.
    pub(crate) faults: Vec<String>,
    pub(crate) plots: Vec<Plot>,
}

impl Report {
    /// Creates a report. `more` are options of this benchmark alone.
    pub(crate) fn new(
        what: &'static str,
        options: &Options,
        more: &[(&str, String)],
        pairs: Vec<Pair>,
    ) -> Self {
        let mut options = options.describe();
        options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Self {
            what,
            version: env!("CARGO_PKG_VERSION"),
            machine: facts(),
            options,
            figures: rows(&pairs),
            pairs,
            accounts: Vec::new(),
            faults: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// Adds figures that were measured once to every pair.
    pub(crate) fn add_to_each(&mut self, figures: &[Figure]) {
        if self.pairs.is_empty() {
            self.pairs.push((Vec::new(), None));
        }
        self.pairs.iter_mut().for_each(|(own, _)| own.extend_from_slice(figures));
        self.figures = rows(&self.pairs);
    }

    /// Prints the report, and writes it as JSON where a file is given.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn publish(&self, json: Option<&Path>) -> Result<(), BenchError> {
        match io::stdout().lock().write_all(self.text().as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(BenchError::failed("cannot write to standard output", error));
            }
            _ => {}
        }
        if let Some(path) = json {
            write(path, serde_json::to_vec_pretty(self).map_err(io::Error::from))?;
        }
        Ok(())
    }

    /// Returns the options and the facts of the machine.
    pub(crate) fn facts(&self) -> Vec<(String, String)> {
        let machine = &self.machine;
        let memory = crate::table::number(crate::figures::float(machine.memory_bytes) / 1_073_741_824.0);
        let mut facts = self.options.clone();
        facts.extend([
            ("machine".to_owned(), format!("{} x {}, {memory} GiB", machine.processors, machine.processor)),
            ("kernel".to_owned(), format!("Linux {}, {}", machine.kernel, machine.congestion_control)),
            ("open files".to_owned(), machine.open_files_max.to_string()),
            ("program".to_owned(), format!("goim-bench {}", self.version)),
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
            text.push_str(&format!("  {NO_FAULTS}\n"));
        }
        for fault in &self.faults {
            text.push_str(&format!("  WRONG: {fault}\n"));
        }
        text
    }
}

/// The line of a report without faults.
pub(crate) const NO_FAULTS: &str = "nothing lost, nothing duplicated, everything in order";

/// Writes a file of a report.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(path: &Path, content: io::Result<Vec<u8>>) -> Result<(), BenchError> {
    content
        .and_then(|content| std::fs::write(path, content))
        .map_err(|error| BenchError::failed(format!("cannot write {}", path.display()), error))
}
