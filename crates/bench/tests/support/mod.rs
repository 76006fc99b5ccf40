//! The program under test, and the files that it writes.

#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod faulty_server;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `goim-bench` with arguments that are separated by spaces.
pub(crate) fn run(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goim-bench"));
    command.args(arguments.split_whitespace()).env_remove("GOIM_API_KEY").output().expect("the program runs")
}

/// The JSON and HTML files of a report. Displayed, they are arguments. Dropping them removes the
/// files.
pub(crate) struct Files {
    json: PathBuf,
    html: PathBuf,
}

impl Files {
    pub(crate) fn new(name: &str) -> Self {
        let file = |kind: &str| {
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.{kind}", std::process::id()))
        };
        Self { json: file("json"), html: file("html") }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(&self.json).expect("the file")).expect("JSON")
    }

    pub(crate) fn html(&self) -> String {
        std::fs::read_to_string(&self.html).expect("the page")
    }

    /// Returns the row of a figure.
    pub(crate) fn figure(&self, name: &str) -> Value {
        let report = self.json();
        let rows = report["figures"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["name"] == name);
        row.unwrap_or_else(|| panic!("no figure {name} in {report}")).clone()
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--json {} --html {}", self.json.display(), self.html.display())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for file in [&self.json, &self.html] {
            let _ = std::fs::remove_file(file);
        }
    }
}
