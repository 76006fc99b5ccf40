//! What is shown while a benchmark runs: a bar on a terminal, else a line for each phase. On standard error, so that the
//! result alone is on standard output.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between two lines of a phase that takes long, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a run is.
pub(crate) struct Progress {
    /// The phase under way, and its bar on a terminal.
    phase: RefCell<(String, Option<ProgressBar>)>,
    terminal: bool,
    /// When the last line was written, where there is no terminal.
    line_at: Cell<Instant>,
    /// In front of the name of each phase, for example which run it is.
    prefix: String,
}

impl Progress {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            phase: RefCell::default(),
            terminal,
            line_at: Cell::new(Instant::now()),
            prefix: prefix.into(),
        }
    }

    /// A phase begins; `total` is what it counts up to, 0 when there is no such number.
    pub(crate) fn phase(&self, name: &str, total: u64) {
        self.over();
        let name = format!("{} {name}", self.prefix);
        let bar = self.terminal.then(|| bar(&name, total));
        self.line_at.set(Instant::now());
        self.phase.replace((name, bar));
    }

    /// How far the phase is.
    pub(crate) fn at(&self, position: u64) {
        let (name, bar) = &*self.phase.borrow();
        if let Some(bar) = bar {
            bar.set_position(position);
        } else if self.line_at.get().elapsed() >= LINE_INTERVAL {
            self.line_at.set(Instant::now());
            say(&format!("{name}: {} so far", crate::table::number(crate::outcome::float(position))));
        }
    }

    /// The phase has ended, with this result.
    pub(crate) fn done(&self, text: &str) {
        let (name, bar) = self.phase.take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        say(&format!("{name}: {text}"));
    }

    /// The phase has ended, and there is nothing to say of it.
    pub(crate) fn over(&self) {
        if let (_, Some(bar)) = self.phase.take() {
            bar.finish_and_clear();
        }
    }
}

fn say(line: &str) {
    // Progress that cannot be shown is no reason to stop.
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
