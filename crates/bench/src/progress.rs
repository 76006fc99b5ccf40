//! Progress on standard error: a bar on a terminal, else a line every few seconds. Standard output
//! has the result only.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines of one phase, without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the progress of a benchmark.
pub(crate) struct Progress {
    /// The current phase, and its bar on a terminal.
    phase: RefCell<(String, Option<ProgressBar>)>,
    is_terminal: bool,
    /// When the last line was written, without a terminal.
    line_at: Cell<Instant>,
    /// Precedes the name of each phase.
    prefix: &'static str,
}

impl Progress {
    pub(crate) fn new(prefix: &'static str) -> Self {
        let is_terminal = io::stderr().is_terminal();
        Self { phase: RefCell::default(), is_terminal, line_at: Cell::new(Instant::now()), prefix }
    }

    /// Starts a phase that counts up to `total`, or without a known end when that is 0.
    pub(crate) fn phase(&self, name: &str, total: u64) {
        self.clear();
        let name = format!("{} {name}", self.prefix);
        let bar = self.is_terminal.then(|| bar(&name, total));
        self.line_at.set(Instant::now());
        self.phase.replace((name, bar));
    }

    /// Sets the position of the phase.
    pub(crate) fn at(&self, position: u64) {
        let (name, bar) = &*self.phase.borrow();
        if let Some(bar) = bar {
            bar.set_position(position);
        } else if self.line_at.get().elapsed() >= LINE_INTERVAL {
            self.line_at.set(Instant::now());
            let position = crate::table::number(crate::figures::float(position));
            print(&format!("{name}: {position} so far"));
        }
    }

    /// Prints a result, and ends the phase.
    pub(crate) fn done(&self, text: &str) {
        self.clear();
        print(&format!("{}: {text}", self.prefix));
    }

    /// Ends the phase without a result.
    pub(crate) fn clear(&self) {
        if let (_, Some(bar)) = self.phase.take() {
            bar.finish_and_clear();
        }
    }
}

fn print(line: &str) {
    // A closed standard error does not stop the benchmark.
    let _ = writeln!(io::stderr(), "{line}");
}

fn bar(name: &str, total: u64) -> ProgressBar {
    let template = if total > 0 {
        "{msg} {wide_bar} {human_pos} of {human_len} {elapsed}"
    } else {
        "{msg} {spinner} {human_pos} {elapsed}"
    };
    let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template(template);
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
